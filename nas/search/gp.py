"""Optuna's Gaussian process as a mind, held to candidates that are feasible and unseen."""

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from nas.search.mind import Problem, Proposal
from nas.search.optuna_mind import OptunaMind
from nas.search.pool import Pool
from nas.search.rows import Array, Costs, Rows
from nas.seeds import stage_seed
from nas.study import Choice

if TYPE_CHECKING:
    from optuna.samplers import GPSampler

GP_STARTS = 10
CHUNK = 2048  # candidates whose acquisition is computed at once
MOST_PARENTS = 64

Acquire = Callable[[Array], Array]


class GpMind:
    """Fits Optuna's GPSampler and proposes what its acquisition likes best of the candidates.

    By itself GPSampler learns the budgets as it learns the score, and sees neither what was
    refused nor what failed, so that it proposes the same again. Prices are known here: the
    acquisition (log expected improvement, or hypervolume improvement with a cost beside the
    score) is maximised over priced, feasible, unseen candidates instead of the whole space.
    """

    num_starts = GP_STARTS

    def __init__(self, problem: Problem) -> None:
        seed = stage_seed(problem.seed, "search/gp")
        self._rows = Rows(problem.genes, problem.price, problem.budgets, seed=seed)
        self._pool = Pool(self._rows, problem.complete)
        # Optuna's order of genes, those without a choice left out
        names = list(problem.genes)
        varied = sorted(gene for gene, known in problem.genes.items() if len(known) > 1)
        self._columns = [names.index(gene) for gene in varied]
        self._scored: list[tuple[float, Array]] = []
        sampler = _sampler(seed, self._choose)
        self._optuna = OptunaMind(replace(problem, budgets={}), sampler, num_starts=GP_STARTS)

    # ------------------------------------------------------------ what the engine calls
    def ask(self) -> Proposal:
        """Return the sampler's next candidate."""
        return self._note(self._optuna.ask())

    def adopt(self, choice: Choice) -> Proposal:
        """Return a candidate from elsewhere; the sampler counts it as one of its own."""
        return self._note(self._optuna.adopt(choice))

    def tell(self, proposal: Proposal, score: float | None, costs: Mapping[str, float]) -> None:
        """Hand the result to the sampler."""
        if score is not None:
            self._scored.append((score, self._rows.encode([proposal.choice])[0]))
        self._optuna.tell(proposal, score, costs)

    # ------------------------------------------------------------ thinking
    def _note(self, proposal: Proposal) -> Proposal:
        row = self._rows.encode([proposal.choice])[0]
        self._pool.see(row, self._pool.finish(proposal.choice))
        return proposal

    def _choose(self, acquire: Acquire) -> Array | None:
        """Return the candidate of the highest acquisition in Optuna's words; None without one."""

        def rank(codes: Array, costs: Costs) -> Array:
            parts = range(0, len(codes), CHUNK)
            words = codes[:, self._columns].astype(np.float64)
            values = [np.ravel(acquire(words[start : start + CHUNK])) for start in parts]
            # -inf: no improvement at all
            ranks: Array = np.nan_to_num(np.concatenate([*values, np.zeros(0)]), neginf=-1e6)
            return ranks

        best = sorted(self._scored, key=lambda known: -known[0])[:MOST_PARENTS]
        short = self._pool.best(rank, np.stack([row for _, row in best]))
        if len(short) == 0:
            return None
        row = short.raw[int(rank(short.raw, short.costs).argmax())]
        words: Array = row[self._columns].astype(np.float64)
        return words


def _sampler(seed: int, choose: Callable[[Acquire], Array | None]) -> "GPSampler":
    """Return a GPSampler that leaves the choice of the candidate to `choose`."""
    from optuna.samplers import GPSampler

    class PoolSampler(GPSampler):
        def _optimize_acqf(self, acqf: Any, best_params: Array | None) -> Array:  # Any: private
            words = choose(acqf.eval_acqf_no_grad)
            return super()._optimize_acqf(acqf, best_params) if words is None else words

    return PoolSampler(seed=seed, n_startup_trials=GP_STARTS, warn_independent_sampling=False)

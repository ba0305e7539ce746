"""Minds: who proposes the next candidate. They think in memory and never touch a database."""

from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Protocol

import numpy as np

from nas.files import canonical_json
from nas.search.rows import PriceChoices
from nas.seeds import stage_seed
from nas.study import Choice, Genes, Option, quiet_optuna
from nas.study.trial import Codec

if TYPE_CHECKING:
    import optuna

PREDICTOR_STARTS = 20
TPE_STARTS = 16
NSGA2_POPULATION = 24


@dataclass(frozen=True, slots=True)
class Proposal:
    """One candidate a mind waits to hear about; `ticket` is the mind's own."""

    ticket: int
    choice: Choice


class Mind(Protocol):
    """What proposes candidates.

    A mind may propose anything, infeasible and seen before; the engine refuses and tells it so.
    Every proposal is told exactly once, in the order proposed within a batch. The same seed and
    the same answers give the same proposals, in any process. A mind does no input or output.
    """

    num_starts: int

    def ask(self) -> Proposal:
        """Return the next candidate."""
        ...

    def adopt(self, choice: Choice) -> Proposal:
        """Return a candidate found elsewhere, as if the mind had proposed it."""
        ...

    def tell(self, proposal: Proposal, score: float | None, costs: Mapping[str, float]) -> None:
        """Take the result of a proposal: a score to maximise; None means refused or failed."""
        ...


def whole_key(choice: Choice) -> Hashable:
    """Return what tells a choice from every other: all of it."""
    return canonical_json(dict(choice))


@dataclass(frozen=True, slots=True, kw_only=True)
class Problem:
    """What every mind is given: the genes, the budgets, and what to be good at.

    Attributes:
        genes: The options of every gene.
        budgets: {metric: limit}.
        objective: The cost to minimise beside the score; None to look at the score alone.
        seed: Of all that is random.
        price: What candidates cost, for minds that look before they propose.
        batch: How many proposals the engine asks for before it tells the first one's result.
        complete: Makes a choice the candidate that is evaluated; None where it is that already.
        key: What makes two completed candidates the same one.
        lost: Predicted loss of each gene's options, for `slimming`.
    """

    genes: Genes
    budgets: Mapping[str, float]
    objective: str | None
    seed: int
    price: PriceChoices
    batch: int = 1
    complete: Callable[[Choice], Choice] | None = None
    key: Callable[[Choice], Hashable] = whole_key
    lost: Mapping[str, Mapping[Option, float]] | None = None


class RandomMind:
    """Proposes uniformly over the genes and learns nothing: the yardstick of the others."""

    num_starts = 0

    def __init__(self, problem: Problem) -> None:
        self._genes = problem.genes
        self._rng = np.random.default_rng(stage_seed(problem.seed, "search/random"))
        self._asked = 0

    def ask(self) -> Proposal:
        """Return a uniform draw."""
        return self.adopt(
            {gene: known[self._rng.integers(len(known))] for gene, known in self._genes.items()}
        )

    def adopt(self, choice: Choice) -> Proposal:
        """Return the choice as a proposal."""
        self._asked += 1
        return Proposal(self._asked, choice)

    def tell(self, proposal: Proposal, score: float | None, costs: Mapping[str, float]) -> None:
        """Learn nothing."""


class OptunaMind:
    """An Optuna sampler on a study in memory, by ask and tell.

    Refused and failed candidates are told PRUNED: FAIL would make TPE forget them and propose
    them again for ever. Every trial gets its constraints, because one without counts as feasible.
    """

    def __init__(
        self, problem: Problem, sampler: "optuna.samplers.BaseSampler", *, num_starts: int
    ) -> None:
        import optuna

        self.num_starts = num_starts
        self._budgets = problem.budgets
        self._objective = problem.objective
        self._codec = Codec(problem.genes)
        self._waiting: dict[int, optuna.Trial] = {}
        both = [optuna.study.StudyDirection.MAXIMIZE, optuna.study.StudyDirection.MINIMIZE]
        directions = both if problem.objective else both[:1]
        with quiet_optuna():
            self._study = optuna.create_study(
                storage=optuna.storages.InMemoryStorage(), sampler=sampler, directions=directions
            )

    def ask(self) -> Proposal:
        """Return the sampler's next candidate."""
        trial = self._study.ask(dict(self._codec.distributions))
        self._waiting[trial.number] = trial
        return Proposal(trial.number, self._codec.decode(trial.params))

    def adopt(self, choice: Choice) -> Proposal:
        """Return a candidate from elsewhere; the sampler counts it as one of its own."""
        self._study.enqueue_trial(self._codec.encode(choice))
        return self.ask()

    def tell(self, proposal: Proposal, score: float | None, costs: Mapping[str, float]) -> None:
        """Hand the result to the sampler."""
        from optuna.trial import TrialState

        trial = self._waiting.pop(proposal.ticket)
        for metric, limit in self._budgets.items():
            trial.set_constraint(metric, costs[metric] / limit - 1.0)
        if score is None:
            self._study.tell(trial, state=TrialState.PRUNED)
        else:
            values = [score] if self._objective is None else [score, costs[self._objective]]
            self._study.tell(trial, values)


def _tpe(problem: Problem) -> Mind:
    from optuna.samplers import TPESampler

    sampler = TPESampler(
        seed=stage_seed(problem.seed, "search/tpe"),
        n_startup_trials=TPE_STARTS,
        multivariate=True,  # also for two objectives, where Optuna's default is one gene at a time
    )
    return OptunaMind(problem, sampler, num_starts=TPE_STARTS)


def _nsga2(problem: Problem) -> Mind:
    from optuna.samplers import NSGAIISampler

    sampler = NSGAIISampler(
        seed=stage_seed(problem.seed, "search/nsga2"), population_size=NSGA2_POPULATION
    )
    return OptunaMind(problem, sampler, num_starts=NSGA2_POPULATION)


def _predictor(problem: Problem) -> Mind:
    from nas.search.predictor import PredictorMind

    return PredictorMind(problem)


def _gp(problem: Problem) -> Mind:
    from nas.search.gp import GpMind

    return GpMind(problem)


def _slimming(problem: Problem) -> Mind:
    from nas.search.slimming import SlimmingMind

    return SlimmingMind(problem)


SAMPLERS = MappingProxyType(
    {
        "predictor": _predictor,
        "tpe": _tpe,
        "nsga2": _nsga2,
        "gp": _gp,
        "slimming": _slimming,
        "random": RandomMind,
    }
)

"""The samplers by name: what each mind is made of for a problem."""

from collections.abc import Mapping
from types import MappingProxyType

import numpy as np

from nas.search.mind import Mind, Problem, Proposal
from nas.search.optuna_mind import OptunaMind
from nas.seeds import stage_seed
from nas.study import Choice

TPE_STARTS = 16
NSGA2_POPULATION = 24


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

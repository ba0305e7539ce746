"""Optuna's samplers as minds."""

from collections.abc import Mapping
from typing import TYPE_CHECKING

from nas.search.mind import Problem, Proposal
from nas.study import Choice, quiet_optuna
from nas.study.trial import Codec

if TYPE_CHECKING:
    import optuna


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

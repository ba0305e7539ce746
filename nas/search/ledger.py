"""The rows a study already has, as a search that goes on meets them again."""

from collections.abc import Callable, Hashable, Sequence

from nas.errors import ConfigError
from nas.search.evaluate import Outcome
from nas.study import Choice, Trial

FAILURES_IN_A_ROW = 3  # that many end a search; what caused them is seldom the candidate


class Ledger:
    """Results by candidate. A search that goes on is run again from its seed; every candidate it
    meets here is told its recorded result instead of being evaluated.

    Failures that ended a search are the exception: those candidates are evaluated once more.
    """

    def __init__(self, rows: Sequence[Trial], key: Callable[[Choice], Hashable]) -> None:
        self._latest: dict[Hashable, Trial] = {}
        self._again: set[Hashable] = set()
        streak: list[Hashable] = []
        for row in rows:
            name = key(row.choice)
            self._latest[name] = row
            self._again.discard(name)
            streak = [] if row.is_complete else [*streak, name]
            if len(streak) >= FAILURES_IN_A_ROW:
                self._again.update(streak)
        self._unmet = dict.fromkeys(name for name in self._latest if name not in self._again)

    def __len__(self) -> int:
        return len(self._latest)

    def meet(self, name: Hashable) -> Trial | None:
        """Return the recorded row of a candidate; None if it is to be evaluated."""
        if name in self._again or name not in self._latest:
            return None
        self._unmet.pop(name, None)
        return self._latest[name]

    def attempt(self, name: Hashable) -> int:
        """Return the number of the next attempt at a candidate, from 1."""
        return self._latest[name].attempt + 1 if name in self._latest else 1

    def is_known(self, name: Hashable) -> bool:
        """Return whether a candidate has a row, one to be repeated included."""
        return name in self._latest

    def unmet(self) -> list[tuple[Hashable, Trial]]:
        """Return the rows that the search has not come to yet, in their order."""
        return [(name, self._latest[name]) for name in self._unmet]


def outcome_of(row: Trial) -> Outcome:
    """Return a recorded row as the outcome it was."""
    return Outcome(
        accuracy=row.accuracy, loss=row.loss, reason=row.reason, evaluation_s=row.evaluation_s
    )


def check_costs(row: Trial, costs: dict[str, float]) -> None:
    """Raise ConfigError if a recorded candidate is priced otherwise today."""
    for metric, cost in costs.items():
        before = row.costs.get(metric)
        if before != cost:
            raise ConfigError(
                f"trial {row.number} was priced {metric} = {before}, but is priced {cost} now: the "
                "prices have changed. Use the table it was begun with, or choose another --name."
            )

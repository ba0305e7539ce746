"""Every error a user can meet, each with the exit code the command line ends with.

NasError                      1   something failed; the message says what
├── ConfigError               2   a value, key or flag breaks a rule (also a ValueError)
├── InfeasibleBudget          3   nothing in the space meets the budget (also a ValueError)
├── UnreliableTiming          4   the machine is too noisy to be believed
├── DeviceError               5   a device or runtime is missing or failed (also a RuntimeError)
├── CorruptFile               6   a file is damaged, or not one we accept (also a ValueError)
├── BrokenPromise             7   a winner does not keep what its manifest promises
├── StorageError              1   a file could not be written (also an OSError)
├── TrainingDiverged          1   a loss became NaN or infinite
└── TryAgain                 75   somebody else holds the run or the database is away
"""

import functools
from typing import Any, ClassVar


class NasError(Exception):
    """Something failed in a way the message explains; no traceback is needed."""

    exit_code: ClassVar[int] = 1


class ConfigError(NasError, ValueError):
    """What was asked for breaks a rule; the message names rule, value and way out."""

    exit_code: ClassVar[int] = 2


class InfeasibleBudget(NasError, ValueError):
    """No architecture meets the budget; carries the budget and the smallest cost there is."""

    exit_code: ClassVar[int] = 3

    def __init__(self, message: str, *, metric: str, budget: float, smallest: float) -> None:
        super().__init__(message)
        self.metric = metric
        self.budget = budget
        self.smallest = smallest

    def __reduce__(self) -> tuple[Any, ...]:
        """Carry the numbers from one process to another."""
        numbers: dict[str, Any] = {
            "metric": self.metric, "budget": self.budget, "smallest": self.smallest,
        }  # fmt: skip
        return functools.partial(type(self), **numbers), self.args


class UnreliableTiming(NasError):
    """Too few clean samples were seen for a latency to be believed."""

    exit_code: ClassVar[int] = 4


class DeviceError(NasError, RuntimeError):
    """A device or runtime is not there, or failed while it was used."""

    exit_code: ClassVar[int] = 5


class CorruptFile(NasError, ValueError):
    """A file is damaged, truncated, or of a kind that is not accepted."""

    exit_code: ClassVar[int] = 6


class BrokenPromise(NasError):
    """A winner was checked and does not keep what its manifest promises."""

    exit_code: ClassVar[int] = 7


class StorageError(NasError, OSError):
    """A file could not be written; what stood there before is untouched."""


class TrainingDiverged(NasError):
    """A loss became NaN or infinite; the last checkpoint is intact."""


class TryAgain(NasError):
    """Another process holds the run, or the database is away; the same command may work later."""

    exit_code: ClassVar[int] = 75

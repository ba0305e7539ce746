"""ReportInput: everything a report shows, as plain values, and the few numbers derived from it."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field

from nas.errors import ConfigError
from nas.manifest import Winner


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One evaluated architecture: its id, supernet accuracy (0 to 1) and predicted latency."""

    id: str
    accuracy: float
    latency_ms: float

    def __post_init__(self) -> None:
        _check_share(f"accuracy of candidate {self.id}", self.accuracy)
        _check_ms(f"latency_ms of candidate {self.id}", self.latency_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class Prediction:
    """One whole network that no table was fitted on: measured, and predicted in three ways.

    `table_ms` is the latency table's estimate, `isolated_ms` the sum of its parts each timed
    alone, `macs_ms` a straight line through multiply-accumulates.
    """

    id: str
    measured_ms: float
    table_ms: float
    isolated_ms: float
    macs_ms: float

    def __post_init__(self) -> None:
        _check_ms(f"measured_ms of {self.id}", self.measured_ms)
        for name in PREDICTORS:
            _check_finite(f"{name} of {self.id}", getattr(self, name))  # a line can go below 0


@dataclass(frozen=True, slots=True, kw_only=True)
class LossPoint:
    """The supernet's training loss at one step."""

    step: int
    loss: float

    def __post_init__(self) -> None:
        _check_finite(f"loss of step {self.step}", self.loss)


@dataclass(frozen=True, slots=True, kw_only=True)
class Command:
    """A command line and, in a few words, what it does."""

    text: str
    purpose: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ReportInput:
    """What one run found.

    Args:
        title: Name of the run.
        target: Id of the Target that latencies are for.
        device: The machine in words.
        budget_ms: What a winner may take.
        candidates: Every evaluated architecture, in the order it was evaluated.
        winner: The network that was kept; None when there is none (yet).
        rejected: Candidates that were trained and measured before it and broke their promise.
        predictions: Networks the latency table has not seen, measured whole.
        losses: The supernet's training loss, in order of steps.
        feasible_share: Share (0 to 1) of random architectures that meet the budget.
        feasible_sample: Of how many random architectures.
        created: When, as text; left out when empty, so that the same input gives the same page.
    """

    title: str
    space: str
    data: str
    seed: int
    target: str
    device: str
    budget_ms: float
    candidates: tuple[Candidate, ...] = ()
    winner: Winner | None = None
    rejected: tuple[Winner, ...] = ()
    predictions: tuple[Prediction, ...] = ()
    losses: tuple[LossPoint, ...] = ()
    feasible_share: float | None = None
    feasible_sample: int = 0
    versions: dict[str, str] = field(default_factory=dict)
    machine: dict[str, str] = field(default_factory=dict)
    commands: tuple[Command, ...] = ()
    created: str = ""

    def __post_init__(self) -> None:
        _check_ms("budget_ms", self.budget_ms)
        if self.feasible_share is not None:
            _check_share("feasible_share", self.feasible_share)


@dataclass(frozen=True, slots=True, kw_only=True)
class PredictorError:
    """Relative error of one way to predict latency over some networks: mean and worst."""

    name: str
    mean: float
    worst: float


PREDICTORS = {
    "table_ms": "our table",
    "isolated_ms": "sum of isolated parts",
    "macs_ms": "line through MACs",
}


def prediction_errors(predictions: Sequence[Prediction]) -> dict[str, PredictorError]:
    """Return each predictor's error |predicted - measured| / measured, keyed as in Prediction.

    An empty list of networks gives an empty dict.
    """
    errors = {}
    for key, name in PREDICTORS.items() if predictions else ():
        relative = [abs(getattr(row, key) / row.measured_ms - 1) for row in predictions]
        mean = math.fsum(relative) / len(relative)
        errors[key] = PredictorError(name=name, mean=mean, worst=max(relative))
    return errors


def pareto_front(candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """Return the candidates no other beats in accuracy and latency, fastest first.

    Of candidates equal in both the first evaluated one stays.
    """
    front: list[Candidate] = []
    for candidate in sorted(candidates, key=lambda row: (row.latency_ms, -row.accuracy)):
        if not front or candidate.accuracy > front[-1].accuracy:
            front.append(candidate)
    return tuple(front)


# ---------------------------------------------------------------- rules
def _check_finite(name: str, value: float) -> None:
    if not math.isfinite(value):
        raise ConfigError(f"{name} must be a finite number, but is {value}.")


def _check_ms(name: str, value: float) -> None:
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{name} must be a number of milliseconds above 0, but is {value}.")


def _check_share(name: str, value: float) -> None:
    if not 0 <= value <= 1:
        raise ConfigError(f"{name} must be from 0 to 1, but is {value}.")

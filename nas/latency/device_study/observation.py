"""Observation: what was measured for one question, as plain values that go to JSON and back."""

from dataclasses import dataclass

from nas.latency.device_study.stairs import Step
from nas.latency.timing import Timing


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One network: what it is, and its latency, or the problem that kept it from being timed.

    `shape` is (channels, height, width) of its input. Of `taken` samples `clean` counted;
    `spread` is their interquartile range by the median.
    """

    name: str
    text: str
    shape: tuple[int, int, int]
    params: int = 0
    median_ms: float | None = None
    p10_ms: float | None = None
    p90_ms: float | None = None
    spread: float | None = None
    clean: int = 0
    taken: int = 0
    grade: str | None = None
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """How many times `under`'s latency `over` takes, with the 95 % interval; None: not measured.

    `grade` is the worse of the two. `is_told`: the interval does not hold 1.
    """

    over: str
    under: str
    subject: str
    ratio: float | None = None
    low: float | None = None
    high: float | None = None
    grade: str | None = None
    is_told: bool = False
    problem: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class OpShare:
    """One group of operations in a runtime's own profile: its time, and its share of the whole."""

    group: str
    ms: float
    share: float
    is_memory_bound: bool


@dataclass(frozen=True, slots=True, kw_only=True)
class Observation:
    """One question with its answers.

    `is_noisy`: the timing failed because the machine was not quiet; --resume measures it again.
    `width_step` is the multiple of channels that pays, for a series of widths.
    """

    key: str
    title: str
    asks: str
    rows: tuple[Row, ...]
    comparisons: tuple[Comparison, ...] = ()
    steps: tuple[Step, ...] = ()
    width_step: int | None = None
    op_shares: tuple[OpShare, ...] = ()
    advice: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    is_noisy: bool = False

    @property
    def is_measured(self) -> bool:
        """Whether any network of it has a latency."""
        return any(row.median_ms is not None for row in self.rows)


def row_of(row: Row, timing: Timing) -> Row:
    """Return the row with its latency."""
    return Row(
        name=row.name,
        text=row.text,
        shape=row.shape,
        params=row.params,
        median_ms=timing.median_ms,
        p10_ms=timing.p10,
        p90_ms=timing.p90,
        spread=timing.spread,
        clean=timing.clean,
        taken=timing.taken,
        grade=timing.grade,
    )

"""What samples say: a network's latency, how far it may be trusted, and when it is no number."""

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from nas.errors import UnreliableTiming
from nas.latency.bench import Times

SAMPLES_A_VISIT = 4
MIN_CLEAN = 3  # fewer are no measurement at all
CONFIDENCE, CI_ERRORS = 0.95, 1.96  # of an interval, and its half width in standard errors
GRADE_A, GRADE_B = 0.05, 0.10  # largest interquartile range by median
STANDARD_ERROR = 1.2533 / 1.349  # of a median: times interquartile range by root of samples
MAX_ERROR_A, MAX_ERROR_B = 0.015, 0.03  # largest standard error of a price, by the price


@dataclass(frozen=True, slots=True, kw_only=True)
class Timing:
    """One network's latency in ms, batch as in its Target.

    Median, p10 and p90 are of clean samples; p95 is of all samples, disturbed ones included.
    `ci_high_ms` is the upper end of the median's 95 % interval: of a bootstrap over samples, or of
    the places in memory, where that is wider; `spread` is the interquartile range by the median.
    Grade A: spread below 5 % and half of the samples clean; B: spread below 10 %; C: the rest,
    fewer clean samples than asked for, or a machine that was slower all the time than it is known
    to be. `repeat` is how far the medians of every other visit are apart, by the second: the error
    that measuring again would make. `reference_ms` is what the reference kernel took at the speed
    that these times are of; None where there was none beside them.
    """

    median_ms: float
    p10: float
    p90: float
    p95: float
    ci_high_ms: float
    clean: int
    taken: int
    grade: str
    spread: float
    repeat: float | None
    reference_ms: float | None = None

    def at_speed(self, reference_ms: float | None) -> "Timing":
        """Return it as on a machine whose reference takes so long, if that is slower than this.

        A clock that is faster today than usual slows down again: what is promised at it is not
        kept. Times on a slower machine stay, for nothing says that it becomes faster.
        """
        if reference_ms is None or self.reference_ms is None or self.reference_ms >= reference_ms:
            return self
        factor = reference_ms / self.reference_ms
        times = ("median_ms", "p10", "p90", "p95", "ci_high_ms")
        scaled = {name: factor * getattr(self, name) for name in times}
        return replace(self, **scaled, reference_ms=reference_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class Series:
    """All samples of one network in order of time, ms of one run, and which of them are clean.

    `reference_ms` and `guard_ms` are the floors of the reference and of the guard (0: there was
    none) in their session. `is_slow`: the machine did not reach the speed it is known for, and the
    samples are clean by this session's floors only. `place`: where in memory the network was at
    each sample, any numbers; None: at one place all the time.
    """

    all_ms: Times
    is_clean: npt.NDArray[np.bool_]
    wanted: int
    reference_ms: float
    guard_ms: float = 0.0
    is_slow: bool = False
    place: npt.NDArray[np.int64] | None = None

    @property
    def clean_ms(self) -> Times:
        """The clean samples in order of time."""
        return self.all_ms[self.is_clean]

    @property
    def repeat(self) -> float | None:
        """How far the clean medians of every other visit are apart, by the second; None: no two."""
        is_odd = np.arange(len(self.all_ms)) // SAMPLES_A_VISIT % 2 == 1
        even, odd = self.all_ms[self.is_clean & ~is_odd], self.all_ms[self.is_clean & is_odd]
        if not len(even) or not len(odd):
            return None
        return abs(float(np.median(even) / np.median(odd)) - 1)

    @property
    def by_place(self) -> Times:
        """Medians of the clean samples at each place in memory that has some, shape (places,)."""
        clean = self.clean_ms
        if self.place is None:
            return np.array([np.median(clean)]) if len(clean) else clean
        place = self.place[self.is_clean]
        return np.array([np.median(clean[place == number]) for number in np.unique(place)])

    @property
    def error_of_places(self) -> float:
        """Standard error, in ms, that the places in memory leave in a median over them.

        Samples taken at one place share its error, so that more of them do not lower it.
        """
        places = self.by_place
        return float(places.std(ddof=1)) / math.sqrt(len(places)) if len(places) > 1 else 0.0

    @property
    def median_ms(self) -> float:
        """Median of the clean samples."""
        return float(np.median(self.clean_ms))

    def require(self, name: str, *, strict: bool) -> None:
        """Raise UnreliableTiming if there is too little to believe; any grade C if strict."""
        clean, taken = int(self.is_clean.sum()), len(self.all_ms)
        if clean < MIN_CLEAN or (strict and grade(self.clean_ms, self) == "C"):
            raise UnreliableTiming(
                f"{name}: only {clean} of {taken} samples were clean, {self.wanted} with little "
                "spread are wanted. Stop other programs on this machine, or allow more time "
                "(time_limit_s); what is measured already is kept."
            )


def grade(values_ms: Times, *series: Series) -> str:
    """Return A, B or C for values that were read off these series (see Timing)."""
    low, middle, high = np.quantile(values_ms, [0.25, 0.5, 0.75])
    spread = (high - low) / middle if middle > 0 else math.inf
    enough = all(item.is_clean.sum() >= item.wanted and not item.is_slow for item in series)
    if not enough or spread >= GRADE_B:
        return "C"
    return "A" if spread < GRADE_A and all(item.is_clean.mean() >= 0.5 for item in series) else "B"


def grade_of_error(share: float) -> str:
    """Return the grade of a price whose standard error is such a share of it."""
    return "A" if share < MAX_ERROR_A else "B" if share < MAX_ERROR_B else "C"


def summarise(series: Series, *, seed: int = 0) -> Timing:
    """Return the numbers of one series, which must have a clean sample."""
    from scipy.stats import bootstrap

    clean = series.clean_ms
    p10, q1, median, q3, p90 = (float(x) for x in np.quantile(clean, [0.1, 0.25, 0.5, 0.75, 0.9]))
    high = median
    if clean.min() < clean.max():
        interval = bootstrap(
            (clean,),
            np.median,
            confidence_level=CONFIDENCE,
            method="percentile",
            n_resamples=999,
            rng=np.random.default_rng(seed),
        ).confidence_interval
        high = float(interval.high)
    high = max(high, median + CI_ERRORS * series.error_of_places)
    return Timing(
        median_ms=median,
        p10=p10,
        p90=p90,
        p95=float(np.quantile(series.all_ms, 0.95)),
        ci_high_ms=high,
        clean=len(clean),
        taken=len(series.all_ms),
        grade=grade(clean, series),
        spread=(q3 - q1) / median,
        repeat=series.repeat,
        reference_ms=series.reference_ms,
    )

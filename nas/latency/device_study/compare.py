"""The ratio of two latencies with its interval, from the spread of their samples."""

import math
from dataclasses import replace

from nas.latency.device_study.observation import Comparison, Row
from nas.latency.device_study.question import Pair
from nas.latency.timing import SAMPLES_A_VISIT

REPEAT_NOISE = 0.005  # of the same network in two loads: memory lies elsewhere
IQR_OF_SIGMA = 1.349  # of a normal distribution
MEDIAN_OF_MEAN = 1.2533  # standard error of a median by that of a mean
TWO_SIDED_95 = 1.96


def noise_of(row: Row) -> float:
    """Return the relative standard error of a row's median.

    Samples of one visit follow each other and are disturbed alike, so they count as one.
    """
    assert row.spread is not None
    independent = max(1.0, row.clean / SAMPLES_A_VISIT)
    sampling = MEDIAN_OF_MEAN * row.spread / IQR_OF_SIGMA / math.sqrt(independent)
    return math.hypot(sampling, REPEAT_NOISE)


def compare(pair: Pair, over: Row, under: Row) -> Comparison:
    """Return how many times `under`'s latency `over` takes."""
    nothing = Comparison(over=pair.over, under=pair.under, subject=pair.subject)
    for row in (over, under):
        if row.median_ms is None:
            return replace(nothing, problem=f"{row.text}: {row.problem or 'not timed'}")
    assert over.median_ms is not None and under.median_ms is not None
    ratio = over.median_ms / under.median_ms
    factor = math.exp(TWO_SIDED_95 * math.hypot(noise_of(over), noise_of(under)))
    low, high = ratio / factor, ratio * factor
    return replace(
        nothing,
        ratio=ratio,
        low=low,
        high=high,
        grade=max(over.grade or "C", under.grade or "C"),
        is_told=not low <= 1 <= high,
    )

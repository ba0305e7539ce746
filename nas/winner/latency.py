"""A winner's latency as it is measured: at which speed of the machine, and how often."""

import time
from collections.abc import Callable
from dataclasses import replace

from nas.latency import Timing
from nas.latency.judge import SAME_SPEED, Known
from nas.manifest import TargetResult, Winner
from nas.target import Target
from nas.winner.promise import UNTRUSTED

BUSY = 1.3  # 95th percentile of all runs by the median of the clean ones: others had the processor
PAUSES_S = (0.0, 30.0, 120.0)  # before a timing that cannot be trusted is taken again


def promised_speed(winner: Winner, target: Target, known: Known) -> Known:
    """Return what is known of the machine, its speed that of the promise where that is noted."""
    promised = winner.on(target.id)
    if promised is None or promised.reference_promised_ms is None:
        return known
    return replace(known, reference_ms=promised.reference_promised_ms)


def trusted(
    winner: Winner,
    measure_once: Callable[[], TargetResult],
    *,
    pause: Callable[[float], None] = time.sleep,
) -> TargetResult:
    """Return what is measured, again where a budget is missed and others may be why.

    That is by a timing of grade C, or on a machine that is slower than where the latency was
    promised, or that others had for part of the time (BUSY): even clean samples may be a tenth
    slower then. So of several timings the fastest counts, those with such a doubt
    behind all others. After each of PAUSES_S there is another, until one is without doubt or meets
    the budget.
    """

    def once() -> TargetResult:
        row = measure_once()
        return row.promised_as(winner.on(row.target))

    found = once()
    budget = winner.latency_budget_ms(found.target)
    for pause_s in PAUSES_S:
        judged = found.judged_ms(winner.statistic)
        if not _is_in_doubt(found) or budget is None or judged is None or judged <= budget:
            break
        pause(pause_s)
        found = min(found, once(), key=lambda row: (_is_in_doubt(row), row.measured_ms or 0.0))
    return found


def _is_in_doubt(row: TargetResult) -> bool:
    """Return whether others may have slowed a timing down."""
    is_busy = (row.p95_ms or 0.0) > BUSY * (row.measured_ms or 0.0)
    return row.grade == UNTRUSTED or is_busy or (row.slower or 1.0) >= 1 + SAME_SPEED


def result_of(timing: Timing, target: Target) -> TargetResult:
    """Return a timing as winner.json has it."""
    return TargetResult(
        target=target.id,
        measured_ms=timing.median_ms,
        ci_high_ms=timing.ci_high_ms,
        p95_ms=timing.p95,
        grade=timing.grade,
        reference_measured_ms=timing.reference_ms,
    )

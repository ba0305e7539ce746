"""A winner's latency as it is measured: at which speed of the machine, and how often."""

import time
from collections.abc import Callable
from dataclasses import replace

from nas.latency import Timing
from nas.latency.judge import Known
from nas.manifest import TargetResult, Winner
from nas.target import Target
from nas.winner.promise import TOLD_SPEED, UNTRUSTED

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
    promised, or that others had for part of the time (BUSY): clean samples are up to a tenth slower
    then, and can only be slower. So of several timings the fastest counts, those with such a doubt
    behind all others. After each of PAUSES_S there is another, until one is without doubt or meets
    the budget.
    """
    found = measure_once()
    budget, promised = winner.latency_budget_ms(found.target), winner.on(found.target)
    promised_ms = promised.reference_promised_ms if promised is not None else None

    def is_in_doubt(row: TargetResult) -> bool:
        slower = replace(row, reference_promised_ms=promised_ms).slower
        is_busy = (row.p95_ms or 0.0) > BUSY * (row.measured_ms or 0.0)
        return row.grade == UNTRUSTED or is_busy or (slower or 1.0) >= 1 + TOLD_SPEED

    for pause_s in PAUSES_S:
        judged = found.judged_ms(winner.statistic)
        if not is_in_doubt(found) or budget is None or judged is None or judged <= budget:
            break
        pause(pause_s)
        rows = (found, measure_once())
        found = min(rows, key=lambda row: (is_in_doubt(row), row.measured_ms or 0.0))
    return found


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

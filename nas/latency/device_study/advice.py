"""What measured ratios mean for a search space, in plain sentences.

Nothing is advised from grade C numbers, nor from a difference that was not told from none.
"""

from collections.abc import Sequence

from nas.latency.device_study.observation import Comparison, OpShare, Row
from nas.latency.device_study.question import Pair
from nas.latency.device_study.stairs import Step, best_step

MATTERS = 1.03  # ratios nearer to 1 are no reason to choose
WORSE = 1.1  # a finer step that is that much dearer to miss is named too
EQUAL = 1.05  # an interval around 1 that ends within this says the two are equal
TOO_NOISY = "the machine was too noisy for advice (grade C); measure again when it is quiet"
MAX_PROBLEM = 160


def times(value: float) -> str:
    """Return a ratio as text: "1.31 x", "12.4 x"."""
    return f"{value:.2f} x" if value < 9.995 else f"{value:.1f} x"


def pair_advice(pair: Pair, found: Comparison) -> str:
    """Return the sentence for one comparison."""
    if found.ratio is None or found.low is None or found.high is None:
        return _sentence(f"{pair.subject}: not measured: {found.problem[:MAX_PROBLEM].rstrip('.')}")
    if found.grade == "C":
        return _sentence(f"{pair.subject}: {TOO_NOISY}")
    between = f"{times(found.ratio)}, between {found.low:.2f} and {found.high:.2f}"
    if not found.is_told:
        if found.low < 1 / EQUAL or found.high > EQUAL:
            return _sentence(f"{pair.subject}: not told from 1, and not known to be 1 ({between})")
        return _sentence(f"{pair.equal}: {pair.subject} is not told from 1 ({between})")
    if 1 / MATTERS < found.ratio < MATTERS:
        return _sentence(f"{pair.equal}: {pair.subject} is too near 1 to matter ({between})")
    text, ratio, low, high = pair.above, found.ratio, found.low, found.high
    if ratio < 1:
        text, ratio, low, high = pair.below, 1 / ratio, 1 / high, 1 / low
    share = f"{1 - 1 / ratio:.0%}".replace("%", " %")
    said = text.format(ratio=times(ratio), share=share)
    if "{share}" in text:
        return _sentence(f"{said} (between {1 - 1 / low:.0%} and {1 - 1 / high:.0%})")
    return _sentence(f"{said} (between {low:.2f} and {high:.2f})")


def width_advice(steps: Sequence[Step], noisy_sides: Sequence[int]) -> tuple[int | None, list[str]]:
    """Return the width step for the space (None: not known) and the sentences that say why.

    Args:
        steps: Of every side that could be judged.
        noisy_sides: Sides with too few widths of grade A or B.
    """
    sides = sorted({step.side for step in steps})
    lines = [f"Widths at side {side}: {TOO_NOISY}." for side in noisy_sides]
    best = {side: best_step([step for step in steps if step.side == side]) for side in sides}
    for side in sides:
        own = [step for step in steps if step.side == side]
        if best[side] == 1:
            seen = ", ".join(str(step.multiple) for step in own)
            lines.append(
                f"At side {side} no staircase was found (tried {seen}): a narrower network is "
                "faster, whatever its width."
            )
            continue
        (step,) = [step for step in own if step.multiple == best[side]]
        lines.append(
            f"At side {side} multiples of {step.multiple} pay: a width halfway between two of them "
            f"costs {times(step.cost)} the straight line between them."
        )
        worst = max((other for other in own if other.pays), key=lambda other: other.cost)
        if worst.cost > WORSE * step.cost:
            lines.append(
                f"At side {side} avoid above all widths that are no multiple of {worst.multiple}: "
                f"halfway they cost {times(worst.cost)} the straight line."
            )
    if not sides:
        return None, lines
    chosen = max(best.values())
    if chosen > 1:
        where = " and ".join(str(side) for side in sides if best[side] == chosen)
        lines.insert(0, f"Use a width step of {chosen} in the space: it pays at side {where}.")
    return chosen, lines


def profile_advice(shares: Sequence[OpShare]) -> list[str]:
    """Return the sentence for a runtime's own profile; none where there is no profile."""
    if not shares:
        return []
    bound = sum(item.share for item in shares if item.is_memory_bound)
    return [
        f"By the runtime's own profile {bound:.0%} of this block's time is in memory-bound "
        "operations; the rest is mostly products.".replace("%", " %")
    ]


def equal_time_advice(attention: Row, ffns: Sequence[tuple[float, Row]]) -> tuple[str, ...]:
    """Return how wide an FFN takes as long as the attention, read off a line between widths.

    Args:
        attention: The attention's row.
        ffns: (hidden by channels, its row), by rising width.
    """
    rows = [attention, *(row for _, row in ffns)]
    if any(row.median_ms is None or row.grade == "C" for row in rows):
        return ()
    wanted_ms = attention.median_ms or 0.0
    points = [(ratio, row.median_ms or 0.0) for ratio, row in ffns]
    if wanted_ms < points[0][1]:
        return (f"One MHSA takes less time than an FFN of expansion {points[0][0]:g}.",)
    for (low, low_ms), (high, high_ms) in zip(points, points[1:], strict=False):
        if low_ms <= wanted_ms <= high_ms and low_ms < high_ms:
            expand = low + (high - low) * (wanted_ms - low_ms) / (high_ms - low_ms)
            return (f"One MHSA takes as long as an FFN of expansion {expand:.1f}.",)
    return (f"One MHSA takes longer than an FFN of expansion {points[-1][0]:g}.",)


def _sentence(text: str) -> str:
    return f"{text[:1].upper()}{text[1:]}."

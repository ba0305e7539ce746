"""Entries between measured ones: a part's price from its neighbours along one size, and its error.

Only sizes between two measured ones of otherwise the same part are filled in, on a straight line
through the multiply-accumulates, which runs through every stair that was measured. How far off
that is comes from the measured entries themselves, each left out in turn: its neighbours then are
twice as far away, so it errs on the dear side. A kind that is off by more than MAX_ERROR is
measured whole.
"""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields, replace

from nas.block import Block, parse
from nas.latency.table import Entry, Fitted, LatencyTable
from nas.latency.timing import grade_of_error

MAX_ERROR = 0.05  # mean over a kind's measured entries, each left out
MIN_LEFT_OUT = 4  # such entries a kind, or as many as there are
# Along which size the parts of a kind are filled in. Not those that are timed anyway because
# others are timed behind them (pool, dw), nor stems, of which a space has few.
AXES = {
    "mlp": "hidden", "token_mlp": "hidden", "ffn": "hidden", "mbconv": "hidden",
    "attn": "channels", "group_attn": "key", "downsample": "out", "merge": "out",
    "head": "channels",
}  # fmt: skip
FOLLOWS = "squeeze"  # is a share of the hidden width

Line = tuple[object, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Interpolated:
    """Which share (0 to 1) of a price is interpolated, and how far off that share may be."""

    share: float
    error: float


def is_measured(table: LatencyTable, name: str) -> bool:
    """Return whether a table has an entry that is not interpolated."""
    return name in table.entries and table.entries[name].interpolated is None


def interpolated_in(
    table: LatencyTable, blocks: Sequence[Block], space: Fitted = None
) -> Interpolated:
    """Return how much of a network's sum of entries is interpolated."""
    entries = [entry for block in blocks for _, entry in table.entries_of(block, space)]
    guessed = [
        (entry.ms, entry.interpolated) for entry in entries if entry.interpolated is not None
    ]
    guessed_ms = sum(ms for ms, _ in guessed)
    return Interpolated(
        share=guessed_ms / sum(entry.ms for entry in entries) if entries else 0.0,
        error=sum(ms * error for ms, error in guessed) / guessed_ms if guessed else 0.0,
    )


def to_measure(table: LatencyTable, parts: Sequence[Block], every: int) -> frozenset[str]:
    """Return the parts that have to be measured, by name; more once the first of them are.

    Args:
        table: What is known.
        parts: All that a space needs.
        every: Along each line of sizes every so many-th is measured, and both ends; 1: all.
    """
    names = frozenset(map(str, parts))
    knots = _knots(parts, every)
    if knots == names or not all(is_measured(table, name) for name in knots):
        return knots
    off = errors(table, parts)
    return knots | {str(part) for part in parts if off.get(part.kind, math.inf) > MAX_ERROR}


def filled(table: LatencyTable, parts: Sequence[Block]) -> LatencyTable:
    """Return a table in which parts that were not measured lie between neighbours that were.

    A part without measured neighbours on both sides stays missing.
    """
    off = errors(table, parts)
    lines = _measured_lines(table, parts)
    entries = dict(table.entries)
    for part in parts:
        place = _line(part)
        if place is None or is_measured(table, str(part)) or part.kind not in off:
            continue
        line = lines.get(place, [])
        below = [other for other in line if other.macs < part.macs]
        above = [other for other in line if other.macs > part.macs]
        if below and above:
            entries[str(part)] = _between(table, part, below[-1], above[0], off[part.kind])
    return replace(table, entries=entries)


def errors(table: LatencyTable, parts: Iterable[Block]) -> dict[str, float]:
    """Return by kind the mean relative error of entries that were measured, each left out.

    A kind of which no entry lies between two others is not in it.
    """
    found: dict[str, list[float]] = {}
    for line in _measured_lines(table, parts).values():
        for below, part, above in zip(line, line[1:], line[2:], strict=False):
            share = _share(part, below, above)
            low_ms, high_ms = (table.entries[str(item)].ms for item in (below, above))
            error = abs(_blend(low_ms, high_ms, share) / table.entries[str(part)].ms - 1)
            found.setdefault(part.kind, []).append(error)
    return {kind: sum(values) / len(values) for kind, values in found.items()}


# ---------------------------------------------------------------- lines of sizes
def _line(part: Block) -> Line | None:
    """Return what parts that differ in one size have in common; None: nothing to fill in."""
    axis = AXES.get(part.kind)
    if axis is None:
        return None
    fixed = [
        bool(getattr(part, item.name)) if item.name == FOLLOWS else getattr(part, item.name)
        for item in fields(part)
        if item.name != axis
    ]
    return part.kind, *fixed


def _lines(parts: Iterable[Block]) -> dict[Line, list[Block]]:
    """Return the parts by line, from the smallest to the largest."""
    found: dict[Line, list[Block]] = {}
    for part in sorted(set(parts), key=lambda item: (item.macs, str(item))):
        line = _line(part)
        if line is not None:
            found.setdefault(line, []).append(part)
    return found


def _measured_lines(table: LatencyTable, parts: Iterable[Block]) -> dict[Line, list[Block]]:
    """Return what is measured on the lines of these parts, whoever needed it."""
    wanted = _lines(parts)
    known = (parse(name) for name in table.entries if is_measured(table, name))
    return {line: found for line, found in _lines(known).items() if line in wanted}


def _knots(parts: Sequence[Block], every: int) -> frozenset[str]:
    """Return the parts to measure first: so many that each kind's error can be told."""
    lines = _lines(parts)
    kept = {line: {*found[::every], found[-1]} for line, found in lines.items()}
    for kind in {part.kind for part in parts}:
        own = [line for line in lines if line[0] == kind]
        own.sort(key=lambda line: len(lines[line]), reverse=True)
        inner = sum(max(0, len(kept[line]) - 2) for line in own)
        for line in own:
            if inner < MIN_LEFT_OUT:
                inner += max(0, len(lines[line]) - 2) - max(0, len(kept[line]) - 2)
                kept[line] = set(lines[line])
    alone = {part for part in parts if _line(part) is None}
    return frozenset(str(part) for part in alone.union(*kept.values()))


def _share(part: Block, below: Block, above: Block) -> float:
    return (part.macs - below.macs) / (above.macs - below.macs)


def _blend(low: float, high: float, share: float) -> float:
    return round(low + share * (high - low), 7)


def _between(table: LatencyTable, part: Block, below: Block, above: Block, error: float) -> Entry:
    low, high = table.entries[str(below)], table.entries[str(above)]
    share = _share(part, below, above)
    fewest = min(low, high, key=lambda entry: entry.clean)
    has_cold = low.cold_ms is not None and high.cold_ms is not None
    return Entry(
        ms=_blend(low.ms, high.ms, share),
        cold_ms=_blend(low.cold_ms or 0.0, high.cold_ms or 0.0, share) if has_cold else None,
        isolated_ms=_blend(low.isolated_ms, high.isolated_ms, share),
        p10=_blend(low.p10, high.p10, share),
        p90=_blend(low.p90, high.p90, share),
        clean=fewest.clean,
        taken=fewest.taken,
        grade=max(low.grade, high.grade, grade_of_error(error)),
        by=f"between {below} and {above}",
        interpolated=round(error, 5),
    )

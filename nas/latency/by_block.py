"""Part or block: which kinds a space prices by whole blocks, decided on networks held out.

A sum of parts misses what one part does to the next one of the same block. Where the networks a
space is fitted on show that, whole blocks of a kind are measured: first those that the networks
are made of; if the networks held out are priced better with them, all of the space's.
"""

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence

from nas.block import Block
from nas.latency.calibrate import calibrated
from nas.latency.calibration import Calibration
from nas.latency.table import LatencyTable
from nas.space import SearchSpace

logger = logging.getLogger(__name__)

MIN_FOR_BLOCKS = 24  # networks: fewer tell too little about kinds
BETTER = 0.9  # of the error on networks held out, or blocks are not worth their time

Measure = Callable[[LatencyTable, Sequence[Block]], LatencyTable]
Networks = Mapping[str, Sequence[Block]]


def by_part_or_block(
    table: LatencyTable,
    space: SearchSpace,
    networks: Networks,
    measured_ms: Mapping[str, float],
    *,
    most_error: float,
    measure: Measure,
) -> LatencyTable:
    """Return a table with a space's calibration, kinds by whole blocks where that is truer.

    Args:
        table: Must price the networks by parts.
        space: Whose calibration it is.
        networks: {architecture id: blocks}.
        measured_ms: {architecture id: measured median}.
        most_error: Mean relative error on networks held out up to which sums of parts stay.
        measure: Returns a table with entries of these whole blocks; of any it has already too.
    """
    table = calibrated(table, space.name, networks, measured_ms)
    chosen: tuple[str, ...] = ()
    tried: set[str] = set()
    while len(networks) >= MIN_FOR_BLOCKS and _error(table, space) > most_error:
        kind = _worst_kind(table, space, networks, measured_ms, leave=tried)
        if kind is None:
            break
        tried.add(kind)
        table = measure(table, of_kind(kind, (b for blocks in networks.values() for b in blocks)))
        trial = calibrated(table, space.name, networks, measured_ms, by_block=(*chosen, kind))
        before, after = _error(table, space), _error(trial, space)
        logger.info("%s by whole blocks: %.2f %% off, not %.2f", kind, 100 * after, 100 * before)
        if after <= BETTER * before:
            chosen = (*chosen, kind)
            table = measure(trial, of_kind(kind, space.every_block()))
    return table


def of_kind(kind: str, blocks: Iterable[Block]) -> list[Block]:
    """Return each distinct block of a kind once."""
    return list(dict.fromkeys(block for block in blocks if block.kind == kind))


def _error(table: LatencyTable, space: SearchSpace) -> float:
    return _fit(table, space).held_out["mean"]


def _fit(table: LatencyTable, space: SearchSpace) -> Calibration:
    fit = table.calibration(space)
    assert fit is not None
    return fit


def _worst_kind(
    table: LatencyTable,
    space: SearchSpace,
    networks: Networks,
    measured_ms: Mapping[str, float],
    *,
    leave: set[str],
) -> str | None:
    """Return the kind of several parts whose networks are off most, None if none is left.

    A network's error counts for a kind as much as the kind's share in its price.
    """
    fit = _fit(table, space)
    blamed: dict[str, float] = {}
    shares: dict[str, float] = {}
    for name, blocks in networks.items():
        costs = [(block, table.block_ms(block, fit)) for block in blocks]
        total_ms = sum(ms for _, ms in costs)
        error = abs(table.estimate(blocks, fit) / measured_ms[name] - 1)
        for block, ms in costs:
            if len(block.parts()) > 1 and block.kind not in leave:
                blamed[block.kind] = blamed.get(block.kind, 0.0) + ms / total_ms * error
                shares[block.kind] = shares.get(block.kind, 0.0) + ms / total_ms
    return max(blamed, key=lambda kind: blamed[kind] / shares[kind], default=None)

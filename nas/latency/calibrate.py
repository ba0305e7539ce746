"""A space's calibration: from sums of entries to whole networks, with its honesty.

Networks are drawn by level of cost and measured; the form of the fit, decided by its error on
networks held out, is `nas.latency.forms`' to find.
"""

from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np

from nas.block import Block
from nas.latency.calibration import calibration_name, footprint_mb
from nas.latency.forms import Networks, fit, plain
from nas.latency.table import LatencyTable
from nas.seeds import stage_seed
from nas.space import Architecture, SearchSpace

MAX_DRAWS = 20


def draw(
    space: SearchSpace, count: int, *, seed: int, avoid: Sequence[str] = ()
) -> list[Architecture]:
    """Return up to `count` distinct architectures, evenly spread over the space's levels of cost.

    Args:
        space: Where from.
        count: How many; a space with fewer gives what it has.
        seed: Fixes the choice.
        avoid: Ids of architectures that must not be among them.
    """
    rng = np.random.default_rng(stage_seed(seed, "networks"))
    found: dict[str, Architecture] = {}
    for _ in range(MAX_DRAWS):  # of all levels, because a level may hold few architectures
        for level in (np.arange(count) + rng.random(count)) / count:
            architecture = space.sample(rng, level=float(level))
            if architecture.id not in avoid and len(found) < count:
                found.setdefault(architecture.id, architecture)
    return list(found.values())


def to_fit_on(space: SearchSpace, count: int, *, seed: int) -> list[Architecture]:
    """Return what a fit rests on: the largest (budgets in per cent are of it), others by level."""
    if not count:
        return []
    largest = space.largest()
    return [largest, *draw(space, count - 1, seed=seed, avoid=[largest.id])]


def calibrated(
    table: LatencyTable,
    space: str,
    networks: Mapping[str, Sequence[Block]],
    measured_ms: Mapping[str, float],
    *,
    by_block: Sequence[str] = (),
) -> LatencyTable:
    """Return a table with a space's calibration, fitted on whole networks of it.

    It stands under the space's name and the side of the networks' images, in place of an older
    one that rests on some of the same networks and does not note the side.

    Args:
        table: Must price the networks.
        space: The space's name.
        networks: {architecture id: blocks}, all of one image size.
        measured_ms: {architecture id: measured median}.
        by_block: Kinds of block to price by entries of their own.
    """
    way = replace(plain(), by_block=tuple(by_block))
    sums: list[dict[str, float]] = []
    cold: list[float | None] = []
    for blocks in networks.values():
        total_ms: dict[str, float] = {}
        for block in blocks:
            for entry, ms in table.entry_ms(block, way).items():
                total_ms[entry] = total_ms.get(entry, 0.0) + ms
        sums.append(total_ms)
        adds = [table.cold_ms(block, way) for block in blocks]
        extra = [added for added in adds if added is not None]
        cold.append(sum(extra) if len(extra) == len(blocks) else None)
    entries = sorted({entry for total_ms in sums for entry in total_ms})
    known = [ms for ms in cold if ms is not None]
    made = fit(
        Networks(
            tuple(entries),
            np.array([[total_ms.get(entry, 0.0) for entry in entries] for total_ms in sums]),
            np.array(known) if len(known) == len(cold) else None,
            np.array([sum(block.bytes for block in blocks) / 1e6 for blocks in networks.values()]),
            np.array([sum(map(footprint_mb, blocks)) for blocks in networks.values()]),
            np.array([measured_ms[name] for name in networks]),
        ),
        list(networks),
    )
    older = table.calibrations.get(space)
    kept = dict(table.calibrations)
    if older is not None and older.fitted_on.keys() & networks.keys():
        del kept[space]
    side = next(iter(networks.values()))[0].resolution
    kept[calibration_name(space, side)] = replace(made, by_block=way.by_block)
    return replace(table, calibrations=kept)

"""Is the table still right today? A few networks measured whole before a search set it right.

Clocks, another copy of the machine and the table's own error move the times of all networks
together; a search that does not know leaves part of the budget unused, or finds none that meets it.
A table is off for each network in its own way as well, so that a few say little of small errors:
prices are changed only by what is more than chance.
"""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from nas.latency import Timing
from nas.pipeline.allocation import Completion
from nas.pipeline.completion import Level
from nas.pipeline.materials import Materials
from nas.pipeline.run import Progress, Run
from nas.search.rows import Rows
from nas.seeds import stage_seed
from nas.space import Architecture
from nas.study import latency_metric
from nas.winner.promise import UNTRUSTED

DRAWS = 4096
COMPLETED = 16  # for each network that is wanted: completing one takes milliseconds
CLEAR = 2.0  # standard errors of the mean that a correction must exceed


def recalibrate(
    run: Run, materials: Materials, completion: Completion, level: Level
) -> dict[str, Any]:
    """Measure networks at the level whole, on every target; `Materials.search_tables` uses it.

    A stage of its own, so that a search that goes on prices by what it began with. Where fewer
    than half of a target's timings can be trusted, or times are taken by hand, its table stays.

    Args:
        run: Its `recalibrate_on` says how many.
        materials: The run's.
        completion: How choices become networks, and what they cost by the tables as they are.
        level: Where networks are wanted.

    Returns:
        Target id -> what `correction` says; empty if nothing was measured.

    Raises:
        UnreliableTiming, DeviceError: as `time_networks`.
    """
    count = run.config.recalibrate_on
    if count == 0 or materials.timed is not None:
        return {}

    def work(progress: Progress) -> dict[str, Any]:
        seed = stage_seed(run.config.seed, "recalibrate")
        drawn = networks_at(completion, level, count, seed=seed)
        networks = {item.id: materials.space.blocks(item) for item, _ in drawn}
        said = {item.id: costs for item, costs in drawn}
        found = {}
        for target_id, table in materials.tables.items():
            timings = materials.time(table, networks, progress) if networks else {}
            metric = latency_metric(target_id)
            predicted_ms = {name: said[name][metric] for name in timings}
            found[target_id] = correction(predicted_ms, timings)
        return found

    return run.stage(run.recalibrate_key, work)


def correction(
    predicted_ms: Mapping[str, float], timings: Mapping[str, Timing]
) -> dict[str, float | int | None]:
    """Return what a table's prices are to be multiplied by: measured by predicted, on average.

    Timings of grade C are left out. The factor is 1 where the average is within CLEAR standard
    errors of that, or rests on fewer than two networks or less than half of them.

    Returns:
        factor; found, the average itself (None: there was none); networks; and trusted of them.
    """
    ratios = [
        timing.median_ms / predicted_ms[name]
        for name, timing in timings.items()
        if timing.grade != UNTRUSTED
    ]
    found = float(np.mean(ratios)) if ratios else None
    factor = 1.0
    if found is not None and len(ratios) >= max(2, len(timings) / 2):
        error = float(np.std(ratios, ddof=1)) / math.sqrt(len(ratios))
        factor = found if abs(found - 1) > CLEAR * error else 1.0
    return {"factor": factor, "found": found, "networks": len(timings), "trusted": len(ratios)}


def told(target_id: str, found: Mapping[str, Any]) -> str:
    """Return what was found of a target's table, in words."""
    count, trusted = found["networks"], found["trusted"]
    measured = f"{trusted} of {count} networks measured whole before the search"
    if found["factor"] != 1.0:
        return (
            f"  {measured} take {found['factor']:.3f} x what the table of {target_id} says: all "
            "its prices count times that"
        )
    if found["found"] is None or trusted < max(2, count / 2):
        return (
            f"  the table of {target_id} is taken as it is: {count - trusted} of {count} networks "
            "measured before the search were grade C"
        )
    return (
        f"  {measured} take {found['found']:.3f} x what the table of {target_id} says, no more "
        "than chance: its prices stay"
    )


def networks_at(
    completion: Completion, level: Level, count: int, *, seed: int
) -> list[tuple[Architecture, dict[str, float]]]:
    """Return different networks at a level, or as near to it as random ones are, with costs.

    Each draw leans towards the first options or the last by a random share of its own, as in
    `SearchSpace.sample`. There are fewer than `count` where a space has fewer.
    """
    rows = Rows(completion.genes, completion.price, {}, seed=seed)
    share, shape = rows.rng.random((DRAWS, 1)), (DRAWS, len(rows.sizes))
    codes = np.unique(rows.rng.binomial(rows.sizes - 1, share, size=shape), axis=0)
    choices = [rows.choice(row) for row in rows.rng.permutation(codes)]
    likely = _nearest(choices, level.off(*completion.bounds(choices)))[: COMPLETED * count]
    costs = completion.price(likely) if likely else {}
    if not costs:  # nothing of all that is possible
        return []
    found: dict[str, tuple[Architecture, dict[str, float]]] = {}
    for choice, place in _nearest(list(zip(likely, range(len(likely)), strict=True)),
                                  level.off(costs, costs)):  # fmt: skip
        architecture = completion.architecture(choice)
        found.setdefault(
            architecture.id,
            (architecture, {metric: float(values[place]) for metric, values in costs.items()}),
        )
        if len(found) == count:
            break
    return list(found.values())


def _nearest(items: Sequence[Any], off: Any) -> list[Any]:  # Any: an array (n,)
    """Return the items that are possible at all, the nearest first, equal ones in their order."""
    return [items[place] for place in np.argsort(off, kind="stable") if np.isfinite(off[place])]

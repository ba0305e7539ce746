"""How long completing a candidate takes, the way a search does it: outline in, priced network out.

python benchmarks/allocation_time.py [--space hybrid] [--target onnxruntime,fp32,b1,t1]

Prices are of the space's latency table, importance is random: it changes what is chosen, hardly how
long that takes. Outlines are drawn evenly over levels of cost; counted are those that are too slow
at their dearest inner numbers and fast enough at their cheapest, for the others need no choosing.
Each is completed once; the first ones fill the caches that a search fills once as well. Beside the
time by the clock stands processor time, which other work on the machine disturbs less.
"""

import argparse
import os
import time

import numpy as np
from record import Figure, record

from nas.errors import InfeasibleBudget
from nas.latency import LatencyTable, find_table
from nas.pipeline.allocation import Allocator
from nas.pipeline.part_costs import PartCosts
from nas.seeds import stage_seed
from nas.space import SearchSpace
from nas.space.loss_table import DimLoss, LossTable
from nas.supernet.taylor.losses import known_numbers
from nas.target import Target

ASKED_MS = 5.0
METRIC = "latency_ms"
LEVEL = 0.5  # budgets, by what the largest network costs
WARM_UP = 100


def random_losses(space: SearchSpace, seed: int) -> LossTable:
    """Return importance that falls from channel to channel, of every inner dimension."""
    rng = np.random.default_rng(stage_seed(seed, "losses"))
    dims = {}
    for name, (kind, numbers) in known_numbers(space).items():
        most = max(max(options) for options in numbers.values())
        sums = np.concatenate([[0.0], np.cumsum(np.sort(rng.exponential(1, most))[::-1])])
        kept = {
            str(heads): {str(number): float(sums[number]) * max(heads, 1) for number in options}
            for heads, options in numbers.items()
        }
        dims[name] = DimLoss(kind=kind, kept=kept)
    return LossTable(space=space.name, method="taylor", dims=dims)


def budgets_of(space: SearchSpace, table: LatencyTable, count: int) -> dict[str, float]:
    """Return budgets half way up the space, on latency and, with more, on sizes."""
    largest = space.blocks(space.largest())
    whole = {
        METRIC: table.estimate(largest, space),
        "params": float(sum(block.params for block in largest)),
        "macs": float(sum(block.macs for block in largest)),
    }
    return {name: LEVEL * cost for name, cost in list(whole.items())[:count]}


def timed(
    space: SearchSpace, table: LatencyTable, count: int, networks: int
) -> list[tuple[float, float]]:
    """Return the ms of completing each of many random outlines within `count` budgets, by the clock
    and of the processor."""
    limits = budgets_of(space, table, count)
    allocator = Allocator(space, random_losses(space, 0), PartCosts({METRIC: table}, space), limits)
    rng = np.random.default_rng(stage_seed(count, "outlines"))
    found: list[tuple[float, float]] = []
    while len(found) < WARM_UP + networks:
        whole = space.choice(space.sample(rng, level=float(rng.uniform(0.2, 0.9))))
        outline = {gene: whole[gene] for gene in allocator.genes}
        least, most = allocator.bounds([outline])
        if not least[METRIC][0] <= limits[METRIC] < most[METRIC][0]:
            continue
        begun, cpu_begun = time.perf_counter(), time.process_time()
        try:
            allocator.complete(outline)
        except InfeasibleBudget:
            continue
        ended, cpu_ended = time.perf_counter(), time.process_time()
        found.append((1e3 * (ended - begun), 1e3 * (cpu_ended - cpu_begun)))
    return found[WARM_UP:]


def main() -> None:
    """Complete candidates within one, two and three budgets; record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--space", default="hybrid")
    parser.add_argument("--target", default="onnxruntime,fp32,b1,t1")
    parser.add_argument("--networks", type=int, default=400)
    options = parser.parse_args()
    target = Target.parse(options.target)
    path = find_table(target)
    if path is None:
        raise SystemExit(f"no table of {target}: nas profile --space {options.space} makes it")
    table, space = LatencyTable.load(path), SearchSpace.load(options.space)
    figures, cpu_ms = [], []
    for count in (1, 2, 3):
        times, cpu_times = np.array(timed(space, table, count, options.networks)).T
        cpu_ms.append(round(float(np.median(cpu_times)), 2))
        figures.append(
            Figure(
                figure=f"ms a candidate of {space.name} within {count} budget(s), median of "
                f"{len(times)} behind {WARM_UP} others",
                asked=f"<= {ASKED_MS:g}",
                measured=f"{np.median(times):.2f} (p90 {np.quantile(times, 0.9):.2f}, within "
                f"{ASKED_MS:g} ms {np.mean(times <= ASKED_MS):.0%})",
                holds=bool(np.median(times) <= ASKED_MS),
            )
        )
    notes = {
        "processor_ms_median_by_budgets": cpu_ms,
        "load_average_of_the_last_5_minutes": round(os.getloadavg()[1], 1),
    }
    record("allocation_time", figures, notes=notes)


if __name__ == "__main__":
    main()

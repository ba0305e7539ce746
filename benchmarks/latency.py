"""How far latency tables are off on whole networks that nobody fitted on, beside other ways.

python benchmarks/latency.py SPACE TARGET [SPACE TARGET ...]
python benchmarks/latency.py --bursty SPACE TARGET      entries measured beside busy neighbours

Each table is looked for where `nas` looks; make it first with `nas profile`. Networks are drawn by
level of latency with a seed of their own; on 224-px spaces the published networks come on top.
"""

import argparse
import time
from dataclasses import dataclass

import numpy as np
from bursty import bursty_figures
from record import Figure, record

from nas.latency import LatencyTable, ProfileConfig, check, find_table
from nas.latency.check import METHODS, Check, Row, errors_of
from nas.pipeline.prices import METHOD_NAMES, as_profiled, published_in
from nas.space import SearchSpace
from nas.target import Target

DEFAULT = ["hybrid-64", "onnxruntime,fp32,b1,t1"]
PRICED, REPEATS = 100_000, 5


@dataclass(frozen=True)
class Asked:
    """What is asked of a runtime: networks, mean error, share within a bound, rank correlation."""

    networks: int
    mean: float
    within: float
    share: float
    spearman: float
    published: float


FP32 = {
    "onnxruntime": Asked(60, 0.010, 0.05, 0.99, 0.995, 0.05),
    "openvino": Asked(60, 0.020, 0.05, 0.97, 0.995, 0.08),
}
OTHERS = Asked(30, 0.030, 0.10, 0.99, 0.985, 0.10)


def main() -> None:
    """Check every table asked for and record its figures."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pairs", nargs="*", default=DEFAULT)
    parser.add_argument("--seed", type=int, default=20_261)
    parser.add_argument("--samples", type=int, default=60, help="clean ones of each network")
    parser.add_argument("--processes", type=int, default=6, help="that each network is timed in")
    parser.add_argument("--name", default="latency", help="of the file in benchmarks/results")
    parser.add_argument("--bursty", action="store_true", help="see bursty.py")
    parser.add_argument("--entries", type=int, default=60, help="to measure with --bursty")
    options = parser.parse_args()
    if options.bursty:
        space, words = options.pairs
        found = bursty_figures(
            SearchSpace.load(space), Target.parse(words), options.entries, seed=options.seed,
            samples=options.samples,
        )  # fmt: skip
        record(f"{options.name}-bursty", found.figures, notes=found.notes)
        return
    figures: list[Figure] = []
    rows: dict[str, list[list[float]]] = {}
    for space, target in zip(options.pairs[::2], options.pairs[1::2], strict=True):
        config = ProfileConfig(
            samples=options.samples, spread_s=3.0, loads=1, processes=options.processes,
            seed=options.seed,
        )  # fmt: skip
        of_space, rows[f"{space} {target}"] = table_figures(space, Target.parse(target), config)
        figures += of_space
    record(options.name, figures, notes={"measured and table ms of each network": rows})


def table_figures(
    name: str, target: Target, config: ProfileConfig
) -> tuple[list[Figure], list[list[float]]]:
    """Return the figures of one space on one target, and [measured, table] ms of each network."""
    path = find_table(target)
    if path is None:
        raise SystemExit(f"no table of {target}: nas profile --space {name} makes it")
    table = LatencyTable.load(path)
    space = as_profiled(SearchSpace.load(name), table)
    asked = FP32.get(target.runtime, OTHERS) if target.precision == "fp32" else OTHERS
    also = published_in(table) if space.image_size == 224 else {}
    found = check(
        table, space, networks=asked.networks, also=also, config=config,
        progress=lambda done, total, text: print(f"\r{done}/{total} {text:40}", end=""),
    )  # fmt: skip
    print()
    label = f"{name} on {target.runtime} {target.precision}"
    drawn = [row for row in found.rows if row.id not in also]
    figures = accuracy_figures(label, asked, found, drawn)
    for row in found.rows:
        if row.id in also:
            error = row.table_ms / row.measured_ms - 1
            figures.append(
                Figure(
                    figure=f"{label}: {row.id}, published",
                    asked=f"within {asked.published:.0%}",
                    measured=f"{error:+.1%} ({row.table_ms:.4g} for {row.measured_ms:.4g} ms)",
                    holds=abs(error) <= asked.published,
                )
            )
    rows = [[round(row.measured_ms, 5), round(row.table_ms, 5)] for row in found.rows]
    return [*figures, pricing_figure(label, table, space)], rows


def accuracy_figures(label: str, asked: Asked, found: Check, drawn: list[Row]) -> list[Figure]:
    """Return the error on drawn networks, with every rival's beside it."""
    measured = np.array([row.measured_ms for row in drawn])
    errors = {m: errors_of(np.array([getattr(r, m) for r in drawn]), measured) for m in METHODS}
    ours = errors["table_ms"]
    relative = np.abs(np.array([row.table_ms for row in drawn]) / measured - 1)
    share = float((relative <= asked.within).mean())
    rivals = ", ".join(f"{METHOD_NAMES[m]} {errors[m].mean:.1%}" for m in METHODS[1:])
    noise = "?" if found.repeat is None else f"{found.repeat:.2%}"
    lowest = ours.mean <= min(errors[m].mean for m in METHODS)
    return [
        Figure(
            figure=f"{label}: mean error on {len(drawn)} unseen networks",
            asked=f"<= {asked.mean:.1%}, lowest of all",
            measured=f"{ours.mean:.2%} (worst {ours.worst:.1%}; measuring again {noise}; {rivals})",
            holds=ours.mean <= asked.mean and lowest,
        ),
        Figure(
            figure=f"{label}: share within {asked.within:.0%}",
            asked=f">= {asked.share:.0%}",
            measured=f"{share:.1%}",
            holds=share >= asked.share,
        ),
        Figure(
            figure=f"{label}: Spearman",
            asked=f">= {asked.spearman}",
            measured=f"{ours.spearman:.4f}",
            holds=ours.spearman >= asked.spearman,
        ),
    ]


def pricing_figure(label: str, table: LatencyTable, space: SearchSpace) -> Figure:
    """Return how many random architectures are priced in a second, and that sums agree."""
    price = table.pricer(space)
    rng = np.random.default_rng(0)
    options = [len(values) for values in space.genes().values()]
    codes = rng.integers(0, options, size=(PRICED, len(options)))
    seconds = []
    for _ in range(REPEATS):
        begun = time.perf_counter()
        prices = price(codes)
        seconds.append(time.perf_counter() - begun)
    some = codes[:: PRICED // 100]
    one_by_one = [
        table.estimate(space.blocks(space.architecture(choice)), space)
        for choice in space.decode(some)
    ]
    worst = float(np.abs(prices[:: PRICED // 100] - one_by_one).max())
    rate = PRICED / float(np.median(seconds))
    return Figure(
        figure=f"{label}: architectures priced a second",
        asked=">= 100,000, equal to one by one to 1e-9",
        measured=f"{rate:,.0f}, {worst:.1e} ms apart",
        holds=rate >= 100_000 and worst <= 1e-9,
    )


if __name__ == "__main__":
    main()

"""Make the latency tables that the repository ships, on the machine this runs on.

python benchmarks/tables.py SPACE TARGET [SPACE TARGET ...]

Each goes to latency_tables/<device>/<target id>.json and grows the table that stands there; run it
again after it was stopped. With a 224-px space the published networks are measured too.
"""

import argparse
import sys
import time
from collections import Counter
from dataclasses import replace
from pathlib import Path

from nas.latency import LatencyTable, ProfileConfig, profile
from nas.network import stock
from nas.space import SearchSpace
from nas.target import Target

CONFIG = ProfileConfig(samples=48, spread_s=5.0, calibrate_on=192, processes=6)
PUBLISHED_SIDE, TELL_S = 224, 15.0


def main() -> None:
    """Make every table asked for."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("pairs", nargs="+")
    parser.add_argument("--folder", default=Path("latency_tables"), type=Path)
    parser.add_argument("--processes", type=int, default=CONFIG.processes)
    parser.add_argument("--samples", type=int, default=CONFIG.samples)
    parser.add_argument("--networks", type=int, default=CONFIG.calibrate_on, help="to fit on")
    options = parser.parse_args()
    for name, words in zip(options.pairs[::2], options.pairs[1::2], strict=True):
        target = Target.parse(words)
        path = options.folder / target.device.slug / f"{target.id}.json"
        begun_s = time.monotonic()
        config = replace(
            CONFIG, processes=options.processes, samples=options.samples,
            calibrate_on=options.networks,
        )  # fmt: skip
        table = make(SearchSpace.load(name), target, path, config)
        fit = table.calibration(SearchSpace.load(name))
        grades = dict(sorted(Counter(entry.grade for entry in table.entries.values()).items()))
        print(f"{path}: {len(table.entries)} entries {grades}, {time.monotonic() - begun_s:.0f} s")
        print(f"  held out on {name}: {fit.held_out if fit is not None else 'no fit'}")


def make(space: SearchSpace, target: Target, path: Path, config: ProfileConfig) -> LatencyTable:
    """Measure what the table at `path` lacks for a space and, at its size, published networks."""
    if space.image_size == PUBLISHED_SIDE:
        blocks = [block for name in stock.PUBLISHED for block in stock.blocks_of(name)]
        profile(blocks, target, path, replace(config, calibrate_on=0), Progress())
    return profile(space, target, path, config, Progress())


class Progress:
    """Says how far it is, now and then."""

    def __init__(self) -> None:
        self._told_s = 0.0

    def __call__(self, done: int, total: int, text: str) -> None:
        """Print it, if it is time."""
        if time.monotonic() - self._told_s >= TELL_S:
            self._told_s = time.monotonic()
            print(f"{done}/{total} {text}", file=sys.stderr, flush=True)


if __name__ == "__main__":
    main()

"""Entries of a latency table measured on a quiet machine and again beside three bursty processes.

Run through `benchmarks/latency.py --bursty`. The neighbours work and sleep for times drawn at
random, on any core; each has a duty cycle of its own. They are ended by their process ids.
"""

import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from record import Figure

from nas.block import Block
from nas.errors import UnreliableTiming
from nas.latency import LatencyTable, ProfileConfig, profile
from nas.space import SearchSpace
from nas.target import Target

NEIGHBOURS = 3
SHARE, TIMES, WITHIN = 0.8, 3.0, 0.05  # asked for: grade A or B, by the quiet time, of its price
NEIGHBOUR = """
import random, sys, time
rng, duty = random.Random(int(sys.argv[1])), float(sys.argv[2])
while True:
    period_s = rng.uniform(0.02, 0.4)
    until_s = time.perf_counter() + duty * period_s
    while time.perf_counter() < until_s:
        sum(value * value for value in range(200))
    time.sleep((1 - duty) * period_s)
"""


@dataclass(frozen=True)
class Bursty:
    """The figures, and what stands beside them in the file."""

    figures: list[Figure]
    notes: dict[str, Any]


def bursty_figures(
    space: SearchSpace, target: Target, count: int, *, seed: int, samples: int
) -> Bursty:
    """Return how many of `count` entries come out well beside neighbours, and how true they are."""
    parts = sorted({part for block in space.every_block() for part in block.parts()}, key=str)
    drawn = random.Random(seed).sample(parts, min(count, len(parts)))
    config = ProfileConfig(samples=samples, spread_s=5.0, batch=1000, seed=seed)
    quiet, quiet_s = _timed(drawn, target, config)
    # the whole pass may take as long again as its limit where entries have next to nothing
    limited = replace(config, time_limit_s=max(TIMES * quiet_s / 2, config.spread_s + 1))
    with neighbours(seed) as duties:
        loud, loud_s = _timed(drawn, target, limited)
    names = [str(part) for part in drawn]
    good = _good(loud, names)
    known = _good(quiet, names)  # a price of grade C is nothing to hold another one against
    both = [name for name in good if name in known]
    off = {name: loud.entries[name].ms / quiet.entries[name].ms - 1 for name in both}
    true = [name for name in both if abs(off[name]) <= WITHIN]
    label = f"{space.name} on {target.runtime} {target.precision}, {len(names)} entries"
    share, ratio = len(good) / len(names), loud_s / quiet_s
    figures = [
        Figure(
            figure=f"{label}: grade A or B beside {NEIGHBOURS} bursty processes",
            asked=f">= {SHARE:.0%} within {TIMES:g}x the quiet time",
            measured=f"{share:.0%} in {ratio:.2f}x ({loud_s:.0f} by {quiet_s:.0f} s); quiet: "
            f"{len(known) / len(names):.0%}",
            holds=share >= SHARE and ratio <= TIMES,
        ),
        Figure(
            figure=f"{label}: those within {WITHIN:.0%} of their quiet price",
            asked="all of them",
            measured=f"{len(true)} of {len(both)}; the worst is off by "
            f"{max(map(abs, off.values()), default=0.0):.1%} "
            f"({len(good) - len(both)} more are grade C when quiet)",
            holds=bool(both) and len(true) == len(both),
        ),
    ]
    notes: dict[str, Any] = {"duty_cycles": duties, "off": off}
    for name, table in (("quiet", quiet), ("bursty", loud)):
        notes[f"grades_{name}"] = {entry: e.grade for entry, e in table.entries.items()}
    return Bursty(figures, notes)


def _timed(parts: list[Block], target: Target, config: ProfileConfig) -> tuple[LatencyTable, float]:
    """Return a table of these parts from a profile of its own, and the seconds it took."""
    with tempfile.TemporaryDirectory() as folder:
        begun_s = time.monotonic()
        path = Path(folder) / "table.json"
        try:
            table = profile(parts, target, path, config)
        except UnreliableTiming:  # of some; what could be measured is kept
            table = LatencyTable.load(path)
        return table, time.monotonic() - begun_s


def _good(table: LatencyTable, names: list[str]) -> list[str]:
    return [name for name in names if name in table.entries and table.entries[name].grade in "AB"]


@contextmanager
def neighbours(seed: int) -> Iterator[list[float]]:
    """Run the bursty processes meanwhile; gives their duty cycles (0 to 1)."""
    rng = random.Random(seed)
    duties = [round(rng.uniform(0.2, 0.8), 2) for _ in range(NEIGHBOURS)]
    started = [
        subprocess.Popen([sys.executable, "-c", NEIGHBOUR, str(seed + number), str(duty)])
        for number, duty in enumerate(duties)
    ]
    try:
        yield duties
    finally:
        for child in started:
            child.kill()
            child.wait()

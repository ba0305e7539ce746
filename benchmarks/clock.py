"""Do networks slow down with the reference kernel where the processor's clock changes?

python benchmarks/clock.py [--seconds N]

Three networks of `tiny` on ONNX Runtime, one thread, the reference before and behind each run of
one. Samples whose two references agree are put into bins by them. In bins up to MAX_REFERENCE of
the fastest one, which timings accept, network by reference is asked to be the same; slower ones,
which may be of a core that others share, are told beside it.
"""

import argparse
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from record import Figure, record

from nas.latency import runtimes
from nas.latency.judge import MAX_REFERENCE, SAME_SPEED
from nas.latency.worker import reference_kernel
from nas.network import build, to_onnx
from nas.space import SearchSpace
from nas.target import Target

LEVELS = (0.0, 0.5, 1.0)
RUNS, PRIME = 10, 5
STEP = 0.03  # of a bin, by the reference
LEAST = 0.01  # of samples that a bin must have


def runners(folder: Path) -> dict[str, Callable[[], Any]]:
    """Return what runs each network once, by the level it is of."""
    space, target = SearchSpace.load("tiny").replace(num_classes=10), Target.parse("onnxruntime")
    found: dict[str, Callable[[], Any]] = {}
    for level in LEVELS:
        blocks = space.blocks(space.sample(np.random.default_rng(0), level=level))
        file = to_onnx(build(blocks).eval(), folder / f"{level}.onnx")
        (runner,) = runtimes.create(target).load(file)
        found[f"level {level:g}"] = runner.run
    return found


def sample(runs: dict[str, Callable[[], Any]], seconds: float) -> dict[str, np.ndarray]:
    """Return rows (network ms, reference ms before, behind) of each network."""
    reference = reference_kernel()
    rows: dict[str, list[tuple[float, float, float]]] = {name: [] for name in runs}
    end_s = time.perf_counter() + seconds
    while time.perf_counter() < end_s:
        for name, run in runs.items():
            for _ in range(PRIME):
                run()
            for _ in range(RUNS):
                at = [time.perf_counter()]
                for work in (reference, run, reference):
                    work()
                    at.append(time.perf_counter())
                before, own, behind = 1e3 * np.diff(at)
                rows[name].append((own, before, behind))
    return {name: np.array(own) for name, own in rows.items()}


def by_reference(own: np.ndarray) -> list[tuple[float, float, int]]:
    """Return (reference ms, network ms, samples) of each bin, the fastest first."""
    beside = own[:, 1:]
    own = own[beside.min(axis=1) >= (1 - STEP / 2) * beside.max(axis=1)]
    beside_ms = own[:, 1:].mean(axis=1)
    place = np.round(np.log(beside_ms / beside_ms.min()) / np.log1p(STEP)).astype(int)
    bins = [own[place == each] for each in np.unique(place)]
    return [
        (float(np.median(each[:, 1:])), float(np.median(each[:, 0])), len(each))
        for each in bins
        if len(each) >= LEAST * len(own)
    ]


def figures_of(rows: dict[str, np.ndarray]) -> list[Figure]:
    """Return how far each network by the reference is from its value in the fastest bin."""
    figures = []
    for name, own in rows.items():
        found = by_reference(own)
        fastest_ms, least_ms, _ = found[0]
        off = {
            beside_ms: (ms / beside_ms) / (least_ms / fastest_ms) - 1 for beside_ms, ms, _ in found
        }
        clean = [each for at_ms, each in off.items() if at_ms <= MAX_REFERENCE * fastest_ms]
        figures.append(
            Figure(
                figure=f"tiny, {name}: its time by the reference's, by what that took",
                asked=f"the same to {SAME_SPEED:.0%} up to {MAX_REFERENCE:g} x the fastest",
                measured=", ".join(f"{at_ms:.4f} ms {each:+.1%}" for at_ms, each in off.items()),
                holds=max(map(abs, clean)) <= SAME_SPEED,
            )
        )
    return figures


def main() -> None:
    """Sample for so long and record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=120.0)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        rows = sample(runners(Path(folder)), options.seconds)
    record("clock", figures_of(rows))


if __name__ == "__main__":
    main()

"""What allocation by importance is worth: supernet accuracy at equal latency.

`tiny` with more inner options is trained by its whole schedule on the shipped digits, one
supernet a seed; with --run the supernet and the images of that run are taken, one that `nas train`
has finished. Outlines (widths, depths, kinds) are drawn at random; each gets a latency budget
of its own, 40 % or 15 % of the way from its cheapest to its dearest inner numbers, by a latency
table that is a formula (a launch, the arithmetic, the weights): the same for all methods, so that
no noise of timing is in the comparison. Inner numbers are chosen within that budget by

* allocation with Taylor importance and fitted scales, without scales, and with sensitivity;
* uniform shrinking: the same share of every dimension, the largest that fits, then the random
  upgrades that still fit, so that it uses the budget as well;
* random upgrades from the cheapest, until none fits (mean of three).

    python benchmarks/allocation_gain.py --keep FOLDER [--pieces N] [--run RUN] [--no-sensitivity]

Sensitivity is a score of every option of every part: 25 s on digits, half an hour at 64 px.
Every piece is kept in FOLDER; --pieces N does the next N and stops.
"""

import argparse
import itertools
import json
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import Figure, record
from taylor import space_of

from nas import data as nas_data
from nas.data import Data
from nas.files import write_json
from nas.latency.table import Entry, LatencyTable
from nas.pipeline.allocation import Allocator
from nas.pipeline.config import load as load_settings
from nas.pipeline.inner import Spot, fit_parts, option_losses
from nas.pipeline.part_costs import PartCosts, Terms
from nas.space import Architecture, SearchSpace
from nas.space.loss_table import LossTable
from nas.supernet import SuperNet, TrainConfig, score, train
from nas.supernet.stored import load as load_supernet
from nas.supernet.taylor import LossConfig, allocated, measure_losses
from nas.target import Target

METRIC = "latency_ms:formula"
SEEDS = (0, 1)
OUTLINES = 24
LEVELS = (0.4, 0.15)
RANDOMS = 3
ASKED_POINTS = 0.5
RESAMPLES = 10_000
STEPS = 280

Picks = list[int]
Piece = dict[str, Any]  # Any: plain JSON


def formula_table(space: SearchSpace) -> LatencyTable:
    """Return a latency table by a formula: 4 us a part, 20 MACs and 0.05 bytes of weights a ns."""
    entries = {}
    for part in {part for block in space.every_block() for part in block.parts()}:
        ms = 0.004 + part.macs / 20e6 + part.bytes * 2e-8
        entries[str(part)] = Entry(
            ms=ms, isolated_ms=ms, p10=ms, p90=ms, clean=1, taken=1, grade="A", by="formula"
        )
    return LatencyTable(target=Target.parse("onnxruntime"), entries=entries)


class Outline:
    """One outline: its parts with a choice, and the budget all methods get."""

    def __init__(
        self,
        space: SearchSpace,
        costs: PartCosts,
        losses: Mapping[str, LossTable],
        choice: Any,  # Any: options of genes
        level: float,
    ) -> None:
        self.space, self.costs = space, costs
        any_table = next(iter(losses.values()))
        allocator = Allocator(space, any_table, costs, {METRIC: 1e6})
        self.base: Architecture = allocator.architecture(choice)
        shapes = [
            (slot, allocator._shapes_at(slot, self.base, allocator.canonical(choice)))
            for slot in space.slots(self.base)[1:-1]
        ]
        blocks = space.blocks(self.base)
        ends = costs.terms(blocks[0]) + costs.terms(blocks[-1])
        self.fixed: Terms = ends + np.sum([shape.fixed for _, shape in shapes], axis=0)
        self.spots = {
            name: [
                Spot(slot, part, option_losses(table, slot, part, heads=_heads(shape.blocks[0])))
                for slot, shape in shapes
                for part in shape.parts
            ]
            for name, table in losses.items()
        }
        self.plain = next(iter(self.spots.values()))
        least = self.cost([int(s.part.terms[:, 0].argmin()) for s in self.plain])
        most = self.cost([int(s.part.terms[:, 0].argmax()) for s in self.plain])
        self.limit = least + level * (most - least)

    def cost(self, picks: Sequence[int]) -> float:
        """Return the latency in ms."""
        chosen = [s.part.terms[p] for s, p in zip(self.plain, picks, strict=True)]
        return float(self.costs.totals(self.fixed + np.sum(chosen, axis=0))[METRIC])

    def network(self, picks: Sequence[int]) -> Architecture:
        """Return the whole network."""
        numbers = {
            f"{spot.slot}.{field}": number
            for spot, pick in zip(self.plain, picks, strict=True)
            for field, number in spot.part.options[pick]
        }
        return allocated(self.space, self.base, numbers)

    def allocate(self, name: str) -> Picks:
        """Return the options of least predicted loss."""
        return fit_parts(self.spots[name], self.fixed, self.costs, {METRIC: self.limit})[0]

    def shrink(self, rng: np.random.Generator) -> Picks:
        """Return the same share of every dimension, and what still fits."""
        best: Picks = []
        for share in np.linspace(0, 1, 201):
            picks = [_largest(spot, float(share)) for spot in self.plain]
            if self.cost(picks) <= self.limit:
                best = picks
        return self.upgrade(best, rng)

    def random(self, rng: np.random.Generator) -> Picks:
        """Return random upgrades from the cheapest."""
        return self.upgrade([int(s.part.terms[:, 0].argmin()) for s in self.plain], rng)

    def upgrade(self, picks: Picks, rng: np.random.Generator) -> Picks:
        """Return picks with random parts one step larger, as long as anything fits."""
        picks = list(picks)
        while True:
            fitting = []
            for place, spot in enumerate(self.plain):
                own = spot.part.terms[:, 0]
                larger = np.flatnonzero(own > own[picks[place]])
                if len(larger):
                    step = int(larger[own[larger].argmin()])
                    changed = [*picks[:place], step, *picks[place + 1 :]]
                    if self.cost(changed) <= self.limit:
                        fitting.append(changed)
            if not fitting:
                return picks
            picks = fitting[int(rng.integers(len(fitting)))]


def _heads(block: Any) -> int:  # Any: a block of any kind
    return int(getattr(block, "heads", 0))


def _largest(spot: Spot, share: float) -> int:
    """Return the dearest option of which no number is above a share of the largest."""
    options = [dict(option) for option in spot.part.options]
    ends = {name: [option[name] for option in options] for name in options[0]}
    fits = [
        all(number <= max(share * max(ends[name]), min(ends[name])) for name, number in own.items())
        for own in options
    ]
    priced = np.where(fits, spot.part.terms[:, 0], -np.inf)
    return int(priced.argmax())


# ---------------------------------------------------------------- pieces
def trained(data: Data, seed: int, folder: Path) -> SuperNet:
    """Return a supernet of the whole schedule on digits; from its folder if it is there."""
    config = TrainConfig(steps=STEPS, lr=0.004, checkpoint_steps=40, seed=seed)
    return train(SuperNet(space_of(data), seed=seed), data, config, folder).supernet


def tables(supernet: SuperNet, data: Data, place: Path, methods: Sequence[str]) -> Piece:
    """Measure the loss tables and how long each takes."""
    found: Piece = {}
    for method in methods:
        begun = time.perf_counter()
        table = measure_losses(supernet, data, LossConfig(method=method))
        found[method] = {"seconds": time.perf_counter() - begun, "fit": table.fit}
        table.save(place / f"{method}.json")
    return found


def compare(supernet: SuperNet, data: Data, seed: int, place: Path) -> Piece:
    """Return {level: rows} of all outlines."""
    return {f"{level:g}": _compare(supernet, data, seed, place, level) for level in LEVELS}


def _compare(supernet: SuperNet, data: Data, seed: int, place: Path, level: float) -> Piece:
    """Score every outline with inner numbers by every method: [loss, accuracy, share of budget]."""
    space = supernet.space
    taylor = LossTable.load(place / "taylor.json")
    losses = {
        "taylor": taylor,
        "taylor without scales": replace(taylor, scales={}),
    }
    if (place / "sensitivity.json").is_file():
        losses["sensitivity"] = LossTable.load(place / "sensitivity.json")
    costs = PartCosts({METRIC: formula_table(space)}, None)
    genes = Allocator(space, taylor, costs, {METRIC: 1.0}).genes
    rng = np.random.default_rng(seed)
    rows: dict[str, list[list[float]]] = {}
    for _ in range(OUTLINES):
        choice = {gene: options[rng.integers(len(options))] for gene, options in genes.items()}
        outline = Outline(space, costs, losses, choice, level)
        picked = {name: [outline.allocate(name)] for name in losses}
        picked["uniform"] = [outline.shrink(rng)]
        picked["random"] = [outline.random(rng) for _ in range(RANDOMS)]
        for name, drawn in picked.items():
            found = [score(supernet, outline.network(picks), data) for picks in drawn]
            used = [outline.cost(picks) / outline.limit for picks in drawn]
            pair = [float(np.mean([own.loss for own in found]))]
            pair += [float(np.mean([own.accuracy for own in found])), float(np.mean(used))]
            rows.setdefault(name, []).append(pair)
    return rows


def gain(rows: Mapping[str, list[list[float]]], name: str, other: str) -> dict[str, float]:
    """Return the mean gain in points and its 95 % bootstrap interval over outlines."""
    change = 100 * (np.array(rows[name])[:, 1] - np.array(rows[other])[:, 1])
    rng = np.random.default_rng(0)
    means = change[rng.integers(0, len(change), (RESAMPLES, len(change)))].mean(axis=1)
    low, high = np.quantile(means, [0.025, 0.975])
    lower = np.array(rows[other])[:, 0] - np.array(rows[name])[:, 0]
    return {
        "points": round(float(change.mean()), 2),
        "low": round(float(low), 2),
        "high": round(float(high), 2),
        "nats": round(float(lower.mean()), 4),
    }


def figures_of(level: str, rows: Mapping[str, list[list[float]]], what: str) -> list[Figure]:
    """Return what was asked for beside what was measured, at one level, of `what` supernets."""
    figures = []
    others = ("uniform", "random")
    for name in (name for name in rows if name not in others):
        for other in others:
            found = gain(rows, name, other)
            figures.append(
                Figure(
                    figure=f"points of accuracy, {name} over {other}, {len(rows[name])} outlines "
                    f"of {what} at equal latency ({level} of the range), paired",
                    asked=f">= {ASKED_POINTS}, interval above 0",
                    measured=found,
                    holds=found["points"] >= ASKED_POINTS and found["low"] > 0,
                )
            )
    return figures


def piece_of(
    name: str, seed: int, data: Data, place: Path, run: Path | None, methods: Sequence[str]
) -> Piece:
    """Do one piece."""
    folder = place / "supernet" if run is None else run / "supernet"
    supernet = trained(data, seed, folder) if run is None else load_supernet(folder).supernet
    if name == "tables":
        return tables(supernet, data, place, methods)
    return compare(supernet, data, seed, place) if name == "compare" else {}


def images_of(run: Path | None) -> Data:
    """Return the images of a run; the digits without one."""
    if run is None:
        return nas_data.load("digits", image_size=32)
    config = load_settings(run / "config.yaml", [])
    return nas_data.load(config.data, image_size=config.image_size)


def main() -> None:
    """Do the pieces that are missing, then record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--keep", type=Path, help="where pieces are kept; temporary by default")
    parser.add_argument("--pieces", type=int, default=1000, help="do so many and stop")
    parser.add_argument("--run", type=Path, help="a run whose supernet is trained")
    parser.add_argument("--no-sensitivity", action="store_true", help="Taylor importance alone")
    options = parser.parse_args()
    methods = ("taylor",) if options.no_sensitivity else ("taylor", "sensitivity")
    torch.set_num_threads(1)
    place = options.keep or Path(tempfile.mkdtemp())
    data = images_of(options.run)
    seeds = SEEDS if options.run is None else SEEDS[:1]
    done: dict[str, Piece] = {}
    left = options.pieces
    for seed, name in itertools.product(seeds, ("train", "tables", "compare")):
        path = place / f"seed-{seed}" / f"{name}.json"
        if not path.is_file():
            if left == 0:
                sys.exit(f"{len(done)} pieces are done; the next is {name} {seed}.")
            write_json(path, piece_of(name, seed, data, path.parent, options.run, methods))
            left -= 1
        done[f"{name} {seed}"] = json.loads(path.read_text())
    figures: list[Figure] = []
    means: Piece = {}
    space = options.run and load_supernet(options.run / "supernet").supernet.space.name
    what = f"{space}'s supernet" if space else f"{len(seeds)} supernets"
    for level in map("{:g}".format, LEVELS):
        rows: dict[str, list[list[float]]] = {}
        for seed in seeds:
            for name, found in done[f"compare {seed}"][level].items():
                rows.setdefault(name, []).extend(found)
        figures += figures_of(level, rows, what)
        means[level] = {
            name: np.round(np.mean(own, axis=0), 4).tolist() for name, own in rows.items()
        }
    measured = {name: piece for name, piece in done.items() if name.startswith("tables")}
    notes = {"data": data.name.partition(":")[0], "mean_loss_accuracy_use": means, **measured}
    record(f"allocation_gain-{space}" if space else "allocation_gain", figures, notes=notes)


if __name__ == "__main__":
    main()

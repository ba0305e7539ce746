"""Taylor importance on digits: does it say what channels do, and are its slices the better ones?

Three seeds each train the largest paths of `tiny`, with more inner options, on the shipped digits:

* the rank correlation of importance and the true change of the loss for 200 channels set to 0;
* half of every inner dimension cut off without training, statistics refitted: Taylor's order
  beside the order of the weights' magnitude, first-k and random orders, at equal MACs;
* scales fitted on 60 random allocations: R2 and rank correlation, held out;
* random sub-networks after the whole training schedule, with and without its ordering step
  (two seeds).

    python benchmarks/taylor.py --keep FOLDER [--pieces N]

Every piece is kept in FOLDER; --pieces N does the next N and stops. The results are written when
all are there.
"""

import argparse
import copy
import json
import logging
import sys
import tempfile
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import Figure, record
from scipy.stats import spearmanr
from torch import Tensor

from nas import data as nas_data
from nas.data import Data, eval_batches
from nas.files import write_json
from nas.space import Architecture, SearchSpace
from nas.space.spec import BlockOptions, CgaOptions, Mb3dOptions, Mb4dOptions, PatchMergeOptions
from nas.supernet import SuperNet, TrainConfig, fit_statistics, score, train
from nas.supernet.evaluate import first_images
from nas.supernet.gates import GATES, Dim, dims
from nas.supernet.taylor import (
    Importance,
    allocated,
    covering_paths,
    fit_scales,
    gated_losses,
    inner_dims,
    measure_importance,
    order,
    unit_gates,
    widest,
)

SEEDS = (0, 1, 2)
SCHEDULE_SEEDS = (0, 1)
STEPS = 200
CHANNELS = 200
ALLOCATIONS = 60
NETWORKS = 24
MIXED = {"s2.b0.kind": "mb4d", "s2.b1.kind": "cga", "s2.by": "patch_merge", "s2.tail": 2}

Piece = dict[str, Any]  # Any: plain JSON


def space_of(data: Data) -> SearchSpace:
    """Return `tiny` with more options for every inner dimension."""
    space = SearchSpace.load("tiny").replace(num_classes=data.num_classes, in_chans=data.in_chans)
    options = BlockOptions(
        mb4d=Mb4dOptions(expand=(1, 1.5, 2, 3, 4)),
        cga=CgaOptions(expand=(0.5, 1, 1.5, 2), key=(4, 8, 12, 16), kernels=((5, 3),)),
        mb3d=Mb3dOptions(expand=(1, 1.5, 2), heads=(4,), key=(4, 8, 16), value=(8, 16)),
        patch_merge=PatchMergeOptions(expand=(1, 2), se=(0.25,), expand_in=(0.5, 1)),
    )
    return space.replace(stages=tuple(replace(stage, blocks=options) for stage in space.stages))


def mixed_path(space: SearchSpace) -> Architecture:
    """Return a path of the largest numbers with a block of every kind."""
    choice = {gene: options[-1] for gene, options in space.genes().items()}
    return widest(space, space.architecture({**choice, **MIXED}))


def trained(data: Data, seed: int, folder: Path) -> SuperNet:
    """Return a supernet of which only the largest paths were trained; from its folder if there."""
    config = TrainConfig(
        steps=STEPS, lr=0.004, largest=1.0, sandwich=0.0, checkpoint_steps=50, seed=seed
    )
    return train(SuperNet(space_of(data), seed=seed), data, config, folder).supernet


# ---------------------------------------------------------------- pieces
def zeroing(supernet: SuperNet, data: Data, seed: int) -> Piece:
    """Compare importance with what happens to the loss when a channel is taken out."""
    path = mixed_path(supernet.space)
    importance = measure_importance(supernet, [path], data)
    statistics = fit_statistics(supernet, path, data)
    images = first_images(data.split("train"), 256)
    ((batch, labels),) = eval_batches(images, data, batch_size=256)
    places = [
        (name, channel)
        for name, own in importance.items()
        if not name.endswith("width")
        for channel in np.ndindex(own.shape)
    ]
    picks = np.random.default_rng(seed).choice(len(places), CHANNELS, replace=False)
    found, rows = [], []
    with torch.no_grad():
        gates = unit_gates(supernet, path, batch)
        before = gated_losses(supernet, batch, labels, path, statistics, gates)
        for pick in picks:
            name, channel = places[pick]
            gates[name][(slice(None), *channel)] = 0
            after = gated_losses(supernet, batch, labels, path, statistics, {name: gates[name]})
            gates[name][(slice(None), *channel)] = 1
            change = (after - before).double()
            found.append(float(importance[name][channel]))
            rows.append((float(change.square().mean()), abs(float(change.mean()))))
    squares, means = zip(*rows, strict=True)
    return {
        "of_mean_square": float(spearmanr(found, squares).statistic),
        "of_mean_change": float(spearmanr(found, means).statistic),
    }


def slices(supernet: SuperNet, data: Data, seed: int) -> Piece:
    """Score a path whose inner dimensions are cut, after different orders of their channels."""
    space = supernet.space
    path = mixed_path(space)
    paths = covering_paths(space)
    taylor = measure_importance(supernet, [path], data)
    rng = np.random.default_rng(seed)
    orders: dict[str, Importance] = {
        "taylor": inner(taylor),
        "taylor, all paths": inner(measure_importance(supernet, paths, data)),
        "magnitude": magnitude(supernet, path),
        "first-k": {},
    }
    for draw in range(3):
        orders[f"random {draw}"] = {
            name: rng.random(own.shape) for name, own in inner(taylor).items()
        }
    result: Piece = {"whole": list(scored(supernet, path, data))}
    for share in (0.75, 0.5, 0.25):
        cut = cut_to(path, space, share)
        for name, importance in orders.items():
            ordered = copy.deepcopy(supernet)
            order(ordered, importance)
            result.setdefault(f"{share:g}", {})[name] = list(scored(ordered, cut, data))
        result[f"{share:g}"]["macs"] = sum(block.macs for block in space.blocks(cut))
    return result


def inner(importance: Importance) -> Importance:
    """Return the inner dimensions alone, without streams."""
    return {name: own for name, own in importance.items() if not name.endswith(".width")}


def cut_to(path: Architecture, space: SearchSpace, share: float) -> Architecture:
    """Return a path with a share of every inner dimension but its heads."""
    numbers = {
        f"{slot}.{dim.field}": max(1, round(share * dim.size(block)))
        for slot, block in zip(space.slots(path), space.blocks(path), strict=True)
        for dim in dims(block)
        if block.kind != "stem" and dim.field != "heads"
    }
    return allocated(space, path, numbers)


def scored(supernet: SuperNet, path: Architecture, data: Data) -> tuple[float, float]:
    """Return loss and accuracy on the search split, with statistics refitted."""
    result = score(supernet, path, data)
    return result.loss, result.accuracy


def magnitude(supernet: SuperNet, path: Architecture) -> Importance:
    """Return the norms of the weights that make each channel."""
    found: Importance = {}
    for slot, block in supernet.walk(path):
        for dim in dims(block):
            weights = {
                name: value.detach().double().flatten(1)
                for name, value in supernet.tensors(slot).items()
                if value.ndim > 1
            }
            part = block.parts()[dim.part]
            prefix = "" if len(block.parts()) == 1 else f"parts.{dim.part}."
            rows = made_by(dim, part, {n.removeprefix(prefix): v for n, v in weights.items()})
            found[f"{slot}.{dim.field}"] = rows.reshape(GATES[dim.gate].shape(part)).numpy()
    return found


def made_by(dim: Dim, part: Any, weights: dict[str, Tensor]) -> Tensor:  # Any: a part
    """Return the norm of the rows that make each channel of a dimension."""
    norms: dict[str, Tensor] = {
        name: torch.linalg.vector_norm(value, dim=1) for name, value in weights.items()
    }
    if dim.gate.startswith("stem."):
        return norms[f"convs.{dim.gate[-1]}.conv.weight"]
    if dim.gate == "merge.squeeze":
        return norms["se.fc1.weight"]
    if dim.gate == "group_attn.key":
        heads = [norms[f"qkvs.{head}.conv.weight"] for head in range(part.heads)]
        return torch.stack([own[: part.key] * own[part.key : 2 * part.key] for own in heads])
    if dim.gate.startswith("attn."):
        rows = norms["qkv.weight"].view(part.heads, -1)
        key, values = part.key, rows[:, 2 * part.key :]
        if dim.field == "key":
            return rows[:, :key] * rows[:, key : 2 * key]
        return values if dim.field == "value" else values.sum(1)
    return norms.get("expand.weight", norms.get("expand.conv.weight", torch.zeros(0)))


def scales(supernet: SuperNet, data: Data, seed: int) -> Piece:
    """Fit scales on random allocations of an ordered supernet."""
    space = supernet.space
    path = mixed_path(space)
    order(supernet, inner(measure_importance(supernet, [path], data)))
    tables = inner_dims(space, path, measure_importance(supernet, [path], data))
    rng = np.random.default_rng(seed)
    allocations = [
        {group.name: int(rng.choice(group.options)) for group in tables} for _ in range(ALLOCATIONS)
    ]
    whole, _ = scored(supernet, path, data)
    increases = [
        scored(supernet, allocated(space, path, own), data)[0] - whole for own in allocations
    ]
    macs = [sum(block.macs for block in space.blocks(allocated(space, path, own)))
            for own in allocations]  # fmt: skip
    result: Piece = {
        "groups": len(tables),
        "increases": increases,
        "macs_spearman": float(spearmanr(increases, [-each for each in macs]).statistic),
    }
    plain = [sum(g.at(own[g.name]) for g in tables) for own in allocations]
    result["unscaled_spearman"] = float(spearmanr(increases, plain).statistic)
    for pull in (0.2, 0.0):
        fitted = fit_scales(tables, allocations, increases, pull=pull)
        result[f"pull {pull:g}"] = {
            "r2": fitted.r2,
            "r2_fitted": fitted.r2_fitted,
            "spearman": fitted.spearman,
            "by_kind": dict(fitted.by_kind),
        }
    return result


def schedule(data: Data, seed: int, order_images: int, folder: Path) -> Piece:
    """Train by the whole schedule and score random sub-networks."""
    space = space_of(data)
    config = TrainConfig(
        steps=280, lr=0.004, checkpoint_steps=70, seed=seed, order_images=order_images
    )
    supernet = train(SuperNet(space, seed=seed), data, config, folder).supernet
    rng = np.random.default_rng(100)
    paths = [space.sample(rng, level) for level in np.linspace(0, 1, NETWORKS)]
    found = [scored(supernet, path, data) for path in paths]
    return {"losses": [own[0] for own in found], "accuracies": [own[1] for own in found]}


# ---------------------------------------------------------------- figures
def figures_of(done: dict[str, Piece]) -> list[Figure]:
    """Return what was asked for beside what was measured."""
    by_seed = {
        name: [done[key] for key in done if key.startswith(name + " ")]
        for name in ("zeroing", "slices", "scales", "ordered", "unordered")
    }
    squares = [piece["of_mean_square"] for piece in by_seed["zeroing"]]
    changes = [piece["of_mean_change"] for piece in by_seed["zeroing"]]
    found = [
        Figure(figure=f"Spearman of importance and the mean squared change of {CHANNELS} channels "
               "at 0, three seeds", asked=">= 0.7", measured=rounded(squares),
               holds=min(squares) >= 0.7),
        Figure(figure="the same with the absolute change of the mean loss", asked="told",
               measured=rounded(changes), holds=True),
    ]  # fmt: skip
    for share in ("0.75", "0.5", "0.25"):
        losses = {
            name: float(
                np.mean([piece[share][key][0] for piece in by_seed["slices"] for key in keys])
            )
            for name, keys in ORDERS.items()
        }
        accuracies = {
            name: float(
                np.mean([piece[share][key][1] for piece in by_seed["slices"] for key in keys])
            )
            for name, keys in ORDERS.items()
        }
        text = ", ".join(f"{n} {losses[n]:.3f} ({accuracies[n]:.1%})" for n in losses)
        is_best = all(losses["taylor"] <= losses[name] for name in losses)
        found.append(
            Figure(figure=f"loss (accuracy) with {share} of every inner dimension, three seeds",
                   asked="taylor lowest", measured=text, holds=is_best)
        )  # fmt: skip
    pieces = by_seed["scales"]
    for pull in ("pull 0.2", "pull 0"):
        r2 = [piece[pull]["r2"] for piece in pieces]
        ranks = [piece[pull]["spearman"] for piece in pieces]
        found += [
            Figure(figure=f"R2 of fitted scales on {ALLOCATIONS} allocations, held out, {pull}",
                   asked=">= 0.5", measured=rounded(r2), holds=min(r2) >= 0.5),
            Figure(figure=f"Spearman of the same, {pull}", asked=">= 0.7",
                   measured=rounded(ranks), holds=min(ranks) >= 0.7),
        ]  # fmt: skip
    rivals = {key: rounded([piece[key] for piece in pieces])
              for key in ("unscaled_spearman", "macs_spearman")}  # fmt: skip
    found.append(
        Figure(figure="Spearman of sums without scales, and of MACs", asked="told",
               measured=rivals, holds=True)
    )  # fmt: skip
    means = {
        name: rounded([float(np.mean(piece["losses"])) for piece in by_seed[name]])
        for name in ("ordered", "unordered")
    }
    better = float(np.mean(means["ordered"])) <= float(np.mean(means["unordered"]))
    found.append(
        Figure(figure=f"mean loss of {NETWORKS} sub-networks after 280 steps, with the ordering "
               "step and without, two seeds", asked="with <= without",
               measured=f"{means['ordered']}, {means['unordered']}", holds=better)
    )  # fmt: skip
    return found


ORDERS = {
    "taylor": ("taylor",),
    "taylor over all paths": ("taylor, all paths",),
    "magnitude": ("magnitude",),
    "first-k": ("first-k",),
    "random": ("random 0", "random 1", "random 2"),
}


def rounded(values: list[float]) -> list[float]:
    """Return values with three digits."""
    return [round(value, 3) for value in values]


def pieces_of(data: Data, place: Path) -> dict[str, Callable[[], Piece]]:
    """Return every piece by its name, in the order they are done."""

    def on_largest(work: Callable[[SuperNet, Data, int], Piece], seed: int) -> Piece:
        return work(trained(data, seed, place / f"largest-{seed}"), data, seed)

    found: dict[str, Callable[[], Piece]] = {}
    for seed in SEEDS:
        for work in (slices, zeroing, scales):
            found[f"{work.__name__} {seed}"] = partial(on_largest, work, seed)
    for seed in SCHEDULE_SEEDS:
        for name, images in (("ordered", 256), ("unordered", 0)):
            folder = place / f"{name}-{seed}"
            found[f"{name} {seed}"] = partial(schedule, data, seed, images, folder)
    return found


def main() -> None:
    """Do the pieces that are missing, then record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--keep", type=Path, help="where pieces are kept; temporary by default")
    parser.add_argument("--pieces", type=int, default=1000, help="do so many and stop")
    options = parser.parse_args()
    logging.basicConfig(level=logging.WARNING)
    torch.set_num_threads(1)
    place = options.keep or Path(tempfile.mkdtemp())
    data = nas_data.load("digits", image_size=32)
    done: dict[str, Piece] = {}
    left = options.pieces
    for name, work in pieces_of(data, place).items():
        path = place / f"{name.replace(' ', '-')}.json"
        if not path.is_file():
            if left == 0:
                sys.exit(f"{len(done)} pieces are done; the next is {name}.")
            write_json(path, work())
            left -= 1
        done[name] = json.loads(path.read_text())
    record("taylor", figures_of(done), notes=done)


if __name__ == "__main__":
    main()

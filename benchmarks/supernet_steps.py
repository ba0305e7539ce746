"""What a step and an evaluation of sub-networks cost beside plain networks of the same sizes."""

import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from record import Figure
from torch import Tensor, nn

from nas import network
from nas.data import Data, Split, batches, steps_per_epoch
from nas.network import scale_residuals
from nas.space import Architecture, SearchSpace
from nas.supernet import EvaluateConfig, Evaluator, SuperNet, TrainConfig
from nas.supernet.evaluate import first_images
from nas.supernet.model import RESIDUAL_SCALE
from nas.supernet.paths import step_paths
from nas.supernet.schedule import Schedule

REFIT_IMAGES = 512
SCORED_IMAGES = 2000
WARM_UP = 2
TIMED = 3
CLIP = 1.0
CHOICE_STEPS = 2.0
LR = 1e-4


@dataclass(frozen=True, slots=True, kw_only=True)
class Setting:
    """Space and images of a measurement."""

    space: SearchSpace
    data: Data
    batch_size: int

    def batch(self) -> tuple[Tensor, Tensor]:
        """Return one augmented batch of training images."""
        made = batches(
            self.data.split("train"), self.data, batch_size=self.batch_size, seed=0, epoch=0,
            augment=self.data.augment,
        )  # fmt: skip
        return next(made)

    def supernet_seconds_a_step(self, config: TrainConfig) -> float:
        """Return the mean seconds of a training step, by a few paths of each phase.

        A choice step, which runs every kind at every place, counts as CHOICE_STEPS of them.
        """
        supernet = SuperNet(self.space)
        optimizer = torch.optim.AdamW(supernet.weight_groups(0.02), lr=LR, fused=True)
        images, labels = self.batch()
        schedule = Schedule.of(
            config, steps_per_epoch=steps_per_epoch(self.data.split("train"), self.batch_size)
        )
        steps = np.linspace(0, schedule.steps - 1, 16).astype(int)
        seconds = []
        for step in [steps[0], *steps]:
            paths = [path.architecture for path in step_paths(self.space, schedule, int(step))]
            begun = time.process_time()
            supernet_step(supernet, optimizer, paths, images, labels)
            seconds.append(time.process_time() - begun)
        more = CHOICE_STEPS / config.choice_every if config.choice_every else 0.0
        return statistics.mean(seconds[1:]) * (1 + more)


def largest_of(space: SearchSpace, max_macs: int | None) -> Architecture:
    """Return the largest network of a space, or a random one close below a number of MACs."""
    if max_macs is None:
        return space.largest()
    rng = np.random.default_rng(0)
    drawn = [space.sample(rng, level) for level in np.linspace(0.5, 1, 64)]
    sized = [(sum(block.macs for block in space.blocks(path)), path.id, path) for path in drawn]
    return max(row for row in sized if row[0] <= max_macs)[2]


# ---------------------------------------------------------------- steps
def supernet_step(
    supernet: SuperNet,
    optimizer: torch.optim.Optimizer,
    paths: Sequence[Architecture],
    images: Tensor,
    labels: Tensor,
) -> None:
    """Take one step on several sub-networks, as training does: gradients add up, one update."""
    optimizer.zero_grad(set_to_none=True)
    for path in paths:
        loss = F.cross_entropy(supernet(images, path), labels)
        torch.autograd.backward(loss / len(paths))
    nn.utils.clip_grad_norm_(supernet.parameters(), CLIP)
    optimizer.step()


class Plain:
    """A network of a sub-network's size with an optimizer of its own."""

    def __init__(self, setting: Setting, path: Architecture) -> None:
        self.model = network.build(setting.space.blocks(path)).train()
        scale_residuals(self.model, RESIDUAL_SCALE)
        self.optimizer = torch.optim.AdamW(self.model.parameters(), lr=LR, fused=True)

    def step(self, images: Tensor, labels: Tensor) -> None:
        """Take one step."""
        self.optimizer.zero_grad(set_to_none=True)
        torch.autograd.backward(F.cross_entropy(self.model(images), labels))
        nn.utils.clip_grad_norm_(self.model.parameters(), CLIP)
        self.optimizer.step()


def seconds_a_step(setting: Setting, path: Architecture) -> float:
    """Return the processor seconds of a plain network's training step."""
    plain = Plain(setting, path)
    images, labels = setting.batch()
    seconds = [timed(lambda: plain.step(images, labels)) for _ in range(WARM_UP + TIMED)]
    return statistics.median(seconds[WARM_UP:])


def timed(work: Callable[[], object]) -> float:
    """Return the processor seconds of a piece of work."""
    begun = time.process_time()
    work()
    return time.process_time() - begun


def sandwich_part(setting: Setting, rounds: int) -> tuple[list[Figure], dict[str, Any]]:
    """Compare a sandwich step with its plain networks' own steps, taken in turns."""
    space = setting.space
    rng = np.random.default_rng(0)
    paths = [space.largest(), space.smallest(), space.sample(rng, 0.5), space.sample(rng, 0.3)]
    supernet = SuperNet(space)
    optimizer = torch.optim.AdamW(supernet.weight_groups(0.02), lr=LR, fused=True)
    plains = [Plain(setting, path) for path in paths]
    images, labels = setting.batch()
    notes: dict[str, Any] = {"batch_size": setting.batch_size, "rounds": rounds}
    figures = []
    for count in (3, 4):
        ratios, ours, theirs = [], [], []
        for number in range(WARM_UP + rounds):
            step = partial(supernet_step, supernet, optimizer, paths[:count], images, labels)
            sandwich = timed(step)
            alone = sum(timed(partial(plain.step, images, labels)) for plain in plains[:count])
            if number >= WARM_UP:
                ratios.append(sandwich / alone)
                ours.append(sandwich)
                theirs.append(alone)
        ratio = statistics.median(ratios)
        notes[f"k={count}"] = {"ratios": ratios, "sandwich_s": ours, "plain_s": theirs}
        text = f"a step of {count} sub-networks by the sum of the plain networks' own, median"
        figures.append(
            Figure(figure=text, asked="<= 1.10", measured=round(ratio, 3), holds=ratio <= 1.10)
        )
    kept = [saved_bytes(partial(supernet, images, path), supernet) for path in paths]
    own = [saved_bytes(partial(plain.model, images), plain.model) for plain in plains]
    peak = max(kept) / max(own)
    notes["saved_for_backward_bytes"] = {"sub_networks": kept, "plain": own}
    notes["parameters"] = {
        "supernet": count_of(supernet),
        "largest_plain": count_of(plains[0].model),
    }
    notes["optimizer_bytes"] = {
        "supernet": state_bytes(optimizer), "largest_plain": state_bytes(plains[0].optimizer),
    }  # fmt: skip
    figures += [
        Figure(figure="activations kept for the backward pass, the sandwich's largest by the "
               "largest plain network's", asked="<= 1.15", measured=round(peak, 3),
               holds=peak <= 1.15),
        Figure(figure="parameters of supernet and largest plain network", asked="told",
               measured=list(notes["parameters"].values()), holds=True),
        Figure(figure="bytes of AdamW's state of both", asked="told",
               measured=list(notes["optimizer_bytes"].values()), holds=True),
    ]  # fmt: skip
    return figures, notes


def saved_bytes(forward: Callable[[], Tensor], module: nn.Module) -> int:
    """Return the bytes of the memory a forward pass keeps for the backward, weights apart."""
    owned = {value.untyped_storage().data_ptr() for value in module.parameters()}
    seen: dict[int, int] = {}
    alive: list[Tensor] = []  # so that no address is used again while we look

    def pack(value: Tensor) -> Tensor:
        storage = value.untyped_storage()
        if storage.data_ptr() not in owned:
            seen[storage.data_ptr()] = storage.nbytes()
            alive.append(value)
        return value

    with torch.autograd.graph.saved_tensors_hooks(pack, lambda value: value):
        scores = forward()
    del scores
    return sum(seen.values())


def count_of(module: nn.Module) -> int:
    """Return how many parameters a module has."""
    return sum(value.numel() for value in module.parameters())


def state_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Return the bytes of an optimizer's state."""
    tensors = [
        value for state in optimizer.state.values() for value in state.values()
        if isinstance(value, Tensor)
    ]  # fmt: skip
    return sum(value.numel() * value.element_size() for value in tensors)


# ---------------------------------------------------------------- evaluation
def evaluation_part(
    setting: Setting, ends: Sequence[Architecture], rounds: int
) -> tuple[list[Figure], dict[str, Any]]:
    """Compare scoring sub-networks with plain forward passes of the same images, in turns."""
    space = setting.space
    rng = np.random.default_rng(1)
    paths = [*ends, *(space.sample(rng, level) for level in (0.2, 0.35, 0.5, 0.65))]
    data = enough_images(setting.data)
    supernet = SuperNet(space)
    evaluator = Evaluator(supernet, data, EvaluateConfig(refit_images=REFIT_IMAGES))
    shown = [batch for shared in (evaluator.refit, evaluator.scored) for batch, _ in shared]
    notes: dict[str, Any] = {"images": sum(map(len, shown)), "rounds": rounds}
    medians = []
    for path in paths:
        model = supernet.extract(path, evaluator.score(path).statistics)

        def plain(model: nn.Module = model) -> None:
            with torch.no_grad():
                for batch in shown:
                    model(batch)

        pairs = []
        for number in range(1 + rounds):
            pair = timed(partial(evaluator.score, path)), timed(plain)
            if number:
                pairs.append(pair)
        ratio = statistics.median(ours / theirs for ours, theirs in pairs)
        macs = sum(block.macs for block in space.blocks(path))
        notes[path.id] = {"macs": macs, "ratio": ratio, "pairs_s": pairs}
        medians.append(ratio)
    worst, middle = max(medians), statistics.median(medians)
    text = f"scoring a sub-network by a plain forward of the same {notes['images']} images"
    return [
        Figure(figure=f"{text}: median of {len(paths)} networks", asked="<= 1.10",
               measured=round(middle, 3), holds=middle <= 1.10),
        Figure(figure="the same, worst network", asked="told", measured=round(worst, 3),
               holds=True),
    ], notes  # fmt: skip


def enough_images(data: Data) -> Data:
    """Return the data with 512 training and 2,000 search images, repeated where there are fewer."""
    splits = {
        "train": repeated(data.split("train"), REFIT_IMAGES),
        "choice": data.split("choice"),
        "search": repeated(data.split("search"), SCORED_IMAGES),
    }
    return replace(data, splits=splits)


def repeated(split: Split, count: int) -> Split:
    """Return a split of so many images."""
    times = -(-count // len(split))
    longer = replace(
        split,
        images=split.images.repeat(times, 1, 1, 1),
        labels=split.labels.repeat(times),
        indices=split.indices.repeat(times),
    )
    return first_images(longer, count)

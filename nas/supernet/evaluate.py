"""Scoring sub-networks: fit BatchNorm for each on training images, rank on the search split."""

import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor

from nas import checkpoint
from nas.data import Data, Split, eval_batches
from nas.errors import ConfigError
from nas.space import Architecture
from nas.supernet.known_scores import KnownScores, Quality
from nas.supernet.model import Statistics, SubNetwork, SuperNet

# Normalised images an evaluator keeps; a data set with more is normalised anew each time.
KEPT_BYTES = 512 * 2**20

Batch = tuple[Tensor, Tensor]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluateConfig:
    """How a sub-network is scored.

    Attributes:
        refit_images: Training images, not augmented, that BatchNorm's statistics are fitted on:
            always the same ones.
        batch_size: Images run at once. It changes results in their last bits only, except that
            statistics of several batches are means of the batches' own.
    """

    refit_images: int = 256
    batch_size: int = 256

    def __post_init__(self) -> None:
        for name in ("refit_images", "batch_size"):
            if not 2 <= getattr(self, name) <= 1_000_000:
                raise ConfigError(
                    f"{name} must be from 2 to 1000000, but is {getattr(self, name)}."
                )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Score:
    """How well a sub-network does on the split that was scored.

    Attributes:
        accuracy: Share of images whose class has the highest score.
        loss: Mean cross-entropy, in nats: ranks more steadily than the accuracy.
        statistics: What BatchNorm was fitted to; `supernet.extract` wants it.
    """

    accuracy: float
    loss: float
    statistics: Statistics = field(repr=False)


class Evaluator:
    """Scores many sub-networks of one supernet on the same images, each image normalised once.

    Several threads may use it at once. With a folder, what was scored is kept there, so that a
    search that goes on, or `nas rank` after it, does not run the same network again.

    Args:
        supernet: Its weights must not change while the evaluator is in use.
        data: Statistics are fitted on its train split.
        config: How.
        split: What is scored.
        folder: Where accuracies and losses are kept: one JSON file an architecture, in a folder
            for these weights, images and settings. None keeps nothing.

    Attributes:
        refit: The batches that statistics are fitted on.
        scored: The batches that are scored.

    Raises:
        ConfigError: data and space do not fit.
    """

    def __init__(
        self,
        supernet: SuperNet,
        data: Data,
        config: EvaluateConfig | None = None,
        *,
        split: str = "search",
        folder: Path | str | None = None,
    ) -> None:
        check_fit(supernet, data)
        self.supernet = supernet
        config = config or EvaluateConfig()
        device = next(supernet.parameters()).device
        images, size = refit_images(data, config)
        self.refit = SharedBatches(images, data, batch_size=size, device=device)
        chosen = data.split(split)
        self.scored = SharedBatches(chosen, data, batch_size=config.batch_size, device=device)
        self._known: KnownScores | None = None
        if folder is not None:
            weights = checkpoint.digest_tensors(supernet.state_dict())
            self._known = KnownScores(
                folder,
                {
                    "supernet": weights,
                    "space": supernet.space.digest,
                    "data": data.digest,
                    "split": split,
                    "mean": list(data.mean),
                    "std": list(data.std),
                    "refit_images": config.refit_images,
                    "batch_size": config.batch_size,
                },
            )

    def score(self, architecture: Architecture) -> Score:
        """Return accuracy, loss and the statistics that were fitted; always runs the network."""
        network = SubNetwork(self.supernet, architecture)
        statistics = fitted(network, self.supernet.empty_statistics(architecture), self.refit)
        right, loss, images = 0, 0.0, 0
        for batch, labels in self.scored:
            scores = network(batch, statistics).cpu().double()
            labels = labels.cpu()
            loss += float(F.cross_entropy(scores, labels, reduction="sum"))
            right += int((scores.argmax(1) == labels).sum())
            images += len(labels)
        return Score(accuracy=right / images, loss=loss / images, statistics=statistics)

    def quality(self, architecture: Architecture) -> Quality:
        """Return accuracy and loss, from the folder if they are known there."""
        known = None if self._known is None else self._known.get(architecture.id)
        if known is not None:
            return known
        found = self.score(architecture)
        quality = Quality(accuracy=found.accuracy, loss=found.loss)
        if self._known is not None and math.isfinite(found.loss):
            self._known.put(architecture.id, quality)
        return quality


class SharedBatches:
    """The batches of a split as networks take them, for many passes.

    They are normalised once and kept where they are few enough, else made anew in each pass.
    """

    def __init__(
        self, split: Split, data: Data, *, batch_size: int, device: torch.device | str
    ) -> None:
        self._split, self._data = split, data
        self._batch_size, self._device = batch_size, device
        is_kept = 4 * split.images.numel() <= KEPT_BYTES
        self._kept = tuple(self._made()) if is_kept else None

    def _made(self) -> Iterator[Batch]:
        return eval_batches(
            self._split, self._data, batch_size=self._batch_size, device=self._device
        )

    def __iter__(self) -> Iterator[Batch]:
        return self._made() if self._kept is None else iter(self._kept)


def score(
    supernet: SuperNet,
    architecture: Architecture,
    data: Data,
    config: EvaluateConfig | None = None,
    *,
    split: str = "search",
) -> Score:
    """Score one sub-network on the search split (or another), with statistics fitted for it.

    The result is a function of weights, architecture, data and configuration alone: the supernet
    is not changed, and several threads may score at once. To score many, make an `Evaluator`.

    Raises:
        ConfigError: data and space do not fit.
    """
    return Evaluator(supernet, data, config, split=split).score(architecture)


def fit_statistics(
    supernet: SuperNet,
    architecture: Architecture,
    data: Data,
    config: EvaluateConfig | None = None,
) -> Statistics:
    """Return BatchNorm's means and variances of one sub-network over fixed training images.

    Every batch is normalised by itself, as in training. Over one batch the statistics are exact;
    over several of equal size they are the means of theirs.
    """
    check_fit(supernet, data)
    device = next(supernet.parameters()).device
    images, size = refit_images(data, config or EvaluateConfig())
    batches = eval_batches(images, data, batch_size=size, device=device)
    network = SubNetwork(supernet, architecture)
    return fitted(network, supernet.empty_statistics(architecture), batches)


def fitted(network: SubNetwork, statistics: Statistics, batches: Iterable[Batch]) -> Statistics:
    """Add batches of equal size to BatchNorm's statistics, in place, and return them."""
    for batch, _ in batches:
        network(batch, statistics, fit=True)
    return statistics


def refit_images(data: Data, config: EvaluateConfig) -> tuple[Split, int]:
    """Return the images statistics are fitted on, and how many of them make a batch."""
    train = data.split("train")
    wanted = min(config.refit_images, len(train))
    size = wanted // -(-wanted // config.batch_size)  # equal batches: each counts the same
    return first_images(train, wanted // size * size), size


def first_images(split: Split, count: int) -> Split:
    """Return the first images of a split; any prefix of one is a fair sample."""
    return replace(
        split,
        images=split.images[:count],
        labels=split.labels[:count],
        indices=split.indices[:count],
    )


def check_fit(supernet: SuperNet, data: Data) -> None:
    """Raise ConfigError unless images and classes are what the supernet was built for."""
    wanted: Mapping[str, tuple[int, int]] = {
        "image_size": (supernet.space.image_size, data.image_size),
        "in_chans": (supernet.space.in_chans, data.in_chans),
        "num_classes": (supernet.space.num_classes, data.num_classes),
    }
    for name, (of_space, of_data) in wanted.items():
        if of_space != of_data:
            raise ConfigError(
                f"{name} must be that of the data, but the space {supernet.space.name} has "
                f"{of_space} and {data.name} has {of_data}. "
                f"Use space.replace({name}={of_data})."
            )

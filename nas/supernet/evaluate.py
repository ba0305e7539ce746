"""Scoring sub-networks: fit BatchNorm for each on training images, rank on the search split."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F

from nas.data import Data, Split, eval_batches
from nas.errors import ConfigError
from nas.space import Architecture
from nas.supernet.model import Statistics, SuperNet


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
    statistics: Statistics


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
    is not changed, and several threads may score at once.

    Raises:
        ConfigError: data and space do not fit.
    """
    config = config or EvaluateConfig()
    statistics = fit_statistics(supernet, architecture, data, config)
    device = next(supernet.parameters()).device
    right, loss, images = 0, 0.0, 0
    chosen = data.split(split)
    with torch.no_grad():
        for batch, labels in eval_batches(
            chosen, data, batch_size=config.batch_size, device=device
        ):
            scores = supernet(batch, architecture, statistics).cpu().double()
            labels = labels.cpu()
            loss += float(F.cross_entropy(scores, labels, reduction="sum"))
            right += int((scores.argmax(1) == labels).sum())
            images += len(labels)
    return Score(accuracy=right / images, loss=loss / images, statistics=statistics)


@torch.no_grad()
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
    config = config or EvaluateConfig()
    check_fit(supernet, data)
    device = next(supernet.parameters()).device
    train = data.split("train")
    wanted = min(config.refit_images, len(train))
    size = wanted // -(-wanted // config.batch_size)  # equal batches: each counts the same
    images = first_images(train, wanted // size * size)
    statistics = supernet.empty_statistics(architecture)
    for batch, _ in eval_batches(images, data, batch_size=size, device=device):
        supernet(batch, architecture, statistics, fit=True)
    return statistics


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

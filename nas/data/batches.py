"""Batches of normalised images; order and augmentation are functions of (seed, epoch, index)."""

from collections.abc import Iterator

import torch
from torch import Tensor

from nas.data import draws
from nas.data.augment import COLUMNS, Augment, augmented, erased, mixed
from nas.data.splits import Data, Normalised, Split, as_tensor
from nas.errors import ConfigError


def steps_per_epoch(split: Split, batch_size: int) -> int:
    """Return how many whole batches a split has.

    Raises:
        ConfigError: not even one.
    """
    if not 1 <= batch_size <= len(split):
        raise ConfigError(
            f"batch_size must be from 1 to the {len(split)} images of the {split.name} split, "
            f"but is {batch_size}."
        )
    return len(split) // batch_size


def batches(
    split: Split,
    data: Data,
    *,
    batch_size: int,
    seed: int,
    epoch: int,
    augment: Augment | None,
    start_batch: int = 0,
    device: torch.device | str = "cpu",
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the whole batches of one epoch, from number `start_batch` on.

    Args:
        split: The images; those that do not fill a batch are left for another epoch's order.
        data: Tells mean, standard deviation and classes.
        batch_size: Images a batch.
        seed: With `epoch`, all that order and augmentation depend on.
        epoch: Counted from 0.
        augment: What may happen to an image; None and `Augment()` leave images as they are.
        start_batch: Batches to pass over; the others are what they would have been.
        device: Where the batches are made.

    Yields:
        Images as float32 of shape (batch_size, c, h, w), normalised, in channels_last; labels as
        int64 of shape (batch_size,), or as float32 of shape (batch_size, classes) where the
        augmentation mixes images.
    """
    steps = steps_per_epoch(split, batch_size)
    indices = split.indices.numpy()
    order = draws.order(seed, epoch, indices)
    for step in range(start_batch, steps):
        rows = order[step * batch_size : (step + 1) * batch_size]
        images = split.images[as_tensor(rows)].to(device)
        labels = split.labels[as_tensor(rows)].to(device)
        if augment is None:
            yield _normalised(images.to(torch.float32) / 255, data), labels
            continue
        chances = draws.uniform(seed, draws.AUGMENT, epoch, indices[rows], COLUMNS)
        pixels = _normalised(augmented(images, chances, augment), data)
        if augment.erase:
            pixels = erased(pixels, chances, augment)
        if augment.mixes:
            pixels, labels = mixed(
                pixels,
                labels,
                augment,
                num_classes=data.num_classes,
                seed=seed,
                epoch=epoch,
                indices=indices[rows],
            )
        yield pixels, labels


def eval_batches(
    split: Split, data: Normalised, *, batch_size: int, device: torch.device | str = "cpu"
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield all images in order, as they are: (float32 normalised channels_last, int64 labels)."""
    for start in range(0, len(split), batch_size):
        images = split.images[start : start + batch_size].to(device)
        labels = split.labels[start : start + batch_size].to(device)
        yield _normalised(images.to(torch.float32) / 255, data), labels


def _normalised(pixels: Tensor, data: Normalised) -> Tensor:
    """Return (pixels - mean) / std in channels_last."""
    mean, std = (
        torch.tensor(values, dtype=torch.float32, device=pixels.device)[:, None, None]
        for values in (data.mean, data.std)
    )
    return ((pixels - mean) / std).contiguous(memory_format=torch.channels_last)

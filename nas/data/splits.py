"""Splits: which image is trained on, which chooses, which ranks; decided by the images alone."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from nas import files
from nas.data.augment import Augment
from nas.errors import ConfigError

VISIBLE = ("train", "choice", "search")  # test is not: load_test is its only door


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Split:
    """Images of one split, in an order drawn from the images, so that any prefix is a fair sample.

    Attributes:
        name: train, choice, search or test.
        images: uint8 of shape (n, channels, side, side).
        labels: int64 of shape (n,).
        indices: int64 of shape (n,): each image's number among all of the source's images; what
            its augmentation is drawn from.
        digest: sha256 of the three.
    """

    name: str
    images: Tensor
    labels: Tensor
    indices: Tensor
    digest: str

    def __len__(self) -> int:
        return len(self.labels)

    @classmethod
    def of(cls, name: str, images: Tensor, labels: Tensor, indices: Tensor) -> "Split":
        """Return the split of these tensors, with its digest."""
        total = hashlib.sha256(repr(tuple(images.shape)).encode())
        for tensor in (images, labels, indices):
            total.update(tensor.contiguous().numpy().data)
        return cls(
            name=name, images=images, labels=labels, indices=indices, digest=total.hexdigest()
        )


class Normalised(Protocol):
    """What knows how images become a network's input: (image / 255 - mean) / std, per channel."""

    @property
    def mean(self) -> tuple[float, ...]:
        """Return the mean of each channel, in 0..1."""

    @property
    def std(self) -> tuple[float, ...]:
        """Return the standard deviation of each channel, in 0..1."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Data:
    """A data set without its test split.

    Attributes:
        name: What `load` was given.
        image_size: Side of the square images.
        in_chans: Channels of an image.
        mean: Mean of each channel, in 0..1.
        std: Standard deviation of each channel, in 0..1.
        class_names: In the order of the labels.
        augment: The augmentation that suits these images.
        splits: train, choice and search by name.
    """

    name: str
    image_size: int
    in_chans: int
    mean: tuple[float, ...]
    std: tuple[float, ...]
    class_names: tuple[str, ...]
    augment: Augment
    splits: Mapping[str, Split]

    @property
    def num_classes(self) -> int:
        """Return how many classes there are."""
        return len(self.class_names)

    @property
    def digest(self) -> str:
        """Return the sha256 of size, classes and splits; where the files lie is left out."""
        splits = {name: split.digest for name, split in self.splits.items()}
        return files.digest_json([self.image_size, self.class_names, splits])

    def split(self, name: str) -> Split:
        """Return the split "train", "choice" or "search".

        Raises:
            ConfigError: another name; the test split is opened by verification alone.
        """
        if name not in self.splits:
            raise ConfigError(
                f"a split is one of {', '.join(self.splits)}, but {name!r} was asked for. "
                "Test images are for verifying a finished winner only."
            )
        return self.splits[name]


def partition(
    labels: NDArray[np.int64],
    keys: Sequence[bytes],
    fractions: Mapping[str, float],
    class_names: Sequence[str],
) -> dict[str, NDArray[np.int64]]:
    """Divide image numbers into disjoint splits, each class in the same proportions.

    Within a class, images stand in the order of their keys and are cut at the fractions. So the
    same images give the same splits whatever their file names and whatever the seed, and copies
    of one image never stand on two sides of a cut.

    Args:
        labels: The class of each image, shape (n,).
        keys: Digest of each image's content.
        fractions: Share of each split; they sum to 1.
        class_names: For the error.

    Returns:
        The numbers of each split, ordered by key.

    Raises:
        ConfigError: a class has too few different images to be in every split.
    """
    order = sorted(range(len(keys)), key=lambda number: (keys[number], number))
    members: list[list[int]] = [[] for _ in class_names]
    for number in order:
        members[labels[number]].append(number)
    split_of = np.empty(len(keys), dtype=np.int64)
    for class_name, numbers in zip(class_names, members, strict=True):
        for place, piece in enumerate(_cut(numbers, keys, fractions)):
            if not piece:
                raise ConfigError(
                    f"every class needs at least {len(fractions)} different images, one for each "
                    f"of {', '.join(fractions)}, but {class_name!r} with {len(numbers)} leaves "
                    f"{list(fractions)[place]} empty. Add images to that class, or remove it."
                )
            split_of[piece] = place
    by_key = np.array(order, dtype=np.int64)
    return {name: by_key[split_of[by_key] == place] for place, name in enumerate(fractions)}


def _cut(
    members: list[int], keys: Sequence[bytes], fractions: Mapping[str, float]
) -> list[list[int]]:
    """Cut one class, in order, into pieces of at least one image where there are enough."""
    sizes = [max(1, round(share * len(members))) for share in fractions.values()]
    largest = sizes.index(max(sizes))
    sizes[largest] += len(members) - sum(sizes)
    pieces, start = [], 0
    for size in sizes:
        end = max(start, min(start + size, len(members)))
        while start < end < len(members) and keys[members[end]] == keys[members[end - 1]]:
            end += 1
        pieces.append(members[start:end])
        start = end
    return pieces


def as_tensor(numbers: NDArray[np.int64]) -> Tensor:
    """Return a NumPy array of whole numbers as an int64 tensor of its own."""
    return torch.from_numpy(numbers.astype(np.int64, copy=True))

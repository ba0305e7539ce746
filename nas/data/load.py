"""A data set's name to its splits: images decoded once, resized, and kept in memory as uint8."""

import os
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import psutil
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from nas.data import sources
from nas.data.augment import DIGITS, PHOTOS, Augment
from nas.data.sources import Progress, Source
from nas.data.splits import VISIBLE, Data, Split, as_tensor, partition
from nas.errors import ConfigError, CorruptFile

SMALLEST_SIZE, LARGEST_SIZE = 8, 1024
CHUNK = 512
IN_CHANS = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """How one kind of data set is divided and shown to a network."""

    fractions: Mapping[str, float]
    mean: tuple[float, ...]
    std: tuple[float, ...]
    augment: Augment
    image_size: int | None = None


PHOTO_RECIPE = Recipe(
    fractions={"train": 0.8, "choice": 0.05, "search": 0.15},
    mean=(0.485, 0.456, 0.406),  # ImageNet's, as timm's pretrained networks expect
    std=(0.229, 0.224, 0.225),
    augment=PHOTOS,
)
DIGITS_RECIPE = Recipe(
    fractions={"train": 0.5, "choice": 0.1, "search": 0.2, "test": 0.2},
    mean=(0.5, 0.5, 0.5),
    std=(0.5, 0.5, 0.5),
    augment=DIGITS,
    image_size=32,
)


def load(name: str, *, image_size: int | None = None, progress: Progress | None = None) -> Data:
    """Load the train, choice and search splits; the test images are not read.

    Args:
        name: `digits`, `folder:DIR` with `DIR/train/<class>/*` and `DIR/val/<class>/*` (val is the
            test split), or a data set of timm's: `torch/NAME`, `hfds/NAME`, each with `:DIR`
            where it does not lie in the cache.
        image_size: Side the images get: the short side is resized to it, the centre is cut out.
            Digits have 32 by default; others need it.
        progress: Told while images are read and decoded.

    Raises:
        ConfigError: no such data set, a class too small, or more images than the memory holds.
        CorruptFile: an image cannot be decoded; the message names it.
    """
    recipe, size = _recipe(name, image_size)
    source = _open(name, "train")
    _check_memory(len(source.labels), size)
    workers = ThreadPoolExecutor(os.cpu_count())
    try:
        keys = _keys(source, workers, progress)
        parts = partition(source.labels, keys, recipe.fractions, source.class_names)
        splits = {
            part: _fill(source, part, parts[part], size, workers, progress) for part in VISIBLE
        }
    finally:
        workers.shutdown(cancel_futures=True)
    return Data(
        name=name,
        image_size=size,
        in_chans=IN_CHANS,
        mean=recipe.mean,
        std=recipe.std,
        class_names=source.class_names,
        augment=recipe.augment,
        splits=splits,
    )


def load_test(
    name: str, *, image_size: int | None = None, progress: Progress | None = None
) -> Split:
    """Load the test split. Only the verification of a finished winner may call this.

    Args and errors are those of `load`.
    """
    recipe, size = _recipe(name, image_size)
    source = _open(name, "test")
    _check_memory(len(source.labels), size)
    workers = ThreadPoolExecutor(os.cpu_count())
    try:
        numbers = np.arange(len(source.labels), dtype=np.int64)
        if "test" in recipe.fractions:  # the source has no test images apart from the others
            keys = _keys(source, workers, progress)
            parts = partition(source.labels, keys, recipe.fractions, source.class_names)
            numbers = parts["test"]
        return _fill(source, "test", numbers, size, workers, progress)
    finally:
        workers.shutdown(cancel_futures=True)


def _recipe(name: str, image_size: int | None) -> tuple[Recipe, int]:
    recipe = DIGITS_RECIPE if name == "digits" else PHOTO_RECIPE
    size = image_size if image_size is not None else recipe.image_size
    if size is None:
        raise ConfigError(f"{name} has images of many sizes; say image_size (32, 64, 224, ...).")
    if type(size) is not int or not SMALLEST_SIZE <= size <= LARGEST_SIZE:
        raise ConfigError(
            f"image_size must be a whole number from {SMALLEST_SIZE} to {LARGEST_SIZE}, "
            f"but is {size!r}."
        )
    return recipe, size


def _open(name: str, part: str) -> Source:
    """Return the source of a name; `part` is "train" or "test"."""
    kind, _, rest = name.partition(":")
    if name == "digits":
        return sources.digits()
    if kind == "folder" and rest:
        return sources.folder(Path(rest).expanduser(), "train" if part == "train" else "val")
    if kind.startswith(("torch/", "hfds/", "hfids/", "tfds/", "wds/")):
        return sources.timm_dataset(kind, rest or None, part)
    raise ConfigError(f"{name!r} names no data set. Use {sources.WAYS}.")


# ---------------------------------------------------------------- reading and decoding
def _keys(source: Source, workers: ThreadPoolExecutor, progress: Progress | None) -> list[bytes]:
    """Return the digest of every image's content, in the source's order."""
    total = len(source.labels)
    keys: list[bytes] = []
    for start in range(0, total, CHUNK):
        keys += workers.map(source.key, range(start, min(start + CHUNK, total)))
        if progress:
            progress(len(keys), total, "reading images")
    return keys


def _fill(
    source: Source,
    name: str,
    numbers: NDArray[np.int64],
    size: int,
    workers: ThreadPoolExecutor,
    progress: Progress | None,
) -> Split:
    """Return the split of these images, decoded and resized by all workers."""
    images = torch.empty(len(numbers), IN_CHANS, size, size, dtype=torch.uint8)
    broken: list[str] = []

    def fill(row: int) -> str | None:
        number = int(numbers[row])
        try:
            images[row] = _pixels(sources.picture(source.content(number), at_least=size), size)
        except CorruptFile as error:
            return f"{source.where(number)} ({error})"
        return None

    for start in range(0, len(numbers), CHUNK):
        rows = range(start, min(start + CHUNK, len(numbers)))
        broken += [problem for problem in workers.map(fill, rows) if problem]
        if progress:
            progress(rows.stop, len(numbers), f"decoding {name} images")
    if broken:
        more = f" and {len(broken) - 5} more" if len(broken) > 5 else ""
        raise CorruptFile(
            f"{len(broken)} of {len(numbers)} images cannot be decoded: {', '.join(broken[:5])}"
            f"{more}. Replace or delete them."
        )
    labels = as_tensor(source.labels[numbers])
    return Split.of(name, images, labels, as_tensor(numbers))


def _pixels(image: Image.Image, size: int) -> Tensor:
    """Resize the short side to `size` and cut out the centre: uint8 of shape (3, size, size)."""
    short = min(image.size)
    width, height = (max(size, round(side * size / short)) for side in image.size)
    if image.size != (width, height):
        image = image.resize((width, height), Image.Resampling.BICUBIC)
    left, top = (width - size) // 2, (height - size) // 2
    cut = np.asarray(image.crop((left, top, left + size, top + size)))
    return torch.from_numpy(cut.copy()).permute(2, 0, 1)


def _check_memory(count: int, size: int) -> None:
    """Raise ConfigError where `count` images would not fit into the memory that is free."""
    needed = count * IN_CHANS * size * size
    free = psutil.virtual_memory().available
    if needed > 0.8 * free:
        raise ConfigError(
            f"{count:,} images at {size} px need {needed / 1e9:.1f} GB of memory, of which 80 % of "
            f"{free / 1e9:.1f} GB may be used. Choose a smaller image_size or fewer images."
        )

"""Sources: where images come from, as numbered files or pictures with labels; nothing decoded."""

import hashlib
import io
import logging
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from nas.errors import ConfigError, CorruptFile

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif", ".ppm", ".pgm", ".tif", ".tiff", ".webp")
FORMATS = ("JPEG", "PNG", "BMP", "GIF", "PPM", "TIFF", "WEBP")  # no decoder that runs programs
WAYS = "digits, folder:DIR, torch/NAME:DIR or hfds/NAME"

Progress = Callable[[int, int, str], None]
"""Called with (done, total, what is being done)."""

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Source:
    """Numbered images with labels.

    Attributes:
        labels: int64 of shape (n,).
        class_names: In the order of the labels.
        read: Image number -> the bytes of an image file, or a picture. Safe to call from threads.
        where: Image number -> what to call it in an error.
    """

    labels: NDArray[np.int64]
    class_names: tuple[str, ...]
    read: Callable[[int], bytes | Image.Image]
    where: Callable[[int], str]

    def content(self, number: int) -> bytes | Image.Image:
        """Return what `read` gives; CorruptFile, naming the image, where that fails."""
        try:
            return self.read(number)
        except OSError as error:
            raise CorruptFile(
                f"{self.where(number)} cannot be read: {error.strerror or error}. "
                "Replace or delete it."
            ) from error

    def key(self, number: int) -> bytes:
        """Return the sha256 of an image's content, whatever its name."""
        content = self.content(number)
        if isinstance(content, Image.Image):
            head = f"{content.mode}{content.size}".encode()
            return hashlib.sha256(head + content.tobytes()).digest()
        return hashlib.sha256(content).digest()


def digits() -> Source:
    """Return scikit-learn's 1,797 handwritten digits, 8 x 8 grey pixels each, all in one."""
    from sklearn.datasets import load_digits

    found = load_digits()
    grey = np.round(found.images * (255 / 16)).astype(np.uint8)
    return Source(
        labels=found.target.astype(np.int64),
        class_names=tuple(str(name) for name in found.target_names),
        read=lambda number: Image.fromarray(grey[number]),
        where=lambda number: f"digit {number}",
    )


# ---------------------------------------------------------------- folders
def folder(root: Path, part: str) -> Source:
    """Return the images of `root/<part>/<class>/`, classes and files in order of their names.

    Raises:
        ConfigError: the folder, its classes or images are missing, or train/ and val/ differ.
    """
    classes = _class_names(root, part)
    other = "val" if part == "train" else "train"
    lonely = sorted(set(classes) ^ set(_class_names(root, other)))
    if lonely:
        raise ConfigError(
            f"train/ and val/ of {root} must have the same classes, but {_some(lonely)} "
            "in only one of them. Add or remove that folder."
        )
    paths: list[Path] = []
    labels: list[int] = []
    ignored = 0
    for label, name in enumerate(classes):
        images, others = _images_below(root / part / name)
        if not images:
            raise ConfigError(
                f"every class needs images, but {root / part / name} has none "
                f"({', '.join(SUFFIXES)}). Add some, or remove that folder in train/ and val/."
            )
        paths += images
        labels += [label] * len(images)
        ignored += others
    if ignored:
        log.warning("%d files below %s are no images by their names; ignored.", ignored, root)
    return Source(
        labels=np.array(labels, dtype=np.int64),
        class_names=tuple(classes),
        read=lambda number: paths[number].read_bytes(),
        where=lambda number: str(paths[number]),
    )


def _class_names(root: Path, part: str) -> list[str]:
    """Return the sorted names of the class folders; at least two."""
    layout = "Expected: DIR/train/<class>/<image> and DIR/val/<class>/<image>."
    place = root / part
    if not place.is_dir():
        what = root if not root.is_dir() else place
        raise ConfigError(f"the data folder {what} does not exist. {layout}")
    names = sorted(
        item.name for item in place.iterdir() if item.is_dir() and not item.name.startswith(".")
    )
    if len(names) < 2:
        raise ConfigError(
            f"at least two classes are needed, but {place} has {len(names)} class folders. {layout}"
        )
    return names


def _images_below(place: Path) -> tuple[list[Path], int]:
    """Return the sorted image files below a class folder, and how many other files there are."""
    images: list[Path] = []
    others = 0
    for parent, _, names in os.walk(place):
        visible = [name for name in names if not name.startswith(".")]
        chosen = [Path(parent, name) for name in visible if name.lower().endswith(SUFFIXES)]
        images += chosen
        others += len(visible) - len(chosen)
    return sorted(images), others


def _some(names: Sequence[str], most: int = 5) -> str:
    """Return the first few of many names with the verb that follows."""
    shown = ", ".join(repr(name) for name in names[:most])
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return f"{shown}{more} {'is' if len(names) == 1 else 'are'}"


# ---------------------------------------------------------------- timm's data sets
def timm_dataset(name: str, root: str | None, part: str) -> Source:
    """Return a data set that timm knows, as `torch/NAME` (torchvision) or `hfds/NAME` (the Hub).

    It is looked for in `root` first and downloaded there if that is possible.

    Raises:
        ConfigError: unknown, a stream, not there and not to be downloaded, or its library is
            not installed.
    """
    if name in ("torch/image_folder", "torch/folder"):
        raise ConfigError(f"{name} may take its training images for its test. Use folder:DIR.")
    dataset = _open_timm(name, root or str(Path.home() / ".cache" / "hybrid-nas"), part)
    if not hasattr(dataset, "__len__"):
        raise ConfigError(f"{name} is a stream; images are needed by number. Use {WAYS}.")
    labels = _labels(dataset)
    names = _names(dataset, int(labels.max()) + 1)
    reader = getattr(dataset, "reader", dataset)

    def read(number: int) -> bytes | Image.Image:
        content: Any = reader[number][0]  # Any: a picture or an open file
        return content if isinstance(content, Image.Image) else bytes(content.read())

    return Source(
        labels=labels,
        class_names=names,
        read=read,
        where=lambda number: f"image {number} of {name} ({part})",
    )


def _open_timm(name: str, root: str, part: str) -> Any:  # Any: timm has no type information
    """Return timm's data set, tried on the disk first and over the network after that."""
    from timm.data.dataset_factory import create_dataset

    parts = ("train",) if part == "train" else ("validation", "test")
    problem: Exception | None = None
    for download in (False, True):
        for split in parts:
            try:
                return create_dataset(name, root=root, split=split, download=download)
            except ImportError as error:
                raise ConfigError(
                    f"{name} needs a package that is not installed ({error}). Install it "
                    "(hfds/ needs `pip install datasets`), or use folder:DIR."
                ) from error
            except AssertionError as error:
                raise ConfigError(f"{name} is no data set timm knows. Use {WAYS}.") from error
            except (OSError, RuntimeError, ValueError) as error:
                problem = error
    raise ConfigError(
        f"{name} is not in {root} and cannot be downloaded ({problem}). Connect to the network, "
        f"name the folder that has it ({name}:DIR), or use digits or folder:DIR."
    ) from problem


def _labels(dataset: Any) -> NDArray[np.int64]:
    """Return the label of each image, without decoding images where the data set allows it."""
    targets = getattr(dataset, "targets", None)
    if targets is None:
        samples = getattr(dataset, "reader", dataset)
        targets = [samples[number][1] for number in range(len(samples))]
    return np.asarray(targets, dtype=np.int64)


def _names(dataset: Any, num_classes: int) -> tuple[str, ...]:
    """Return the class names where they are known, else the labels."""
    known = getattr(dataset, "classes", None)
    indices = getattr(getattr(dataset, "reader", None), "class_to_idx", None)
    if not known and indices:
        known = sorted(indices, key=indices.get)
    return tuple(str(name) for name in known or range(num_classes))


# ---------------------------------------------------------------- pictures
def picture(content: bytes | Image.Image, *, at_least: int) -> Image.Image:
    """Return a decoded RGB picture; a large JPEG at a half, quarter or eighth of its size.

    Args:
        content: The bytes of an image file, or a picture.
        at_least: The side that is needed; what is decoded has at least twice that, or is whole.

    Raises:
        CorruptFile: it cannot be decoded.
    """
    try:
        image = content
        if isinstance(image, bytes):
            image = Image.open(io.BytesIO(image), formats=FORMATS)
            image.draft("RGB", (2 * at_least, 2 * at_least))
        if image.mode.startswith("I;16"):
            return Image.fromarray((np.asarray(image) >> 8).astype(np.uint8)).convert("RGB")
        if image.mode in ("I", "F"):
            raise CorruptFile(f"its pixels are of mode {image.mode}; 8 or 16 bits are read")
        if image.mode == "P" and "transparency" in image.info:
            return image.convert("RGBA").convert("RGB")
        return image.convert("RGB")
    except (OSError, ValueError, SyntaxError, EOFError, Image.DecompressionBombError) as error:
        raise CorruptFile(str(error)) from error

"""Augmentation of whole batches in torch; what happens to an image is a function of its draws.

One affine map per image (crop, aspect ratio, zoom, shift, rotation, flip) is applied by one
bilinear sampling; brightness, contrast and saturation follow; then a box may be erased. The maps
come from `draws`, so the same image gets the same pixels in any batch. Mixup (arXiv 1710.09412)
and CutMix (arXiv 1905.04899) blend the images of a batch pairwise, first with last.
"""

import math
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from nas.data import draws
from nas.errors import ConfigError

PADDINGS = ("zeros", "border", "reflection")
COLUMNS = 14  # how many draws an image gets; a setting never changes which column means what
GREY = (0.299, 0.587, 0.114)  # ITU-R BT.601, as torchvision's and timm's colour jitter


@dataclass(frozen=True, slots=True, kw_only=True)
class Augment:
    """What may happen to a training image; the defaults change nothing.

    Attributes:
        area: Share of the image's area that is seen, from and to; above 1 it gets smaller.
        ratio: Largest stretch of width against height; 1 keeps squares square.
        shift: Largest shift, as a share of the side.
        rotation: Largest rotation in degrees.
        padding: What is seen outside the image: zeros (black), border or reflection.
        flip: Probability of a mirror image.
        brightness: Largest relative change; contrast and saturation alike.
        erase: Probability that a box of 2 to 20 % of the area is blanked.
        mixup: The alpha of mixup's Beta distribution, 0 is off.
        cutmix: The alpha of CutMix's Beta distribution, 0 is off; with both on, each pair draws.
    """

    area: tuple[float, float] = (1.0, 1.0)
    ratio: float = 1.0
    shift: float = 0.0
    rotation: float = 0.0
    padding: str = "zeros"
    flip: float = 0.0
    brightness: float = 0.0
    contrast: float = 0.0
    saturation: float = 0.0
    erase: float = 0.0
    mixup: float = 0.0
    cutmix: float = 0.0

    def __post_init__(self) -> None:
        low, high = self.area
        if not 0 < low <= high <= 4:
            raise ConfigError(f"area must be 0 < from <= to <= 4, but is {self.area}.")
        if self.padding not in PADDINGS:
            raise ConfigError(
                f"padding must be one of {', '.join(PADDINGS)}, but is {self.padding!r}."
            )
        limits = {"ratio": (1, 4), "rotation": (0, 180), "mixup": (0, 100), "cutmix": (0, 100)}
        for name in ("ratio", "shift", "rotation", "flip", "brightness", "contrast", "saturation"):
            _check(name, getattr(self, name), *limits.get(name, (0, 1)))
        for name in ("erase", "mixup", "cutmix"):
            _check(name, getattr(self, name), *limits.get(name, (0, 1)))

    @property
    def moves(self) -> bool:
        """Return whether pixels change place."""
        still = self.area == (1.0, 1.0) and self.ratio == 1.0
        return not (still and self.shift == self.rotation == self.flip == 0.0)

    @property
    def mixes(self) -> bool:
        """Return whether labels become soft."""
        return self.mixup > 0 or self.cutmix > 0


def _check(name: str, value: float, low: float, high: float) -> None:
    if not low <= value <= high:
        raise ConfigError(f"{name} must be from {low} to {high}, but is {value}.")


DIGITS = Augment(area=(0.8, 1.25), ratio=1.1, shift=0.06, rotation=10.0)
PHOTOS = Augment(
    area=(0.35, 1.0),
    ratio=4 / 3,
    flip=0.5,
    padding="reflection",
    brightness=0.2,
    contrast=0.2,
    saturation=0.2,
)


def augmented(images: Tensor, chances: NDArray[np.float64], augment: Augment) -> Tensor:
    """Return the images moved and coloured, as float32 in 0..1, shape as given.

    Args:
        images: uint8 of shape (n, c, h, w).
        chances: Draws of [0, 1) of shape (n, COLUMNS).
        augment: What to do.
    """
    pixels = images.to(torch.float32) / 255
    if augment.moves:
        grid = _grid(_maps(chances, augment), images.shape[-2], images.shape[-1], images.device)
        pixels = F.grid_sample(
            pixels, grid, mode="bilinear", padding_mode=augment.padding, align_corners=False
        )
    if augment.brightness or augment.contrast or augment.saturation:
        pixels = _coloured(pixels, images, chances, augment)
    return pixels


def _between(low: float, high: float, chance: NDArray[np.float64]) -> NDArray[np.float64]:
    return low + (high - low) * chance


def _maps(chances: NDArray[np.float64], augment: Augment) -> NDArray[np.float64]:
    """Return affine maps, output to input in -1..1 coordinates, of shape (n, 2, 3)."""
    area = _between(*augment.area, chances[:, 0])
    stretch = np.exp(math.log(augment.ratio) * _between(-1, 1, chances[:, 1]))
    largest = max(1.0, math.sqrt(augment.area[1]))
    width = np.minimum(np.sqrt(area * stretch), largest)
    height = np.minimum(np.sqrt(area / stretch), largest)
    angle = math.radians(augment.rotation) * _between(-1, 1, chances[:, 2])
    mirror = np.where(chances[:, 3] < augment.flip, -1.0, 1.0)
    x = (np.maximum(1 - width, 0) + 2 * augment.shift) * _between(-1, 1, chances[:, 4])
    y = (np.maximum(1 - height, 0) + 2 * augment.shift) * _between(-1, 1, chances[:, 5])
    cosine, sine = np.cos(angle), np.sin(angle)
    rows = [
        [mirror * width * cosine, -height * sine, x],
        [mirror * width * sine, height * cosine, y],
    ]
    return np.moveaxis(np.array(rows), 2, 0)


def _grid(maps: NDArray[np.float64], height: int, width: int, device: torch.device) -> Tensor:
    """Return sampling points of shape (n, h, w, 2).

    By broadcasting and not by a matrix product, whose rounding depends on the batch size.
    """
    table = torch.from_numpy(maps.astype(np.float32)).to(device)[:, :, :, None, None]
    x = (torch.arange(width, device=device, dtype=torch.float32) * 2 + 1) / width - 1
    y = ((torch.arange(height, device=device, dtype=torch.float32) * 2 + 1) / height - 1)[:, None]
    return torch.stack([row[:, 0] * x + row[:, 1] * y + row[:, 2] for row in table.unbind(1)], -1)


def _coloured(
    pixels: Tensor, images: Tensor, chances: NDArray[np.float64], augment: Augment
) -> Tensor:
    """Change brightness, then contrast about the image's mean, then saturation about its grey."""

    def factors(column: int, most: float) -> Tensor:
        values = 1 + most * _between(-1, 1, chances[:, column])
        return torch.from_numpy(values.astype(np.float32)).to(pixels.device)[:, None, None, None]

    # A sum of integers is exact in any order, so the mean does not depend on the batch either.
    total = images.sum(dim=(1, 2, 3), dtype=torch.int64).to(torch.float64)
    mean = (total / (255 * images[0].numel())).to(torch.float32)[:, None, None, None]
    pixels = pixels * factors(6, augment.brightness)
    pixels = (pixels - mean) * factors(7, augment.contrast) + mean
    if augment.saturation and pixels.shape[1] == 3:
        red, green, blue = pixels.unbind(1)
        grey = (GREY[0] * red + GREY[1] * green + GREY[2] * blue)[:, None]
        pixels = (pixels - grey) * factors(8, augment.saturation) + grey
    return pixels.clamp(0, 1)


def erased(pixels: Tensor, chances: NDArray[np.float64], augment: Augment) -> Tensor:
    """Return normalised images in which a box may be 0, the mean colour (arXiv 1708.04896)."""
    area = _between(0.02, 0.2, chances[:, 10])
    stretch = np.exp(math.log(3.3) * _between(-1, 1, chances[:, 11]))
    width, height = np.sqrt(area * stretch), np.sqrt(area / stretch)
    inside = _boxes(width, height, chances[:, 12:14], pixels)
    chosen = torch.from_numpy(chances[:, 9] < augment.erase).to(pixels.device)
    return pixels.masked_fill(inside & chosen[:, None, None, None], 0.0)


def _boxes(
    width: NDArray[np.float64],
    height: NDArray[np.float64],
    place: NDArray[np.float64],
    pixels: Tensor,
) -> Tensor:
    """Return masks of shape (n, 1, h, w), true inside boxes given as shares of the sides."""
    masks = []
    for axis, share in ((2, height), (3, width)):
        side = pixels.shape[axis]
        length = np.rint(share * side)
        start = np.floor(place[:, axis - 2] * (side - length + 1))
        at = torch.arange(side)[None, :]
        first, last = torch.from_numpy(start)[:, None], torch.from_numpy(start + length)[:, None]
        masks.append((at >= first) & (at < last))
    return (masks[0][:, None, :, None] & masks[1][:, None, None, :]).to(pixels.device)


def mixed(
    pixels: Tensor,
    labels: Tensor,
    augment: Augment,
    *,
    num_classes: int,
    seed: int,
    epoch: int,
    indices: NDArray[np.int64],
) -> tuple[Tensor, Tensor]:
    """Blend each image with the one at its mirrored place in the batch, labels alike.

    Both of a pair get the same share, drawn from (seed, epoch, the two indices).

    Returns:
        Images as given, and soft labels of shape (n, num_classes).
    """
    from scipy.special import betaincinv

    low, high = np.minimum(indices, indices[::-1]), np.maximum(indices, indices[::-1])
    chances = draws.uniform(seed, draws.MIX, epoch, low * 2**32 + high, 4)
    cut = chances[:, 0] < (0.5 if augment.mixup > 0 else 1) * (augment.cutmix > 0)
    alpha = np.where(cut, augment.cutmix, augment.mixup)
    kept = betaincinv(alpha, alpha, chances[:, 1])
    side = np.sqrt(1 - kept)
    boxes = _boxes(side, side, chances[:, 2:4], pixels)
    is_cut = torch.from_numpy(cut).to(pixels.device)
    share = torch.where(
        is_cut,
        1 - boxes.sum(dim=(1, 2, 3)).to(torch.float64) / boxes[0].numel(),
        torch.from_numpy(kept).to(pixels.device),
    ).to(torch.float32)
    own = torch.where(
        is_cut[:, None, None, None], (~boxes).to(torch.float32), share[:, None, None, None]
    )
    targets = F.one_hot(labels, num_classes).to(torch.float32)
    other = pixels.flip(0)
    blend = (pixels * own + other * (1 - own)).contiguous(memory_format=torch.channels_last)
    return (
        blend,
        targets * share[:, None] + targets.flip(0) * (1 - share[:, None]),
    )

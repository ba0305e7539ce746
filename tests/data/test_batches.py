"""Batches: pure functions of (seed, epoch, index), resumable, normalised."""

import dataclasses
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from nas.data import Augment, Data, Split, batches, draws, eval_batches, steps_per_epoch
from nas.data.augment import COLUMNS, DIGITS, PHOTOS, augmented
from nas.errors import ConfigError

EVERYTHING = Augment(
    area=(0.4, 1.3),
    ratio=1.5,
    shift=0.1,
    rotation=30.0,
    flip=0.5,
    brightness=0.4,
    contrast=0.4,
    saturation=0.4,
    erase=0.5,
)


def make_data(count: int = 40, side: int = 9) -> Data:
    generator = torch.Generator().manual_seed(3)
    images = torch.randint(0, 256, (count, 3, side, side), generator=generator).to(torch.uint8)
    labels = torch.arange(count) % 4
    split = Split.of("train", images, labels, torch.arange(count) * 3 + 1)
    return Data(
        name="fake",
        image_size=side,
        in_chans=3,
        mean=(0.1, 0.2, 0.3),
        std=(0.5, 0.4, 0.3),
        class_names=("a", "b", "c", "d"),
        augment=EVERYTHING,
        splits={"train": split},
    )


def some_batches(
    data: Data,
    *,
    size: int = 8,
    seed: int = 5,
    epoch: int = 2,
    start: int = 0,
    augment: Augment | None = EVERYTHING,
) -> list[tuple[Tensor, Tensor]]:
    found = batches(
        data.split("train"),
        data,
        batch_size=size,
        seed=seed,
        epoch=epoch,
        augment=augment,
        start_batch=start,
    )
    return list(found)


def test_without_augmentation_images_are_normalised_float32_in_channels_last() -> None:
    data = make_data()
    split = data.split("train")
    mean, std = (torch.tensor(value)[:, None, None] for value in (data.mean, data.std))
    for augment in (None, Augment()):
        seen = some_batches(data, augment=augment)
        images = torch.cat([batch[0] for batch in seen])
        labels = torch.cat([batch[1] for batch in seen])
        order = torch.from_numpy(draws.order(5, 2, split.indices.numpy()))
        assert torch.equal(images, (split.images[order].float() / 255 - mean) / std)
        assert torch.equal(labels, split.labels[order])
        assert seen[0][0].is_contiguous(memory_format=torch.channels_last)
        assert seen[0][0].dtype == torch.float32 and seen[0][1].dtype == torch.int64


def test_an_epoch_shows_each_image_once_and_drops_what_fills_no_batch() -> None:
    data = make_data(count=43)
    assert steps_per_epoch(data.split("train"), 8) == 5
    seen = torch.cat([images.flatten(1) for images, _ in some_batches(data, augment=None)])
    assert len(seen) == 40 == len(torch.unique(seen, dim=0))


@pytest.mark.parametrize(
    "augment", [EVERYTHING, dataclasses.replace(PHOTOS, mixup=0.2, cutmix=1.0)]
)
def test_a_later_start_continues_bit_for_bit(augment: Augment) -> None:
    data = make_data()
    whole = some_batches(data, augment=augment)
    rest = some_batches(data, augment=augment, start=3)
    assert len(whole) == 5 and len(rest) == 2
    for (left, left_labels), (right, right_labels) in zip(whole[3:], rest, strict=True):
        assert torch.equal(left, right) and torch.equal(left_labels, right_labels)
    assert some_batches(data, start=5) == []


@pytest.mark.parametrize("augment", [EVERYTHING, PHOTOS, DIGITS])
def test_an_image_gets_the_same_pixels_in_any_batch(augment: Augment) -> None:
    data = make_data(side=33)
    pixels = {}
    for size in (40, 8, 5, 1):
        seen = some_batches(data, size=size, augment=augment)
        pixels[size] = torch.cat([images for images, _ in seen])
    for size in (8, 5, 1):
        assert torch.equal(pixels[size], pixels[40])


def test_neither_torch_nor_numpy_generators_are_read_or_moved() -> None:
    data = make_data()
    torch.manual_seed(1)
    np.random.seed(1)
    first = some_batches(data)
    state = torch.get_rng_state()
    torch.manual_seed(2)
    np.random.seed(2)
    again = some_batches(data)
    assert torch.equal(torch.cat([b[0] for b in first]), torch.cat([b[0] for b in again]))
    torch.manual_seed(1)
    assert torch.equal(state, torch.get_rng_state())


@pytest.mark.parametrize("change", [{"seed": 6}, {"epoch": 3}, {"seed": 2**40 + 5}])
def test_another_seed_or_epoch_has_another_order_and_other_pixels(change: dict[str, int]) -> None:
    data = make_data()
    split = data.split("train")
    chosen = {"seed": 5, "epoch": 2} | change
    assert not np.array_equal(
        draws.order(5, 2, split.indices.numpy()),
        draws.order(chosen["seed"], chosen["epoch"], split.indices.numpy()),
    )
    left = draws.uniform(5, draws.AUGMENT, 2, split.indices.numpy(), 3)
    right = draws.uniform(chosen["seed"], draws.AUGMENT, chosen["epoch"], split.indices.numpy(), 3)
    assert (left != right).all()


def test_draws_are_uniform_and_uncorrelated() -> None:
    chances = draws.uniform(0, draws.AUGMENT, 0, np.arange(20_000), 8)
    assert chances.min() >= 0 and chances.max() < 1
    counts = np.stack([np.histogram(column, 20, (0, 1))[0] for column in chances.T])
    assert ((counts - 1000) ** 2 / 1000).sum(axis=1).max() < 45  # chi^2, 19 degrees, p = 0.001
    together = [chances, np.roll(chances, 1, axis=0), draws.uniform(0, 2, 1, np.arange(20_000), 8)]
    correlation = np.corrcoef(np.concatenate(together, axis=1).T) - np.eye(24)
    assert np.abs(correlation).max() < 0.035
    orders = np.stack([draws.order(0, epoch, np.arange(50)) for epoch in range(2000)])
    assert np.abs(orders.mean(axis=0) - 24.5).max() < 1.5


def shown(augment: Augment, images: Tensor) -> Tensor:
    chances = draws.uniform(0, draws.AUGMENT, 0, np.arange(len(images)), COLUMNS)
    return augmented(images, chances, augment)


def gradient_images(count: int = 200) -> Tensor:
    """Return images whose red rises to the right and whose green rises downwards."""
    ramp = torch.arange(0, 256, 8, dtype=torch.uint8)
    right, down = ramp.expand(32, 32), ramp[:, None].expand(32, 32)
    return torch.stack([right, down, torch.full_like(right, 100)]).expand(count, 3, 32, 32)


def test_a_flip_mirrors_half_of_the_images_exactly() -> None:
    images = gradient_images()
    seen = shown(Augment(flip=0.5), images)
    plain = images[0].float() / 255
    is_plain = torch.tensor([torch.allclose(image, plain, atol=1e-5) for image in seen])
    is_mirror = torch.tensor([torch.allclose(image, plain.flip(-1), atol=1e-5) for image in seen])
    assert (is_plain ^ is_mirror).all()
    assert 70 <= int(is_mirror.sum()) <= 130


def slope(images: Tensor, channel: int, axis: int) -> Tensor:
    """Return the mean step of a channel along an axis near the centre, shape (n,)."""
    return images[:, channel, 12:20, 12:20].diff(dim=axis).mean(dim=(1, 2)) * 255 / 8


def test_a_crop_enlarges_by_the_root_of_its_area_and_stays_inside() -> None:
    seen = shown(Augment(area=(0.25, 0.25), padding="border"), gradient_images())
    assert torch.allclose(slope(seen, 0, -1), torch.tensor(0.5), atol=1e-3)
    assert torch.allclose(slope(seen, 1, -2), torch.tensor(0.5), atol=1e-3)
    assert torch.allclose(seen[:, 2], torch.tensor(100 / 255)), "nothing outside is seen"
    lefts = seen[:, 0, 16, 0] * 255 / 8
    assert lefts.min() < 2 and lefts.max() > 14 and 7 < lefts.mean() < 9


def test_an_area_above_one_shrinks_the_image_and_shows_black_around_it() -> None:
    seen = shown(Augment(area=(4.0, 4.0)), gradient_images(4))
    assert torch.allclose(slope(seen, 0, -1), torch.tensor(2.0), atol=1e-3)
    assert seen[:, 2, :7].eq(0).all() and seen[:, 2, 10:20, 10:20].gt(0.3).all()


def test_a_shift_moves_by_at_most_its_share_of_the_side() -> None:
    seen = shown(Augment(shift=0.125), gradient_images())
    moved = seen[:, 0, 16, 16] * 255 / 8 - 16
    assert 3.5 < moved.abs().max() <= 4.001
    assert torch.allclose(slope(seen, 0, -1), torch.tensor(1.0), atol=1e-3)


def test_a_rotation_turns_by_at_most_its_angle_and_keeps_lengths() -> None:
    seen = shown(Augment(rotation=30.0), gradient_images())
    right, down = slope(seen, 0, -1), slope(seen, 0, -2)
    angles = torch.rad2deg(torch.atan2(down, right))
    assert 28 < angles.abs().max() <= 30.1
    assert torch.allclose(right.square() + down.square(), torch.tensor(1.0), atol=1e-2)


def test_brightness_contrast_and_saturation_change_what_they_name() -> None:
    images = gradient_images()
    plain = images.float() / 255
    bright = shown(Augment(brightness=0.5), images)[:, 2, 0, 0] / plain[:, 2, 0, 0]
    assert bright.min() < 0.55 and bright.max() > 1.45
    contrast = shown(Augment(contrast=0.5), images)
    assert slope(contrast, 0, -1).std() > 0.2
    grey_images = images[:, :1].expand(-1, 3, -1, -1)
    assert torch.allclose(shown(Augment(saturation=0.5), grey_images), grey_images / 255, atol=1e-6)
    assert (shown(Augment(saturation=0.5), images) - plain).abs().max() > 0.1
    for augment in (Augment(brightness=1.0), Augment(contrast=1.0), Augment(saturation=1.0)):
        seen = shown(augment, images)
        assert seen.min() >= 0 and seen.max() <= 1


def test_erasing_blanks_one_box_of_the_mean_colour_in_its_share_of_images() -> None:
    data = make_data(count=400, side=20)
    plain = torch.cat([images for images, _ in some_batches(data, size=400, augment=None)])
    seen = torch.cat(
        [images for images, _ in some_batches(data, size=400, augment=Augment(erase=0.5))]
    )
    gone = (seen == 0).all(dim=1)
    share = gone.float().mean(dim=(1, 2))
    assert 150 < int((share > 0).sum()) < 250
    assert float(share[share > 0].min()) > 0.01 and float(share.max()) < 0.25
    assert torch.equal(seen[~gone[:, None].expand_as(seen)], plain[~gone[:, None].expand_as(seen)])


@pytest.mark.parametrize("augment", [Augment(mixup=0.4), Augment(cutmix=1.0)])
def test_mixing_blends_labels_as_it_blends_pixels(augment: Augment) -> None:
    count = 64
    images = torch.zeros(count, 3, 16, 16, dtype=torch.uint8)
    labels = torch.arange(count) % 2
    images[labels == 1] = 255
    split = Split.of("train", images, labels, torch.arange(count))
    data = dataclasses.replace(
        make_data(),
        mean=(0.0,) * 3,
        std=(1.0,) * 3,
        class_names=("black", "white"),
        splits={"train": split},
    )
    pixels, targets = some_batches(data, size=count, augment=augment)[0]
    assert targets.shape == (count, 2)
    assert torch.allclose(targets.sum(dim=1), torch.ones(count))
    assert torch.allclose(pixels.mean(dim=(1, 2, 3)), targets[:, 1], atol=1e-5)
    order = torch.from_numpy(draws.order(5, 2, split.indices.numpy()))
    whole = torch.nn.functional.one_hot(labels[order], 2)
    assert torch.allclose(targets + targets.flip(0), (whole + whole.flip(0)).float()), "one share"
    shares = targets.max(dim=1).values
    assert (shares < 0.99).any() and len(torch.unique(targets[:, 1])) > 5
    is_flat = pixels.flatten(1).std(dim=1) < 1e-6
    assert bool(is_flat.all()) == (augment.cutmix == 0)


def test_evaluation_gives_every_image_once_in_order() -> None:
    data = make_data(count=43)
    split = data.split("train")
    seen = list(eval_batches(split, data, batch_size=10))
    assert [len(labels) for _, labels in seen] == [10, 10, 10, 10, 3]
    assert torch.equal(torch.cat([labels for _, labels in seen]), split.labels)


def test_a_batch_larger_than_the_split_is_refused_with_its_size() -> None:
    with pytest.raises(ConfigError, match="from 1 to the 40 images of the train split, but is 41"):
        some_batches(make_data(), size=41)
    with pytest.raises(ConfigError, match="but is 0"):
        some_batches(make_data(), size=0)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Augment(area=(0.0, 1.0)), "area must be"),
        (lambda: Augment(area=(1.0, 0.5)), "area must be"),
        (lambda: Augment(padding="mirror"), "zeros, border, reflection, but is 'mirror'"),
        (lambda: Augment(flip=1.5), "flip must be from 0 to 1, but is 1.5"),
        (lambda: Augment(ratio=0.5), "ratio must be from 1 to 4"),
        (lambda: Augment(rotation=-3), "rotation must be"),
        (lambda: Augment(mixup=float("nan")), "mixup must be"),
    ],
)
def test_an_impossible_augmentation_is_refused(make: Callable[[], Augment], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make()

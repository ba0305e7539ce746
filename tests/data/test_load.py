"""Loading: names, folders and what is wrong with them; decoding; the closed test split."""

import hashlib
import io
import logging
import os
import shutil
import struct
from collections import namedtuple
from pathlib import Path

import numpy as np
import psutil
import pytest
import torch
from PIL import Image

from nas import data
from nas.data import sources
from nas.errors import ConfigError, CorruptFile


def save_image(path: Path, seed: int, size: tuple[int, int] = (12, 12)) -> None:
    """Save a picture that no other seed gives."""
    path.parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(seed).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(path)


def make_folder(
    root: Path, *, per_class: int = 20, classes: tuple[str, ...] = ("ant", "bee")
) -> Path:
    for number, name in enumerate(classes):
        for index in range(per_class):
            save_image(root / "train" / name / f"{index}.png", 1000 * number + index)
        for index in range(3):
            save_image(root / "val" / name / f"{index}.png", 500 + 1000 * number + index)
    return root


@pytest.fixture(scope="module")
def photos(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_folder(tmp_path_factory.mktemp("photos"))


def test_digits_are_divided_50_10_20_20_with_every_class_in_proportion() -> None:
    digits = data.load("digits")
    test = data.load_test("digits")
    splits = [*(digits.split(name) for name in ("train", "choice", "search")), test]
    assert [len(split) for split in splits] == [900, 179, 359, 359]
    assert sorted(torch.cat([split.indices for split in splits]).tolist()) == list(range(1797))
    whole = torch.bincount(torch.cat([split.labels for split in splits]))
    for split, share in zip(splits, (0.5, 0.1, 0.2, 0.2), strict=True):
        assert (torch.bincount(split.labels) - share * whole).abs().max() <= 2
        assert split.images.dtype == torch.uint8 and split.images.shape[1:] == (3, 32, 32)
    assert (digits.num_classes, digits.in_chans, digits.image_size) == (10, 3, 32)
    assert digits.class_names == tuple("0123456789")


def test_digits_are_enlarged_smoothly_and_keep_their_range() -> None:
    images = data.load("digits").split("train").images.float()
    assert images.min() == 0 and images.max() == 255
    ink = (images[..., 1:] > 0) & (images[..., :-1] > 0) & (images[..., 1:] < 255)
    is_flat = images.diff(dim=-1)[ink] == 0
    assert is_flat.float().mean() < 0.2, "blocks of 4 equal pixels would have 0.75"


def test_the_same_data_gives_the_same_digests_and_another_size_the_same_split() -> None:
    first, again, larger = (
        data.load("digits"),
        data.load("digits"),
        data.load("digits", image_size=48),
    )
    assert first.digest == again.digest != larger.digest
    for name in ("train", "choice", "search"):
        assert first.split(name).digest == again.split(name).digest
        assert torch.equal(first.split(name).indices, larger.split(name).indices)


def test_a_prefix_of_a_split_holds_every_class() -> None:
    assert len(set(data.load("digits").split("train").labels[:64].tolist())) == 10


def test_the_test_split_has_no_second_door() -> None:
    with pytest.raises(ConfigError, match="verifying"):
        data.load("digits").split("test")


def test_a_folder_is_divided_80_5_15_and_val_is_the_test(photos: Path) -> None:
    found = data.load(f"folder:{photos}", image_size=8)
    assert [len(found.split(name)) for name in ("train", "choice", "search")] == [32, 2, 6]
    assert found.class_names == ("ant", "bee")
    test = data.load_test(f"folder:{photos}", image_size=8)
    assert len(test) == 6 and test.labels.tolist().count(1) == 3


def test_loading_reads_no_test_image(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    for path in (root / "val").rglob("*.png"):
        path.write_bytes(b"no image")
    data.load(f"folder:{root}", image_size=8)
    with pytest.raises(CorruptFile, match="6 of 6 images"):
        data.load_test(f"folder:{root}", image_size=8)


def test_renamed_and_moved_files_give_the_same_split(photos: Path, tmp_path: Path) -> None:
    moved = tmp_path / "moved"
    shutil.copytree(photos, moved)
    for path in sorted((moved / "train").rglob("*.png")):
        path.rename(path.with_name(f"x{int(path.stem) * 7 % 20:02d}.png"))
    digests = set()
    for root in (photos, moved):
        images = data.load(f"folder:{root}", image_size=12).split("search").images
        digests.add(hashlib.sha256(images.numpy().tobytes()).hexdigest())
    assert len(digests) == 1


def test_copies_of_one_image_never_stand_on_two_sides(tmp_path: Path) -> None:
    root = make_folder(tmp_path, per_class=12)
    for path in sorted((root / "train").rglob("*.png")):
        for copy in range(3):
            shutil.copy(path, path.with_name(f"{path.stem}_{copy}.png"))
    found = data.load(f"folder:{root}", image_size=12)
    contents = [
        {image.numpy().tobytes() for image in found.split(name).images}
        for name in ("train", "choice", "search")
    ]
    assert sum(len(images) for images in contents) == len(set.union(*contents)) == 24


def test_images_keep_their_centre_and_aspect(tmp_path: Path) -> None:
    root = make_folder(tmp_path, per_class=3)
    wide = np.zeros((40, 120, 3), dtype=np.uint8)
    wide[:, 40:80] = 200
    for index in range(3):
        wide[0, 0] = index
        Image.fromarray(wide).save(root / "train" / "ant" / f"{index}.png")
    found = data.load(f"folder:{root}", image_size=20)
    split = found.split("train")
    image = split.images[split.labels == 0][0]
    assert image[:, :, 2:-2].eq(200).all() and image.ge(180).all()


@pytest.mark.parametrize("mode", ["L", "P", "RGBA", "CMYK", "1", "I;16"])
def test_every_pixel_mode_becomes_rgb(mode: str) -> None:
    grey = np.linspace(0, 255, 64, dtype=np.uint8).reshape(8, 8)
    stream = io.BytesIO()
    if mode == "I;16":
        Image.fromarray(grey.astype(np.uint16) * 257).save(stream, "png")
    else:
        Image.fromarray(grey).convert("RGB").convert(mode).save(
            stream, "jpeg" if mode == "CMYK" else "png"
        )
    image = sources.picture(stream.getvalue(), at_least=8)
    assert image.mode == "RGB"
    if mode != "1":
        most = 52 if mode == "P" else 8  # the web palette has steps of 51
        assert np.abs(np.asarray(image, dtype=int)[:, :, 0] - grey).max() < most


def test_a_broken_image_is_named_whatever_is_wrong_with_it(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    whole = (root / "train" / "ant" / "1.png").read_bytes()
    (root / "train" / "ant" / "1.png").write_bytes(whole[: len(whole) // 2])
    (root / "train" / "bee" / "2.png").write_bytes(b"")
    (root / "train" / "bee" / "3.png").write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n")
    with pytest.raises(CorruptFile, match="cannot be decoded") as caught:
        data.load(f"folder:{root}", image_size=8)
    named = [f"{number}.png" in str(caught.value) for number in (1, 2, 3)]
    assert any(named) and "Replace or delete" in str(caught.value)


def test_an_unreadable_file_is_named(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    (root / "train" / "ant" / "gone.png").symlink_to(root / "nowhere.png")
    with pytest.raises(CorruptFile, match=r"gone\.png cannot be read"):
        data.load(f"folder:{root}", image_size=8)


def test_other_files_are_ignored_and_counted(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    root = make_folder(tmp_path)
    (root / "train" / "ant" / "notes.txt").write_text("an ant")
    (root / "train" / "ant" / ".DS_Store").write_text("")
    (root / "train" / ".cache").mkdir()
    save_image(root / "train" / "ant" / "deep" / "er.png", 77)
    with caplog.at_level(logging.WARNING):
        found = data.load(f"folder:{root}", image_size=8)
    assert sum(len(split) for split in found.splits.values()) == 41
    assert "1 files" in caplog.text


def test_a_missing_folder_says_the_layout(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"nowhere does not exist.*DIR/train/<class>"):
        data.load(f"folder:{tmp_path}/nowhere", image_size=8)
    (tmp_path / "train").mkdir()
    with pytest.raises(ConfigError, match=r"has 0 class folders.*DIR/train/<class>"):
        data.load(f"folder:{tmp_path}", image_size=8)


def test_a_class_in_train_alone_is_named_before_anything_is_trained(tmp_path: Path) -> None:
    root = make_folder(tmp_path, classes=("ant", "bee", "cat"))
    shutil.rmtree(root / "val" / "cat")
    with pytest.raises(ConfigError, match="same classes, but 'cat' is in only one"):
        data.load(f"folder:{root}", image_size=8)
    shutil.rmtree(root / "val")
    with pytest.raises(ConfigError, match="val does not exist"):
        data.load(f"folder:{root}", image_size=8)


def test_a_class_without_images_or_with_too_few_is_named(tmp_path: Path) -> None:
    root = make_folder(tmp_path)
    for path in sorted((root / "train" / "bee").iterdir())[2:]:
        path.unlink()
    with pytest.raises(ConfigError, match="at least 3 different images.*'bee' with 2"):
        data.load(f"folder:{root}", image_size=8)
    for path in (root / "train" / "bee").iterdir():
        path.unlink()
    with pytest.raises(ConfigError, match="bee has none"):
        data.load(f"folder:{root}", image_size=8)


@pytest.mark.parametrize("name", ["digit", "folder:", "folder", "cifar10", "", "torch:x"])
def test_an_unknown_name_lists_the_ways(name: str) -> None:
    with pytest.raises(ConfigError, match=r"names no data set.*folder:DIR"):
        data.load(name, image_size=32)


@pytest.mark.parametrize("size", [0, 7, 4096, 32.0, True, "32"])
def test_an_impossible_image_size_is_refused(size: object) -> None:
    with pytest.raises(ConfigError, match="image_size must be"):
        data.load("digits", image_size=size)  # type: ignore[arg-type]


def test_photos_need_an_image_size(photos: Path) -> None:
    with pytest.raises(ConfigError, match="say image_size"):
        data.load(f"folder:{photos}")


def test_more_images_than_memory_are_refused_with_the_numbers(
    photos: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    memory = namedtuple("memory", "available")
    monkeypatch.setattr(psutil, "virtual_memory", lambda: memory(10_000_000))
    with pytest.raises(ConfigError, match=r"40 images at 1024 px need 0\.1 GB.*smaller image_size"):
        data.load(f"folder:{photos}", image_size=1024)


def test_progress_reaches_its_total(photos: Path) -> None:
    seen: list[tuple[int, int, str]] = []
    data.load(f"folder:{photos}", image_size=8, progress=lambda *news: seen.append(news))
    assert seen[0] == (40, 40, "reading images")
    assert (32, 32, "decoding train images") in seen


# ---------------------------------------------------------------- timm's data sets
def make_fashion_mnist(root: Path) -> None:
    """Write Fashion-MNIST's files with 40 + 20 random images."""
    generator = np.random.default_rng(0)
    raw = root / "FashionMNIST" / "raw"
    raw.mkdir(parents=True)
    for prefix, count in (("train", 40), ("t10k", 20)):
        images = generator.integers(0, 256, (count, 28, 28), dtype=np.uint8)
        labels = (np.arange(count) % 10).astype(np.uint8)
        head = struct.pack(">IIII", 0x803, count, 28, 28)
        (raw / f"{prefix}-images-idx3-ubyte").write_bytes(head + images.tobytes())
        head = struct.pack(">II", 0x801, count)
        (raw / f"{prefix}-labels-idx1-ubyte").write_bytes(head + labels.tobytes())


def test_a_data_set_of_timm_is_loaded_from_its_folder(tmp_path: Path) -> None:
    make_fashion_mnist(tmp_path)
    found = data.load(f"torch/fashion_mnist:{tmp_path}", image_size=28)
    assert found.num_classes == 10 and found.class_names[0] == "T-shirt/top"
    assert [len(found.split(name)) for name in ("train", "choice", "search")] == [20, 10, 10]
    assert len(data.load_test(f"torch/fashion_mnist:{tmp_path}", image_size=28)) == 20


def test_a_data_set_that_is_not_there_and_cannot_be_downloaded_says_the_ways_out(
    tmp_path: Path,
) -> None:
    (tmp_path / "file").write_text("no folder can be made below a file")
    with pytest.raises(ConfigError, match=r"cannot be downloaded .*Connect to the network"):
        data.load(f"torch/fashion_mnist:{tmp_path}/file", image_size=28)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("torch/nonsense", "no data set timm knows"),
        ("torch/image_folder:x", "Use folder:DIR"),
        ("hfds/some/thing", "pip install datasets"),
    ],
)
def test_an_unusable_name_of_timm_says_what_to_use(name: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        data.load(name, image_size=32)


def test_only_verification_opens_the_test_split() -> None:
    package = Path(data.__file__).parent.parent
    users = {
        os.fspath(path.relative_to(package))
        for path in package.rglob("*.py")
        if "load_test" in path.read_text() and path.parent.name != "data"
    }
    assert users <= {os.path.join("winner", "verify.py")}

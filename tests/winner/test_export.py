"""An exported winner: whole or not there, the same every time, and usable by a stranger."""

import json
import os
import re
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from timm.data.config import resolve_model_data_config
from timm.data.transforms_factory import create_transform

from nas import data, network
from nas.block import Block, parse_network
from nas.data import Data
from nas.errors import ConfigError, NasError, StorageError, TrainingDiverged
from nas.files import digest_file
from nas.manifest import Accuracy, Ancestry, TargetResult, Winner
from nas.network import NasHybrid, stock
from nas.space import Architecture, SearchSpace, architecture_of
from nas.winner import card
from nas.winner.export import export

FILES = {"README.md", "config.json", "model.onnx", "model.safetensors", "winner.json"}
TARGET = "onnxruntime-1.31.1_fp32_nchw_b1_t1@a-cpu-x86_64"


@pytest.fixture(scope="module")
def digits() -> Data:
    return data.load("digits")


def a_network(blocks: tuple[Block, ...], *, seed: int = 0) -> NasHybrid:
    """Return a network whose every parameter and buffer is random."""
    torch.manual_seed(seed)
    model = network.build(blocks)
    for name, value in model.state_dict().items():
        if value.is_floating_point():
            low = 0.5 if name.endswith(("running_var", "gamma")) else -0.2
            value.uniform_(low, low + 0.4)
    return model.eval()


def a_winner(architecture: Architecture, blocks: tuple[Block, ...], **changes: Any) -> Winner:
    return Winner(
        architecture=architecture.to_json(),
        blocks=tuple(str(block) for block in blocks),
        accuracy=Accuracy(search=0.985, search_images=360),
        budgets={f"latency_ms:{TARGET}": 0.25},
        targets=(TargetResult(target=TARGET, predicted_ms=0.2),),
        ancestry=Ancestry(study="s", trial=3),
        data="folder:/home/somebody/digits",
        command="nas quickstart",
        **changes,
    )


def tiny() -> tuple[NasHybrid, Winner]:
    space = SearchSpace.load("tiny").replace(num_classes=10)
    blocks = space.blocks(space.smallest())
    return a_network(blocks), a_winner(space.smallest(), blocks)


@pytest.fixture(scope="module")
def exported(tmp_path_factory: pytest.TempPathFactory, digits: Data) -> Path:
    model, winner = tiny()
    folder = tmp_path_factory.mktemp("winners") / winner.id
    export(model, folder=folder, winner=winner, data=digits)
    return folder


def some_images(model: NasHybrid, count: int = 4) -> torch.Tensor:
    side = model.img_size
    return torch.randn(
        count, model.in_chans, side, side, generator=torch.Generator().manual_seed(1)
    )


def shown(folder: Path) -> dict[str, Any]:
    """Return what timm reads of how images are to be shown to the exported network."""
    loaded = timm.create_model(f"local-dir:{folder}", pretrained=True)
    config: dict[str, Any] = resolve_model_data_config(loaded)  # type: ignore[no-untyped-call]
    return config


# ---------------------------------------------------------------- what is there
def test_a_winner_is_five_readable_files_with_their_digests(exported: Path) -> None:
    assert {path.name for path in exported.iterdir()} == FILES
    assert all(path.stat().st_mode & 0o777 == 0o644 for path in exported.iterdir())
    assert [path.name for path in exported.parent.iterdir()] == [exported.name]
    winner = Winner.load(exported)
    assert set(winner.files) == {"config.json", "model.onnx", "model.safetensors"}
    assert all(digest_file(exported / name) == digest for name, digest in winner.files.items())
    assert replace(winner, files={}) == tiny()[1]


def test_timm_loads_it_with_the_same_scores_bit_for_bit(exported: Path) -> None:
    model, _ = tiny()
    loaded = timm.create_model(f"local-dir:{exported}", pretrained=True).eval()
    images = some_images(model)
    assert torch.equal(loaded(images), model(images))


def test_the_configuration_is_its_own_and_says_how_images_are_made(exported: Path) -> None:
    config = json.loads((exported / "config.json").read_text())
    assert config["architecture"] == "nas_hybrid"
    assert config["label_names"] == [str(digit) for digit in range(10)]
    cfg = config["pretrained_cfg"]
    assert (cfg["tag"], cfg["license"]) == (f"nas_{exported.name}", "apache-2.0")
    assert not {"url", "hf_hub_id", "origin_url", "paper_ids"} & set(cfg)
    assert shown(exported) == {
        "input_size": (3, 32, 32),
        "mean": [0.5, 0.5, 0.5],
        "std": [0.5, 0.5, 0.5],
        "interpolation": "bicubic",
        "crop_pct": 1.0,
        "crop_mode": "center",
    }


def test_timms_transform_makes_of_a_photo_what_the_network_was_trained_on(
    tmp_path: Path, exported: Path
) -> None:
    generator = np.random.default_rng(0)
    for name in ("a", "b"):
        for part in ("train", "val"):
            (tmp_path / part / name).mkdir(parents=True)
        Image.new("RGB", (32, 32)).save(tmp_path / "val" / name / "0.png")
        for i in range(4):
            small = generator.integers(0, 255, (6, 8, 3), dtype=np.uint8)
            photo = Image.fromarray(small).resize((60, 48), Image.Resampling.BICUBIC)
            photo.save(tmp_path / "train" / name / f"{i}.png")
    photos = data.load(f"folder:{tmp_path}", image_size=32)
    transform = create_transform(**{**shown(exported), "mean": photos.mean, "std": photos.std})
    theirs = torch.stack(
        [transform(Image.open(path)) for path in sorted(tmp_path.glob("train/*/*.png"))]
    )
    for split in ("train", "choice", "search"):
        for images, _ in data.eval_batches(photos.split(split), photos, batch_size=8):
            nearest = torch.cdist(images.flatten(1), theirs.flatten(1), p=float("inf")).amin(1)
            assert nearest.max() < 0.05  # of a range of 4.5: rounding, and never another cut


def test_nothing_of_this_machine_is_in_the_files(exported: Path) -> None:
    source = Path(network.__file__).parent.parent.parent
    for path in exported.iterdir():
        raw = path.read_bytes()
        for place in (source, Path(torch.__file__).parent, exported.parent):
            assert os.fsencode(place) not in raw, f"{path.name} names {place}"
    assert "somebody" not in (exported / "README.md").read_text()


def test_exporting_again_replaces_it_with_the_same_bytes(exported: Path, digits: Data) -> None:
    before = {path.name: path.read_bytes() for path in exported.iterdir()}
    model, winner = tiny()
    model = model.train().to(memory_format=torch.channels_last)
    export(model, folder=exported, winner=winner, data=digits)
    assert model.training
    assert {path.name: path.read_bytes() for path in exported.iterdir()} == before
    assert [path.name for path in exported.parent.iterdir()] == [exported.name]


# ---------------------------------------------------------------- the model card
def code_blocks(text: str, folder: Path) -> list[str]:
    blocks = re.findall(r"```python\n(.*?)```", text, re.DOTALL)
    return [block.replace("path/to/this/folder", str(folder)) for block in blocks]


def test_the_code_of_the_model_card_runs_and_both_ways_agree(exported: Path) -> None:
    load, run = code_blocks((exported / "README.md").read_text(), exported)
    names: dict[str, Any] = {}
    exec(load + "\n" + run, names)
    assert names["scores"].shape == (1, 10)
    theirs = names["model"](torch.zeros(1, 3, 32, 32)).detach().numpy()
    np.testing.assert_allclose(names["scores"], theirs, rtol=1e-4, atol=1e-5)
    assert names["transform"](Image.new("RGB", (50, 40))).shape == (3, 32, 32)


def test_the_model_card_says_what_is_promised_and_what_is_not_known_yet(exported: Path) -> None:
    text = (exported / "README.md").read_text()
    winner = Winner.load(exported)
    for words in (
        winner.id,
        *winner.blocks,
        TARGET,
        "98.5 %",
        "0.25 ms",
        "0.2 ms",
        "`folder:digits`",
    ):
        assert words in text
    assert "import nas.network" in text and "pretrained=True" in text
    assert text.count("not yet; run `nas verify`") == 1


def test_a_renewed_card_keeps_the_words_somebody_put_in(exported: Path) -> None:
    text = (exported / "README.md").read_text() + "\nMy own words.\n"
    winner = Winner.load(exported)
    result = TargetResult(
        target=TARGET, measured_ms=0.26, ci_high_ms=0.275, p95_ms=0.3, grade="A", predicted_ms=0.2,
        reference_promised_ms=0.05, reference_measured_ms=0.065,
    )  # fmt: skip
    accuracy = replace(winner.accuracy, test=0.981, test_images=360)
    renewed = card.update(text, replace(winner, accuracy=accuracy, targets=(result,)))
    assert "98.1 % of 360 images" in renewed
    assert "| **over the budget by** | 10.0 % |" in renewed
    assert "| machine when measured | 30 % slower than where that was promised, at whose" in renewed
    assert renewed.endswith("My own words.\n")
    assert card.update(renewed, winner) == text
    assert card.update("No marks.", winner) == "No marks."


# ---------------------------------------------------------------- what is refused
def test_a_network_that_is_not_the_winners_is_refused(tmp_path: Path, digits: Data) -> None:
    space = SearchSpace.load("tiny").replace(num_classes=10)
    other = a_network(space.blocks(space.largest()))
    with pytest.raises(ConfigError, match="must be the winner's network"):
        export(other, folder=tmp_path / "w", winner=tiny()[1], data=digits)


def test_data_of_other_classes_or_size_is_refused(tmp_path: Path, digits: Data) -> None:
    model, winner = tiny()
    for other in (replace(digits, class_names=("a", "b")), replace(digits, image_size=48)):
        with pytest.raises(ConfigError, match="knows 10 classes"):
            export(model, folder=tmp_path / "w", winner=winner, data=other)
    assert not list(tmp_path.iterdir())


def test_weights_that_are_not_finite_are_not_exported(tmp_path: Path, digits: Data) -> None:
    model, winner = tiny()
    with torch.no_grad():
        model.get_parameter("head.fc.bias")[3] = float("nan")
    with pytest.raises(TrainingDiverged, match=r"head\.fc\.bias"):
        export(model, folder=tmp_path / "w", winner=winner, data=digits)
    assert not list(tmp_path.iterdir())


def test_an_onnx_file_that_computes_something_else_is_not_exported(
    exported: Path, tmp_path: Path, digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    def write_another(model: NasHybrid, path: Path, *, batch: int) -> None:
        shutil.copy(exported / "model.onnx", path)

    monkeypatch.setattr(network, "to_onnx", write_another)
    _, winner = tiny()
    other = a_network(parse_network(winner.blocks), seed=1)
    with pytest.raises(NasError, match="scores of the ONNX file"):
        export(other, folder=tmp_path / "w", winner=winner, data=digits)
    assert not list(tmp_path.iterdir())


def test_a_folder_with_other_files_is_never_replaced(tmp_path: Path, digits: Data) -> None:
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    model, winner = tiny()
    with pytest.raises(ConfigError, match=r"also holds thesis\.tex"):
        export(model, folder=tmp_path / "home", winner=winner, data=digits)
    assert (tmp_path / "home" / "thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("place", ["file", "file/winner"])
def test_a_path_at_or_below_a_file_is_a_storage_error(
    tmp_path: Path, digits: Data, place: str
) -> None:
    (tmp_path / "file").write_text("kept")
    model, winner = tiny()
    with pytest.raises(StorageError, match="cannot write"):
        export(model, folder=tmp_path / place, winner=winner, data=digits)
    assert [(path.name, path.read_text()) for path in tmp_path.iterdir()] == [("file", "kept")]


@pytest.mark.parametrize("size_bytes", [20_000, 1_000])
def test_a_full_disk_leaves_the_winner_that_was_there(
    tmp_path: Path, digits: Data, files_at_most: Callable[[int], Any], size_bytes: int
) -> None:
    folder = tmp_path / "w"
    folder.mkdir()
    (folder / "winner.json").write_text("an older winner")
    model, winner = tiny()
    with files_at_most(size_bytes), pytest.raises(StorageError, match="Free space"):
        export(model, folder=folder, winner=winner, data=digits)
    assert [path.name for path in tmp_path.iterdir()] == ["w"]
    assert (folder / "winner.json").read_text() == "an older winner"


def test_ctrl_c_leaves_nothing_and_what_a_kill_left_is_swept(
    tmp_path: Path, digits: Data, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / ".w.exporting").mkdir()
    (tmp_path / ".w.exporting" / "model.safetensors").write_text("half")

    def interrupt(*_: Any, **__: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(network, "to_onnx", interrupt)
    model, winner = tiny()
    with pytest.raises(KeyboardInterrupt):
        export(model, folder=tmp_path / "w", winner=winner, data=digits)
    assert not list(tmp_path.iterdir())


# ---------------------------------------------------------------- stock
@pytest.mark.slow
def test_a_network_timm_has_a_class_for_is_saved_as_that_class(
    tmp_path: Path, digits: Data
) -> None:
    published = timm.create_model(
        "efficientvit_m0", img_size=32, num_classes=10, embed_dim=(16, 32, 48), depth=(1, 1, 1),
        num_heads=(1, 2, 3), kernels=(5, 3, 3), key_dim=(4, 4, 4),
    )  # fmt: skip
    blocks = stock.blocks_of(published)
    model = a_network(blocks)
    winner = a_winner(architecture_of(blocks, space="efficientvit"), blocks)
    export(model, folder=tmp_path / "w", winner=winner, data=digits)
    config = json.loads((tmp_path / "w" / "config.json").read_text())
    assert config["architecture"] == "efficientvit_m0"
    assert config["pretrained_cfg"]["license"] == "apache-2.0"
    assert "nas.network" not in (tmp_path / "w" / "README.md").read_text()
    loaded = timm.create_model(f"local-dir:{tmp_path / 'w'}", pretrained=True).eval()
    assert type(loaded) is type(published)
    images = some_images(model)
    torch.testing.assert_close(loaded(images), model(images), rtol=1e-4, atol=1e-5)

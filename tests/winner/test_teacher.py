"""Teachers: made once, read back exactly, loadable by timm, and never trusted when damaged."""

import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from timm.data.config import resolve_data_config
from timm.models._hub import save_for_hf

from nas.data import Augment, Data, Split
from nas.errors import ConfigError, StorageError
from nas.winner.distill import DistillConfig, evaluate
from nas.winner.objective import Teacher
from nas.winner.teacher import make_teacher

CONFIG = DistillConfig(epochs=1, batch_size=8, warmup_epochs=0, checkpoint_steps=1)
NAME = "test_resnet"  # timm's smallest


def make_split(name: str, count: int, seed: int) -> Split:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randint(0, 256, (count, 3, 16, 16), generator=generator).to(torch.uint8)
    return Split.of(name, images, torch.arange(count) % 3, torch.arange(count))


@pytest.fixture(scope="module")
def data() -> Data:
    return Data(
        name="fake",
        image_size=16,
        in_chans=3,
        mean=(0.5, 0.4, 0.3),
        std=(0.2, 0.3, 0.4),
        class_names=tuple("abc"),
        augment=Augment(),
        splits={"train": make_split("train", 24, 1), "search": make_split("search", 12, 2)},
    )


@pytest.fixture(scope="module")
def made(data: Data, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("teacher")
    make_teacher(NAME, data, CONFIG, folder=folder)
    return folder


def never(done: int, total: int, text: str) -> None:
    raise AssertionError("a step was taken")


def test_a_teacher_is_trained_once_and_then_read_back(
    data: Data, made: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "copy"
    first = make_teacher(NAME, data, CONFIG, folder=folder)
    assert first.steps == 3
    for checkpoint in folder.glob("step-*"):
        checkpoint.unlink()
    again = make_teacher(NAME, data, CONFIG, folder=folder, progress=never)
    assert (again.score, again.losses, again.digest) == (first.score, first.losses, first.digest)
    weights = again.model.state_dict()
    assert all(torch.equal(value, weights[key]) for key, value in first.model.state_dict().items())
    assert evaluate(Teacher(again.model, data), data.split("search"), data).accuracy == (
        first.score.accuracy
    )


def test_timm_loads_the_folder_and_finds_how_to_show_images(data: Data, made: Path) -> None:
    model: Any = timm.create_model(f"local-dir:{made}", pretrained=True)
    shown = resolve_data_config({}, model=model)  # type: ignore[no-untyped-call]
    assert shown["input_size"] == (3, 16, 16)
    assert tuple(shown["mean"]) == data.mean and tuple(shown["std"]) == data.std
    assert model.num_classes == 3
    assert "hf_hub_id" not in {k for k, v in model.pretrained_cfg.items() if v}
    assert model.pretrained_cfg["tag"] == "nas_teacher"
    images = torch.randn(2, 3, 16, 16)
    assert Teacher(model, data).is_same
    assert torch.equal(Teacher(model, data)(images), model.eval()(images))


@pytest.mark.parametrize("victim", ["model.safetensors", "config.json", "teacher.json"])
def test_a_damaged_teacher_is_made_again_from_its_checkpoint(
    data: Data, made: Path, tmp_path: Path, victim: str, caplog: pytest.LogCaptureFixture
) -> None:
    folder = tmp_path / "teacher"
    shutil.copytree(made, folder)
    raw = (folder / victim).read_bytes()
    (folder / victim).write_bytes(raw[: len(raw) // 2])
    result = make_teacher(NAME, data, CONFIG, folder=folder, progress=never)
    assert "is damaged" in caplog.text
    assert json.loads((folder / "teacher.json").read_text())["digest"] == result.digest
    assert make_teacher(NAME, data, CONFIG, folder=folder).digest == result.digest


def test_another_teacher_in_the_folder_is_refused(data: Data, made: Path) -> None:
    with pytest.raises(ConfigError, match="another lr.*Choose another folder"):
        make_teacher(NAME, data, replace(CONFIG, lr=0.5), folder=made)


def local_dir(place: Path, *, classes: int, **pretrained_cfg: Any) -> Path:
    torch.manual_seed(3)
    model = timm.create_model(NAME, num_classes=classes)
    save_for_hf(
        model,
        str(place),
        model_config={"pretrained_cfg": pretrained_cfg},
        safe_serialization=True,
        data_config={"mean": (0.1, 0.2, 0.3), "std": (0.4, 0.5, 0.6), "input_size": (3, 24, 24)},
    )
    return place


def test_a_folder_with_the_right_classes_is_used_as_it_is(data: Data, tmp_path: Path) -> None:
    source = local_dir(tmp_path / "source", classes=3)
    name = f"local-dir:{source}"
    result = make_teacher(name, data, CONFIG, folder=tmp_path / "t", progress=never)
    assert result.steps == 0
    own = timm.create_model(name, pretrained=True).state_dict()
    assert all(torch.equal(value, own[key]) for key, value in result.model.state_dict().items())
    teacher = Teacher(result.model, data)
    assert teacher.size == 24 and not teacher.is_same
    shutil.rmtree(source)
    again = make_teacher(name, data, CONFIG, folder=tmp_path / "t")
    assert again.digest == result.digest
    assert Teacher(again.model, data).digest == teacher.digest


def test_a_folder_with_other_classes_gets_a_new_head_and_is_fine_tuned(
    data: Data, tmp_path: Path
) -> None:
    source = local_dir(tmp_path / "source", classes=7)
    name = f"local-dir:{source}"
    result = make_teacher(name, data, CONFIG, folder=tmp_path / "t")
    assert result.steps == 3
    teacher = Teacher(result.model, data)
    assert teacher.is_same and teacher.size == 16, "it has learnt to see as the student does"
    again = make_teacher(name, data, CONFIG, folder=tmp_path / "t", progress=never)
    assert again.digest == result.digest and Teacher(again.model, data).is_same


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("resnet10", "timm knows no network 'resnet10'.*resnet10t"),
        ("xyzzy", "see timm.list_models"),
        ("local-dir:nowhere", "config.json is not there.*save_for_hf"),
    ],
)
def test_a_teacher_there_is_not_says_the_way_out(
    data: Data, tmp_path: Path, name: str, message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        make_teacher(name, data, CONFIG, folder=tmp_path)


def test_a_folder_of_pickled_weights_is_refused(data: Data, tmp_path: Path) -> None:
    source = local_dir(tmp_path / "source", classes=3)
    (source / "model.safetensors").rename(source / "pytorch_model.bin")
    with pytest.raises(ConfigError, match="model.safetensors is not there"):
        make_teacher(f"local-dir:{source}", data, CONFIG, folder=tmp_path / "t")


def test_weights_that_cannot_be_read_say_the_way_out(data: Data, tmp_path: Path) -> None:
    source = local_dir(tmp_path / "source", classes=3)
    raw = (source / "model.safetensors").read_bytes()
    (source / "model.safetensors").write_bytes(raw[:100])
    with pytest.raises(ConfigError, match="cannot be made.*without its tag"):
        make_teacher(f"local-dir:{source}", data, CONFIG, folder=tmp_path / "t")


def test_a_tag_whose_weights_cannot_be_fetched_says_the_way_out(
    data: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def offline(*args: Any, **kwargs: Any) -> None:
        raise OSError("the network is away")

    monkeypatch.setattr("timm.models._builder.load_pretrained", offline)
    with pytest.raises(ConfigError, match="the network is away.*without it use local-dir"):
        make_teacher("test_resnet.r160_in1k", data, CONFIG, folder=tmp_path)


def test_a_teacher_that_cannot_be_written_is_a_storage_error(data: Data, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot write"):
        make_teacher(NAME, data, CONFIG, folder=tmp_path / "file" / "teacher")

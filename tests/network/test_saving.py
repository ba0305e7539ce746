"""Saved as a timm folder, loaded by timm in a process that has only imported nas.network."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from safetensors.torch import load_file, save_file
from timm.models import save_for_hf
from torch import nn

from nas.network import build
from nas.network.stock import blocks_of, from_timm

Make = Callable[..., Any]  # Any: a NasHybrid, whose timm attributes have no types
Texts = Callable[[str], list[str]]

LOAD = """
import sys
import timm, torch
from safetensors.torch import load_file, save_file
import nas.network
logits = {}
for folder in sys.argv[2:]:
    model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
    images = load_file(f"{folder}/images.safetensors")["images"]
    with torch.no_grad():
        logits[folder] = model(images)
save_file(logits, sys.argv[1])
"""


def save(model: Any, folder: Path) -> Path:
    save_for_hf(model, str(folder), safe_serialization=True)
    return folder


def load(folder: Path, **options: Any) -> Any:
    return timm.create_model(f"local-dir:{folder}", pretrained=True, **options).eval()


@pytest.mark.slow
def test_a_fresh_process_computes_the_same_bits(
    tmp_path: Path, make: Make, randomize: Callable[..., nn.Module]
) -> None:
    resized = make("all")
    resized.set_input_size(48)
    reset = make("cga")
    reset.reset_classifier(4)
    models = {
        "plain": make("all"),
        "distilled": make("mb3d"),
        "other arguments": make("mb4d", num_classes=5, in_chans=1, img_size=40),
        "resized later": resized,
        "reset later": reset,
        "no classifier": make("cga", num_classes=0),
        "published": randomize(from_timm(timm.create_model("efficientvit_m0"))).eval(),
        "by default": randomize(timm.create_model("nas_hybrid")).eval(),
    }
    expected = {}
    for name, model in models.items():
        folder = save(model, tmp_path / name)
        side = model.blocks_spec[0].resolution
        images = torch.randn(2, model.in_chans, side, side)
        save_file({"images": images}, folder / "images.safetensors")
        with torch.no_grad():
            expected[str(folder)] = model(images)
    command = [sys.executable, "-W", "error", "-c", LOAD, str(tmp_path / "logits"), *expected]
    subprocess.run(command, check=True, capture_output=True, text=True, cwd=tmp_path)
    logits = load_file(tmp_path / "logits")
    assert logits.keys() == expected.keys()
    for name, given in logits.items():
        assert torch.equal(given, expected[name]), name


def test_a_folder_says_what_it_is_in_plain_json(tmp_path: Path, make: Make, texts: Texts) -> None:
    folder = save(make("all", drop_path_rate=0.1), tmp_path / "model")
    config = json.loads((folder / "config.json").read_text())
    assert config["architecture"] == "nas_hybrid"
    assert config["model_args"]["blocks"] == texts("all")
    assert "drop_path_rate" not in config["model_args"]
    assert config["pretrained_cfg"]["license"] == "apache-2.0"
    assert config["pretrained_cfg"]["tag"] == "nas"
    assert config["pretrained_cfg"]["input_size"] == [3, 32, 32]
    assert sorted(path.name for path in folder.iterdir()) == ["config.json", "model.safetensors"]


def test_the_default_network_records_its_blocks(tmp_path: Path) -> None:
    model: Any = timm.create_model("nas_hybrid", img_size=64, num_classes=3)
    config = json.loads((save(model, tmp_path / "model") / "config.json").read_text())
    assert config["model_args"]["blocks"] == [str(block) for block in model.blocks_spec]


@pytest.mark.parametrize("name", ["mb3d", "cga", "all"])
def test_weights_adapt_to_other_images_and_classes(
    name: str, tmp_path: Path, make: Make, images: torch.Tensor
) -> None:
    source = make(name)
    folder = save(source, tmp_path / "model")
    grey = load(folder, in_chans=1)
    assert grey(images[:, :1]).shape == (2, 10)
    other = load(folder, num_classes=4)
    with torch.no_grad():
        assert torch.equal(other.forward_features(images), source.forward_features(images))
    assert other(images).shape == (2, 4)
    larger = load(folder, img_size=64)
    source.set_input_size(64)
    with torch.no_grad():
        larger_images = torch.randn(1, 3, 64, 64)
        assert torch.equal(larger(larger_images), source(larger_images))
    features = load(folder, features_only=True)
    assert [m.shape[1] for m in features(images)] == [16, 24, 32]


def test_weights_of_other_blocks_are_refused(tmp_path: Path, make: Make, texts: Texts) -> None:
    folder = save(make("mb4d"), tmp_path / "model")
    with pytest.raises(RuntimeError, match="size mismatch|Missing key"):
        load(folder, blocks=texts("all"))


def test_building_through_timm_is_what_records_the_arguments(tmp_path: Path) -> None:
    blocks = blocks_of("efficientvit_m0")
    model: Any = build(blocks, num_classes=10, pretrained_cfg_overlay={"mean": (0.5, 0.5, 0.5)})
    config = json.loads((save(model, tmp_path / "model") / "config.json").read_text())
    assert config["num_classes"] == 10
    assert config["pretrained_cfg"]["mean"] == [0.5, 0.5, 0.5]
    assert load(tmp_path / "model").blocks_spec == model.blocks_spec

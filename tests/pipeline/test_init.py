"""`nas train --init`: a run's supernet starts from a network, and the run's folder says so."""

import json
from pathlib import Path

from typer.testing import CliRunner

from nas.cli.app import app
from nas.files import read_yaml
from nas.network import build
from nas.network.timm_models import save
from nas.space import SearchSpace

SETTINGS = ["threads=1", "train.steps=2", "train.batch_size=32"]


def train(run: Path, *words: str) -> tuple[int, str, str]:
    given = ["train", "--run", str(run), "--space", "tiny", *words, "-q", "--json", *SETTINGS]
    result = CliRunner().invoke(app, given)
    return result.exit_code, result.stdout, result.stderr


def test_a_supernet_starts_from_a_folder_and_the_run_remembers_it(tmp_path: Path) -> None:
    space = SearchSpace.load("tiny").replace(num_classes=10)
    folder = save(build(space.blocks(space.smallest())), tmp_path / "network")
    code, out, err = train(tmp_path / "run", "--init", str(folder))
    assert code == 0, err
    assert json.loads(out)["init"] == space.smallest().id
    assert read_yaml(tmp_path / "run" / "config.yaml")["init"] == str(folder)
    state = json.loads((tmp_path / "run" / "state.json").read_text())
    assert state["stages"]["train"]["result"]["init"] == space.smallest().id
    code, _, err = train(tmp_path / "run", "--init", "efficientformer_l1", "--resume")
    assert code == 2 and "train is done" in err and "init: " in err


def test_a_network_the_space_has_no_room_for_ends_before_training(tmp_path: Path) -> None:
    other = SearchSpace.load("hybrid-64").replace(image_size=32)
    folder = save(build(other.blocks(other.smallest())), tmp_path / "network")
    code, _, err = train(tmp_path / "run", "--init", str(folder))
    assert code == 2 and "must have its 2 stages, but this one has 4" in err
    assert not list((tmp_path / "run").rglob("step-*"))

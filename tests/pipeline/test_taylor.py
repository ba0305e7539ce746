"""`nas taylor`: what it writes and says of a run's supernet."""

import json
from pathlib import Path

import numpy as np
from typer.testing import CliRunner

from nas.cli.app import app
from nas.pipeline import Run, config_of, taylor, train
from nas.pipeline.materials import Materials

SETTINGS = ["space=tiny", "data=digits", "threads=1", "train.steps=4", "train.batch_size=32"]


def test_a_run_is_drawn_and_its_numbers_are_written(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with Run.open(folder, config_of(folder, SETTINGS, begin=True)) as run:
        materials = Materials(run)
        train(run, materials)
        result = taylor(run, materials, images=32)
    value = result.to_json()
    kept = json.loads((folder / "taylor/taylor.json").read_text())
    assert {**kept, "page": value["page"]} == json.loads(json.dumps(value))
    assert kept["images"] == 32 and np.array(kept["importance"]["s2.b0.cga.value"]).shape == (2, 32)
    verdicts = {"reproduced", "refuted", "not told apart", "not measured"}
    assert len(kept["findings"]) == 4
    assert {each["verdict"] for each in kept["findings"]} <= verdicts
    assert {head["kind"] for head in kept["heads"]} == {"cga", "mb3d"}
    page = Path(value["page"]).read_text()
    assert "group_attn.value" in page and (folder / "taylor/heatmap.png").is_file()
    text = result.text()
    assert "EfficientViT's findings here:" in text and "cascaded group attention" in text


def test_a_run_without_a_supernet_is_told_what_to_do(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    with Run.open(folder, config_of(folder, SETTINGS, begin=True)):
        pass
    result = CliRunner().invoke(app, ["taylor", "--run", str(folder), "-q", "--json"])
    assert result.exit_code == 2 and "nas train" in json.loads(result.stdout)["error"]

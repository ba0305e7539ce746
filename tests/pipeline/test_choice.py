"""`nas train --fit-choice`: kinds weighed against a target's latencies, and workers as a flag."""

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nas.block import parse
from nas.cli.app import app
from nas.files import read_yaml
from nas.latency import LatencyTable
from nas.latency.table import Entry
from nas.space import SearchSpace
from nas.target import Target

TARGET = "onnxruntime,fp32,b1,t1"
SETTINGS = [
    *("threads=1", "train.steps=2", "train.batch_size=32", "train.order_images=0"),
    *("fit_choice.steps=8", "fit_choice.lr=0.5", "fit_choice.weight=20"),
]


def train(run: Path, *words: str) -> tuple[int, str, str]:
    given = ["train", "--run", str(run), "--space", "tiny", *words, "-q", "--json", *SETTINGS]
    result = CliRunner().invoke(app, given)
    return result.exit_code, result.stdout, result.stderr


@pytest.fixture
def table(tmp_path: Path) -> Path:
    """A table where what cga is made of costs twenty times the rest."""
    space = SearchSpace.load("tiny").replace(num_classes=10)
    entries = {}
    for block in space.every_block():
        for part in map(str, block.parts()):
            ms = 0.2 if parse(part).kind == "group_attn" else 0.01
            entries[part] = Entry(
                ms=ms, isolated_ms=ms, p10=ms, p90=ms, clean=3, taken=3, grade="A", by="chain"
            )
    table = LatencyTable(target=Target.parse(TARGET), entries=entries)
    return Path(table.save(tmp_path / "table.json").path)


@pytest.mark.slow
def test_kinds_are_fitted_to_a_target_into_the_run(tmp_path: Path, table: Path) -> None:
    run = tmp_path / "run"
    words = [f"table={json.dumps(str(table))}"]
    code, out, err = train(run, "--fit-choice", TARGET, *words)
    assert code == 0, err
    value = json.loads(out)["choice"]
    record = json.loads((run / "choice" / f"{Target.parse(TARGET).id}.json").read_text())
    assert value == {"path": value["path"], **record}
    assert record["table"] == LatencyTable.load(table).digest and record["schema"] == 1
    assert record["supernet"] == json.loads(out)["digest"]
    shares = record["probabilities"]
    assert all(abs(sum(kinds.values()) - 1) < 1e-5 for kinds in shares.values())
    assert all(kinds["cga"] < 0.3 for kinds in shares.values() if "cga" in kinds)
    # Trained already: the same again, and another target only after --resume.
    code, _, err = train(run, "--fit-choice", TARGET, *words)
    assert code == 2 and "Add --resume" in err
    code, out, err = train(run, "--fit-choice", TARGET, "--resume", *words)
    assert code == 0 and json.loads(out)["choice"]["probabilities"] == shares


def test_a_target_without_a_table_is_named_with_the_command(tmp_path: Path) -> None:
    words = [f"table={json.dumps(str(tmp_path / 'none.json'))}"]
    code, _, err = train(tmp_path / "run", "--fit-choice", TARGET, *words)
    assert code == 2 and "no latency table" in err and "nas profile" in err


def test_workers_are_a_setting_that_divides_the_batch(tmp_path: Path) -> None:
    code, _, err = train(tmp_path / "run", "--workers", "3")
    assert code == 2 and "multiple of workers x accumulate" in err and "Take 33" in err
    code, _, err = train(tmp_path / "run", "--workers", "1")
    assert code == 0, err
    assert read_yaml(tmp_path / "run" / "config.yaml")["train"]["workers"] == 1

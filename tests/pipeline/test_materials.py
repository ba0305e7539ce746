from pathlib import Path

import pytest

from nas.latency import LatencyTable
from nas.pipeline.config import RunConfig
from nas.pipeline.materials import Materials
from nas.pipeline.run import Run
from nas.target import Target


def test_a_run_grows_a_copy_of_a_table_that_was_shipped(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    target = Target.parse("onnxruntime,fp32,b1,t1")
    shipped = Path("latency_tables") / target.device.slug / f"{target.id}.json"
    LatencyTable(target=target, entries={}).save(shipped)
    before = shipped.read_bytes()
    with Run.open(tmp_path / "runs/a", RunConfig()) as run:
        own = Materials(run).own_table()
        assert own == Path("runs/tables") / shipped.name
        assert own.read_bytes() == before
        own.write_text(own.read_text() + "\n")  # it grows
        assert Materials(run).own_table() == Materials(run).table_path == own
    assert shipped.read_bytes() == before


def test_a_table_that_is_given_is_the_one_that_grows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with Run.open(tmp_path / "runs/a", RunConfig(table="mine.json")) as run:
        assert Materials(run).own_table() == Path("mine.json")
    assert not Path("runs/tables").exists()

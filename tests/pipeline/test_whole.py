"""The whole job, small: what it leaves, that it repeats bit for bit, that faults lose nothing."""

import contextlib
import hashlib
import json
import shutil
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nas.manifest import Winner
from nas.study import Study

pytestmark = pytest.mark.slow
Start = Callable[..., "subprocess.Popen[str]"]


def weights(folder: Path) -> dict[str, str]:
    """Return the digest of every tensor file that a run's result rests on."""
    kept = [*folder.rglob("winners/*/model.safetensors"), *folder.rglob("supernet/step-12.*")]
    return {
        path.name if "supernet" in path.parts else f"winner {path.parent.name}": hashlib.sha256(
            path.read_bytes()
        ).hexdigest()
        for path in kept
        if path.suffix == ".safetensors"
    }


def study_rows(folder: Path) -> list[Any]:
    study = Study.load("small", storage=f"sqlite:///{folder / 'runs/nas.db'}")
    return [(t.number, dict(t.choice), t.accuracy, t.loss, dict(t.costs)) for t in study.trials]


def stage_of(line: str) -> str:
    return line.split(" ", 1)[0]


def test_a_run_leaves_what_it_promises(undisturbed: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = undisturbed
    run = folder / "runs/small"
    names = {path.name for path in run.iterdir()}
    assert {"config.yaml", "environment.json", "state.json", "log.jsonl", "supernet"} <= names
    assert {"teacher", "distill", "winners", "report"} <= names
    state = json.loads((run / "state.json").read_text())["stages"]
    assert [key.split("/")[0] for key in state][:3] == ["profile", "train", "search"]
    found = [Winner.load(path) for path in (run / "winners").iterdir()]
    assert found and all(w.accuracy.test is not None for w in found)
    page = (run / "report/index.html").read_text()
    assert found[0].id in page and "://" not in page
    rows = study_rows(folder)
    assert len(rows) == 6 and len({json.dumps(row[1], sort_keys=True) for row in rows}) == 6
    profiled = state["profile/onnxruntime,fp32,b1,t1"]["result"]
    budget_ms = 0.6 * profiled["largest_ms"]
    metric = f"latency_ms:{profiled['target']}"
    assert all(0.2 * budget_ms <= row[4][metric] <= 0.7 * budget_ms for row in rows)


def test_kill_9_in_every_stage_then_resume_ends_with_the_same_bits(
    undisturbed: tuple[Path, dict[str, Any]], small: Path, start: Start, tmp_path: Path
) -> None:
    reference, _ = undisturbed
    tables = reference / "runs/tables"
    shutil.copytree(tables, tmp_path / "runs/tables")
    words = ["run", str(small), "--run", "runs/small"]
    killed = []
    for stage in ("data", "train", "search", "teacher", "distill", "export", "verify"):
        child = start(tmp_path, *words)
        assert child.stderr is not None
        for line in child.stderr:
            if stage_of(line) == stage:
                child.send_signal(signal.SIGKILL)
                killed.append(stage)
                break
        child.communicate(timeout=300)
        words = [*words[:4], "--resume"]
    child = start(tmp_path, *words, "--json")
    out, err = child.communicate(timeout=400)
    assert child.returncode in (0, 7), err
    assert len(killed) >= 5
    ours, theirs = weights(tmp_path), weights(reference)
    both = ours.keys() & theirs.keys()  # which candidates meet the budget is measured each time
    assert len(both) >= 2 and all(ours[name] == theirs[name] for name in both)
    assert study_rows(tmp_path) == study_rows(reference)
    assert not list(tmp_path.rglob("*.tmp")) and not list(tmp_path.rglob(".*.exporting"))


def fill(disk: Path) -> Path:
    """Write until a disk is full; return the file to delete for all to be free again."""
    ballast = disk / "ballast"
    with ballast.open("wb", buffering=0) as file, contextlib.suppress(OSError):
        while True:
            file.write(bytes(1 << 16))
    return ballast


def test_a_disk_that_fills_in_a_stage_loses_nothing(
    undisturbed: tuple[Path, dict[str, Any]],
    small: Path,
    start: Start,
    disk_of: Callable[[int], Path],
) -> None:
    reference, _ = undisturbed
    disk = disk_of(256)
    shutil.copytree(reference / "runs/tables", disk / "runs/tables")
    words = ["run", str(small), "--run", "runs/small"]
    stopped = []
    for stage in ("train", "search", "distill", "export"):
        child = start(disk, *words)
        assert child.stderr is not None
        ballast = None
        for line in child.stderr:
            if stage_of(line) == stage:
                ballast = fill(disk)
                break
        _, err = child.communicate(timeout=300)
        if child.returncode == 1:
            stopped.append(stage)
            assert "No space left" in err or "disk is full" in err, err
            assert "Traceback" not in err
        if ballast is not None:
            ballast.unlink()
        words = [*words[:4], "--resume"]
    child = start(disk, *words, "--json")
    _, err = child.communicate(timeout=400)
    assert child.returncode in (0, 7), err
    assert len(stopped) >= 3, stopped
    ours, theirs = weights(disk), weights(reference)
    both = ours.keys() & theirs.keys()
    assert len(both) >= 2 and all(ours[name] == theirs[name] for name in both)
    assert study_rows(disk) == study_rows(reference)
    assert not list(disk.rglob("*.tmp")) and not list(disk.rglob(".*.exporting"))


def test_ctrl_c_says_how_to_go_on(small: Path, start: Start, tmp_path: Path) -> None:
    child = start(tmp_path, "train", "--run", "runs/c", "--space", "tiny", "train.steps=4000")
    assert child.stderr is not None
    for line in child.stderr:
        if stage_of(line) == "train":
            child.send_signal(signal.SIGINT)
            break
    _, err = child.communicate(timeout=120)
    assert child.returncode == 130
    assert "nas train --run runs/c --space tiny train.steps=4000 --resume" in err


def test_an_impossible_budget_fails_before_anything_is_trained(
    undisturbed: tuple[Path, dict[str, Any]], small: Path, start: Start, tmp_path: Path
) -> None:
    shutil.copytree(undisturbed[0] / "runs/tables", tmp_path / "runs/tables")
    child = start(tmp_path, "run", str(small), "--run", "runs/x", "latency_budget=1us")
    _, err = child.communicate(timeout=300)
    assert child.returncode == 3
    assert "the lowest here is" in err and not (tmp_path / "runs/x/supernet").exists()

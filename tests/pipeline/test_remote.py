"""The whole job with a real agent: timing happens there, training here."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from nas.files import digest_file
from nas.latency import ProfileConfig
from nas.latency.remote import RemoteAgent
from nas.manifest import Accuracy, Ancestry, TargetResult, Winner
from nas.pipeline import Run
from nas.pipeline.materials import Materials
from nas.pipeline.remote import RemoteDevice
from nas.space import SearchSpace
from nas.study import latency_metric
from nas.target import Target

Start = Callable[..., "subprocess.Popen[str]"]
LESS = ["evaluations=3", "candidates=3", "train.steps=4", "train.checkpoint_steps=4"]
LESS += ["distill.epochs=1", "teach.epochs=1", "budgets=[]"]


@pytest.fixture
def agent(tmp_path: Path) -> Iterator[tuple[str, Path]]:
    """Return the address of a real agent, with its files below this folder and `token` in it."""
    folder = tmp_path / "there"
    folder.mkdir()
    child = subprocess.Popen(
        [sys.executable, "-m", "nas", "agent", "--port", "0", "--token-file", "token"],
        cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip
    assert child.stdout is not None
    yield child.stdout.readline().split()[2].rstrip(","), folder
    child.terminate()
    child.communicate(timeout=20)


@pytest.mark.slow
def test_a_run_is_searched_to_the_end_on_the_device_of_an_agent(
    agent: tuple[str, Path],
    undisturbed: tuple[Path, dict[str, Any]],
    small: Path,
    start: Start,
    tmp_path: Path,
) -> None:
    url, there = agent
    device = ["--device", url, "--token-file", str(there / "token")]
    here = tmp_path / "here"
    shutil.copytree(undisturbed[0] / "runs/tables", here / "runs/tables")
    words = ["run", str(small), *LESS, "--run", "runs/r", "--json", *device]
    child = start(here, *words)
    out, err = child.communicate(timeout=400)
    assert child.returncode in (0, 7), err  # 7: a network trained for seconds may miss a promise
    state = json.loads((here / "runs/r/state.json").read_text())["stages"]
    assert any(row["measured_ms"] > 0 for row in state["search/r"]["result"]["measured"])
    (folder,) = list((here / "runs/r/winners").iterdir())[:1]
    winner = Winner.load(folder)
    (row,) = winner.targets
    assert row.measured_ms is not None and row.grade is not None
    kept = {path.stem for path in there.rglob("*.onnx")}
    assert digest_file(folder / "model.onnx") in kept  # it was timed there
    child = start(here, "verify", str(folder), "--json", *device)
    out, err = child.communicate(timeout=200)
    assert child.returncode in (0, 7), err
    assert json.loads(out)["winner"] == winner.id
    cut = ["prune", str(folder), "--latency-budget", "99%", "--out", "pruned", "--json"]
    child = start(here, *cut, *device)
    out, err = child.communicate(timeout=200)
    assert child.returncode in (0, 3), err  # 3: on a busy machine nothing may seem to be faster
    if child.returncode == 0:
        assert digest_file(here / "pruned/model.onnx")
        assert json.loads(out)["measured"]["after"]["median_ms"] > 0


def test_a_budget_missed_while_the_device_was_busy_is_timed_there_once_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target = Target.parse("onnxruntime,fp32,b1,t1")
    space = SearchSpace.load("tiny")
    smallest = space.smallest()
    Winner(
        architecture=smallest.to_json(), blocks=tuple(map(str, space.blocks(smallest))),
        accuracy=Accuracy(search=0.9),
        budgets={latency_metric(target.id): 1.0}, ancestry=Ancestry(study="s", trial=0),
        targets=(
            TargetResult(target=target.id, predicted_ms=0.9, reference_promised_ms=0.05),
        ),
        data="digits",
    ).save(tmp_path)  # fmt: skip
    results = [(1.4, "C"), (0.95, "B")]
    asked: list[int] = []

    def measure(folder: Path, target: Target, config: ProfileConfig, *_: Any, **of: Any) -> Any:
        ms, grade = results[len(asked)]
        asked.append(config.processes)
        assert of["known"].reference_ms == 0.05, "the speed it was promised at"
        return TargetResult(target=target.id, measured_ms=ms, ci_high_ms=ms, p95_ms=ms, grade=grade)

    monkeypatch.setattr("nas.pipeline.remote.measure", measure)
    device = RemoteDevice(agent=RemoteAgent("http://127.0.0.1:9", "t" * 43), target=target)
    monkeypatch.setattr(RemoteAgent, "bench", lambda *_: nullcontext())
    found = device.stopwatch(ProfileConfig(), None, lambda *_: None)(tmp_path)
    assert (found.measured_ms, found.grade, asked) == (0.95, "B", [8, 8])


@pytest.mark.slow
def test_a_run_s_materials_are_the_device_s(agent: tuple[str, Path], tmp_path: Path) -> None:
    url, there = agent
    device = RemoteDevice.at(url, there / "token", "onnxruntime,fp32,b1,t1")
    from nas.pipeline import RunConfig

    config = device.settings(RunConfig(space="tiny"))
    assert config.target == device.target.id
    with Run.open(tmp_path / "r", config) as run:
        made: Any = device.materials(run)
        assert isinstance(made, Materials) and made.stopwatch is not None
        assert made.target == device.target and made.benches == device.agent.bench

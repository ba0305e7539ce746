"""The networks of `nas rank` as Ray tasks: the same rows, kept by the owner."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import Any

import pytest

from nas import data as nas_data
from nas.data import Data
from nas.errors import ConfigError, DeviceError
from nas.pipeline import Run, config_of, rank
from nas.pipeline.alone import Alone, AloneResult, Away, Trainer
from nas.pipeline.config import RunConfig
from nas.pipeline.rank import each_training
from nas.winner.distill import DistillConfig

TASKS = [Alone(id=name, blocks=(name, "head"), number=0) for name in ("a", "b", "c", "d")]
RAY = RunConfig(engine="ray")


@pytest.fixture(scope="module")
def digits() -> Data:
    return nas_data.load("digits", image_size=32)


def fake(folder: Path, *, kills: str = "") -> Trainer:
    """Return a trainer whose results follow from the blocks; one task kills its first worker.

    Its class is made here, so that it travels whole and a worker needs none of these tests.
    """

    class Fake(Trainer):
        def train(self, task: Alone, data: Data, checkpoints: Path | None = None) -> AloneResult:
            mark = folder / "killed"
            if task.id == kills and not mark.exists():
                mark.touch()
                os.kill(os.getpid(), signal.SIGKILL)
            share = ord(task.id) / 200 + len(data.split("train")) / 1e4
            return AloneResult(accuracy=share, loss=1 - share, seconds=0.5)

    config = DistillConfig(epochs=1, warmup_epochs=0.5)
    return Fake(folder=folder, data="digits", image_size=32, config=config)


def records(folder: Path) -> dict[str, Any]:
    return {path.name: json.loads(path.read_text()) for path in folder.rglob("*-0.json")}


@pytest.mark.slow
def test_rays_tasks_give_the_rows_of_one_process_also_if_a_worker_is_killed(
    digits: Data, tmp_path: Path
) -> None:
    alone, there = fake(tmp_path / "one"), fake(tmp_path / "ray", kills="b")
    (tmp_path / "ray").mkdir()
    one = dict(each_training(alone, TASKS, digits, RunConfig(), None))
    assert dict(each_training(there, TASKS, digits, RAY, 2)) == one
    assert (tmp_path / "ray/killed").exists()
    assert records(tmp_path / "ray") == records(tmp_path / "one") != {}
    known = [there.known(task, digits) for task in TASKS]  # which is what going on reads
    assert known == [one[task] for task in TASKS]


def test_a_task_that_is_away_writes_nothing_and_its_owner_keeps_it_as_it_is_done(
    digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    def each_here(work: Away, tasks: list[Alone], **options: Any) -> Any:
        asked.append(options)
        for task in tasks:
            result = work(task)
            assert f"{task.name}.json" not in records(tmp_path)
            yield task, result

    monkeypatch.setattr("nas.search.each_by_ray", each_here, raising=False)
    config = RunConfig(engine="ray", address="head:6379")
    for task, result in each_training(fake(tmp_path), TASKS, digits, config, 3):
        assert records(tmp_path)[f"{task.name}.json"]["accuracy"] == result.accuracy
    assert asked == [{"at_once": 3, "address": "head:6379"}]
    assert list(each_training(fake(tmp_path), [], digits, config, 3)) == []
    assert len(asked) == 1  # nothing to do starts no cluster


def test_without_ray_the_error_says_how_to_get_it(
    digits: Data, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)
    for name in ("ray_tasks", "ray_engine"):
        monkeypatch.delitem(sys.modules, f"nas.search.{name}", raising=False)
    with pytest.raises(DeviceError, match=r"Ray is not installed.*pip install 'ray\[tune\]'"):
        list(each_training(fake(tmp_path), TASKS, digits, RAY, None))


def test_an_engine_or_address_that_cannot_be_is_refused_before_anything_is_trained(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "run"
    with Run.open(folder, config_of(folder, ["space=tiny"], begin=True)) as run:
        with pytest.raises(ConfigError, match="engine must be one of local, ray"):
            rank(run, engine="spark")
        with pytest.raises(ConfigError, match="add --engine ray"):
            rank(run, address="head:6379")

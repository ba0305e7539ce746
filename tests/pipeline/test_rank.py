"""`nas rank`: trains alone, compares, and does not do again what is done."""

import json
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from nas import data as nas_data
from nas.cli.app import app
from nas.errors import ConfigError
from nas.pipeline import Run, config_of, rank, train
from nas.pipeline.alone import Alone, AloneResult, Trainer, start
from nas.pipeline.materials import Materials
from nas.report import RankedNetwork
from nas.space import SearchSpace
from nas.winner.distill import DistillConfig, evaluate
from nas.winner.distill import train as distill

SETTINGS = [
    *("space=tiny", "data=digits", "threads=1", "train.steps=6", "train.batch_size=32"),
    *("rank.bands=2", "rank.per_band=2", "rank.twice=1", "rank.resamples=50"),
    *("rank.train={epochs: 1, warmup_epochs: 0.5, batch_size: 128, lr: 0.005}",),
]
QUICK = DistillConfig(epochs=1, warmup_epochs=0.5, batch_size=128)


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="module")
def ranked(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, Any]]:
    """A run that is trained and ranked, and what ranking gave."""
    folder = tmp_path_factory.mktemp("rank") / "run"
    with Run.open(folder, config_of(folder, SETTINGS, begin=True)) as run:
        materials = Materials(run)
        train(run, materials)
        return folder, rank(run, materials).to_json()


@pytest.mark.slow
def test_every_network_is_trained_alone_and_compared(
    ranked: tuple[Path, dict[str, Any]],
) -> None:
    folder, result = ranked
    networks = result["networks"]
    assert [len(network["alone_accuracies"]) for network in networks] == [2, 1, 1, 1]
    assert [network["band"] for network in networks] == [0, 0, 1, 1]
    predictors = [each["predictor"] for each in result["agreements"]]
    assert predictors[:5] == ["inherited_accuracy", "inherited_loss", "params", "macs", "depth"]
    assert result["ceiling"]["networks"] == 1
    assert result == {**json.loads((folder / "rank/rank.json").read_text()), "page": result["page"]}
    page = Path(result["page"]).read_text()
    assert all(network["id"] in page for network in networks) and "inherited accuracy" in page
    assert {path.name for path in (folder / "rank").glob("*.png")} == {
        "scatter.png",
        "predictors.png",
    }


@pytest.mark.slow
def test_what_a_network_reaches_alone_is_what_training_it_by_hand_gives(
    ranked: tuple[Path, dict[str, Any]],
) -> None:
    folder, result = ranked
    (record,) = (folder / "rank/alone").rglob(f"{result['networks'][1]['id']}-0.json")
    told = json.loads(record.read_text())
    data = nas_data.load("digits", image_size=32)
    model = start(told["blocks"], told["seed"])
    config = DistillConfig(**result["settings"]["train"])
    distill(model, data, replace(config, seed=told["seed"]))
    assert evaluate(model, data.split("search"), data).accuracy == told["accuracy"]
    assert told["accuracy"] == result["networks"][1]["alone_accuracies"][0]


@pytest.mark.slow
def test_ranking_again_trains_and_runs_nothing(
    ranked: tuple[Path, dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, result = ranked

    def never(*args: object, **kwargs: object) -> None:
        raise AssertionError("done again")

    monkeypatch.setattr(Trainer, "__call__", never)
    monkeypatch.setattr("nas.supernet.evaluate.Evaluator.score", never)
    with Run.open(folder, resume=True) as run:
        assert rank(run).to_json() == result


@pytest.mark.slow
def test_one_missing_training_is_done_again_alone_and_equal(
    ranked: tuple[Path, dict[str, Any]], caplog: pytest.LogCaptureFixture
) -> None:
    folder, result = ranked
    records = sorted((folder / "rank/alone").rglob("*.json"))
    before = [json.loads(path.read_text())["accuracy"] for path in records]
    records[0].unlink()
    records[1].write_text(records[1].read_text()[:40])
    with Run.open(folder, resume=True) as run:
        assert rank(run).to_json() == result
    assert [json.loads(path.read_text())["accuracy"] for path in records] == before
    assert "trained again" in caplog.text


@pytest.mark.slow
def test_other_settings_are_trained_beside_and_the_first_are_kept(
    ranked: tuple[Path, dict[str, Any]],
) -> None:
    folder, _ = ranked
    space = SearchSpace.load("tiny").replace(num_classes=10)
    task = Alone(id="smallest", blocks=tuple(map(str, space.blocks(space.smallest()))))
    data = nas_data.load("digits", image_size=32)
    trainer = Trainer(folder=folder, data="digits", image_size=32, config=QUICK)
    slower = replace(trainer, config=replace(QUICK, lr=1e-4))
    saved_oftener = replace(trainer, config=replace(QUICK, checkpoint_steps=3))
    assert trainer.place(data) == saved_oftener.place(data) != slower.place(data)
    assert trainer.known(task, data) is None


def test_ranking_needs_a_supernet_and_at_least_one_job(tmp_path: Path) -> None:
    config = config_of(tmp_path / "run", SETTINGS, begin=True)
    with Run.open(tmp_path / "run", config) as run:
        with pytest.raises(ConfigError, match="nas train"):
            rank(run)
        with pytest.raises(ConfigError, match="jobs must be at least 1"):
            rank(run, jobs=0)


@pytest.mark.slow
def test_the_command_says_it_in_a_table(ranked: tuple[Path, dict[str, Any]]) -> None:
    folder, _ = ranked
    result = CliRunner().invoke(app, ["rank", "--run", str(folder), "-q"])
    assert result.exit_code == 0, result.stderr
    head, first = result.stdout.splitlines()[:2]
    assert head.split()[:3] == ["predictor", "tau", "[95"] and "regret@1" in head
    assert first.startswith("inherited accuracy  ") and "noise ceiling" in result.stdout
    wrong = CliRunner().invoke(app, ["rank", "--run", str(folder), "-q", "--twice", "9"])
    assert wrong.exit_code == 2 and "twice must be 0 to the 4" in wrong.stderr


@pytest.mark.slow
def test_a_training_that_was_killed_goes_on_and_ends_the_same(tmp_path: Path) -> None:
    """The process is killed as soon as a checkpoint stands; the next one ends with equal weights'
    accuracy and loss."""
    code = (
        "import sys, torch\n"
        "from pathlib import Path\n"
        "from nas.pipeline.alone import Alone, Trainer\n"
        "from nas.winner.distill import DistillConfig\n"
        "config = DistillConfig(epochs=4, warmup_epochs=1, batch_size=64, checkpoint_steps=5)\n"
        "trainer = Trainer(folder=Path(sys.argv[1]), data='digits', image_size=32, config=config)\n"
        "print(trainer(Alone(id='it', blocks=tuple(sys.argv[2:]))).loss)\n"
    )
    space = SearchSpace.load("tiny").replace(num_classes=10)
    blocks = [str(block) for block in space.blocks(space.smallest())]

    def begin(name: str) -> "subprocess.Popen[str]":
        words = [sys.executable, "-c", code, str(tmp_path / name), *blocks]
        return subprocess.Popen(words, stdout=subprocess.PIPE, text=True)

    undisturbed, _ = begin("a").communicate(timeout=120)
    child = begin("b")
    for _ in range(1200):
        if list((tmp_path / "b").rglob("step-*.json")):
            break
        time.sleep(0.05)
    child.send_signal(signal.SIGKILL)
    rest, _ = child.communicate()
    assert rest == "", "it ended before it was killed"
    went_on, _ = begin("b").communicate(timeout=120)
    assert went_on == undisturbed != ""
    assert not list((tmp_path / "b").rglob("step-*"))


@pytest.mark.slow
def test_two_jobs_give_what_one_gives(tmp_path: Path) -> None:
    from nas.processes import each

    space = SearchSpace.load("tiny").replace(num_classes=10)
    blocks = tuple(map(str, space.blocks(space.smallest())))
    tasks = [Alone(id="it", blocks=blocks, number=number) for number in range(2)]
    found: list[list[tuple[Alone, AloneResult]]] = []
    for jobs in (1, 2):
        trainer = Trainer(folder=tmp_path / str(jobs), data="digits", image_size=32, config=QUICK)
        done = each(trainer, tasks, jobs=jobs)
        found.append(sorted(done, key=lambda pair: pair[0].number))
    losses = [[result.loss for _, result in pairs] for pairs in found]
    assert losses[0] == losses[1] and losses[0][0] != losses[0][1]


def test_a_network_has_the_mean_of_its_trainings() -> None:
    network = RankedNetwork(
        id="x", band=0, inherited_accuracy=0.5, inherited_loss=1.0, alone_accuracies=(0.5, 0.7),
        params=1, macs=1, depth=1,
    )  # fmt: skip
    assert network.alone_accuracy == pytest.approx(0.6)

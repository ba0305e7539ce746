import contextlib
import json
import logging
import math
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from nas import checkpoint
from nas.data import Data
from nas.errors import ConfigError, CorruptFile, StorageError, TrainingDiverged
from nas.space import SearchSpace
from nas.supernet import SuperNet, TrainConfig, Trained, load, train
from nas.supernet.evaluate import first_images
from nas.supernet.taylor import covering_paths
from nas.supernet.training import Training

CONFIG = TrainConfig(
    steps=14,
    batch_size=16,
    sandwich=0.3,
    largest=0.15,
    distill_start=0.85,
    ema_decay=0.9,
    choice_every=2,
    checkpoint_steps=4,
    log_steps=3,
)


class Stopped(Exception):
    """What a test throws into a training."""


def stop_at(step: int) -> Callable[[int, int, str], None]:
    def progress(done: int, total: int, text: str) -> None:
        if done == step:
            raise Stopped

    return progress


def digests(trained: Trained) -> tuple[str, str]:
    return (
        checkpoint.digest_tensors(trained.supernet.state_dict()),
        checkpoint.digest_tensors(trained.choice.state_dict()),
    )


@pytest.fixture(scope="module")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory, small: SearchSpace, quarters: Data
) -> Trained:
    return train(SuperNet(small), quarters, CONFIG, tmp_path_factory.mktemp("undisturbed"))


@pytest.mark.parametrize("step", [2, 4, 11])
def test_a_training_that_was_interrupted_ends_bit_equal(
    tmp_path, small, quarters, undisturbed, step
):
    with pytest.raises(Stopped):
        train(SuperNet(small), quarters, CONFIG, tmp_path, progress=stop_at(step))
    steps = []
    again = train(
        SuperNet(small), quarters, CONFIG, tmp_path, progress=lambda done, *_: steps.append(done)
    )
    assert steps == list(range(step - step % 4 + 1, 15))
    assert digests(again) == digests(undisturbed)
    assert again.history == undisturbed.history


@pytest.mark.parametrize("step", [2, 3])
@pytest.mark.slow
def test_a_stop_at_the_ordering_of_channels_ends_bit_equal(tmp_path, small, quarters, step):
    """A checkpoint is written right before the ordering, and the run stops there or behind it."""
    config = replace(CONFIG, steps=8, largest=0.25, checkpoint_steps=2)
    whole = train(SuperNet(small), quarters, config, tmp_path / "whole")
    with pytest.raises(Stopped):
        train(SuperNet(small), quarters, config, tmp_path / "cut", progress=stop_at(step))
    assert (tmp_path / "cut/step-2.json").is_file()
    again = train(SuperNet(small), quarters, config, tmp_path / "cut")
    assert digests(again) == digests(whole) and again.history == whole.history


def test_channels_are_put_in_order_once_behind_the_largest_paths(tmp_path, small, quarters, caplog):
    config = replace(CONFIG, steps=8, largest=0.25)
    with caplog.at_level(logging.INFO):
        ordered = train(SuperNet(small), quarters, config, tmp_path / "ordered")
    lines = [line for line in caplog.messages if "in order" in line]
    assert len(lines) == 1 and lines[0].endswith("before step 2")
    plain = replace(config, order_images=0)
    assert digests(train(SuperNet(small), quarters, plain, tmp_path / "plain")) != digests(ordered)
    with pytest.raises(ConfigError, match=r"config\.order_images \(256 there, 0 asked for\)"):
        train(SuperNet(small), quarters, plain, tmp_path / "ordered")


def test_the_average_follows_the_ordering_and_a_stop_around_it(tmp_path, small, quarters):
    """Its largest network computes the same before and after; a stop in between changes nothing."""
    config = replace(CONFIG, steps=6, largest=0.5, sandwich=0.0, checkpoint_steps=3)
    space = small
    run = Training(SuperNet(space), quarters, config, tmp_path)

    def stop(done: int, total: int, text: str) -> None:
        if done == 3:
            raise Stopped

    with pytest.raises(Stopped):
        run.go(stop)
    average, largest = run.average, covering_paths(space)[0]
    assert average is not None and average.updates == 3
    x = quarters.split("search").images[:8].float() / 255
    before = average.supernet(x, largest)
    kept = checkpoint.digest_tensors(average.supernet.state_dict())
    run._order()
    assert checkpoint.digest_tensors(average.supernet.state_dict()) != kept
    torch.testing.assert_close(average.supernet(x, largest), before, rtol=1e-4, atol=1e-5)


def test_threads_and_restarts_are_free_to_change_on_the_way(tmp_path, small, quarters, undisturbed):
    config = replace(CONFIG, path_threads=1)
    with pytest.raises(Stopped):
        train(SuperNet(small), quarters, config, tmp_path, progress=stop_at(9))
    other = replace(CONFIG, path_threads=2, restarts=0)
    again = train(SuperNet(small), quarters, other, tmp_path)
    assert digests(again) == digests(undisturbed)


@pytest.mark.slow
def test_threads_change_no_bit(tmp_path, small, quarters):
    """All through: sandwiches that distill in place, orderings, averages, choices."""
    config = replace(CONFIG, steps=8, sandwich=0.8, largest=0.2, path_threads=1)
    alone = train(SuperNet(small), quarters, config, tmp_path / "one")
    several = replace(config, path_threads=3)
    assert digests(train(SuperNet(small), quarters, several, tmp_path / "3")) == digests(alone)


def test_a_teacher_is_learnt_from_and_asked_for(tmp_path, small, quarters):
    config = replace(CONFIG, distill_from="teacher", distill_start=0.0, steps=4)
    with pytest.raises(ConfigError, match=r"Pass train\(\.\.\., teacher=network\)"):
        train(SuperNet(small), quarters, config, tmp_path)
    torch.manual_seed(0)
    teacher = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 4))
    taught = train(SuperNet(small), quarters, config, tmp_path / "taught", teacher=teacher)
    plain = replace(config, distill_start=1.0)
    alone = train(SuperNet(small), quarters, plain, tmp_path / "alone", teacher=teacher)
    assert digests(taught) != digests(alone)
    other = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 4))
    with pytest.raises(ConfigError, match="teacher"):
        train(SuperNet(small), quarters, config, tmp_path / "taught", teacher=other)


def test_a_choice_split_too_small_for_a_choice_step_is_refused(tmp_path, small, quarters):
    one = first_images(quarters.split("choice"), 1)
    data = replace(quarters, splits={**quarters.splits, "choice": one})
    with pytest.raises(ConfigError, match=r"at least 2 images .* has 1\. .*choice_every=0"):
        train(SuperNet(small), data, CONFIG, tmp_path)


def test_a_disk_that_fills_leaves_the_checkpoint_before(
    tmp_path, small, quarters, undisturbed, files_at_most
):
    size = 0

    def fill(done: int, total: int, text: str) -> None:
        nonlocal size
        if done == 5:
            size = (tmp_path / "step-4.safetensors").stat().st_size
            limit.enter_context(files_at_most(size // 2))

    with contextlib.ExitStack() as limit, pytest.raises(StorageError, match="step-8"):
        train(SuperNet(small), quarters, CONFIG, tmp_path, progress=fill)
    assert size and checkpoint.load(tmp_path).step == 4  # type: ignore[union-attr]
    assert digests(train(SuperNet(small), quarters, CONFIG, tmp_path)) == digests(undisturbed)


@pytest.mark.slow
def test_weights_in_channels_last_resume_bit_equal_too(tmp_path, small, quarters):
    config = replace(CONFIG, channels_last=True)
    whole = train(SuperNet(small), quarters, config, tmp_path / "whole")
    with pytest.raises(Stopped):
        train(SuperNet(small), quarters, config, tmp_path / "cut", progress=stop_at(9))
    again = train(SuperNet(small), quarters, config, tmp_path / "cut")
    assert digests(again) == digests(whole)


def test_a_finished_training_is_given_back_without_a_step(tmp_path, small, quarters):
    first = train(SuperNet(small), quarters, CONFIG, tmp_path)
    steps: list[int] = []
    again = train(
        SuperNet(small, seed=0),
        quarters,
        CONFIG,
        tmp_path,
        progress=lambda done, *_: steps.append(done),
    )
    loaded = load(tmp_path)
    assert not steps and digests(again) == digests(loaded) == digests(first)
    assert loaded.supernet.space == small and loaded.history == first.history


def test_the_losses_of_each_role_are_written_apart_and_fall(tmp_path, small, quarters):
    config = TrainConfig(steps=36, batch_size=32, log_steps=6, choice_every=5, sandwich=0.2)
    texts: list[str] = []
    trained = train(
        SuperNet(small), quarters, config, tmp_path, progress=lambda *all_: texts.append(all_[2])
    )
    rows = [json.loads(line) for line in (tmp_path / "losses.jsonl").read_text().splitlines()]
    assert rows == list(trained.history)
    assert [row["step"] for row in rows] == [6, 12, 18, 24, 30, 36]
    assert rows[0].keys() == {"step", "lr", "largest", "random", "choice"}
    assert rows[-1].keys() == {"step", "lr", "largest", "smallest", "random", "choice"}
    assert rows[-1]["random"] < rows[1]["random"] - 0.2
    assert "largest" in texts[-1] and texts[-1].endswith("0 s left")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"lr": 0.5}, r"config\.lr \(0\.003 there, 0\.5 asked for\)"),
        ({"steps": 15}, r"steps \(14 there, 15 asked for\)"),
        ({"seed": 3}, r"config\.seed \(0 there, 3 asked for\)"),
    ],
)
def test_another_configuration_is_refused_with_the_difference(
    tmp_path, small, quarters, changes, message
):
    with pytest.raises(Stopped):
        train(SuperNet(small), quarters, CONFIG, tmp_path, progress=stop_at(5))
    with pytest.raises(ConfigError, match=message):
        train(SuperNet(small), quarters, replace(CONFIG, **changes), tmp_path)


def test_another_space_data_or_start_is_refused_with_the_difference(tmp_path, small, quarters):
    with pytest.raises(Stopped):
        train(SuperNet(small), quarters, CONFIG, tmp_path, progress=stop_at(5))
    wider = replace(small.stages[0], width=(16, 24, 40), depth=(1,))
    with pytest.raises(ConfigError, match=r"space\.stages\.0\.width\.2 \(32 there, 40 asked"):
        train(SuperNet(small.replace(stages=(wider, small.stages[1]))), quarters, CONFIG, tmp_path)
    with pytest.raises(ConfigError, match="supernet_seed"):
        train(SuperNet(small, seed=4), quarters, CONFIG, tmp_path)
    other = replace(quarters, splits={**quarters.splits, "train": quarters.splits["search"]})
    with pytest.raises(ConfigError, match="data"):
        train(SuperNet(small), other, CONFIG, tmp_path)


def test_data_that_does_not_fit_the_space_is_refused(tmp_path, small, quarters):
    with pytest.raises(ConfigError, match=r"num_classes .* has 9 .* 4\. Use space\.replace"):
        train(SuperNet(small.replace(num_classes=9)), quarters, CONFIG, tmp_path)
    with pytest.raises(ConfigError, match="batch_size must be from 1 to the 64 images"):
        train(SuperNet(small), quarters, replace(CONFIG, batch_size=66), tmp_path)


def test_a_loss_that_is_not_a_number_ends_training_with_the_checkpoint_intact(
    tmp_path, small, quarters
):
    supernet = SuperNet(small)

    def poison(done: int, total: int, text: str) -> None:
        if done == 9:
            with torch.no_grad():
                next(supernet.parameters()).fill_(math.nan)

    with pytest.raises(TrainingDiverged, match=r"nan at step 9 of 14.*checkpoint of step 8 is"):
        train(supernet, quarters, CONFIG, tmp_path, progress=poison)
    kept = load(tmp_path)
    assert all(value.isfinite().all() for value in kept.supernet.parameters())


def test_a_learning_rate_that_explodes_is_named(tmp_path, small, quarters):
    config = replace(CONFIG, lr=1000.0, clip_grad=0.0, weight_decay=1000.0)
    with pytest.raises(TrainingDiverged, match=r"lower lr \(it is 1000\)"):
        train(SuperNet(small), quarters, config, tmp_path)


def test_a_damaged_checkpoint_falls_back_to_the_one_before(
    tmp_path, small, quarters, undisturbed, caplog
):
    with pytest.raises(Stopped):
        train(SuperNet(small), quarters, CONFIG, tmp_path, progress=stop_at(10))
    newest = tmp_path / "step-8.safetensors"
    newest.write_bytes(newest.read_bytes()[:-100])
    with caplog.at_level(logging.WARNING):
        again = train(SuperNet(small), quarters, CONFIG, tmp_path)
    assert "step-8" in caplog.text
    assert digests(again) == digests(undisturbed)


def test_damage_to_every_checkpoint_is_said(tmp_path, small, quarters):
    with pytest.raises(Stopped):
        train(SuperNet(small), quarters, CONFIG, tmp_path, progress=stop_at(10))
    for path in tmp_path.glob("*.json"):
        path.write_text(path.read_text()[:50])
    with pytest.raises(CorruptFile):
        load(tmp_path)
    with pytest.raises(CorruptFile):
        train(SuperNet(small), quarters, CONFIG, tmp_path)


def test_checkpoints_of_something_else_are_refused(tmp_path, small, quarters):
    with pytest.raises(ConfigError, match="no trained supernet"):
        load(tmp_path)
    checkpoint.save(tmp_path, 3, {"weight": torch.zeros(2)}, {"what": "a teacher"})
    with pytest.raises(CorruptFile, match="not those of a supernet"):
        load(tmp_path)
    with pytest.raises(CorruptFile, match="not those of a supernet"):
        train(SuperNet(small), quarters, CONFIG, tmp_path)


def test_a_space_without_a_choice_of_kinds_trains(tmp_path, small, quarters):
    plain = replace(small.stages[1], kinds=("mb4d",), by=("downsample",))
    space = small.replace(stages=(small.stages[0], plain))
    trained = train(SuperNet(space), quarters, replace(CONFIG, steps=6), tmp_path)
    assert trained.choice.probabilities() == {}
    assert load(tmp_path).choice.probabilities() == {}


TRAINING = """
import sys
from dataclasses import replace
from pathlib import Path
import torch
from nas.data import load
from nas.space import SearchSpace
from nas.supernet import SuperNet, TrainConfig, train
torch.set_num_threads(1)
data = load("digits", image_size=16)
space = SearchSpace.load("tiny").replace(num_classes=10, image_size=16)
stages = tuple(replace(stage, depth=stage.depth[:1]) for stage in space.stages)
config = TrainConfig(steps=40, batch_size=16, checkpoint_steps=6, choice_every=3, largest=0.15,
                     sandwich=0.3, ema_decay=0.9)
train(SuperNet(space.replace(stages=stages)), data, config, sys.argv[1],
      progress=lambda done, total, text: Path(sys.argv[2]).write_text(str(done)))
"""


def _has_come(path: Path, least: int) -> bool:
    return path.exists() and int(path.read_text() or 0) >= least


@pytest.mark.slow
def test_a_training_killed_at_random_moments_ends_bit_equal(tmp_path):
    def start(folder: Path) -> subprocess.Popen[bytes]:
        arguments = [sys.executable, "-c", TRAINING, str(folder), str(tmp_path / "steps")]
        return subprocess.Popen(arguments, env={**os.environ, "OMP_NUM_THREADS": "1"})

    assert start(tmp_path / "whole").wait() == 0
    moments = random.Random(0)
    for least in (6, 6, 30):  # right before the ordering of channels, in it, in the sandwich
        (tmp_path / "steps").unlink(missing_ok=True)
        process = start(tmp_path / "killed")
        while process.poll() is None and not _has_come(tmp_path / "steps", least):
            time.sleep(0.01)
        time.sleep(moments.uniform(0, 0.4))
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert start(tmp_path / "killed").wait() == 0
    assert digests(load(tmp_path / "killed")) == digests(load(tmp_path / "whole"))

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nas.data import Data, Split, eval_batches
from nas.errors import ConfigError
from nas.space import Architecture
from nas.supernet import (
    EvaluateConfig,
    Evaluator,
    Quality,
    SuperNet,
    TrainConfig,
    fit_statistics,
    score,
    train,
)
from nas.supernet import evaluate as evaluate_module


@pytest.fixture(scope="module")
def supernet(small, quarters, tmp_path_factory):
    config = TrainConfig(steps=40, batch_size=32, checkpoint_steps=1000)
    return train(SuperNet(small), quarters, config, tmp_path_factory.mktemp("run")).supernet


def test_a_score_is_what_the_extracted_network_gets(small, quarters, supernet):
    architecture = small.largest()
    result = score(supernet, architecture, quarters)
    model = supernet.extract(architecture, result.statistics)
    ((images, labels),) = eval_batches(quarters.split("search"), quarters, batch_size=48)
    with torch.no_grad():
        scores = model(images)
    assert result.accuracy == float((scores.argmax(1) == labels).double().mean()) > 0.7
    assert result.loss == pytest.approx(float(F.cross_entropy(scores.double(), labels)), abs=1e-9)


def test_scores_do_not_depend_on_what_was_scored_before_or_beside(small, quarters, supernet):
    rng = np.random.default_rng(0)
    architectures = [small.sample(rng) for _ in range(12)]

    def numbers(architecture: Architecture) -> tuple[float, float]:
        result = score(supernet, architecture, quarters)
        return result.accuracy, result.loss

    forward = [numbers(architecture) for architecture in architectures]
    backward = [numbers(architecture) for architecture in reversed(architectures)][::-1]
    with ThreadPoolExecutor(2) as threads:
        beside = list(threads.map(numbers, architectures))
    assert forward == backward == beside
    assert len(set(forward)) > 6


def test_batches_change_a_score_in_its_last_bits_only(small, quarters, supernet):
    architecture = small.smallest()
    statistics = score(supernet, architecture, quarters).statistics
    small = EvaluateConfig(refit_images=64, batch_size=20)
    loss = score(supernet, architecture, quarters).loss
    ((images, labels),) = eval_batches(quarters.split("search"), quarters, batch_size=48)
    with torch.no_grad():
        parts = [supernet(part, architecture, statistics) for part in images.tensor_split(3)]
    assert float(F.cross_entropy(torch.cat(parts), labels)) == pytest.approx(loss, abs=1e-5)
    assert score(supernet, architecture, quarters, small).loss == pytest.approx(loss, rel=0.2)


def test_refitting_uses_equal_batches_of_training_images(small, quarters, supernet):
    def batches_of(**changes: int) -> int:
        statistics = fit_statistics(supernet, small.smallest(), quarters, EvaluateConfig(**changes))
        return int(statistics[0]["convs.0.bn.num_batches_tracked"])

    assert batches_of() == 1  # all 64 images
    assert batches_of(refit_images=64, batch_size=32) == 2
    assert batches_of(refit_images=50, batch_size=20) == 3  # of 16
    split = quarters.split("search")
    changed = replace(quarters, splits={**quarters.splits, "search": replace(split, name="none")})
    again = fit_statistics(supernet, small.smallest(), changed)
    before = fit_statistics(supernet, small.smallest(), quarters)
    name = "convs.1.bn.running_var"
    assert torch.equal(again[0][name], before[0][name]) and before[0][name].min() > 0


def quality(supernet: SuperNet, architecture: Architecture, data: Data) -> Quality:
    result = score(supernet, architecture, data)
    return Quality(accuracy=result.accuracy, loss=result.loss)


def test_an_evaluator_gives_what_score_gives_and_normalises_each_image_once(
    small, quarters, supernet, monkeypatch
):
    made = []

    def counted(split: Split, data: Data, **changes: Any) -> Iterator[Any]:
        made.append(split.name)
        return eval_batches(split, data, **changes)

    rng = np.random.default_rng(1)
    architectures = [small.sample(rng) for _ in range(3)]
    wanted = [quality(supernet, architecture, quarters) for architecture in architectures]
    monkeypatch.setattr(evaluate_module, "eval_batches", counted)
    evaluator = Evaluator(supernet, quarters)
    assert [evaluator.quality(architecture) for architecture in architectures] == wanted
    assert sorted(made) == ["search", "train"]
    monkeypatch.setattr(evaluate_module, "KEPT_BYTES", 1000)  # too many images to keep
    assert Evaluator(supernet, quarters).quality(architectures[0]) == wanted[0]


class NeverRuns(torch.nn.Module):
    """In a supernet's place: whatever is asked of it has to be known already."""

    def forward(self, *args: object, **kwargs: object) -> None:
        raise AssertionError("a network that is known was run again")


def test_what_was_scored_is_not_run_again_by_another_process(
    small, quarters, supernet, tmp_path, monkeypatch
):
    architecture = small.smallest()
    wanted = Evaluator(supernet, quarters, folder=tmp_path).quality(architecture)
    again = Evaluator(supernet, quarters, folder=tmp_path)
    monkeypatch.setattr(again, "score", NeverRuns())
    assert again.quality(architecture) == wanted
    with pytest.raises(AssertionError, match="run again"):
        again.quality(small.largest())


def test_other_weights_images_or_settings_have_scores_of_their_own(
    small, quarters, supernet, tmp_path
):
    architecture = small.smallest()
    other_data = replace(quarters, mean=(0.4, 0.5, 0.5))
    versions = [
        (supernet, quarters, EvaluateConfig()),
        (SuperNet(small), quarters, EvaluateConfig()),
        (supernet, other_data, EvaluateConfig()),
        (supernet, quarters, EvaluateConfig(refit_images=32)),
    ]
    found = [Evaluator(*version, folder=tmp_path).quality(architecture) for version in versions]
    assert len(set(found)) == len(list(tmp_path.rglob("*.json"))) == 4


@pytest.mark.parametrize(
    "damage",
    [
        lambda text: text[: len(text) // 2],
        lambda text: "",
        lambda text: text.replace('"accuracy": ', '"accuracy": "0", "was": '),
        lambda text: text.replace('"supernet": "', '"supernet": "f'),
        lambda text: "[1]",
    ],
    ids=["cut off", "empty", "no number", "of other weights", "something else"],
)
def test_a_damaged_score_is_passed_over_with_a_warning_and_written_anew(
    small, quarters, supernet, tmp_path, caplog, damage
):
    architecture = small.smallest()
    wanted = Evaluator(supernet, quarters, folder=tmp_path).quality(architecture)
    (path,) = tmp_path.rglob("*.json")
    whole = path.read_text()
    path.write_text(damage(whole))
    assert damage(whole) != whole
    assert Evaluator(supernet, quarters, folder=tmp_path).quality(architecture) == wanted
    assert "scored again" in caplog.text and path.read_text() == whole


def test_a_full_disk_costs_the_cache_not_the_score(
    small, quarters, supernet, tmp_path, caplog, files_at_most
):
    wanted = quality(supernet, small.smallest(), quarters)
    with files_at_most(10):
        found = Evaluator(supernet, quarters, folder=tmp_path).quality(small.smallest())
    assert found == wanted and "is not kept" in caplog.text
    assert not list(tmp_path.rglob("*.json"))


def test_impossible_settings_and_data_are_refused(small, quarters):
    with pytest.raises(ConfigError, match="refit_images must be from 2"):
        EvaluateConfig(refit_images=1)
    with pytest.raises(ConfigError, match=r"image_size .* Use space\.replace\(image_size=16\)"):
        score(SuperNet(small.replace(image_size=32)), small.smallest(), quarters)

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from nas.data import eval_batches
from nas.errors import ConfigError
from nas.space import Architecture
from nas.supernet import EvaluateConfig, SuperNet, TrainConfig, fit_statistics, score, train


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


def test_impossible_settings_and_data_are_refused(small, quarters):
    with pytest.raises(ConfigError, match="refit_images must be from 2"):
        EvaluateConfig(refit_images=1)
    with pytest.raises(ConfigError, match=r"image_size .* Use space\.replace\(image_size=16\)"):
        score(SuperNet(small.replace(image_size=32)), small.smallest(), quarters)

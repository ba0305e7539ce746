"""The statistics of a ranking, against SciPy, against definitions, and where they are not there."""

from itertools import combinations
from typing import Any

import numpy as np
import pytest
from scipy import stats

from nas.errors import ConfigError
from nas.supernet.agreement import (
    Agreement,
    agreement,
    ceiling,
    kendall,
    partial_kendall,
    regret,
    spearman,
)


def columns(seed: int, ties: int = 6) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    x, y, z = rng.normal(size=(3, 20))
    return np.round(ties * x) / ties, np.round(ties * (x + y)) / ties, x + z


def of(predicted: list[float], accuracies: list[float], **changes: object) -> Agreement:
    given: dict[str, Any] = {"macs": list(range(len(accuracies))), "bands": [0] * len(accuracies)}
    return agreement("it", predicted, accuracies, **{**given, "resamples": 200, **changes})


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("ties", [1, 6, 1000])
def test_correlations_are_scipys(seed: int, ties: int) -> None:
    x, y, z = columns(seed, ties)
    assert kendall(x, y) == pytest.approx(stats.kendalltau(x, y).statistic)
    assert spearman(x, y) == pytest.approx(stats.spearmanr(x, y).statistic)
    taus = [stats.kendalltau(*pair).statistic for pair in ((x, y), (x, z), (y, z))]
    wanted = (taus[0] - taus[1] * taus[2]) / np.sqrt((1 - taus[1] ** 2) * (1 - taus[2] ** 2))
    assert partial_kendall(x, y, z) == pytest.approx(wanted)


def test_pairs_in_a_band_are_counted_one_by_one() -> None:
    predicted, accuracies = [3.0, 1.0, 2.0, 2.0, 9.0, 8.0], [0.3, 0.1, 0.3, 0.2, 0.8, 0.9]
    bands = [0, 0, 0, 0, 1, 1]
    right, pairs = 0.0, 0
    for a, b in combinations(range(6), 2):
        if bands[a] != bands[b] or accuracies[a] == accuracies[b]:
            continue
        pairs += 1
        order = (predicted[a] - predicted[b]) * (accuracies[a] - accuracies[b])
        right += 1 if order > 0 else 0.5 if order == 0 else 0
    assert of(predicted, accuracies, bands=bands).in_band == pytest.approx(right / pairs)
    assert of(predicted, accuracies, bands=list(range(6))).in_band is None


def test_an_interval_holds_its_value_and_narrows_with_more_networks() -> None:
    widths = []
    for networks in (12, 120):
        rng = np.random.default_rng(3)
        truth = rng.normal(size=networks)
        found = of(list(truth + rng.normal(size=networks)), list(truth))
        assert found.tau is not None and found.spearman is not None
        assert found.tau.low < found.tau.value < found.tau.high <= 1
        assert found.tau.value < found.spearman.value
        widths.append(found.tau.high - found.tau.low)
    assert widths[1] < widths[0] / 2


def test_the_same_numbers_give_the_same_interval() -> None:
    x, y, _ = columns(0)
    assert of(list(x), list(y)) == of(list(x), list(y))


def test_regret_is_what_choosing_by_the_prediction_costs() -> None:
    predicted, accuracies = np.array([5.0, 4, 3, 2, 1]), np.array([0.7, 0.6, 0.9, 0.95, 0.1])
    assert regret(predicted, accuracies, 1) == pytest.approx(0.25)
    assert regret(predicted, accuracies, 3) == pytest.approx(0.05)
    assert regret(predicted, accuracies, 5) == 0
    assert regret(np.zeros(5), accuracies, 1) == pytest.approx(0.85)  # ties at their worst


def test_macs_say_nothing_beyond_macs_and_a_level_predictor_nothing_at_all() -> None:
    accuracies = [0.2, 0.4, 0.3, 0.9, 0.5]
    macs = [1.0, 2, 3, 4, 5]
    assert of(macs, accuracies, macs=macs).tau_given_macs is None
    level = of([1.0] * 5, accuracies, macs=macs)
    assert level.tau is None and level.spearman is None and level.tau_given_macs is None
    assert level.in_band == 0.5
    assert of(macs, [0.5] * 5).tau is None


def test_the_ceiling_is_what_a_perfect_predictor_shows() -> None:
    """Simulated: accuracies of known spread and noise, the truth itself as the predictor."""
    rng = np.random.default_rng(0)
    shown, promised, noises = [], [], []
    for _ in range(30):
        truth = rng.normal(0.8, 0.02, 40)
        first, second = truth + rng.normal(0, 0.01, (2, 40))
        trainings = [(a, b) if n % 2 else (a,) for n, (a, b) in enumerate(zip(first, second))]  # noqa: B905
        found = ceiling(trainings)
        assert found is not None and found.tau is not None and found.networks == 20
        promised.append(found.tau)
        noises.append(found.noise)
        shown.append(kendall(truth, np.array([np.mean(each) for each in trainings])) or 0.0)
    assert np.mean(noises) == pytest.approx(0.01, rel=0.1)
    assert np.mean(promised) == pytest.approx(np.mean(shown), abs=0.02)


def test_without_a_second_training_the_ceiling_is_not_known() -> None:
    assert ceiling([(0.5,), (0.6,)]) is None


def test_a_spread_that_is_all_noise_has_no_ceiling() -> None:
    found = ceiling([(0.5, 0.6), (0.6, 0.5), (0.55, 0.65), (0.65, 0.55)])
    assert found is not None and (found.tau is None or found.tau < 0.2)


@pytest.mark.parametrize(
    ("predicted", "message"),
    [([1.0, 2.0], "at least 3 networks"), ([1.0, float("nan"), 2.0], "must be numbers")],
)
def test_what_cannot_be_ranked_is_refused(predicted: list[float], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        of(predicted, [0.1, 0.2, 0.3])

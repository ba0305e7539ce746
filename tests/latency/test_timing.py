from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nas.block import parse
from nas.latency.measure import measure_networks
from nas.latency.profile_config import ProfileConfig
from nas.latency.rounds import measure
from nas.latency.timing import SAMPLES_A_VISIT, Series, grade, summarise
from nas.target import Target


@pytest.fixture
def one(tmp_path: Path, export: Any) -> dict[str, Path]:
    return dict(export([parse("ffn_r8_c64_h128")], tmp_path, batch=1))


def test_a_timing_says_its_quantiles_its_interval_and_what_a_user_would_see(
    make_bench: Any, one: dict[str, Path], target: Target, config: ProfileConfig
) -> None:
    (quiet,) = measure_networks(one, target, config, bench=make_bench()).values()
    assert quiet.grade == "A"
    assert quiet.p10 <= quiet.median_ms <= quiet.ci_high_ms <= quiet.p90
    (busy,) = measure_networks(one, target, config, bench=make_bench(busy=0.75)).values()
    assert busy.grade == "B"
    assert busy.p95 > 1.3 * busy.median_ms
    assert busy.clean < busy.taken


def test_an_interval_counts_that_processes_differ_not_only_samples() -> None:
    def upper(*places: float) -> float:
        visits = np.repeat(np.tile(places, 5), SAMPLES_A_VISIT)
        values = visits * (1 + 0.001 * np.sin(np.arange(len(visits))))
        clean = np.ones(len(values), dtype=bool)
        place = np.repeat(np.tile(np.arange(len(places)), 5), SAMPLES_A_VISIT)
        series = Series(all_ms=values, is_clean=clean, wanted=60, reference_ms=0.1, place=place)
        return summarise(series).ci_high_ms

    assert upper(1.0, 1.0, 1.0) == pytest.approx(1.0, abs=0.001)
    apart = upper(0.95, 1.0, 1.05)  # standard error 0.05 / sqrt(3)
    assert apart == pytest.approx(1 + 1.96 * 0.0289, abs=0.003)
    assert upper(0.95, 0.95, 1.0, 1.0, 1.05, 1.05) < apart, "six processes know it better"


def test_times_of_a_machine_that_is_faster_now_are_told_at_the_speed_that_is_known(
    make_bench: Any, one: dict[str, Path], target: Target, config: ProfileConfig
) -> None:
    (timing,) = measure_networks(one, target, config, bench=make_bench()).values()
    assert timing.reference_ms is not None
    assert timing.reference_ms == pytest.approx(0.2, rel=0.05)
    slower = timing.at_speed(1.25 * timing.reference_ms)
    for name in ("median_ms", "p10", "p90", "p95", "ci_high_ms", "reference_ms"):
        assert getattr(slower, name) == pytest.approx(1.25 * getattr(timing, name))
    assert (slower.grade, slower.spread, slower.clean) == (
        timing.grade, timing.spread, timing.clean
    )  # fmt: skip
    assert timing.at_speed(0.8 * timing.reference_ms) == timing, "nothing says it gets faster"
    assert timing.at_speed(None) == timing
    by_hand = replace(timing, reference_ms=None)
    assert by_hand.at_speed(1.0) == by_hand


@pytest.mark.parametrize(("jitter", "letter"), [(0.01, "A"), (0.11, "B"), (0.4, "C")])
def test_the_grade_follows_the_spread(
    make_bench: Any, one: dict[str, Path], config: ProfileConfig, jitter: float, letter: str
) -> None:
    careful = ProfileConfig(samples=200, spread_s=1.0)
    (series,) = measure(make_bench(jitter=jitter), one, careful).values()
    assert grade(series.clean_ms, series) == letter == summarise(series).grade

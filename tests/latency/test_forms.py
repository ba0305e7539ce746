from typing import Any

import numpy as np
import pytest

from nas.errors import NasError
from nas.latency.calibration import Calibration, cold_share
from nas.latency.forms import Networks, fit


def fitted(
    sums: Any,
    measured: Any,
    megabytes: Any = 1.0,
    kinds: dict[str, Any] | None = None,
    cold: Any = None,
) -> Calibration:
    by_kind = kinds or {"mlp": np.asarray(sums, dtype=float)}
    count = len(next(iter(by_kind.values())))
    size = np.broadcast_to(megabytes, count)
    sums_ms = np.stack(list(by_kind.values()), axis=1)
    networks = Networks(
        tuple(by_kind), sums_ms, cold, size, size, np.asarray(measured, dtype=float)
    )
    return fit(networks, [str(index) for index in range(count)])


def test_a_fit_is_the_line_where_there_is_one_and_nothing_where_sums_are_right() -> None:
    sums = np.random.default_rng(0).uniform(1, 10, 16)
    line = fitted(sums, 0.3 + 1.2 * sums)
    assert line.form == "affine"
    assert line.coefficients == pytest.approx({"constant": 0.3, "scale": 1.2}, rel=1e-3)
    assert line.held_out["mean"] < 1e-4 < 0.2 < line.held_out["mean_of_sum"]
    same = fitted(sums, sums)
    assert same.coefficients == pytest.approx({"constant": 0.0, "scale": 1.0}, abs=1e-3)


def test_a_fit_finds_the_size_from_which_weights_cost_time_and_what_they_cost() -> None:
    rng = np.random.default_rng(1)
    sums = np.geomspace(0.1, 3.0, 40)
    megabytes = 3.0 * sums * rng.uniform(0.7, 1.3, 40)
    measured = sums + 0.1 * megabytes * cold_share(megabytes, 1.3)
    made = fitted(sums, measured, megabytes)
    assert made.form == "parts"
    assert made.coefficients["knee_mb"] == pytest.approx(1.3, rel=0.4)
    assert made.coefficients["ms_per_mb"] == pytest.approx(0.1, rel=0.15)
    assert made.held_out["mean"] < 0.02 < 0.1 < made.held_out["mean_of_sum"]
    found = made.total(sums, made.coefficients["ms_per_mb"] * megabytes, megabytes)
    assert found == pytest.approx(measured, rel=0.1)


def test_a_fit_finds_the_size_from_which_networks_run_with_cold_caches() -> None:
    rng = np.random.default_rng(1)
    sums = np.geomspace(0.1, 3.0, 40)
    megabytes = 3.0 * sums * rng.uniform(0.7, 1.3, 40)
    cold = 0.4 * sums * rng.uniform(0.5, 1.5, 40)
    made = fitted(sums, sums + cold * cold_share(megabytes, 1.3), megabytes, cold=cold)
    assert made.coefficients["knee_mb"] == pytest.approx(1.3, rel=0.3)
    assert made.coefficients["cold"] == pytest.approx(1.0, rel=0.1)
    assert made.held_out["mean"] < 0.02 < 0.1 < made.held_out["mean_of_sum"]


def test_a_fit_finds_a_second_size_from_which_the_shared_cache_is_too_small() -> None:
    rng = np.random.default_rng(1)
    sums = np.geomspace(0.1, 3.0, 96)
    megabytes = 3.0 * sums * rng.uniform(0.7, 1.3, 96)
    cold = 0.4 * sums * rng.uniform(0.5, 1.5, 96)
    near = sums + cold * cold_share(megabytes, 0.6)
    made = fitted(sums, near + 0.3 * megabytes * cold_share(megabytes, 6.0), megabytes, cold=cold)
    assert made.coefficients["knee_mb"] == pytest.approx(0.6, rel=0.3)
    assert made.coefficients["far_knee_mb"] == pytest.approx(6.0, rel=0.3)
    assert made.coefficients["far_ms_per_mb"] == pytest.approx(0.3, rel=0.2)
    assert made.held_out["mean"] < 0.02
    assert "far_knee_mb" not in fitted(sums, near, megabytes, cold=cold).coefficients


def test_a_fit_finds_the_kind_of_part_whose_entries_are_too_low() -> None:
    rng = np.random.default_rng(2)
    kinds = {kind: rng.uniform(0.1, 1.0, 48) for kind in ("dw", "mlp", "pool")}
    measured = kinds["dw"] + 1.5 * kinds["mlp"] + kinds["pool"]
    made = fitted(None, measured * rng.normal(1, 0.003, 48), kinds=kinds)
    assert made.form == "parts"
    assert made.scale("mlp") == pytest.approx(1.5, rel=0.03)
    assert made.scale("dw") == pytest.approx(1.0, rel=0.05)
    assert made.held_out["mean"] < 0.01
    assert made.scale("never_seen") == made.coefficients["scale"]


def test_many_networks_say_which_entries_are_off() -> None:
    rng = np.random.default_rng(4)
    entries = {f"mlp_r8_c{size}_h{size}": rng.uniform(0.0, 0.3, 96) for size in range(8, 88, 8)}
    truth = {name: rng.normal(1, 0.08) for name in entries}
    measured = sum(truth[name] * sums for name, sums in entries.items())
    made = fitted(None, measured * rng.normal(1, 0.005, 96), kinds=entries)
    assert made.form == "parts"
    assert made.held_out["mean"] < 0.5 * made.held_out["mean_of_sum"]
    for name, factor in truth.items():
        assert made.scale(name) == pytest.approx(factor, rel=0.03)
    assert made.scale("mlp_r8_c9_h9") == pytest.approx(1.0, rel=0.05), "a kind's own is kept"


def test_noise_does_not_buy_a_richer_form_a_better_score_than_it_has() -> None:
    rng = np.random.default_rng(3)
    kinds = {kind: rng.uniform(0.1, 1.0, 48) for kind in ("dw", "mlp", "pool", "ffn")}
    noise = rng.normal(1, 0.05, 48)
    made = fitted(None, sum(kinds.values()) * noise, rng.uniform(0.5, 5, 48), kinds)
    assert 0.03 < made.held_out["mean"] < 0.05
    assert made.held_out["mean"] < 1.15 * made.held_out["mean_of_sum"]


def test_a_fit_never_turns_the_order_round_nor_goes_below_zero() -> None:
    falling = fitted([1.0, 2.0, 3.0, 4.0, 5.0], [5.0, 4.0, 3.0, 2.0, 1.0])
    assert falling.coefficients["scale"] > 0
    steep = fitted([1.0, 2.0, 3.0, 4.0, 5.0], [0.01, 5.0, 10.0, 15.0, 20.0])
    assert steep.coefficients["constant"] + steep.coefficients["scale"] > 0


def test_few_networks_give_a_scale_and_none_an_error() -> None:
    assert fitted([2.0], [3.0]).coefficients["constant"] == 0.0
    with pytest.raises(NasError, match="at least one"):
        fitted([], [])

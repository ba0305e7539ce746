from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nas.errors import NasError
from nas.latency import ProfileConfig, compare, profile
from nas.latency.calibrate import Networks, draw, fit
from nas.latency.calibration import Calibration, cold_share
from nas.latency.check import errors_of
from nas.latency.timing import Timing
from nas.space import SearchSpace
from nas.target import Target


@pytest.fixture
def tiny() -> SearchSpace:
    return SearchSpace.load("tiny").replace(num_classes=10)


def timing(ms: float) -> Timing:
    return Timing(
        median_ms=ms, p10=ms, p90=ms, p95=ms, ci_high_ms=ms, clean=30, taken=30, grade="A",
        spread=0.0, repeat=0.0,
    )  # fmt: skip


def test_errors_say_mean_median_worst_shares_and_rank() -> None:
    errors = errors_of(np.array([1.0, 2.08, 3.6, 3.9]), np.array([1.0, 2.0, 3.0, 4.0]))
    assert errors.mean == pytest.approx((0 + 0.04 + 0.2 + 0.025) / 4)
    assert errors.median == pytest.approx(0.0325)
    assert errors.worst == pytest.approx(0.2)
    assert (errors.within_5, errors.within_10) == (0.75, 0.75)
    assert errors.spearman == 1.0


def test_on_a_machine_where_costs_add_up_the_table_beats_every_other_way(
    make_bench: Any, export: Any, on: Any, true_ms: Any, target: Target, tmp_path: Path,
    tiny: SearchSpace, config: ProfileConfig,
) -> None:  # fmt: skip
    table = profile(
        tiny, target, tmp_path / "t.json", config, benches=on(make_bench()), export=export
    )
    drawn = draw(tiny, 12, seed=1)
    networks = {item.id: tiny.blocks(item) for item in drawn}
    timings = {
        name: timing(true_ms([part for block in blocks for part in block.parts()]))
        for name, blocks in networks.items()
    }
    found = compare(table, networks, timings, space=tiny)
    assert [row.measured_ms for row in found.rows] == sorted(row.measured_ms for row in found.rows)
    ours = found.errors["table_ms"].mean
    assert ours < 0.02
    assert all(ours < errors.mean for name, errors in found.errors.items() if name != "table_ms")
    assert found.errors["isolated_ms"].mean > 0.2


def test_a_network_of_another_space_is_priced_by_the_calibration_of_that(
    make_bench: Any, export: Any, on: Any, target: Target, tmp_path: Path,
    tiny: SearchSpace, config: ProfileConfig,
) -> None:  # fmt: skip
    table = profile(
        tiny, target, tmp_path / "t.json", config, benches=on(make_bench()), export=export
    )
    fitted = {tiny.largest().id: 1.0}
    double = Calibration(
        form="affine", coefficients={"constant": 0.0, "scale": 2.0}, fitted_on=fitted, held_out={}
    )
    networks = {item.id: tiny.blocks(item) for item in draw(tiny, 3, seed=1)}
    timings = {name: timing(1.0 + place) for place, name in enumerate(networks)}
    first, *others = networks
    found = compare(table, networks, timings, space=tiny, fits={first: double})
    prices = {row.id: row.table_ms for row in found.rows}
    assert prices[first] == pytest.approx(2 * table.estimate(networks[first]))
    assert all(prices[name] == table.estimate(networks[name], tiny) for name in others)


def test_networks_are_drawn_once_each_over_all_levels_and_never_those_to_avoid(
    tiny: SearchSpace,
) -> None:
    fitted = [item.id for item in draw(tiny, 10, seed=0)]
    drawn = draw(tiny, 10, seed=0, avoid=fitted)
    assert len({*fitted, *(item.id for item in drawn)}) == 20
    macs = sorted(sum(block.macs for block in tiny.blocks(item)) for item in drawn)
    ends = [
        sum(block.macs for block in tiny.blocks(item)) for item in (tiny.smallest(), tiny.largest())
    ]
    assert macs[0] < ends[0] * (ends[1] / ends[0]) ** 0.25
    assert macs[-1] > ends[0] * (ends[1] / ends[0]) ** 0.75
    assert [item.id for item in draw(tiny, 10, seed=0)] == fitted


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


@pytest.mark.slow
def test_a_real_table_of_real_networks_is_made_and_checked(tmp_path: Path) -> None:
    from nas.latency import LatencyTable, check

    space = SearchSpace.load("tiny").replace(num_classes=10)
    target = Target.parse("onnxruntime,fp32,b1,t1")
    config = ProfileConfig(samples=4, spread_s=0.2, time_limit_s=40.0, calibrate_on=6)
    table = profile(space, target, tmp_path / "t.json", config)
    assert LatencyTable.load(tmp_path / "t.json").missing(space.every_block()) == []
    found = check(table, space, networks=4, config=config)
    assert len(found.rows) == 4
    assert not {row.id for row in found.rows} & set(table.calibrations["tiny@32"].fitted_on)
    assert found.errors["table_ms"].mean < 0.5  # a busy machine is allowed to be far off

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nas.latency import ProfileConfig, compare, profile
from nas.latency.calibrate import draw
from nas.latency.calibration import Calibration
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

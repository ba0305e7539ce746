from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from nas.block import parse
from nas.latency.guard import GUARD
from nas.latency.judge import Known
from nas.latency.profile_config import ProfileConfig
from nas.latency.rounds import MAX_MORE, cold_name, measure, prime_runs
from nas.latency.timing import Series, grade

PARTS = ["dw_r4_c16", "dw_r32_c64", "ffn_r8_c64_h128", "ffn_r14_c256_h1024", "mlp_r28_c96_h384"]


@pytest.fixture
def one(tmp_path: Path, export: Any) -> dict[str, Path]:
    return dict(export([parse("ffn_r8_c64_h128")], tmp_path, batch=1))


@pytest.fixture
def paths(tmp_path: Path, export: Any) -> dict[str, Path]:
    return dict(export([parse(name) for name in PARTS], tmp_path, batch=1))


def worst_error(bench: Any, found: dict[str, Series]) -> float:
    true_ms: dict[str, float] = bench.true_ms
    return max(abs(float(np.median(s.clean_ms)) / true_ms[n] - 1) for n, s in found.items())


def bench_of(make_bench: Any, paths: dict[str, Path]) -> Any:
    """Return a bench that only knows the true times of these networks."""
    bench = make_bench()
    bench.unload()
    for name, path in paths.items():
        bench.load(name, path)
    return bench


@pytest.mark.parametrize(("busy", "slow"), [(0.0, 0.0), (0.5, 0.0), (0.0, 0.4), (0.4, 0.3)])
def test_known_latencies_come_back_within_two_percent_whatever_others_do(
    make_bench: Any, paths: dict[str, Path], config: ProfileConfig, busy: float, slow: float
) -> None:
    bench = make_bench(busy=busy, slow=slow)
    assert worst_error(bench, measure(bench, paths, config)) < 0.02


def test_a_plain_median_would_have_been_wrong_under_the_same_noise(
    make_bench: Any, paths: dict[str, Path], config: ProfileConfig
) -> None:
    bench = make_bench(busy=0.6, slow=0.3)
    found = measure(bench, paths, config)
    errors = [np.median(s.all_ms) / bench.true_ms[name] - 1 for name, s in found.items()]
    assert max(errors) > 0.2


def test_each_network_gets_the_clean_samples_asked_for_spread_over_time(
    make_bench: Any, paths: dict[str, Path]
) -> None:
    bench = make_bench(busy=0.3)
    config = ProfileConfig(samples=20, spread_s=2.0, time_limit_s=60.0)
    began = bench.seconds()
    found = measure(bench, paths, config)
    assert all(series.is_clean.sum() >= 20 for series in found.values())
    assert bench.seconds() - began >= 2.0


def test_samples_last_a_millisecond_and_follow_untimed_runs(
    make_bench: Any, paths: dict[str, Path], config: ProfileConfig
) -> None:
    bench = make_bench()
    measure(bench, paths, config)
    for visit in bench.rounds[-1]:
        assert visit.loops * bench.true_ms[visit.name] >= 0.95 * config.sample_ms
        assert visit.prime * bench.true_ms[visit.name] >= 3.5


def test_networks_take_turns_in_an_order_that_changes(
    make_bench: Any, paths: dict[str, Path], config: ProfileConfig
) -> None:
    bench = make_bench()
    measure(bench, paths, config)
    orders = [[visit.name for visit in visits] for visits in bench.rounds if len(visits) == 5]
    assert len({tuple(order) for order in orders}) > 3


def test_the_same_seed_gives_the_same_order_and_numbers(
    make_bench: Any, paths: dict[str, Path], config: ProfileConfig
) -> None:
    first, second = make_bench(busy=0.3), make_bench(busy=0.3)
    one, two = measure(first, paths, config), measure(second, paths, config)
    assert first.rounds == second.rounds
    assert all((one[name].all_ms == two[name].all_ms).all() for name in paths)


def test_networks_that_are_not_sure_enough_get_more_samples_and_the_others_none(
    make_bench: Any, paths: dict[str, Path]
) -> None:
    config = ProfileConfig(samples=12, spread_s=0.0, time_limit_s=60.0)
    first, second, *others = paths
    asked: list[int] = []

    def unsure(series: Mapping[str, Series]) -> list[str]:
        asked.append(min(int(item.is_clean.sum()) for item in series.values()))
        return [first, *([second] if series[second].is_clean.sum() < 30 else [])]

    found = measure(make_bench(), paths, config, unsure=unsure)
    clean = {name: int(series.is_clean.sum()) for name, series in found.items()}
    assert min(asked) >= 12  # not before all have what was asked for
    assert clean[first] >= MAX_MORE * 12 > 36 > clean[second] >= 30
    assert all(12 <= clean[name] < 20 for name in others)


def test_threads_that_share_the_work_do_not_look_like_disturbances(
    make_bench: Any, paths: dict[str, Path], config: ProfileConfig
) -> None:
    bench = make_bench(cpu_per_wall=1.6, busy=0.3)
    found = measure(bench, paths, config, threads=2)
    assert worst_error(bench, found) < 0.02
    assert all(series.is_clean.sum() >= config.samples for series in found.values())


def test_a_machine_known_to_be_faster_is_waited_for(
    make_bench: Any, paths: dict[str, Path], config: ProfileConfig
) -> None:
    bench = make_bench(slow=0.97)
    by_session = measure(make_bench(slow=0.97, seed=1), paths, config)
    assert worst_error(bench_of(make_bench, paths), by_session) > 0.3
    known = measure(bench, paths, config, known=Known(reference_ms=0.2))
    assert worst_error(bench, known) < 0.03
    assert not any(series.is_slow for series in known.values())


LARGE = "mlp_r2_c256_h1024"  # 2.1 MB of weights
WIDE = "mlp_r2_c512_h2048"


@pytest.fixture
def guarded(paths: dict[str, Path], tmp_path: Path, export: Any) -> dict[str, Path]:
    files = export([parse(name) for name in (LARGE, WIDE)], tmp_path, batch=1)
    return {**paths, LARGE: files[LARGE], GUARD: files[WIDE]}


def test_large_networks_are_timed_while_nobody_else_fills_the_shared_cache(
    make_bench: Any, guarded: dict[str, Path], config: ProfileConfig
) -> None:
    config = replace(config, spread_s=8.0)
    fooled = make_bench(shared=0.7)
    unguarded = {name: path for name, path in guarded.items() if name != GUARD}
    alone = measure(fooled, unguarded, config)
    assert np.median(alone[LARGE].clean_ms) / fooled.true_ms[LARGE] > 1.5
    bench = make_bench(shared=0.7)
    found = measure(bench, guarded, config)
    assert worst_error(bench, found) < 0.02
    assert all(series.is_clean.sum() >= config.samples for series in found.values())
    assert found[LARGE].guard_ms == pytest.approx(bench.true_ms[GUARD], rel=0.02)


def test_a_shared_cache_that_others_fill_all_the_time_is_said_and_gives_grade_c(
    make_bench: Any, guarded: dict[str, Path], caplog: pytest.LogCaptureFixture
) -> None:
    bench = make_bench(shared=1.0)
    config = ProfileConfig(samples=12, spread_s=1.0, time_limit_s=5.0)
    known = 0.001 + bench_of(make_bench, guarded).true_ms[GUARD] / 0.2
    best = Known(guard_by_reference=known)
    began = bench.seconds()
    told: set[str] = set()
    found = measure(bench, guarded, config, known=best, tick=lambda share, why: told.add(why))
    assert told == {"waiting for others to leave the shared cache"}
    assert bench.seconds() - began < 20
    assert (
        "the cache that cores share is in use by others: a layer of many weights takes 8"
        in caplog.text
    )
    assert grade(found[LARGE].clean_ms, found[LARGE]) == "C"


def test_a_network_with_next_to_no_clean_samples_gets_the_time_limit_twice(
    make_bench: Any, paths: dict[str, Path]
) -> None:
    class Unlucky(make_bench):  # type: ignore[misc]
        def _visit(self, visit: Any) -> Any:
            times = super()._visit(visit)
            if visit.name == PARTS[0] and self.seconds() < 1006.0:
                times[:, 0] *= 3
            return times

    bench = Unlucky()
    config = ProfileConfig(samples=2000, spread_s=1.0, time_limit_s=4.0)
    found = measure(bench, paths, config)
    assert found[PARTS[0]].is_clean.sum() >= 3
    late = [visit.name for visit in bench.rounds[-1]]
    assert set(late) == {PARTS[0]}


def test_cold_samples_stand_beside_the_warm_ones(
    make_bench: Any, paths: dict[str, Path], config: ProfileConfig
) -> None:
    bench = make_bench(busy=0.3)
    found = measure(bench, paths, config, cold=list(paths))
    assert set(found) == {*paths, *map(cold_name, paths)}
    for name in paths:
        extra_ms = found[cold_name(name)].median_ms - found[name].median_ms
        assert extra_ms == pytest.approx(bench.extra_ms[name], abs=0.02 * bench.true_ms[name])
    cold = [visit for visit in bench.rounds[-1] if visit.cold]
    assert all(visit.loops <= 4 for visit in cold)


def test_a_core_shared_all_the_time_is_known_by_the_reference_of_before(
    make_bench: Any, one: dict[str, Path]
) -> None:
    config = ProfileConfig(samples=12, spread_s=0.5, time_limit_s=3.0)
    (slower,) = measure(make_bench(), one, config, known=Known(reference_ms=0.2 / 1.25)).values()
    (shared,) = measure(make_bench(), one, config, known=Known(reference_ms=0.2 / 1.4)).values()
    assert (slower.is_slow, shared.is_slow) == (False, True)


def test_progress_says_why_it_stands_still(
    make_bench: Any, paths: dict[str, Path], config: ProfileConfig
) -> None:
    def told(**machine: float) -> list[str]:
        reasons: list[str] = []
        known = Known(reference_ms=0.2)
        bench = make_bench(**machine)
        measure(bench, paths, config, known=known, tick=lambda share, why: reasons.append(why))
        return reasons

    assert set(told()) == {""}
    assert "waiting for others to leave the processor" in told(slow=0.97)


def test_progress_grows_to_the_whole(
    make_bench: Any, paths: dict[str, Path], config: ProfileConfig
) -> None:
    shares: list[float] = []
    measure(make_bench(busy=0.3), paths, config, tick=lambda share, why: shares.append(share))
    assert shares == sorted(shares)
    assert shares[-1] == 1.0


def test_a_network_shorter_than_first_thought_still_gets_long_samples(
    make_bench: Any, tmp_path: Path, config: ProfileConfig
) -> None:
    class ColdStart(make_bench):  # type: ignore[misc]
        def load(self, name: str, path: Path) -> float:
            return float(super().load(name, path) * 50)

    bench = ColdStart()
    node = helper.make_node("Relu", ["x"], ["y"], name="dw_r4_c16")
    values = [helper.make_tensor_value_info(name, TensorProto.FLOAT, [1]) for name in "xy"]
    model = helper.make_model(helper.make_graph([node], "g", values[:1], values[1:]))
    onnx.save(model, str(tmp_path / "n.onnx"))
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(bench, "cost", lambda parts: 0.01)
        measure(bench, {"n": tmp_path / "n.onnx"}, config)
    assert all(v.loops * 0.01 >= 0.95 for v in bench.rounds[-1] if v.name == "n")


@pytest.mark.parametrize(
    ("run_ms", "runs"), [(0.05, 80), (0.2, 20), (1.0, 20), (5.0, 12), (20.0, 4), (300.0, 4)]
)
def test_fast_networks_are_run_often_before_they_are_timed_slow_ones_seldom(
    run_ms: float, runs: int
) -> None:
    assert prime_runs(run_ms) == runs


def test_each_sample_knows_where_in_memory_its_network_was(
    make_bench: Any, paths: dict[str, Path], config: ProfileConfig
) -> None:
    class Three(make_bench):  # type: ignore[misc]
        """A bench whose networks are slower at some places than at others."""

        places = 3
        turns: list[int] = []  # noqa: RUF012  of this test only

        def run(self, visits: Any, *, turn: int = 0) -> Any:
            self.turns.append(turn)
            return [samples * [1 + turn % 3, 1 + turn % 3, 1] for samples in
                    super().run(visits, turn=turn)]  # fmt: skip

    found = measure(Three(jitter=0.001), paths, config)
    for series in found.values():
        assert series.place is not None and set(series.place) == {0, 1, 2}
        by_place = series.by_place
        assert by_place / by_place[0] == pytest.approx([1, 2, 3], rel=0.02)
    assert Three.turns[-1] >= 3


def test_a_machine_slower_than_known_is_waited_for_where_asked_and_taken_as_it_is_then(
    make_bench: Any, one: dict[str, Path]
) -> None:
    class Waking(make_bench):  # type: ignore[misc]
        """A machine at 1/1.25 of its speed for the first ten seconds."""

        def run(self, visits: Any, *, turn: int = 0) -> Any:
            slower = 1.25 if self.seconds() < 1010 else 1.0
            return [samples * slower for samples in super().run(visits, turn=turn)]

    config = ProfileConfig(samples=12, spread_s=0.5, time_limit_s=30.0)
    known = Known(reference_ms=0.2)
    (full,) = measure(Waking(), one, config).values()
    (hasty,) = measure(Waking(), one, config, known=known).values()
    (patient,) = measure(Waking(), one, config, known=replace(known, patience_s=20.0)).values()
    (weary,) = measure(Waking(), one, config, known=replace(known, patience_s=4.0)).values()
    assert hasty.median_ms == pytest.approx(full.median_ms, rel=0.02)
    assert hasty.median_ms == pytest.approx(1.25 * patient.median_ms, rel=0.02)
    assert weary.median_ms == pytest.approx(hasty.median_ms, rel=0.02)
    assert not hasty.is_slow and not patient.is_slow and not weary.is_slow

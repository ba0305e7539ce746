import os
import signal
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nas.block import Block, parse
from nas.errors import (
    ConfigError,
    CorruptFile,
    DeviceError,
    StorageError,
    TryAgain,
    UnreliableTiming,
)
from nas.files import lock
from nas.latency import LatencyTable, ProfileConfig, plan, profile
from nas.latency.profile import entry
from nas.latency.recipes import recipe
from nas.latency.rounds import cold_name
from nas.latency.timing import Series
from nas.space import SearchSpace
from nas.target import Target

BLOCKS = [
    parse(text)
    for text in (
        "stem_r32_i3_c8-16_b1_a1",
        "mb4d_r8_c16_h32_p3",
        "mb4d_r8_c16_h64_p3",
        "patch_merge_r8_i16_o32_h32_s8_f16-32",
        "cga_r4_c32_n2_k8_q5-3_w7_h32-64",
        "mb3d_r4_c32_n4_k8_v16_h64",
        "head_r4_i32_o10_bn_d0",
    )
]


@pytest.fixture
def tiny() -> SearchSpace:
    return SearchSpace.load("tiny").replace(num_classes=10)


def parts(blocks: Sequence[Block]) -> list[Block]:
    return [part for block in blocks for part in block.parts()]


# ---------------------------------------------------------------- numbers
@pytest.mark.parametrize(("busy", "slow"), [(0.0, 0.0), (0.3, 0.2)])
def test_the_table_predicts_a_whole_network_within_two_percent(
    make_bench: Any, export: Any, on: Any, true_ms: Any, target: Target, tmp_path: Path,
    busy: float, slow: float,
) -> None:  # fmt: skip
    bench = make_bench(busy=busy, slow=slow)
    config = ProfileConfig(samples=24, spread_s=1.0)
    table = profile(BLOCKS, target, tmp_path / "t.json", config, benches=on(bench), export=export)
    assert table.estimate(BLOCKS) == pytest.approx(true_ms(parts(BLOCKS)), rel=0.02)
    assert table.isolated(BLOCKS) > 1.2 * true_ms(parts(BLOCKS))
    assert all(item.grade in "AB" for item in table.entries.values())


def test_entries_that_are_known_too_roughly_are_sampled_on(
    make_bench: Any, export: Any, on: Any, target: Target, tmp_path: Path
) -> None:
    config = ProfileConfig(samples=12, spread_s=0.0)
    clean = {}
    for jitter in (0.002, 0.08):
        table = profile(
            BLOCKS, target, tmp_path / f"{jitter}.json", config,
            benches=on(make_bench(jitter=jitter)), export=export,
        )  # fmt: skip
        clean[jitter] = [entry.clean for entry in table.entries.values()]
    assert max(clean[0.002]) < 24 <= np.median(clean[0.08])


def test_the_table_covers_a_space_and_a_fit_corrects_what_sums_miss(
    make_bench: Any, export: Any, on: Any, true_ms: Any, target: Target, tmp_path: Path,
    tiny: SearchSpace,
) -> None:  # fmt: skip
    def cost(chain: Sequence[Block]) -> float:  # large networks push themselves out of the caches
        footprint = sum(part.bytes / 1e6 + 0.02 for part in chain)
        share = 1 / (1 + (0.25 / footprint) ** 6) if chain[-1].kind == "head" else 0.0
        return float(true_ms(chain)) * (1 + 0.2 * share)  # 0.2 is what a FakeBench's cold runs add

    config = ProfileConfig(samples=24, spread_s=1.0, calibrate_on=24)
    bench = make_bench(cost=cost, jitter=0.003)
    table = profile(tiny, target, tmp_path / "t.json", config, benches=on(bench), export=export)
    fit = table.calibrations["tiny@32"]
    assert fit.counts_cold
    assert fit.coefficients["knee_mb"] == pytest.approx(0.25, rel=0.3)
    assert fit.held_out["mean"] < 0.02 < fit.held_out["mean_of_sum"]
    assert len(set(fit.fitted_on)) == 24
    rng = np.random.default_rng(5)
    for level in (0.1, 0.5, 0.9):
        blocks = tiny.blocks(tiny.sample(rng, level=level))
        assert table.estimate(blocks, tiny) == pytest.approx(cost(parts(blocks)), rel=0.04)
    assert table.missing(tiny.every_block()) == []


def series(values: Any) -> Series:
    is_clean = np.ones(len(values), dtype=bool)
    return Series(all_ms=np.array(values), is_clean=is_clean, wanted=len(values), reference_ms=0.1)


def slope_of(one: Series, three: Series, **options: Any) -> Any:
    lead = "stem_r8_i3_c8_b1_a0"
    chains = {"dw_r4_c8": one, f"{lead}+dw_r4_c8": one, f"{lead}+dw_r4_c8*3": three}
    factor = options.pop("cold", None)
    if factor is not None:
        cold = {n: replace(item, all_ms=item.all_ms * factor) for n, item in chains.items()}
        chains |= {cold_name(name): item for name, item in cold.items()}
    made = recipe(parse("dw_r4_c8"), copies=3)
    return entry(made, chains, **{"strict": False, **options})


def test_an_entry_tells_its_slope_what_it_takes_alone_and_its_samples() -> None:
    made = slope_of(series([3.0] * 30), series([5.0, 5.02] * 15))
    assert made.ms == pytest.approx(1.005)
    assert made.isolated_ms == 3.0
    assert (made.p10, made.p90) == (1.0, 1.01)
    assert (made.grade, made.by, made.clean) == ("A", "slope of 1 and 3", 30)
    assert made.cold_ms is None


def test_an_entry_is_never_cheaper_with_cold_caches() -> None:
    one, three = series([3.0] * 30), series([5.0, 5.02] * 15)
    assert slope_of(one, three, cold=1.5).cold_ms == pytest.approx(1.5 * 1.005)
    assert slope_of(one, three, cold=0.9).cold_ms == pytest.approx(1.005)


def test_a_price_not_told_from_zero_is_never_zero_and_says_so() -> None:
    rng = np.random.default_rng(0)
    one, three = series(rng.normal(5, 0.5, 40)), series(rng.normal(4.7, 0.5, 40))
    made = slope_of(one, three)
    assert made.ms > 0
    assert made.grade == "C"
    assert made.by == "slope of 1 and 3; not told from zero"
    with pytest.raises(UnreliableTiming, match="dw_r4_c8.*leave strict out"):
        slope_of(one, three, strict=True)


def test_a_price_known_only_roughly_is_grade_c_though_its_chains_are_grade_a() -> None:
    rng = np.random.default_rng(0)
    made = slope_of(series(rng.normal(5, 0.1, 12)), series(rng.normal(5.5, 0.1, 12)))
    assert made.grade == "C"


def test_more_samples_at_the_same_places_do_not_make_a_price_better_known() -> None:
    def loaded(values: Sequence[float]) -> Series:  # each place has its own time, for its visits
        place = np.tile(np.repeat(np.arange(len(values)), 4), 20)
        return replace(series(np.repeat(values, 4).tolist() * 20), place=place)

    alike = slope_of(loaded([3.0] * 3), loaded([5.0] * 3))
    assert alike.grade == "A"
    apart = slope_of(loaded([2.96, 3.0, 3.04]), loaded([5.0, 5.04, 4.92]))
    assert apart.ms == pytest.approx(alike.ms, rel=0.05) and apart.grade == "B"
    far = slope_of(loaded([2.9, 3.0, 3.1]), loaded([5.0, 5.15, 4.8]))
    assert far.grade == "C"


# ---------------------------------------------------------------- the record
def test_a_second_profile_measures_nothing_twice(
    make_bench: Any, export: Any, on: Any, target: Target, tmp_path: Path, config: ProfileConfig
) -> None:
    path = tmp_path / "t.json"
    first = profile(BLOCKS, target, path, config, benches=on(make_bench()), export=export)
    text = path.read_bytes()
    bench = make_bench(seed=1)
    again = profile(BLOCKS, target, path, config, benches=on(bench), export=export)
    assert bench.loaded == []
    assert path.read_bytes() == text
    assert again.digest == first.digest


def test_another_space_adds_to_the_table_and_leaves_what_stands(
    make_bench: Any, export: Any, on: Any, target: Target, tmp_path: Path, config: ProfileConfig
) -> None:
    path = tmp_path / "t.json"
    first = profile(BLOCKS[:3], target, path, config, benches=on(make_bench()), export=export)
    bench = make_bench(seed=1)
    table = profile(BLOCKS, target, path, config, benches=on(bench), export=export)
    assert {name: table.entries[name] for name in first.entries} == dict(first.entries)
    old = [name for name in bench.loaded if "mlp_r8" in name or "pool" in name]
    assert not any("+" in name or "*" in name for name in old)  # timed alone, as anchors
    assert table.missing(BLOCKS) == []


class DiesInBatch:
    """A bench whose process dies while the given batch runs."""

    def __init__(self, bench: Any, batch: int) -> None:
        self._bench, self._left = bench, batch

    def __getattr__(self, name: str) -> Any:
        return getattr(self._bench, name)

    def unload(self) -> None:
        self._left -= 1
        self._bench.unload()

    def run(self, visits: Any, *, turn: int = 0) -> Any:
        if self._left == 0:
            raise DeviceError(f"{visits[1].name}: the process that measures ended with signal 11.")
        return self._bench.run(visits, turn=turn)


def test_a_crash_keeps_the_finished_batches_and_the_next_run_goes_on(
    make_bench: Any, export: Any, on: Any, target: Target, tmp_path: Path
) -> None:
    path = tmp_path / "t.json"
    config = ProfileConfig(samples=4, spread_s=0.1, batch=4)
    dying: Any = DiesInBatch(make_bench(), 3)
    with pytest.raises(DeviceError, match="signal 11"):
        profile(BLOCKS, target, path, config, benches=on(dying), export=export)
    kept = LatencyTable.load(path)
    assert len(kept.entries) == 8
    bench = make_bench(seed=1)
    table = profile(BLOCKS, target, path, config, benches=on(bench), export=export)
    assert {name: table.entries[name] for name in kept.entries} == dict(kept.entries)
    assert len(table.entries) == len(plan(BLOCKS, target, path).needed)


def test_what_could_not_be_measured_is_named_and_the_rest_is_kept(
    make_bench: Any, export: Any, on: Any, target: Target, tmp_path: Path
) -> None:
    class Disturbed(make_bench):  # type: ignore[misc]
        def _visit(self, visit: Any) -> Any:
            times = super()._visit(visit)
            if "mlp_r8_c16_h64" in visit.name:
                times[:, 0] *= 3
            return times

    path = tmp_path / "t.json"
    config = ProfileConfig(samples=4, spread_s=0.1, time_limit_s=3.0)
    with pytest.raises(UnreliableTiming, match="mlp_r8_c16_h64.*kept"):
        profile(BLOCKS, target, path, config, benches=on(Disturbed()), export=export)
    assert LatencyTable.load(path).missing(BLOCKS) == ["mlp_r8_c16_h64"]


KILLED = """
import sys
from pathlib import Path
sys.path.insert(0, {tests!r})
import conftest
from contextlib import nullcontext
from nas.block import parse
from nas.latency import ProfileConfig, profile
from nas.latency import bench
from nas.target import Target
import json, os, signal

class Killed(conftest.FakeBench):
    def unload(self):
        self.batches = getattr(self, "batches", 0) + 1
        super().unload()
    def run(self, visits, *, turn=0):
        if self.batches == 3:
            os.kill(os.getpid(), signal.SIGKILL)
        return super().run(visits, turn=turn)

target = Target.from_json(json.loads({target!r}))
made = Killed()
profile(
    [parse(text) for text in {blocks!r}], target, {path!r},
    ProfileConfig(samples=4, spread_s=0.1, batch=4),
    benches=lambda target, config: nullcontext(made), export=conftest.fake_export,
)
"""


def test_kill_9_loses_at_most_a_batch_and_the_lock_is_free_again(
    make_bench: Any, export: Any, on: Any, target: Target, tmp_path: Path
) -> None:
    import json

    path = tmp_path / "t.json"
    code = KILLED.format(
        tests=str(Path(__file__).parent),
        target=json.dumps(target.to_json()),
        blocks=[str(block) for block in BLOCKS],
        path=str(path),
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, env=os.environ
    )
    assert done.returncode == -signal.SIGKILL, done.stderr
    kept = LatencyTable.load(path)
    assert len(kept.entries) == 8
    config = ProfileConfig(samples=4, spread_s=0.1, batch=4)
    table = profile(BLOCKS, target, path, config, benches=on(make_bench()), export=export)
    assert {name: table.entries[name] for name in kept.entries} == dict(kept.entries)
    assert table.missing(BLOCKS) == []


def test_a_disk_that_fills_in_a_profile_keeps_the_finished_batches(
    make_bench: Any, export: Any, on: Any, target: Target, tmp_path: Path, files_at_most: Any
) -> None:
    path = tmp_path / "t.json"
    config = ProfileConfig(samples=4, spread_s=0.1, batch=4)
    with files_at_most(3000), pytest.raises(StorageError, match=r"t\.json"):
        profile(BLOCKS, target, path, config, benches=on(make_bench()), export=export)
    kept = LatencyTable.load(path)
    assert len(kept.entries) in (4, 8)
    table = profile(BLOCKS, target, path, config, benches=on(make_bench()), export=export)
    assert {name: table.entries[name] for name in kept.entries} == dict(kept.entries)
    assert table.missing(BLOCKS) == []


def test_two_profilers_on_one_table_are_refused(
    make_bench: Any, export: Any, on: Any, target: Target, tmp_path: Path
) -> None:
    path = tmp_path / "t.json"
    with lock(tmp_path / "t.json.lock"), pytest.raises(TryAgain):
        profile(BLOCKS, target, path, benches=on(make_bench()), export=export)


def test_another_target_s_table_and_a_damaged_one_are_left_alone(
    make_bench: Any, export: Any, on: Any, target: Target, tmp_path: Path, config: ProfileConfig
) -> None:
    path = tmp_path / "t.json"
    profile(BLOCKS[:1], target, path, config, benches=on(make_bench()), export=export)
    other = Target.from_json(target.to_json() | {"threads": 2})
    with pytest.raises(ConfigError, match="Choose another --table"):
        profile(BLOCKS, other, path, config, benches=on(make_bench()), export=export)
    damaged = path.read_bytes()[:-30]
    path.write_bytes(damaged)
    with pytest.raises(CorruptFile):
        profile(BLOCKS, target, path, config, benches=on(make_bench()), export=export)
    assert path.read_bytes() == damaged


# ---------------------------------------------------------------- before and while
def test_a_plan_names_what_is_missing_and_its_time_and_writes_nothing(
    make_bench: Any, export: Any, on: Any, target: Target, tmp_path: Path, config: ProfileConfig
) -> None:
    path = tmp_path / "t.json"
    before = plan(BLOCKS, target, path, config)
    assert not path.exists()
    assert [item.entry for item in before.missing] == list(before.needed)
    assert before.seconds > 1
    profile(BLOCKS, target, path, config, benches=on(make_bench()), export=export)
    after = plan(BLOCKS, target, path, config)
    assert (after.missing, after.seconds) == ((), 0.0)
    assert after.needed == before.needed


def test_a_space_whose_entries_are_there_still_gets_its_fit(
    make_bench: Any, export: Any, on: Any, target: Target, tmp_path: Path, tiny: SearchSpace,
    config: ProfileConfig,
) -> None:  # fmt: skip
    path = tmp_path / "t.json"
    blocks = tiny.every_block()
    profile(blocks, target, path, config, benches=on(make_bench()), export=export)
    wanted = ProfileConfig(samples=4, spread_s=0.1, calibrate_on=6)
    assert plan(tiny, target, path, wanted).networks == 6
    table = profile(tiny, target, path, wanted, benches=on(make_bench()), export=export)
    assert len(table.calibrations["tiny@32"].fitted_on) == 6
    assert plan(tiny, target, path, wanted).networks == 0


def test_a_fit_asked_for_without_a_space_gives_a_warning(
    target: Target, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    plan(BLOCKS, target, tmp_path / "t.json", ProfileConfig(calibrate_on=3))
    assert "calibrate_on has no effect" in caplog.text


def test_progress_never_counts_more_than_there_is_to_do(
    make_bench: Any, export: Any, on: Any, target: Target, tmp_path: Path, tiny: SearchSpace
) -> None:
    seen: list[tuple[int, int, str]] = []
    config = ProfileConfig(samples=4, spread_s=0.1, calibrate_on=6)
    profile(
        tiny, target, tmp_path / "t.json", config, lambda *row: seen.append(row),
        benches=on(make_bench()), export=export,
    )  # fmt: skip
    assert all(0 <= done <= total for done, total, _ in seen)
    assert {total for _, total, _ in seen} == {seen[-1][0]}
    assert any("whole networks" in text for _, _, text in seen)


def test_progress_counts_entries_and_says_the_time_left(
    make_bench: Any, export: Any, on: Any, target: Target, tmp_path: Path, config: ProfileConfig
) -> None:
    seen: list[tuple[int, int, str]] = []
    profile(
        BLOCKS, target, tmp_path / "t.json", config, lambda *row: seen.append(row),
        benches=on(make_bench()), export=export,
    )  # fmt: skip
    done = [row[0] for row in seen]
    assert done == sorted(done)
    assert seen[-1][0] == seen[-1][1] == len(plan(BLOCKS, target, tmp_path / "t.json").needed)
    assert all("s left" in row[2] for row in seen[:-1])

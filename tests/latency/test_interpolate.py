"""Entries between measured ones: which, how far off, marked, and never without being asked."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nas.block import Block, parse
from nas.errors import ConfigError
from nas.latency import LatencyTable, ProfileConfig, plan, profile
from nas.latency.interpolate import errors, filled, interpolated_in, is_measured, to_measure
from nas.latency.plan_folder import write_plan
from nas.latency.sessions import anchors_of
from nas.latency.table import Entry
from nas.space import SearchSpace
from nas.target import Target

HIDDEN = range(16, 16 * 9, 16)
MLPS = [parse(f"mlp_r8_c16_h{hidden}") for hidden in HIDDEN]  # eight sizes of one part
WIDE = [parse(f"mlp_r8_c32_h{hidden}") for hidden in HIDDEN]  # and of another
BOTH = [*MLPS, *WIDE]
CONFIG = ProfileConfig(samples=8, spread_s=0.5, time_limit_s=60.0, every=3)


def price(ms: float, **changes: Any) -> Entry:
    values: dict[str, Any] = {"p10": 0.9 * ms, "p90": 1.1 * ms, "clean": 30, "taken": 40}
    values |= {"cold_ms": 1.5 * ms, "isolated_ms": ms + 1, "grade": "A", "by": "slope"}
    return Entry(**{"ms": ms, **values, **changes})


def table_of(parts: Sequence[Block], target: Target, cost: Any) -> LatencyTable:
    return LatencyTable(target=target, entries={str(part): price(cost(part)) for part in parts})


def names_of(hidden: Sequence[int]) -> set[str]:
    return {f"mlp_r8_c16_h{size}" for size in hidden}


# ---------------------------------------------------------------- which
def test_the_ends_of_a_line_and_every_nth_between_are_measured(target: Target) -> None:
    nothing = LatencyTable(target=target, entries={})
    found = to_measure(nothing, BOTH, 3)
    ours = {name for name in found if "c16" in name}
    assert ours == names_of([16, 64, 112, 128])
    assert to_measure(nothing, MLPS, 1) == names_of(HIDDEN)


def test_so_many_are_measured_that_an_error_can_be_told(target: Target) -> None:
    nothing = LatencyTable(target=target, entries={})
    three = MLPS[:3]
    assert to_measure(nothing, three, 9) == names_of([16, 32, 48])  # one line: all of it
    assert to_measure(nothing, MLPS[:2], 9) == names_of([16, 32])


def test_what_others_are_timed_behind_is_always_measured_itself(target: Target) -> None:
    nothing = LatencyTable(target=target, entries={})
    pools = [parse(f"pool_r8_c{width}_p3") for width in HIDDEN]
    stems = [parse(f"stem_r32_i3_c8-{width}_b1_a1") for width in HIDDEN]
    assert to_measure(nothing, [*pools, *stems], 4) == {str(part) for part in [*pools, *stems]}


def test_parts_that_differ_in_more_than_a_size_are_never_neighbours(target: Target) -> None:
    others = [parse(f"mlp_r8_c16_h{hidden}_relu") for hidden in (24, 40)]
    ends = table_of([MLPS[0], MLPS[-1], *MLPS[2:5]], target, lambda part: part.macs / 1e6)
    assert filled(ends, others).entries.keys() == ends.entries.keys()


# ---------------------------------------------------------------- how far off
def test_a_straight_line_is_met_exactly_and_says_that_it_is_no_measurement(target: Target) -> None:
    def cost(part: Block) -> float:
        return 0.01 + part.macs / 1e6

    known = table_of([MLPS[0], MLPS[3], MLPS[5], MLPS[7]], target, cost)
    made = filled(known, MLPS)
    assert set(made.entries) == names_of(HIDDEN)
    for part in MLPS:
        assert made.entries[str(part)].ms == pytest.approx(cost(part), rel=1e-6)
    between = made.entries["mlp_r8_c16_h48"]
    assert between.interpolated == pytest.approx(0.0, abs=1e-6)
    assert between.by == "between mlp_r8_c16_h16 and mlp_r8_c16_h64"
    assert between.cold_ms == pytest.approx(1.5 * between.ms) and between.grade == "A"
    assert made.entries["mlp_r8_c16_h16"] == known.entries["mlp_r8_c16_h16"]


def test_the_error_is_that_of_numpy_interpolation_with_each_left_out(target: Target) -> None:
    rng = np.random.default_rng(0)
    costs = {str(part): part.macs / 1e6 * rng.uniform(0.9, 1.1) for part in MLPS}
    known = table_of(MLPS, target, lambda part: costs[str(part)])
    macs = np.array([part.macs for part in MLPS], dtype=float)
    ms = np.array([costs[str(part)] for part in MLPS])
    expected = []
    for place in range(1, len(MLPS) - 1):
        rest = np.arange(len(MLPS)) != place
        expected.append(abs(np.interp(macs[place], macs[rest], ms[rest]) / ms[place] - 1))
    assert errors(known, MLPS) == pytest.approx({"mlp": np.mean(expected)}, rel=1e-5)


def test_a_kind_that_lies_off_its_line_is_measured_whole(target: Target) -> None:
    def stair(part: Block) -> float:  # a step as wide as three sizes, and as high as the price
        return 0.1 * 2 ** (part.hidden // 48)  # type: ignore[attr-defined, no-any-return]

    knots = to_measure(LatencyTable(target=target, entries={}), BOTH, 2)
    known = table_of([parse(name) for name in knots], target, stair)
    assert to_measure(known, BOTH, 2) == {str(part) for part in BOTH} > knots
    line = table_of([parse(name) for name in knots], target, lambda part: part.macs / 1e6)
    assert to_measure(line, BOTH, 2) == knots


def test_a_price_of_doubtful_neighbours_is_doubtful(target: Target) -> None:
    known = table_of(MLPS[::2] + MLPS[-1:], target, lambda part: part.macs / 1e6)
    poor = {**known.entries, str(MLPS[2]): price(MLPS[2].macs / 1e6, grade="C", clean=4, taken=90)}
    made = filled(replace(known, entries=poor), MLPS)
    assert [made.entries[str(part)].grade for part in MLPS[1:5:2]] == ["C", "C"]
    assert (made.entries[str(MLPS[1])].clean, made.entries[str(MLPS[1])].taken) == (4, 90)
    assert made.entries[str(MLPS[5])].grade == "A"


def test_a_network_says_how_much_of_its_price_is_interpolated(target: Target) -> None:
    entries = {
        "stem_r32_i3_c8-16_b1_a1": price(1.0),
        "pool_r8_c16_p3": price(0.5),
        "mlp_r8_c16_h32": price(2.0, interpolated=0.03),
        "mlp_r8_c16_h64": price(0.5, interpolated=0.01),
    }
    table = LatencyTable(target=target, entries=entries)
    blocks = [parse("stem_r32_i3_c8-16_b1_a1"), parse("mb4d_r8_c16_h32_p3")]
    found = interpolated_in(table, blocks)
    assert [found.share, found.error] == pytest.approx([2.0 / 3.5, 0.03])
    both = interpolated_in(table, [*blocks, parse("mb4d_r8_c16_h64_p3")])
    assert both.error == pytest.approx((2.0 * 0.03 + 0.5 * 0.01) / 2.5)
    assert interpolated_in(table, blocks[:1]).share == 0.0


def test_anchors_are_measured_entries_only(target: Target) -> None:
    known = table_of(MLPS[::2] + MLPS[-1:], target, lambda part: part.macs / 1e6)
    made = filled(known, MLPS)
    assert len(made.entries) == 8 and set(anchors_of(made)) <= set(known.entries)


# ---------------------------------------------------------------- in a profile
def blocks_of(hidden: Sequence[int]) -> list[Block]:
    blocks = [parse("stem_r32_i3_c8-16_b1_a1"), parse("head_r8_i16_o10_bn_d0")]
    return [*blocks, *(parse(f"mb4d_r8_c{c}_h{size}_p3") for size in hidden for c in (16, 32))]


def test_a_profile_measures_some_sizes_and_marks_the_others(
    make_bench: Any, export: Any, on: Any, target: Target, tmp_path: Path
) -> None:
    path, blocks = tmp_path / "t.json", blocks_of(list(HIDDEN))
    asked = plan(blocks, target, path, CONFIG)
    assert {name for name in asked.between if "c16" in name} == names_of([32, 48, 80, 96])
    bench = make_bench(jitter=0.002)
    table = profile(blocks, target, path, CONFIG, benches=on(bench), export=export)
    assert table.missing(blocks) == []
    between = {name for name in table.entries if not is_measured(table, name)}
    assert between == set(asked.between)
    assert not any(name in loaded for loaded in bench.loaded for name in between)
    whole = profile(
        blocks, target, tmp_path / "w.json", replace(CONFIG, every=1),
        benches=on(make_bench(jitter=0.002)), export=export,
    )  # fmt: skip
    for name in between:
        assert table.entries[name].ms == pytest.approx(whole.entries[name].ms, rel=0.03)
    again = make_bench(seed=1)
    text = path.read_bytes()
    profile(blocks, target, path, CONFIG, benches=on(again), export=export)
    assert again.loaded == [] and path.read_bytes() == text


def test_a_profile_without_the_option_measures_what_was_interpolated(
    make_bench: Any, export: Any, on: Any, target: Target, tmp_path: Path
) -> None:
    path, blocks = tmp_path / "t.json", blocks_of(list(HIDDEN))
    profile(blocks, target, path, CONFIG, benches=on(make_bench()), export=export)
    table = profile(
        blocks, target, path, replace(CONFIG, every=1), benches=on(make_bench()), export=export
    )
    assert all(is_measured(table, name) for name in table.entries)


def test_a_profile_goes_on_with_a_kind_that_cannot_be_interpolated(
    make_bench: Any, export: Any, on: Any, true_ms: Any, target: Target, tmp_path: Path
) -> None:
    def stairs(parts: Sequence[Block]) -> float:
        steps = sum(2 ** (part.hidden // 48) for part in parts if part.kind == "mlp")  # type: ignore[attr-defined]
        return float(true_ms(parts)) + 0.1 * steps

    seen: list[tuple[int, int, str]] = []
    blocks = blocks_of(list(HIDDEN))
    table = profile(
        blocks, target, tmp_path / "t.json", CONFIG, lambda *row: seen.append(row),
        benches=on(make_bench(cost=stairs, jitter=0.002)), export=export,
    )  # fmt: skip
    assert all(is_measured(table, name) for name in table.entries)
    assert all(done <= total for done, total, _ in seen) and seen[-1][0] == seen[-1][1]


def test_a_plan_of_files_has_every_size_or_is_refused(tmp_path: Path, export: Any) -> None:
    with pytest.raises(ConfigError, match="every is 3"):
        write_plan(SearchSpace.load("tiny"), tmp_path / "p", CONFIG, export=export)


@pytest.mark.parametrize("value", [-0.1, float("nan"), float("inf")])
def test_an_error_that_is_none_is_refused(value: float) -> None:
    with pytest.raises(ValueError, match="interpolated must be"):
        price(1.0, interpolated=value)

"""What happens between sessions: machines change their speed, tables stay of one piece."""

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nas.block import Block, parse
from nas.latency import LatencyTable, ProfileConfig, profile
from nas.latency.guard import GUARD, GUARD_CHAIN
from nas.latency.recipes import parts_of
from nas.latency.sessions import (
    ANCHORS,
    Teller,
    anchors_of,
    drift_of,
)
from nas.latency.table import Entry
from nas.latency.timing import Series
from nas.space import SearchSpace
from nas.target import Target

FIRST = [parse(text) for text in ("stem_r32_i3_c8-16_b1_a1", "mb4d_r8_c16_h32_p3")]
NETWORK = [*FIRST, parse("mb4d_r8_c16_h64_p3"), parse("head_r8_i16_o10_bn_d0")]
CONFIG = ProfileConfig(samples=24, spread_s=0.5, time_limit_s=4.0)


@pytest.mark.parametrize("reference_slows", [True, False])
def test_entries_added_while_the_machine_was_slow_are_as_if_it_had_not_been(
    make_bench: Any, export: Any, on: Any, true_ms: Any, target: Target, tmp_path: Path,
    reference_slows: bool,
) -> None:  # fmt: skip
    path = tmp_path / "t.json"
    profile(FIRST, target, path, CONFIG, benches=on(make_bench()), export=export)
    slow = (
        make_bench(slow=1.0)
        if reference_slows
        else make_bench(cost=lambda parts: 1.4 * true_ms(parts))
    )
    table = profile(NETWORK, target, path, CONFIG, benches=on(slow), export=export)
    assert table.estimate(NETWORK) == pytest.approx(true_ms(parts_of(NETWORK)), rel=0.03)
    first, second = table.provenance["drift"]
    assert first == 1.0
    assert second == pytest.approx(1 / 0.6 if reference_slows else 1.4, rel=0.02)


def test_a_fit_does_not_take_a_slow_session_for_a_property_of_networks(
    make_bench: Any, export: Any, on: Any, true_ms: Any, target: Target, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("nas.latency.guard.GUARDED_BYTES", 1000)
    space = SearchSpace.load("tiny").replace(num_classes=10)
    path = tmp_path / "t.json"
    blocks = space.every_block()
    profile(blocks, target, path, CONFIG, benches=on(make_bench()), export=export)

    def cost(parts: Sequence[Block]) -> float:
        return 1.5 * float(true_ms(parts))

    config = ProfileConfig(samples=12, spread_s=0.5, time_limit_s=4.0, calibrate_on=6)
    table = profile(space, target, path, config, benches=on(make_bench(cost=cost)), export=export)
    fit = table.calibrations["tiny@32"]
    assert fit.coefficients["scale"] == pytest.approx(1.0, abs=0.03)
    assert fit.held_out["mean_of_sum"] < 0.03


def test_a_machine_that_is_faster_than_when_the_table_was_begun_is_said(
    make_bench: Any, export: Any, on: Any, target: Target, tmp_path: Path,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    path = tmp_path / "t.json"
    profile(FIRST, target, path, CONFIG, benches=on(make_bench(slow=1.0)), export=export)
    assert not caplog.records
    table = profile(NETWORK, target, path, CONFIG, benches=on(make_bench()), export=export)
    assert re.search(r"6\d % faster now than when the table", caplog.text)
    assert table.known.reference_ms == pytest.approx(0.2, rel=0.02)
    assert table.known.begun_ms == pytest.approx(0.2 / 0.6, rel=0.02), "what its prices are of"


def test_whole_networks_have_a_guard_that_the_table_remembers(
    make_bench: Any, export: Any, on: Any, true_ms: Any, target: Target, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    monkeypatch.setattr("nas.latency.guard.GUARDED_BYTES", 1000)
    space = SearchSpace.load("tiny").replace(num_classes=10)
    config = ProfileConfig(samples=12, spread_s=0.5, time_limit_s=4.0, calibrate_on=6)
    path = tmp_path / "t.json"
    table = profile(space, target, path, config, benches=on(make_bench()), export=export)
    known = true_ms(GUARD_CHAIN) / 0.2
    assert table.known.guard_by_reference == pytest.approx(known, rel=0.02)
    assert LatencyTable.load(path).known.guard_by_reference == table.known.guard_by_reference
    assert GUARD not in table.entries and len(table.calibrations["tiny@32"].fitted_on) == 6


def entry(ms: float) -> Entry:
    return Entry(
        ms=ms, isolated_ms=ms, p10=ms, p90=ms, clean=9, taken=9, grade="A", by="slope of 1 and 3"
    )


def test_anchors_are_spread_over_the_dearer_half_and_the_same_every_time(target: Target) -> None:
    entries = {f"dw_r4_c{width}": entry(width / 100) for width in range(8, 808, 8)}
    table = LatencyTable(target=target, entries=entries)
    names = list(anchors_of(table))
    assert len(names) == ANCHORS
    assert names[0] == "dw_r4_c408"
    assert names[-1] == "dw_r4_c800"
    assert anchors_of(LatencyTable(target=target, entries={})) == {}
    assert list(anchors_of(table)) == names


def test_an_anchor_without_clean_samples_says_nothing_of_the_drift(target: Target) -> None:
    table = LatencyTable(target=target, entries={"dw_r4_c8": entry(1.0), "dw_r4_c16": entry(1.0)})
    clean, unclean = np.ones(5, dtype=bool), np.zeros(5, dtype=bool)

    def series(ms: float, is_clean: Any) -> Series:
        return Series(all_ms=np.full(5, ms), is_clean=is_clean, wanted=5, reference_ms=0.1)

    anchors = {"dw_r4_c8": series(1.2, clean), "dw_r4_c16": series(9.0, unclean)}
    assert drift_of(table, anchors) == pytest.approx(1.2)
    assert drift_of(table, {"dw_r4_c16": series(9.0, unclean)}) == 1.0


def test_progress_counts_entries_over_sessions_and_never_back() -> None:
    seen: list[tuple[int, int, str]] = []
    teller = Teller(lambda *row: seen.append(row), total=10, seconds=20.0)
    for count in (6, 4):
        teller.begin(count, 10.0)
        for share in (0.0, 0.4, 0.7, 1.0):
            teller.tell(share, "timing parts")
    done = [row[0] for row in seen]
    assert done == sorted(done)
    assert done[3] == 6
    assert done[-1] == 10
    assert seen[0][2] == "timing parts, about 20 s left"

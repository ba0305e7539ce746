import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nas.block import parse
from nas.errors import UnreliableTiming
from nas.latency.judge import Known
from nas.latency.measure import at_begun_speed, by_bytes, loadable_bytes, measure_networks
from nas.latency.profile_config import ProfileConfig
from nas.target import Target


@pytest.fixture
def one(tmp_path: Path, export: Any) -> dict[str, Path]:
    return dict(export([parse("ffn_r8_c64_h128")], tmp_path, batch=1))


def test_a_machine_that_is_never_quiet_is_said_to_be_unreliable_within_the_limit(
    make_bench: Any, one: dict[str, Path], target: Target
) -> None:
    bench = make_bench(busy=1.0)
    config = ProfileConfig(samples=12, spread_s=1.0, time_limit_s=5.0)
    began = bench.seconds()
    with pytest.raises(UnreliableTiming, match=r"ffn_r8.*only 0 of \d+ samples were clean"):
        measure_networks(one, target, config, bench=bench)
    assert bench.seconds() - began < 20


def test_a_machine_that_stays_slower_than_it_is_known_to_be_gives_grade_c_and_a_warning(
    make_bench: Any, one: dict[str, Path], target: Target, caplog: pytest.LogCaptureFixture
) -> None:
    config = ProfileConfig(samples=12, spread_s=0.5, time_limit_s=3.0)
    bench = make_bench(slow=1.0)
    known = Known(reference_ms=0.2)
    (timing,) = measure_networks(one, target, config, known=known, bench=bench).values()
    assert timing.grade == "C"
    assert timing.clean >= 12
    assert re.search(r"6\d % slower", caplog.text)


def test_a_machine_that_is_faster_than_when_its_table_was_begun_is_told(
    make_bench: Any, one: dict[str, Path], target: Target, caplog: pytest.LogCaptureFixture
) -> None:
    config = ProfileConfig(samples=12, spread_s=0.5)
    found = measure_networks(one, target, config, bench=make_bench())
    (timing,) = found.values()
    assert at_begun_speed(found, Known(begun_ms=0.19)) == found
    assert at_begun_speed(found, Known()) == found and not caplog.text
    assert timing.reference_ms is not None
    (slower,) = at_begun_speed(found, Known(begun_ms=0.25)).values()
    assert slower.median_ms == pytest.approx(timing.median_ms * 0.25 / timing.reference_ms)
    assert re.search(r"2\d % faster now than when its latency table was begun", caplog.text)


def test_a_network_with_too_few_clean_samples_is_grade_c_and_refused_when_strict(
    make_bench: Any, one: dict[str, Path], target: Target
) -> None:
    plain: dict[str, Any] = {"samples": 2000, "spread_s": 0.5, "time_limit_s": 2.0}
    timing = measure_networks(one, target, ProfileConfig(**plain), bench=make_bench())
    assert [t.grade for t in timing.values()] == ["C"]
    with pytest.raises(UnreliableTiming, match="2000"):
        measure_networks(one, target, ProfileConfig(**plain, strict=True), bench=make_bench())


def test_networks_too_large_to_be_loaded_together_go_in_groups() -> None:
    sizes = {"a": 16, "b": 4, "c": 2, "d": 4, "e": 1}
    assert by_bytes(sizes, 8) == [["a"], ["b", "c"], ["d", "e"]]
    assert by_bytes(dict.fromkeys("abcde", 1), 8, at_most=2) == [["a", "b"], ["c", "d"], ["e"]]
    assert by_bytes({}, 8) == []


def test_more_is_loaded_at_once_where_there_is_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    here = Target.parse("onnxruntime,fp32,b1,t1")
    elsewhere = replace(here, device=replace(here.device, cpu="another"))
    monkeypatch.setattr("nas.latency.measure.memory_bytes", lambda: 100 * 1024**3)
    assert loadable_bytes(here) == 20 * 1024**3
    assert loadable_bytes(elsewhere) == 1024**3, "whose memory is not known"
    monkeypatch.setattr("nas.latency.measure.memory_bytes", lambda: 1024**3)
    assert loadable_bytes(here) == 1024**3

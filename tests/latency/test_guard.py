from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nas.block import parse
from nas.latency import LatencyTable, ProfileConfig, time_networks
from nas.latency.bench import ChildBench
from nas.latency.guard import GUARD_CHAIN, GUARDED_BYTES, guard_file, needs_guard
from nas.latency.judge import GUARD_KNOWN
from nas.target import PARTS, Target

LARGE = [parse("stem_r4_i3_c256_b1_a0"), parse("mlp_r2_c256_h1024")]
CONFIG = ProfileConfig(samples=12, spread_s=8.0, time_limit_s=60.0)


def test_whole_networks_are_timed_while_nobody_else_fills_the_shared_cache(
    make_bench: Any, export: Any, on: Any, target: Target, true_ms: Any
) -> None:
    known = {"reference_ms": 0.2, GUARD_KNOWN: true_ms(GUARD_CHAIN) / 0.2}
    table = LatencyTable(target=target, entries={}, provenance=known)
    benches = on(make_bench(shared=0.7))
    found = time_networks({"n": LARGE}, table, CONFIG, benches=benches, export=export)
    assert list(found) == ["n"]
    assert found["n"].median_ms == pytest.approx(true_ms(LARGE), rel=0.02)


def test_whole_networks_timed_while_the_cache_stays_full_are_grade_c(
    make_bench: Any, export: Any, on: Any, target: Target
) -> None:
    known = {"reference_ms": 0.2, GUARD_KNOWN: 0.5}
    table = LatencyTable(target=target, entries={}, provenance=known)
    benches = on(make_bench(shared=1.0))
    found = time_networks({"n": LARGE}, table, CONFIG, benches=benches, export=export)
    assert found["n"].grade == "C"


def test_small_networks_and_gpus_need_no_guard(target: Target, tmp_path: Path) -> None:
    gpu = replace(target, runtime="torch-cuda", layout="nhwc")
    assert needs_guard(target, [10, GUARDED_BYTES]) and not needs_guard(target, [10, 20])
    assert not needs_guard(gpu, [GUARDED_BYTES])
    small = tmp_path / "small.onnx"
    small.write_bytes(b"x")
    assert guard_file(small, target, tmp_path) is None


def test_small_networks_are_timed_beside_whoever_fills_the_cache(
    make_bench: Any, export: Any, on: Any, target: Target
) -> None:
    table = LatencyTable(target=target, entries={}, provenance={GUARD_KNOWN: 0.5})
    benches = on(make_bench(shared=1.0))
    small = [parse("stem_r4_i3_c16_b1_a0"), parse("mlp_r2_c16_h64")]
    found = time_networks({"n": small}, table, CONFIG, benches=benches, export=export)
    assert found["n"].grade == "A"


@pytest.mark.parametrize("words", ["torch,fp32,b1,t1", "onnxruntime,fp32,b2,t1"])
def test_runtimes_load_the_guard(words: str, tmp_path: Path) -> None:
    target = Target.parse(words)
    large = tmp_path / "large.onnx"
    large.write_bytes(bytes(GUARDED_BYTES))
    path = guard_file(large, target, tmp_path)
    assert path is not None and path.suffix == (".json" if target.takes == PARTS else ".onnx")
    with ChildBench(target) as bench:
        assert np.isfinite(bench.load("guard", path))

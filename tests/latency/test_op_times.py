"""A runtime's own profile: read right, and a failure names the file."""

from pathlib import Path
from typing import Any

import pytest

from nas.errors import DeviceError
from nas.latency.op_times import PROFILERS, WARM_UP_RUNS, op_times, read_ort_profile, typical_ms
from nas.target import Target


def node(name: str, op: str, microseconds: float) -> dict[str, Any]:
    return {
        "cat": "Node", "name": f"{name}_kernel_time", "dur": microseconds,
        "args": {"op_name": op},
    }  # fmt: skip


def test_nodes_are_added_by_type_without_warm_up_and_without_outliers() -> None:
    events: list[dict[str, Any]] = [{"cat": "Session", "name": "model_run", "dur": 9e9}]
    events += [node("a", "Conv", 1e6)] * WARM_UP_RUNS
    events += [node("a", "Conv", 100.0)] * 30 + [node("a", "Conv", 1e5)] * 5
    events += [node("b", "Conv", 50.0)] * (WARM_UP_RUNS + 10)
    events += [node("c", "Add", 10.0)] * (WARM_UP_RUNS + 10)
    assert read_ort_profile(events) == pytest.approx({"Conv": 0.15, "Add": 0.01})


def test_whole_microseconds_average_to_what_lies_between() -> None:
    assert typical_ms({"n": [1.0] * 10 + [2.0] * 10}, {"n": "Add"}) == {"Add": 0.0015}


def test_a_runtime_without_a_profile_gives_none(target: Target) -> None:
    from dataclasses import replace

    assert op_times(Path("x.onnx"), replace(target, runtime="abacus")) == {}
    assert op_times(Path("x.onnx"), replace(target, precision="int8")) == {}


def test_a_file_that_cannot_be_profiled_is_named(tmp_path: Path, target: Target) -> None:
    path = tmp_path / "broken.onnx"
    path.write_bytes(b"not onnx")
    with pytest.raises(DeviceError, match=r"broken\.onnx: onnxruntime gave no profile"):
        op_times(path, target)


@pytest.mark.parametrize("runtime", list(PROFILERS))
def test_a_real_profile_finds_the_convolution(
    tmp_path: Path, target: Target, write_conv: Any, runtime: str
) -> None:
    from dataclasses import replace

    pytest.importorskip(runtime)
    found = op_times(write_conv(tmp_path / "conv.onnx", 32), replace(target, runtime=runtime))
    assert any("conv" in name.lower() for name in found)
    assert all(value >= 0 for value in found.values()) and sum(found.values()) > 0

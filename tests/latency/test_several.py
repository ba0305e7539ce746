"""Several processes that measure the same networks: each in its turn, and all of them end."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import psutil
import pytest

from nas.errors import DeviceError
from nas.latency import bench as benches
from nas.latency.bench import Visit
from nas.latency.measure import child_bench, measure_networks
from nas.latency.profile_config import ProfileConfig
from nas.latency.quantize import is_quantized
from nas.latency.several import SeveralBench
from nas.target import Target

HERE = Target.parse("onnxruntime,fp32,b1,t1")


def several(target: Target = HERE, processes: int = 2, loads: int = 1) -> SeveralBench:
    return SeveralBench(target, processes=processes, timeout_s=30.0, loads=loads)


def test_every_process_loads_and_rounds_take_turns_with_them(
    tmp_path: Path, write_conv: Callable[..., Path]
) -> None:
    paths = {name: write_conv(tmp_path / f"{name}.onnx", side=8) for name in "abc"}
    with several(loads=3) as bench:
        children = bench._children
        loaded = bench.load_all(paths)
        assert list(loaded) == list(paths) and all(ms > 0 for ms in loaded.values())
        busy: list[tuple[int, int]] = []

        def noting(number: int) -> Callable[..., list[Any]]:
            def run(visits: Any, *, turn: int) -> list[Any]:
                busy.append((number, turn))
                return []

            return run

        for number, child in enumerate(children):
            child.run = noting(number)  # type: ignore[method-assign]
        for turn in range(bench.places):
            bench.run([Visit(name="a", prime=1, loops=1, samples=1)], turn=turn)
        assert busy == [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (1, 2)]
        pids = [child._child.pid for child in children]
    assert not any(map(psutil.pid_exists, pids))
    assert not _made(bench).exists()


def test_one_that_fails_ends_the_loading_of_all(
    tmp_path: Path, write_conv: Callable[..., Path]
) -> None:
    good, bad = write_conv(tmp_path / "good.onnx"), tmp_path / "bad.onnx"
    bad.write_bytes(b"garbage")
    with several() as bench:
        with pytest.raises(DeviceError, match="bad"):
            bench.load_all({"good": good, "bad": bad})
        codes = [child._child.wait(timeout=60) for child in bench._children]
    assert codes == [-9, -9]


def test_processes_are_a_setting_of_measuring(
    tmp_path: Path, write_conv: Callable[..., Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    started: list[benches.ChildBench] = []
    begin = benches.ChildBench.__enter__

    def noted(child: benches.ChildBench) -> benches.ChildBench:
        started.append(child)
        return begin(child)

    monkeypatch.setattr(benches.ChildBench, "__enter__", noted)
    config = ProfileConfig(samples=8, spread_s=0.0, processes=3, loads=2, time_limit_s=20.0)
    found = measure_networks({"conv": write_conv(tmp_path / "conv.onnx", side=32)}, HERE, config)
    assert len(started) == 3 and found["conv"].clean >= 3 and config.held == 6
    with child_bench(HERE, ProfileConfig(processes=1)) as alone:
        assert isinstance(alone, benches.ChildBench)


@pytest.mark.parametrize("runtime", ["onnxruntime", "openvino"])
def test_a_file_is_quantized_once_for_all_processes(
    runtime: str, tmp_path: Path, write_conv: Callable[..., Path]
) -> None:
    pytest.importorskip(runtime)
    if runtime == "openvino":
        pytest.importorskip("nncf")
    paths = {
        name: write_conv(tmp_path / f"{name}.onnx", side=side)
        for name, side in (("a", 8), ("b", 16))
    }
    with several(Target.parse(f"{runtime},int8")) as bench:
        bench.load_all(paths)
        bench.run([Visit(name=name, prime=1, loops=1, samples=1) for name in paths])
        made = {path: path.stat().st_mtime_ns for path in _models(_made(bench))}
        assert len(made) == len(paths)
        if runtime == "onnxruntime":
            assert all(map(is_quantized, made))
        bench.unload()
        bench.load_all(paths)
        assert {path: path.stat().st_mtime_ns for path in made} == made


def _made(bench: SeveralBench) -> Path:
    (folder,) = {child.cache for child in bench._children}
    assert folder is not None
    return folder


def _models(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if path.suffix in (".onnx", ".xml")]

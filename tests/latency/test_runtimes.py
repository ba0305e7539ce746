"""The contract every runtime keeps; a new one is one more name in `nas.target.RUNTIMES`."""

import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import nas.network
from nas import target as target_module
from nas.block import parse, parse_network
from nas.environment import allowed_cores
from nas.errors import DeviceError
from nas.latency import ProfileConfig, profile, runtimes
from nas.latency.bench import ChildBench, Visit
from nas.latency.compose import Workshop
from nas.latency.recipes import parts_of
from nas.latency.runtimes.protocol import sample_input
from nas.latency.worker import Worker
from nas.target import ONNX, PARTS, RUNTIMES, Target

BLOCKS = [
    "stem_r16_i3_c8-16_b1_a1",
    "mb4d_r4_c16_h32_p3",
    "cga_r4_c16_n2_k4_q5-3_w7_h32-32",
    "mb3d_r4_c16_n2_k4_v8_h32",
    "head_r4_i16_o10_bn_d0",
]
MEMBERS = [f"{name},{precision}" for name, row in RUNTIMES.items() for precision in row.precisions]
# how far from torch's fp32 numbers, root mean square by root mean square
TOLERANCE = {"fp32": 1e-4, "fp16": 2e-2, "int8": 0.25}


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """One chain in each kind of file."""
    chain = parts_of(parse_network(BLOCKS))
    found = {}
    for takes in (ONNX, PARTS):
        folder = tmp_path_factory.mktemp(takes)
        workshop = Workshop(folder, takes=takes)
        workshop.export([chain])
        found[takes] = workshop.join({"chain": chain}, folder)["chain"]
    return found


@pytest.fixture(scope="module")
def expected() -> Any:
    """What torch makes of the chain, as it stands."""
    from nas.network.onnx import sample_module

    modules = [sample_module(part).eval() for part in parts_of(parse_network(BLOCKS))]
    with torch.inference_mode():
        return torch.nn.Sequential(*modules)(torch.from_numpy(sample_input((1, 3, 16, 16)))).numpy()


@pytest.fixture(autouse=True)
def _torch_s_threads() -> Iterator[None]:
    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


def threads_of(name: str, runtime: Any, runner: Any) -> int:
    """Return how many threads a runtime says it uses."""
    if name == "onnxruntime":
        return int(runtime._options.intra_op_num_threads)
    if name == "openvino":
        return int(runner.compiled.get_property("INFERENCE_NUM_THREADS"))
    return torch.get_num_threads()


def test_every_runtime_of_a_target_can_be_made_and_no_other() -> None:
    assert set(runtimes.RUNTIMES) == set(RUNTIMES)


@pytest.mark.parametrize("member", MEMBERS)
class TestRuntimeContract:
    @pytest.fixture
    def target(self, member: str) -> Target:
        try:
            return Target.parse(member)
        except DeviceError as error:
            pytest.skip(str(error))

    @pytest.fixture
    def file(self, target: Target, files: dict[str, Path]) -> Path:
        return files[RUNTIMES[target.runtime].takes]

    def test_a_chain_gives_torch_s_numbers_again_and_again(
        self, target: Target, file: Path, expected: Any
    ) -> None:
        runner = runtimes.create(target).load(file)[0]
        for _ in range(3):
            runner.run()
        found = runner.output()
        assert found.shape == expected.shape
        assert np.isfinite(found).all()
        error = np.linalg.norm(found - expected) / np.linalg.norm(expected)
        assert error < TOLERANCE[target.precision]

    def test_loads_of_one_file_give_the_same_numbers_and_share_no_memory(
        self, target: Target, file: Path
    ) -> None:
        one, two = runtimes.create(target).load(file, 2)
        assert one is not two
        assert np.array_equal(one.output(), two.output())

    def test_two_networks_live_side_by_side(self, target: Target, file: Path) -> None:
        runtime = runtimes.create(target)
        first = runtime.load(file)[0]
        before = first.output().copy()
        second = runtime.load(file)[0]
        second.run()
        assert np.array_equal(first.output(), before)

    @pytest.mark.skipif(allowed_cores() < 2, reason="needs two cores")
    def test_it_uses_the_target_s_threads(self, target: Target, file: Path) -> None:
        for threads in (2, 1):
            runtime = runtimes.create(replace(target, threads=threads))
            assert threads_of(target.runtime, runtime, runtime.load(file)[0]) == threads

    @pytest.mark.parametrize("content", [b"", b"not a network", b'{"schema": 1}', None])
    def test_what_cannot_be_loaded_is_a_device_error_that_names_the_file(
        self, target: Target, content: bytes | None, tmp_path: Path
    ) -> None:
        if content is not None:
            (tmp_path / "bad.onnx").write_bytes(content)
        with pytest.raises(DeviceError, match=rf"{target.runtime} cannot load bad\.onnx: .*\S"):
            runtimes.create(target).load(tmp_path / "bad.onnx")

    def test_a_file_of_the_other_kind_is_a_device_error(
        self, target: Target, files: dict[str, Path]
    ) -> None:
        other = files[PARTS if RUNTIMES[target.runtime].takes == ONNX else ONNX]
        with pytest.raises(DeviceError, match=f"{target.runtime} cannot load {other.name}"):
            runtimes.create(target).load(other)

    def test_another_version_than_the_target_s_is_refused(self, target: Target) -> None:
        with pytest.raises(DeviceError, match=r"0\.0\.1, but .* is installed"):
            runtimes.create(replace(target, version="0.0.1"))

    def test_a_child_answers_its_times(self, target: Target, file: Path) -> None:
        with ChildBench(target) as bench:
            assert bench.load("chain", file) > 0
            (times,) = bench.run([Visit(name="chain", prime=2, loops=3, samples=4)])
        assert times.shape == (4, 3)
        assert (times > 0).all()

    @pytest.mark.slow
    def test_a_table_is_made_with_it_that_says_so(self, target: Target, tmp_path: Path) -> None:
        config = ProfileConfig(samples=3, spread_s=0.1, time_limit_s=5.0)
        blocks = [parse("stem_r16_i3_c8-16_b1_a1"), parse("dw_r4_c16")]
        table = profile(blocks, target, tmp_path / "table.json", config)
        assert all(table.block_ms(block) > 0 for block in blocks)
        package = RUNTIMES[target.runtime].package
        assert f"{package} {target.version}" in table.provenance["versions"]


@pytest.mark.parametrize("name", [n for n, row in RUNTIMES.items() if row.takes == ONNX])
def test_a_network_without_a_fixed_shape_is_refused(
    name: str, tmp_path: Path, write_conv: Any
) -> None:
    if find_spec(RUNTIMES[name].package) is None:
        pytest.skip(f"{name} is not installed")
    for precision in RUNTIMES[name].precisions:
        with pytest.raises(DeviceError, match="fixed shape"):
            runtimes.create(Target.parse(f"{name},{precision}")).load(
                write_conv(tmp_path / "n.onnx", "side")
            )


def test_onnxruntime_runs_one_operator_after_another_and_never_spins() -> None:
    options = runtimes.create(Target.parse("onnxruntime"))._options  # type: ignore[attr-defined]
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert "SEQUENTIAL" in str(options.execution_mode)


def test_a_child_loads_the_library_of_its_target_and_no_other() -> None:
    code = (
        "import sys; from nas.latency import runtimes; from nas.target import Target;"
        "runtimes.create(Target.parse('onnxruntime'));"
        "print([name for name in ('torch', 'openvino', 'nncf') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


# ---------------------------------------------------------------- openvino
def test_openvino_computes_fp32_in_fp32(files: dict[str, Path]) -> None:
    pytest.importorskip("openvino")
    runner: Any = runtimes.create(Target.parse("openvino")).load(files[ONNX])[0]
    compiled = runner.compiled
    assert compiled.get_property("INFERENCE_PRECISION_HINT").get_type_name() == "f32"
    assert compiled.get_property("NUM_STREAMS") == 1
    nodes = compiled.get_runtime_model().get_ordered_ops()
    assert {node.get_rt_info()["runtimePrecision"].astype(str) for node in nodes} <= {"f32", "i32"}


def test_openvino_and_nncf_report_nothing_of_their_use() -> None:
    """Their package forks a process at every import; without the internet that one hangs."""
    pytest.importorskip("nncf")
    code = (
        "import sys; from nas.latency.runtimes import openvino_cpu;"
        "import nncf, openvino.tools.ovc.telemetry_utils as reports;"
        "print(reports.tm.__name__, sys.modules['openvino_telemetry'])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["openvino.tools.ovc.telemetry_stub", "None"]


def test_a_runtime_that_cannot_be_imported_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    target = Target.parse("onnxruntime")
    monkeypatch.setitem(RUNTIMES, "openvino", replace(RUNTIMES["openvino"], package="onnxruntime"))
    monkeypatch.setitem(sys.modules, "openvino", None)
    monkeypatch.delitem(sys.modules, "nas.latency.runtimes.openvino_cpu", raising=False)
    with pytest.raises(DeviceError, match=r"pip install 'hybrid-nas\[openvino\]'"):
        runtimes.create(replace(target, runtime="openvino"))


# ---------------------------------------------------------------- torch
def test_torch_times_an_exported_folder_stock_or_not(tmp_path: Path) -> None:
    import timm

    import nas.network

    stock = ["stem_r32_i3_c8-16_b1_a1", "mb4d_r8_c16_h32_p3", "mb3d_r8_c16_n8_k32_v128_h64"]
    for number, blocks in enumerate([BLOCKS, [*stock, "head_r8_i16_o10_ln_d1"]]):
        model: Any = nas.network.build(blocks).eval()
        side = parse_network(blocks)[0].resolution
        if number == 1 and nas.network.stock.stock_args(blocks) is not None:
            model = nas.network.stock.to_timm(model).eval()
        folder = tmp_path / str(number)
        size = {"input_size": (3, side, side)}
        timm.models.save_for_hf(model, str(folder), safe_serialization=True, data_config=size)
        found = runtimes.create(Target.parse("torch")).load(folder)[0].output()
        with torch.inference_mode():
            wanted = model(torch.from_numpy(sample_input((1, 3, side, side))))
        assert np.allclose(found, wanted.numpy(), atol=1e-4)


def test_torch_runs_a_whole_network_as_timm_builds_it_not_as_a_row_of_parts(
    tmp_path: Path,
) -> None:
    blocks = parse_network(BLOCKS)
    (file,) = Workshop(tmp_path, takes=PARTS).join({"whole": blocks}, tmp_path).values()
    runtime = runtimes.create(Target.parse("torch,fp32"))
    (runner,) = runtime.load(file)
    assert isinstance(runner.model, nas.network.NasHybrid)  # type: ignore[attr-defined]
    assert runner.output().shape == (1, 10)


def test_torch_takes_the_target_s_batch(files: dict[str, Path]) -> None:
    runner = runtimes.create(Target.parse("torch,b3")).load(files[PARTS])[0]
    assert runner.output().shape == (3, 10)


@pytest.mark.parametrize(
    "content",
    [
        {"schema": 2, "parts": ["stem_r16_i3_c8_b1_a0"]},
        {"schema": 1, "parts": []},
        {"schema": 1, "parts": [3]},
        {"schema": 1, "parts": ["stem_r16"]},
        ["stem_r16_i3_c8_b1_a0"],
    ],
)
def test_torch_refuses_parts_that_are_none(content: Any, tmp_path: Path) -> None:
    (tmp_path / "0.json").write_text(json.dumps(content))
    with pytest.raises(DeviceError, match=r"torch cannot load 0\.json"):
        runtimes.create(Target.parse("torch")).load(tmp_path / "0.json")


# ---------------------------------------------------------------- GPUs, as far as without one
@pytest.fixture
def gpu(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Target:
    """A machine whose driver names a GPU, and which torch cannot use."""
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA A100-SXM4-40GB'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    return Target.parse("torch-cuda,fp16")


def test_a_gpu_that_torch_cannot_use_is_a_device_error(gpu: Target) -> None:
    with pytest.raises(DeviceError, match="a CUDA build of torch"):
        runtimes.create(gpu)


def test_another_gpu_than_the_target_s_is_refused(
    gpu: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda device: "NVIDIA T4")
    with pytest.raises(DeviceError, match="torch would use nvidia-t4"):
        runtimes.create(gpu)


def test_what_runs_on_a_gpu_is_not_held_to_the_processor_s_time(
    gpu: Target, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Far:
        """A runtime that leaves the processor idle."""

        def load(self, path: Path, times: int) -> Any:
            return [self] * times

        def run(self) -> None:
            time.sleep(0.001)

    worker = Worker()
    monkeypatch.setattr("nas.latency.worker.create", lambda target, cache: Far())
    cores = sorted(os.sched_getaffinity(0))
    worker.start(gpu.to_json(), cores, str(tmp_path / "trace"), loads=1)
    worker.load("n", "n.json")
    (far,) = worker.run([("n", 1, 1, 3, False)])
    assert all(wall == cpu for wall, cpu, _ in far)


def test_a_precision_whose_package_is_absent_says_how_to_install_it(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        target_module, "_version_or_none", lambda name: None if name == "nncf" else "2026.4.1"
    )
    assert Target.parse("openvino,fp32").precision == "fp32"
    with pytest.raises(DeviceError, match=r"needs nncf for int8.*pip install 'hybrid-nas\[openv"):
        Target.parse("openvino,int8")

"""int8: that it is int8 which runs, and that quantized files can be used."""

from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest

from nas.block import parse_network
from nas.errors import CorruptFile, DeviceError
from nas.latency import runtimes
from nas.latency.compose import Workshop
from nas.latency.quantize import quantize_onnx
from nas.latency.recipes import parts_of
from nas.latency.runtimes.protocol import sample_input
from nas.target import Target

BLOCKS = [
    "stem_r16_i3_c8-16_b1_a1",
    "mb4d_r4_c16_h32_p3",
    "mb3d_r4_c16_n2_k4_v8_h32",
    "head_r4_i16_o10_bn_d0",
]


@pytest.fixture(scope="module")
def chain(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("chain")
    parts = parts_of(parse_network(BLOCKS))
    workshop = Workshop(folder)
    workshop.export([parts])
    return workshop.join({"chain": parts}, folder)["chain"]


def test_onnxruntime_runs_convolutions_and_products_in_int8(chain: Path, tmp_path: Path) -> None:
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    options.log_severity_level = 3
    file = quantize_onnx(chain, tmp_path / "int8.onnx")
    onnxruntime.InferenceSession(str(file), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(str(tmp_path / "optimised.onnx")).graph.node
    counts = Counter(node.op_type for node in nodes)
    assert counts["QLinearConv"] == 6  # two of them mix what is pooled
    assert not {"Conv", "FusedConv", "MatMul", "Gemm", "FusedMatMul"} & set(counts)


def test_openvino_runs_convolutions_and_products_in_int8(chain: Path) -> None:
    pytest.importorskip("nncf")
    runner: Any = runtimes.create(Target.parse("openvino,int8")).load(chain)[0]
    found: Counter[tuple[str, str]] = Counter()
    for node in runner.compiled.get_runtime_model().get_ordered_ops():
        about = node.get_rt_info()
        found[about["layerType"].astype(str), about["runtimePrecision"].astype(str)] += 1
    heavy = {key: n for key, n in found.items() if key[0] in ("Convolution", "FullyConnected")}
    assert heavy and all(precision in ("i8", "u8") for _, precision in heavy), found


def test_a_file_calibrated_on_real_inputs_is_closer_there_than_one_on_random_ones(
    chain: Path, tmp_path: Path
) -> None:
    samples = [50 * sample_input((1, 3, 16, 16), seed=seed) for seed in range(10, 14)]
    real = quantize_onnx(chain, tmp_path / "real.onnx", samples=samples)
    random = quantize_onnx(chain, tmp_path / "random.onnx")
    outputs = []
    for file in (chain, real, random):
        session = onnxruntime.InferenceSession(str(file), providers=["CPUExecutionProvider"])
        outputs.append(session.run(None, {session.get_inputs()[0].name: samples[0]})[0])
    true, by_real, by_random = outputs
    assert np.abs(by_real - true).max() < np.abs(by_random - true).max()


def test_the_same_file_quantizes_to_the_same_bytes(chain: Path, tmp_path: Path) -> None:
    first = quantize_onnx(chain, tmp_path / "a.onnx").read_bytes()
    assert quantize_onnx(chain, tmp_path / "b.onnx").read_bytes() == first


def test_what_is_no_onnx_file_is_refused_and_nothing_is_written(tmp_path: Path) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"not onnx")
    with pytest.raises(CorruptFile, match=r"bad\.onnx"):
        quantize_onnx(tmp_path / "bad.onnx", tmp_path / "int8.onnx")
    assert not (tmp_path / "int8.onnx").exists()


def test_inputs_of_another_shape_are_a_device_error(chain: Path, tmp_path: Path) -> None:
    samples = [np.zeros((1, 3, 8, 8), dtype=np.float32)]
    with pytest.raises(DeviceError, match=r"cannot quantize 0\.onnx"):
        quantize_onnx(chain, tmp_path / "int8.onnx", samples=samples)


def test_quantizing_says_nothing(
    chain: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    quantize_onnx(chain, tmp_path / "int8.onnx")
    assert capfd.readouterr() == ("", "")

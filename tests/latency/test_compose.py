from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from nas.block import parse, parse_network
from nas.errors import CorruptFile, StorageError
from nas.latency.compose import Workshop, is_network, join, read_parts, weight_bytes
from nas.latency.recipes import parts_of
from nas.target import PARTS

WHOLE = [
    "stem_r32_i3_c8-16_b1_a1",
    "mb4d_r8_c16_h32_p3",
    "patch_merge_r8_i16_o48_h32_s8_f16-48",
    "mb4d_r4_c48_h96_p3",
    "cga_r4_c48_n3_k8_q5-3-3_w7_h48-96",
    "mb3d_r4_c48_n4_k8_v16_h96",
    "mb3d_r4_c48_n4_k8_v16_h48",
    "downsample_r4_i48_o64",
    "mb3d_r2_c64_n4_k8_v16_h96",
    "mb3d_r2_c64_n4_k8_v16_h96",
    "head_r2_i64_o10_ln_d0",
]


def scale(factor: float, *, opset: int = 20, inputs: int = 1) -> Any:
    """Return a model y = relu(factor * x) of shape (2,)."""
    values = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2]) for n in ("x", "z")]
    out = helper.make_tensor_value_info("y", TensorProto.FLOAT, [2])
    weight = numpy_helper.from_array(np.array([factor], dtype=np.float32), "w")
    nodes = [
        helper.make_node("Mul", ["x", "w"], ["m"], name="mul"),
        helper.make_node("Relu", ["m"], ["y"], name="act"),
    ]
    graph = helper.make_graph(nodes, "scale", values[:inputs], [out], [weight])
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)


def run(model: Any, x: list[float]) -> list[float]:
    session = onnxruntime.InferenceSession(
        model.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (y,) = session.run(None, {session.get_inputs()[0].name: np.array(x, dtype=np.float32)})
    return [float(value) for value in y]


def test_a_joined_model_computes_its_parts_in_order() -> None:
    joined = join([scale(2), scale(-1), scale(3)], name="chain")
    assert run(joined, [1.0, -1.0]) == [0.0, 0.0]
    joined = join([scale(-1), scale(2), scale(3)], name="chain")
    assert run(joined, [1.0, -1.0]) == [0.0, 6.0]
    onnx.checker.check_model(joined, full_check=True)


def test_copies_of_one_part_have_weights_of_their_own() -> None:
    joined = join([scale(2)] * 3, name="chain")
    names = [tensor.name for tensor in joined.graph.initializer]
    assert len(names) == len(set(names)) == 3
    assert len({node.name for node in joined.graph.node}) == 6


def test_one_model_joined_with_nothing_is_itself() -> None:
    assert run(join([scale(2)], name="one"), [1.0, 3.0]) == [2.0, 6.0]


@pytest.mark.parametrize(
    ("models", "rule"),
    [
        ([scale(1), scale(1, opset=19)], "the opset of the others"),
        ([scale(1, inputs=2)], "one input"),
    ],
)
def test_models_that_do_not_fit_are_refused_by_the_rule_they_break(
    models: list[Any], rule: str
) -> None:
    with pytest.raises(CorruptFile, match=rule):
        join(models, name="chain")


def test_a_model_whose_weights_share_a_name_is_refused() -> None:
    model = scale(1)
    model.graph.initializer.append(numpy_helper.from_array(np.array([5], dtype=np.float32), "w"))
    with pytest.raises(CorruptFile, match="a name for each value"):
        join([model], name="chain")


def test_each_distinct_part_is_exported_once(tmp_path: Path, export: Any) -> None:
    asked: list[str] = []

    def counting(parts: Any, folder: Path, *, batch: int) -> Any:
        asked.extend(map(str, parts))
        return export(parts, folder, batch=batch)

    a, b = parse("dw_r4_c8"), parse("ffn_r4_c8_h16")
    workshop = Workshop(tmp_path, counting)
    workshop.export([(a,), (a, a, b)])
    workshop.export([(b, a)])
    assert asked == ["dw_r4_c8", "ffn_r4_c8_h16"]
    (tmp_path / "chains").mkdir()
    paths = workshop.join({"one": (a, b), "two": (b, b, b)}, tmp_path / "chains")
    assert len(onnx.load(str(paths["two"])).graph.node) == 3
    assert sorted(paths) == ["one", "two"]


def test_a_runtime_that_takes_parts_gets_their_names_and_nothing_is_exported(
    tmp_path: Path,
) -> None:
    def never(parts: Any, folder: Path, *, batch: int) -> Any:
        raise AssertionError("exported")

    chain = (parse("dw_r4_c8"), parse("ffn_r4_c8_h16"), parse("dw_r4_c8"))
    workshop = Workshop(tmp_path, never, takes=PARTS)
    workshop.export([chain])
    (file,) = workshop.join({"chain": chain}, tmp_path).values()
    assert read_parts(file) == chain
    assert weight_bytes(file) == sum(part.bytes for part in chain)


def test_a_whole_network_is_its_blocks_for_torch_and_its_parts_for_onnx(
    tmp_path: Path, export: Any
) -> None:
    blocks = parse_network(WHOLE)
    assert is_network(blocks)
    assert not is_network(parts_of(blocks)), "parts are none of timm's blocks"
    assert not is_network(blocks[:-1])
    assert not is_network((blocks[0], blocks[-1])), "a head behind what leads in to it"
    (file,) = Workshop(tmp_path, takes=PARTS).join({"n": blocks}, tmp_path).values()
    assert read_parts(file) == blocks
    workshop = Workshop(tmp_path, export)
    workshop.export([blocks])
    (file,) = workshop.join({"n": blocks}, tmp_path).values()
    assert len(onnx.load(str(file)).graph.node) == len(parts_of(blocks)) > len(blocks)


def test_parts_on_a_full_disk_are_a_storage_error(tmp_path: Path) -> None:
    workshop = Workshop(tmp_path, takes=PARTS)
    with pytest.raises(StorageError, match=r"0\.json"):
        workshop.join({"chain": (parse("dw_r4_c8"),)}, tmp_path / "absent")


def optimised_ops(path: Path, folder: Path) -> Counter[str]:
    """Return how often each operation stands in the graph that ONNX Runtime really runs."""
    options = onnxruntime.SessionOptions()
    options.optimized_model_filepath = str(folder / "optimised.onnx")
    options.log_severity_level = 3
    onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    nodes = onnx.load(str(folder / "optimised.onnx")).graph.node
    return Counter(node.op_type for node in nodes)


@pytest.mark.slow
def test_a_network_joined_from_parts_is_node_for_node_the_one_exported_whole(
    tmp_path: Path,
) -> None:
    from nas.network import build
    from nas.network.onnx import to_onnx

    blocks = parse_network(WHOLE)
    (tmp_path / "parts").mkdir()
    workshop = Workshop(tmp_path / "parts")
    workshop.export([parts_of(blocks)])
    joined = workshop.join({"joined": parts_of(blocks)}, tmp_path)["joined"]
    whole = to_onnx(build(blocks).eval(), tmp_path / "whole.onnx")
    assert optimised_ops(joined, tmp_path) == optimised_ops(whole, tmp_path)

"""ONNX files: the same numbers as torch, self-contained, and nothing of this machine inside."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime as ort
import pytest
import timm
import torch
from torch import nn

from nas import target
from nas.block import BLOCKS, PARTS, Block, parse
from nas.errors import ConfigError, NasError, StorageError
from nas.network import parts_to_onnx, to_onnx
from nas.network.onnx import EXPORTER, OPSET, sample_module

Make = Callable[..., Any]  # Any: a NasHybrid, whose timm attributes have no types

SOME = [
    "ffn_r4_c16_h40",
    "attn_r3_c16_n2_k5_v6",
    "group_attn_r5_c16_n2_k5_q5-3_w3",
    "mbconv_r5_c16_h40_k5_s8_a0",
]
BLOCK_STRINGS = [
    "stem_r16_i3_c8-16_b1_a1",
    "mb4d_r4_c16_h24_p3",
    "mb3d_r3_c16_n2_k5_v6_h24",
    "cga_r4_c16_n2_k5_q5-3_w7_h16-40",
    "cga_r5_c16_n2_k5_q5-3_w3_h16-40_hardswish",
    "mbconv_r5_c16_h40_k5_s8_a1",
    "downsample_r5_i16_o24",
    "patch_merge_r4_i16_o24_h40_s8_f24-32",
    "head_r4_i16_o10_ln_d1",
    "head_r4_i16_o10_bn_d0",
]


def run(path: Path, x: torch.Tensor) -> np.ndarray[Any, Any]:
    session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
    (output,) = session.run(["output"], {"input": x.numpy()})
    return np.asarray(output)


def image_for(block: Block, batch: int) -> torch.Tensor:
    return torch.randn(batch, block.in_channels, block.resolution, block.resolution)


def close(given: np.ndarray[Any, Any], expected: torch.Tensor) -> bool:
    wanted = expected.detach().numpy()
    return bool(np.abs(given - wanted).max() <= 1e-5 * np.abs(wanted).max())


def check(paths: dict[str, Path], batch: int) -> None:
    """Check numbers, names, shapes and anonymity of exported parts."""
    for name, path in paths.items():
        part = parse(name)
        x = image_for(part, batch)
        assert close(run(path, x), sample_module(part).eval()(x)), name
        assert path.name == f"{name}.onnx"
        onnx.checker.check_model(str(path), full_check=True)
        model = onnx.load(path, load_external_data=False)
        assert [(item.domain, item.version) for item in model.opset_import] == [("", OPSET)]
        assert [item.name for item in model.graph.input] == ["input"]
        assert [item.name for item in model.graph.output] == ["output"]
        raw = path.read_bytes()
        for trace in (b".py", b"site-packages", str(Path.cwd()).encode(), b"stack_trace"):
            assert trace not in raw


def test_parts_give_torchs_numbers_in_files_that_do_not_depend_on_each_other(
    tmp_path: Path,
) -> None:
    parts = [parse(name) for name in (*SOME, *SOME)]
    done: list[tuple[int, int, str]] = []
    paths = parts_to_onnx(
        parts, tmp_path / "a", batch=2, progress=lambda *report: done.append(report)
    )
    assert list(paths) == SOME
    assert done == [(4, 4, "parts exported")]
    assert len(list((tmp_path / "a").iterdir())) == 4
    check(paths, batch=2)
    again = parts_to_onnx(parts[:1], tmp_path / "b", batch=2)
    assert again[SOME[0]].read_bytes() == paths[SOME[0]].read_bytes()


@pytest.mark.slow
def test_every_kind_of_part_and_block_gives_torchs_numbers(tmp_path: Path) -> None:
    blocks = [parse(text) for text in BLOCK_STRINGS]
    every = [*(part for block in blocks for part in block.parts()), *blocks]
    assert {item.kind for item in every} == BLOCKS.keys() | PARTS.keys()
    paths = parts_to_onnx(every, tmp_path)
    assert paths.keys() == {str(item) for item in every}
    check(paths, batch=1)


def test_a_network_gives_torchs_numbers_and_is_left_as_it_was(
    make: Make, images: torch.Tensor, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    model = make("mb3d").train()
    before = {name: tensor.clone() for name, tensor in model.state_dict().items()}
    path = to_onnx(model, tmp_path / "new" / "model.onnx", batch=2)
    assert model.training and all(p.requires_grad for p in model.parameters())
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    assert close(run(path, images), model.eval()(images))
    assert capfd.readouterr().out == ""
    graph = onnx.load(path).graph
    assert [d.dim_value for d in graph.input[0].type.tensor_type.shape.dim] == [2, 3, 32, 32]
    assert b"nas/network" not in path.read_bytes()
    with pytest.raises(ort.capi.onnxruntime_pybind11_state.InvalidArgument):
        run(path, images[:1])


@pytest.mark.slow
def test_any_timm_model_and_any_module_with_a_shape_can_be_exported(tmp_path: Path) -> None:
    theirs = timm.create_model("test_vit", num_classes=3).eval()
    x = torch.randn(1, 3, 160, 160)
    assert close(run(to_onnx(theirs, tmp_path / "vit.onnx"), x), theirs(x))
    x = torch.randn(1, 4, 5, 6)
    double = nn.Conv2d(4, 2, 1).double()
    path = to_onnx(double, tmp_path / "conv.onnx", shape=(4, 5, 6))
    assert close(run(path, x), double.float()(x))


@pytest.mark.slow
def test_a_model_torch_cannot_export_is_said_without_a_file(tmp_path: Path) -> None:
    class Unwilling(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x if x.sum() > 0 else -x

    with pytest.raises(NasError, match="torch cannot export this Unwilling"):
        to_onnx(Unwilling(), tmp_path / "x.onnx", shape=(1, 2, 2))
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError):
        to_onnx(nn.Conv2d(1, 1, 1), tmp_path / "file" / "x.onnx", shape=(1, 2, 2))
    assert [item.name for item in tmp_path.iterdir()] == ["file"]


def test_arguments_that_make_no_file_are_refused(tmp_path: Path, make: Make) -> None:
    with pytest.raises(ConfigError, match="does not say its input's shape; give shape="):
        to_onnx(nn.Conv2d(1, 1, 1), tmp_path / "x.onnx")
    with pytest.raises(ConfigError, match="batch must be at least 1, but is 0"):
        to_onnx(make("mb4d"), tmp_path / "x.onnx", batch=0)
    assert not list(tmp_path.iterdir())


def test_no_weight_of_an_exported_part_is_lost_by_merging_equal_ones() -> None:
    names = (*SOME, "dw_r4_c16", "dw_r5_c16", "merge_r4_i16_o16_h16_s8")
    tensors = [
        tensor.numpy().tobytes()
        for name in names
        for tensor in sample_module(parse(name)).state_dict().values()
        if tensor.is_floating_point()
    ]
    assert len(set(tensors)) == len(tensors)


def test_pool_mixers_are_all_convolutions_and_pools_which_runtimes_keep_in_their_own_layout(
    tmp_path: Path,
) -> None:
    (path,) = parts_to_onnx([parse("mb4d_r8_c16_h32_p3")], tmp_path).values()
    operators = [node.op_type for node in onnx.load(path).graph.node]
    assert sorted(operators[: operators.index("Add")]) == ["AveragePool", "Conv", "Conv"]


def test_the_exporter_is_the_one_that_targets_name() -> None:
    assert (EXPORTER, OPSET) == (target.EXPORTER, target.OPSET)

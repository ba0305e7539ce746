"""The questions are about what they say: equal shapes, equal widths, the right block strings."""

from typing import Any

import numpy as np
import pytest
import torch

from nas.latency.device_study.catalogue import WIDTH_SIDES, WIDTHS, questions
from nas.latency.device_study.modules import PARTS, MemoryBound, ThereAndBack
from nas.latency.device_study.question import Question

QUESTIONS = {question.key: question for question in questions()}
SMALL = [key for key in QUESTIONS if key != "widths"]


def output_of(variant: Any) -> torch.Tensor:
    with torch.no_grad():
        output: torch.Tensor = variant.make().eval()(torch.randn(1, *variant.shape))
    return output


def test_keys_and_names_are_unique_and_pairs_name_variants() -> None:
    for question in QUESTIONS.values():
        names = [variant.name for variant in question.variants]
        assert len(set(names)) == len(names)
        assert {name for pair in question.pairs for name in (pair.over, pair.under)} <= set(names)
        assert not question.profiled or question.profiled in names
    assert len(QUESTIONS) == 7


@pytest.mark.parametrize("key", SMALL)
def test_what_is_compared_gives_maps_of_equal_shape(key: str) -> None:
    question: Question = QUESTIONS[key]
    outputs = [output_of(variant) for variant in question.variants]
    assert len({tuple(output.shape) for output in outputs}) == 1
    assert all(torch.isfinite(output).all() for output in outputs)


@pytest.mark.parametrize("variant", QUESTIONS["widths"].variants[::20], ids=lambda v: v.name)
def test_widths_keep_their_channels(variant: Any) -> None:
    assert tuple(output_of(variant).shape[1:]) == variant.shape


def test_widths_cover_the_multiples_that_spaces_use_and_odd_neighbours() -> None:
    assert set(range(8, 161, 8)) <= set(WIDTHS) and {15, 17, 31, 33, 63, 65} <= set(WIDTHS)
    assert len(QUESTIONS["widths"].variants) == len(WIDTHS) * len(WIDTH_SIDES)


def test_attention_and_the_ffn_beside_it_have_as_many_parameters() -> None:
    made = {
        v.name: v.make() for v in QUESTIONS["attention"].variants if v.name in ("mhsa", "ffn_2x")
    }
    mhsa, ffn = (sum(p.numel() for p in made[name].parameters()) for name in ("mhsa", "ffn_2x"))
    assert mhsa == pytest.approx(ffn, rel=0.02)


def test_going_there_and_back_moves_every_number_and_loses_none() -> None:
    x = torch.arange(3 * 4 * 4, dtype=torch.float32).reshape(1, 3, 4, 4)
    y = ThereAndBack()(x)
    assert y.shape == x.shape and not torch.equal(x, y)
    assert np.array_equal(np.sort(y.numpy().ravel()), x.numpy().ravel())


def test_leaving_operations_out_changes_no_product() -> None:
    whole = MemoryBound(16, 2, 32)
    for name in PARTS:
        less = MemoryBound(16, 2, 32, [name])
        linears = [m.weight.shape for m in less.modules() if isinstance(m, torch.nn.Linear)]
        assert linears == [
            m.weight.shape for m in whole.modules() if isinstance(m, torch.nn.Linear)
        ]
        x = torch.randn(1, 16, 4, 4)
        assert less.eval()(x).shape == x.shape


@pytest.mark.slow
def test_without_transposes_none_is_exported_but_the_one_of_the_keys_is_gone_too(
    tmp_path: Any,
) -> None:
    import onnx

    from nas.network.onnx import modules_to_onnx

    shape = (16, 4, 4)
    modules = {
        "whole": (MemoryBound(16, 2, 32), shape),
        "less": (MemoryBound(16, 2, 32, ["transposes"]), shape),
        "bare": (MemoryBound(16, 2, 32, PARTS), shape),
    }
    paths = modules_to_onnx(modules, tmp_path)
    ops = {
        name: [node.op_type for node in onnx.load(str(path)).graph.node]
        for name, path in paths.items()
    }
    assert "Transpose" in ops["whole"] and "Transpose" not in ops["less"]
    assert {"Softmax", "LayerNormalization", "Gelu"} <= set(ops["whole"])
    assert not {"Softmax", "LayerNormalization", "Gelu"} & set(ops["bare"])
    assert ops["bare"].count("MatMul") == ops["whole"].count("MatMul")

"""A network as a citizen of timm: running, tracing, feature maps, on every kind of block."""

import copy
from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.models import get_notrace_functions, get_notrace_modules
from torch import nn
from torchvision.models.feature_extraction import create_feature_extractor, get_graph_node_names

Texts = Callable[[str], list[str]]
Make = Callable[..., Any]  # Any: a NasHybrid, whose timm attributes have no types


def same_weights(into: Any, source: nn.Module) -> Any:
    into.load_state_dict(source.state_dict())
    return into


def test_gradient_checkpointing_changes_no_output_and_no_gradient(
    name: str, make: Make, images: torch.Tensor
) -> None:
    plain = make(name).train()
    checkpointed = same_weights(make(name), plain).train()
    checkpointed.set_grad_checkpointing()
    outputs = []
    for model in (plain, checkpointed):
        output = model(images)
        output.square().mean().backward()
        outputs.append(output)
    assert torch.equal(*outputs)
    for (name_, a), (_, b) in zip(
        plain.named_parameters(), checkpointed.named_parameters(), strict=True
    ):
        assert a.grad is not None and b.grad is not None, name_
        assert torch.equal(a.grad, b.grad), name_


def test_backward_gives_every_parameter_a_gradient(
    name: str, make: Make, images: torch.Tensor
) -> None:
    model = make(name, num_classes=42).train()
    output = model(images)
    assert output.shape == (2, 42)
    (
        output * torch.randn(output.shape, generator=torch.Generator().manual_seed(1))
    ).sum().backward()
    for parameter_name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), parameter_name
        if not parameter_name.endswith("conv.bias"):  # BatchNorm takes a constant away
            assert parameter.grad.any(), parameter_name


def test_features_only_gives_the_map_of_each_stage(
    name: str, texts: Texts, images: torch.Tensor
) -> None:
    features: Any = timm.create_model("nas_hybrid", blocks=texts(name), features_only=True)
    features.eval()
    maps = features(images)
    assert [m.shape[1] for m in maps] == features.feature_info.channels()
    assert [32 // m.shape[2] for m in maps] == features.feature_info.reduction() == [4, 8, 16]
    last = timm.create_model(
        "nas_hybrid", blocks=texts(name), features_only=True, out_indices=(-1,)
    )
    (only,) = same_weights(last, features).eval()(images)
    assert torch.equal(only, maps[-1])


@pytest.mark.parametrize("is_training", [False, True])
def test_fx_traces_the_same_function(
    name: str, is_training: bool, make: Make, images: torch.Tensor
) -> None:
    model = make(name)
    tracer = {
        "leaf_modules": get_notrace_modules(),  # type: ignore[no-untyped-call]
        "autowrap_functions": get_notrace_functions(),  # type: ignore[no-untyped-call]
        "param_shapes_constant": True,
    }
    train_nodes, eval_nodes = get_graph_node_names(model, tracer_kwargs=tracer)
    traced = create_feature_extractor(
        model,
        train_return_nodes=[train_nodes[-1]],
        eval_return_nodes=[eval_nodes[-1]],
        tracer_kwargs=tracer,
    )
    (output,) = traced.train(is_training)(images).values()
    assert torch.equal(output, copy.deepcopy(model).train(is_training)(images))
    output.square().mean().backward()


def test_torchscript_computes_the_same(name: str, make: Make, images: torch.Tensor) -> None:
    model = make(name)
    with torch.no_grad():
        torch.testing.assert_close(torch.jit.script(model)(images), model(images))


def test_tracing_records_no_warning_and_the_same_function(make: Make, images: torch.Tensor) -> None:
    model = make("all")
    with torch.no_grad():
        traced = torch.jit.trace(model, images, check_trace=False)  # type: ignore[no-untyped-call]
        torch.testing.assert_close(traced(images), model(images))


def test_forward_intermediates_agrees_with_forward_features(
    name: str, make: Make, images: torch.Tensor
) -> None:
    model = make(name)
    with torch.no_grad():
        last, maps = model.forward_intermediates(images)
        assert torch.equal(last, model.forward_features(images))
        assert torch.equal(maps[-1], last)
        assert [m.shape[1] for m in maps] == [row["num_chs"] for row in model.feature_info]
        (middle,) = model.forward_intermediates(
            images, indices=[1], stop_early=True, intermediates_only=True
        )
        assert torch.equal(middle, maps[1])
        *_, normed = model.forward_intermediates(images, norm=True, intermediates_only=True)
        pooled = model.forward_head(last, pre_logits=True)
        if name in ("mb4d", "mb3d"):  # ln: normalised place by place, then averaged
            torch.testing.assert_close(normed.mean((2, 3)), pooled)
        else:
            assert torch.equal(normed, last)
        torch.testing.assert_close(model.forward_head(last), model(images))
        with pytest.raises(AssertionError, match="NCHW"):
            model.forward_intermediates(images, output_fmt="NLC")


def test_pruning_to_a_stage_keeps_its_map_and_leaves_nothing_unused(
    name: str, make: Make, images: torch.Tensor
) -> None:
    whole = make(name)
    maps = whole.forward_intermediates(images, intermediates_only=True)
    for index, expected in enumerate(maps):
        model = copy.deepcopy(whole)
        assert model.prune_intermediate_layers([index], prune_norm=True) == [index]
        assert torch.equal(model.forward_features(images), expected)
        assert torch.equal(model(images), expected)
        assert model.num_features == expected.shape[1]
        (taken,) = model.train().forward_intermediates(
            images, indices=[index], intermediates_only=True
        )
        taken.square().sum().backward()
        assert not [n for n, p in model.named_parameters() if p.grad is None]
        model.reset_classifier(7, "avg")
        assert model(images).shape == (2, 7)
    with_head = copy.deepcopy(whole)
    with_head.prune_intermediate_layers([2], prune_head=False)
    assert torch.equal(with_head(images), whole(images))

"""Every kind of block and part as a module."""

import gc
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.func import functional_call

from nas.block import BLOCKS, PARTS, Block, parse
from nas.errors import ConfigError
from nas.network import build_block, build_part, part_prefixes, scale_residuals, template
from nas.network.attention_bias import AttentionBias, bias_index

Randomize = Callable[..., nn.Module]

BLOCK_STRINGS = [
    "stem_r16_i3_c8-16_b1_a1",
    "stem_r33_i1_c4-8-16_b0_a0_hardswish",
    "mb4d_r7_c16_h24_p3",
    "mb4d_r4_c16_h24_p5_silu",
    "mb3d_r4_c16_n3_k5_v6_h24",
    "cga_r4_c24_n3_k5_q5-3-1_w7_h16-40",
    "cga_r8_c24_n3_k5_q5-3-7_w3_h16-40_gelu",
    "mbconv_r7_c16_h24_k3_s0_a0",
    "mbconv_r4_c16_h24_k5_s8_a1_gelu",
    "downsample_r7_i16_o24",
    "patch_merge_r7_i16_o24_h40_s8_f24-32",
    "head_r4_i16_o10_ln_d1",
    "head_r4_i16_o10_bn_d0",
]


def image_for(block: Block, batch: int = 2) -> torch.Tensor:
    generator = torch.Generator().manual_seed(1)
    shape = (batch, block.in_channels, block.resolution, block.resolution)
    return torch.randn(shape, generator=generator)


def tensors_of(module: nn.Module) -> dict[str, torch.Tensor]:
    return {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}


def test_the_examples_here_are_of_every_kind() -> None:
    blocks = [parse(text) for text in BLOCK_STRINGS]
    assert {block.kind for block in blocks} == BLOCKS.keys()
    assert {part.kind for block in blocks for part in block.parts()} == PARTS.keys()


@pytest.mark.parametrize("text", BLOCK_STRINGS)
def test_a_block_is_the_chain_of_its_parts(text: str, randomize: Randomize) -> None:
    block = parse(text)
    whole = randomize(build_block(block)).eval()
    x = image_for(block)
    expected = whole(x)
    state = whole.state_dict()
    for prefix, part in zip(part_prefixes(block), block.parts(), strict=True):
        alone = build_part(part).eval()
        inner = "parts.0." if part.kind in ("attn", "token_mlp") else ""
        mine = {k.removeprefix(prefix): v for k, v in state.items() if k.startswith(prefix)}
        alone.load_state_dict({inner + name: tensor for name, tensor in mine.items()})
        x = alone(x)
    torch.testing.assert_close(x, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("text", BLOCK_STRINGS)
def test_every_tensor_of_a_block_matters(text: str, randomize: Randomize) -> None:
    block = parse(text)
    module = randomize(build_block(block)).eval()
    x = image_for(block)
    with torch.no_grad():
        before = module(x)
        for name, tensor in module.state_dict().items():
            if not tensor.is_floating_point():
                continue
            kept = tensor.clone()
            tensor += 0.05 + 0.05 * torch.rand(tensor.shape)
            assert not torch.equal(module(x), before), f"{name} does nothing"
            tensor.copy_(kept)
        assert torch.equal(module(x), before)


@pytest.mark.parametrize("text", BLOCK_STRINGS)
def test_a_template_runs_with_the_tensors_it_is_given(text: str, randomize: Randomize) -> None:
    block = parse(text)
    module = randomize(build_block(block))
    x = image_for(block)
    empty = template(block)
    junk = [torch.full((n,), 2**40) for n in (16, 256, 4096)]  # memory that a meta index would read
    del junk
    gc.collect()
    for mode in (False, True):
        given = tensors_of(module)
        expected = module.train(mode)(x)
        output = functional_call(empty.train(mode), given, (x,))
        assert torch.equal(output, expected)
        after = module.state_dict()
        assert all(torch.equal(given[name], after[name]) for name in given)  # running statistics


@pytest.mark.parametrize("text", BLOCK_STRINGS)
def test_nothing_derived_from_weights_is_kept_between_calls(
    text: str, randomize: Randomize
) -> None:
    block = parse(text)
    module = randomize(build_block(block)).eval()
    x = image_for(block)
    with torch.no_grad():
        module(x)
        randomize(module, seed=5)  # in place, still in evaluation mode
        fresh = randomize(build_block(block), seed=5).eval()
        assert torch.equal(module(x), fresh(x))


def test_no_template_has_an_index_on_the_meta_device() -> None:
    for text in BLOCK_STRINGS:
        for name, buffer in template(parse(text)).named_buffers():
            assert name.endswith("index") != buffer.is_meta
    everything_meta = build_block(parse("mb3d_r4_c16_n3_k5_v6_h24"), device="meta")
    assert all(buffer.is_meta for buffer in everything_meta.buffers())


def test_the_bias_between_two_places_is_the_entry_of_their_distance() -> None:
    side = 3
    bias = AttentionBias(2, side)
    with torch.no_grad():
        bias.table.copy_(torch.arange(18.0).reshape(2, 9))
    spread = bias()
    for a in range(side * side):
        for b in range(side * side):
            rows, columns = abs(a // side - b // side), abs(a % side - b % side)
            assert spread[1, a, b] == 9 + rows * side + columns
    assert torch.equal(bias_index(side), bias.index)
    assert list(bias.state_dict()) == ["table"]


def test_a_resized_bias_is_as_if_built_there_and_keeps_its_corner() -> None:
    bias = AttentionBias(2, 4, dtype=torch.float64)
    torch.nn.init.normal_(bias.table, generator=torch.Generator().manual_seed(0))
    bias.table.requires_grad_(False)
    near = bias.table[:, 0].clone()
    bias.resize(7)
    assert bias.table.shape == (2, 49) and bias.table.dtype == torch.float64
    assert not bias.table.requires_grad
    assert torch.equal(bias.index, bias_index(7))
    assert bias().shape == (2, 49, 49)
    assert (bias.table[:, 0] - near).abs().max() < 0.5
    before = bias.table
    bias.resize(7)
    assert bias.table is before


def test_blocks_start_as_the_published_networks_do() -> None:
    def start(text: str) -> dict[str, torch.Tensor]:
        return build_block(parse(text)).state_dict()

    mb3d = start("mb3d_r4_c64_n2_k8_v8_h64")
    assert torch.equal(mb3d["parts.1.scale.gamma"], torch.full((64,), 1e-5))
    assert mb3d["parts.0.bias.table"].count_nonzero() == 0
    assert mb3d["parts.0.qkv.bias"].count_nonzero() == 0
    assert 0.015 < mb3d["parts.1.expand.weight"].std() < 0.025
    assert torch.equal(start("mb4d_r4_c8_h8_p3")["parts.0.scale.gamma"], torch.full((8,), 1e-5))
    cga = start("cga_r4_c8_n1_k8_q3_w7_h8-8")
    zero = [name for name in cga if name.endswith("bn.weight") and not cga[name].any()]
    assert zero == [
        "parts.0.conv.bn.weight",
        "parts.1.project.bn.weight",
        "parts.2.project.bn.weight",
        "parts.3.conv.bn.weight",
        "parts.4.project.bn.weight",
    ]
    mbconv = start("mbconv_r4_c8_h8_k3_s0_a1_gelu")  # TinyViT's; MobileNetV2's start at 1
    assert not mbconv["project.bn.weight"].any() and mbconv["depthwise.bn.weight"].all()
    merge = start("patch_merge_r4_i8_o8_h8_s8_f8-8")
    assert merge["parts.0.conv.bn.weight"].all() and merge["parts.3.conv.bn.weight"].all()
    assert not merge["parts.1.project.bn.weight"].any()


def test_scaling_residuals_reaches_every_branch_and_nothing_else() -> None:
    for text in BLOCK_STRINGS:
        module = build_block(parse(text))
        before = tensors_of(module)
        scale_residuals(module, 0.5)
        changed = {k for k, v in module.state_dict().items() if not torch.equal(v, before[k])}
        plain = ("stem", "downsample", "merge", "head")
        branches = [part for part in parse(text).parts() if part.kind not in plain]
        assert len(changed) == len(branches)
        assert all((module.state_dict()[name] == 0.5).all() for name in changed)


def test_a_dropped_branch_leaves_the_sample_as_it_was() -> None:
    torch.manual_seed(0)
    for text in (
        *("mb4d_r4_c8_h8_p3", "mb3d_r4_c8_n1_k4_v4_h8", "cga_r4_c8_n1_k4_q3_w7_h8-8"),
        "mbconv_r4_c8_h16_k3_s8_a0",
    ):
        block = parse(text)
        module = build_block(block, 0.999999).train()
        scale_residuals(module)
        x = image_for(block, batch=8)
        assert torch.equal(module(x), x)
        assert not torch.equal(module.eval()(x), x)


def test_parts_and_blocks_are_not_taken_for_one_another() -> None:
    with pytest.raises(ConfigError, match="use build_part"):
        build_block(parse("mlp_r4_c8_h16"))
    with pytest.raises(ConfigError, match="2 parts; use build_block"):
        build_part(parse("mb4d_r4_c8_h16_p3"))


def test_values_next_to_the_padding_of_windows_see_zeros(randomize: Randomize) -> None:
    whole = parse("group_attn_r5_c8_n2_k4_q3-3_w3")
    module = randomize(build_part(whole)).eval()
    x = image_for(whole)
    padded = torch.nn.functional.pad(x, (0, 1, 0, 1))
    bigger = build_part(parse("group_attn_r6_c8_n2_k4_q3-3_w3")).eval()
    bigger.load_state_dict(module.state_dict())
    branch = bigger(padded) - padded
    torch.testing.assert_close(module(x) - x, branch[:, :, :5, :5])

"""Blocks: their strings, what fits behind what, and formulas that agree with torch."""

import contextlib
from typing import Any

import pytest
import timm
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils.flop_counter import FlopCounterMode

from nas.block import (
    ACTIVATIONS,
    PARTS,
    Block,
    Cga,
    Downsample,
    Head,
    Mb3d,
    Mb4d,
    MbConv,
    PatchMerge,
    Stem,
    parse,
    parse_network,
    resize,
)
from nas.errors import ConfigError
from nas.network import build, build_block, build_part
from nas.network.stock import blocks_of

# As timm.create_model(name) counts them; the formulas must give them from strings alone.
PUBLISHED_PARAMS = {
    "efficientformer_l1": 12_289_928,
    "efficientformer_l3": 31_406_000,
    "efficientformer_l7": 82_229_328,
    "efficientvit_m0": 2_349_436,
    "efficientvit_m1": 2_980_560,
    "efficientvit_m2": 4_187_554,
    "efficientvit_m3": 6_900_722,
    "efficientvit_m4": 8_804_228,
    "efficientvit_m5": 12_473_772,
}
FAST = ("efficientformer_l1", "efficientvit_m0")
EXAMPLES = [
    "stem_r224_i3_c24-48_b1_a1",
    "mb4d_r56_c48_h192_p3",
    "mb3d_r7_c448_n8_k32_v128_h1792",
    "downsample_r56_i48_o96",
    "patch_merge_r14_i128_o144_h512_s128_f256-288",
    "cga_r14_c128_n2_k16_q7-5_w7_h256-256",
    "head_r7_i448_o1000_ln_d1",
    "head_r4_i192_o1000_bn_d0",
    "mb4d_r56_c48_h192_p3_relu",
    "mlp_r56_c48_h192",
    "mbconv_r56_c48_h192_k3_s0_a0",
    "mbconv_r56_c64_h256_k5_s64_a1_gelu",
]

channels = st.integers(1, 4).map(lambda n: 8 * n)
sides = st.integers(1, 9)
activations = st.sampled_from(ACTIVATIONS)
pairs = st.tuples(channels, channels)


@st.composite
def cgas(draw: Any) -> Cga:
    heads = draw(st.integers(1, 3))
    kernels = draw(st.tuples(*[st.sampled_from((1, 3, 5, 7))] * heads))
    return Cga(
        resolution=draw(sides),
        channels=heads * draw(channels),
        heads=heads,
        key=draw(st.integers(1, 8)),
        kernels=kernels,
        window=draw(st.integers(1, 9)),
        hidden=draw(pairs),
        act=draw(activations),
    )


blocks = st.one_of(
    st.builds(
        Stem,
        resolution=st.integers(2, 33),
        channels=st.integers(1, 4),
        widths=st.lists(channels, min_size=1, max_size=4).map(tuple),
        bias=st.integers(0, 1),
        act_last=st.integers(0, 1),
        act=activations,
    ),
    st.builds(
        Mb4d,
        resolution=sides,
        channels=channels,
        hidden=channels,
        pool=st.sampled_from((1, 3, 5)),
        act=activations,
    ),
    st.builds(
        Mb3d,
        resolution=sides,
        channels=channels,
        heads=st.integers(1, 3),
        key=st.integers(1, 8),
        value=st.integers(1, 8),
        hidden=channels,
        act=activations,
    ),
    cgas(),
    st.builds(
        MbConv,
        resolution=sides,
        channels=channels,
        hidden=channels,
        kernel=st.sampled_from((1, 3, 5, 7)),
        squeeze=st.integers(0, 9),
        act_last=st.integers(0, 1),
        act=activations,
    ),
    st.builds(Downsample, resolution=sides, channels=channels, out=channels),
    st.builds(
        PatchMerge,
        resolution=sides,
        channels=channels,
        out=channels,
        hidden=channels,
        squeeze=channels,
        ffn=pairs,
        act=activations,
    ),
    st.builds(
        Head,
        resolution=sides,
        channels=channels,
        classes=st.integers(1, 20),
        norm=st.sampled_from(("ln", "bn")),
        distilled=st.integers(0, 1),
    ),
)


def count_params(module: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def count_macs(module: torch.nn.Module, block: Block) -> int:
    image = torch.empty(1, block.in_channels, block.resolution, block.resolution, device="meta")
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        module.eval()(image)
    assert counter.get_total_flops() % 2 == 0
    return int(counter.get_total_flops()) // 2


@given(block=blocks)
def test_a_block_is_its_string_and_back(block: Block) -> None:
    assert parse(str(block)) == block
    for part in block.parts():
        assert part.kind in PARTS
        assert parse(str(part)) == part


@given(block=blocks)
@settings(max_examples=20)
def test_formulas_are_what_torch_counts_for_the_block_and_each_part(block: Block) -> None:
    module = build_block(block, device="meta")
    assert count_params(module) == block.params == sum(part.params for part in block.parts())
    assert block.bytes == 4 * block.params
    assert count_macs(module, block) == block.macs
    for part in set(block.parts()) - {block}:
        alone = build_part(part, device="meta")
        assert (count_params(alone), count_macs(alone, part)) == (part.params, part.macs)


@given(block=blocks)
@settings(max_examples=20)
def test_the_output_has_the_channels_and_side_that_the_block_says(block: Block) -> None:
    image = torch.empty(2, block.in_channels, block.resolution, block.resolution, device="meta")
    shape = build_block(block, device="meta").eval()(image).shape
    if isinstance(block, Head):
        assert shape == (2, block.classes)
        return
    assert shape == (2, block.out_channels, block.out_resolution, block.out_resolution)
    last = block.parts()[-1]
    assert (last.out_channels, last.out_resolution) == (block.out_channels, block.out_resolution)


@pytest.mark.parametrize("text", EXAMPLES)
def test_documented_strings_parse_to_themselves(text: str) -> None:
    assert str(parse(text)) == text


@pytest.mark.parametrize("text", EXAMPLES)
def test_a_character_more_or_less_is_another_block_or_refused(text: str) -> None:
    for position in range(len(text)):
        before, after = text[:position], text[position:]
        for changed in (before + after[1:], before + "x" + after, before + "1" + after):
            with contextlib.suppress(ConfigError):
                assert str(parse(changed)) == changed


@pytest.mark.parametrize(
    "text",
    [
        "",
        "mb4d",
        "mb5d_r56_c48_h192_p3",
        "mb4d_r56_c48_h192",  # a field is missing
        "mb4d_c48_r56_h192_p3",  # in another order
        "mb4d_r056_c48_h192_p3",  # a leading zero
        "mb4d_r56_c48_h192_p3_gelu",  # the default is not written
        "mb4d_r56_c48_h192_p3_tanh",
        "mb4d_r56_c48_h192_p2",  # even pools have no centre
        "mb4d_r0_c48_h192_p3",
        "mb4d_r56_c48_h1920000000_p3",
        "mb4d_r56_c48_h192_p3\n",
        " mb4d_r56_c48_h192_p3",
        "mb4d_r٥٦_c48_h192_p3",  # digits of another script
        "cga_r14_c128_n3_k16_q7-5-3_w7_h256-256",  # 128 channels in 3 heads
        "cga_r14_c128_n2_k16_q7_w7_h256-256",  # one kernel for two heads
        "cga_r14_c128_n2_k16_q7-4_w7_h256-256",
        "cga_r14_c128_n2_k16_q7-5_w7_h256",
        "patch_merge_r14_i128_o144_h512_s128_f256",
        "head_r7_i448_o1000_d1",
        "head_r7_i448_o1000_ln_d2",
        "stem_r224_i3_c_b1_a1",
        "mbconv_r56_c48_h192_k4_s0_a0",  # even kernels have no centre
        "mbconv_r56_c48_h192_k3_s0_a2",
        "mbconv_r56_c48_h192_k3_s0",  # a last activation is said or denied
        "mbconv_r56_c48_h0_k3_s0_a0",
    ],
)
def test_a_string_that_is_not_exactly_a_block_is_refused_by_name(text: str) -> None:
    with pytest.raises(ConfigError):
        parse(text)


@given(text=st.text(max_size=40))
def test_no_text_at_all_crashes_the_parser(text: str) -> None:
    with contextlib.suppress(ConfigError):
        assert str(parse(text)) == text


@pytest.mark.parametrize("value", [1.0, "8", True, None, -8, 0, 2_000_000])
def test_a_field_that_is_no_whole_number_in_range_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"mb4d\.hidden"):
        Mb4d(resolution=8, channels=8, hidden=value, pool=3)


def test_blocks_that_do_not_fit_are_refused_with_both_names() -> None:
    stem, head = "stem_r32_i3_c8-16_b1_a1", "head_r8_i16_o10_ln_d0"
    assert len(parse_network([stem, head])) == 2
    with pytest.raises(ConfigError, match="mb4d_r8_c24_h32_p3 does not fit behind stem"):
        parse_network([stem, "mb4d_r8_c24_h32_p3", head])
    with pytest.raises(ConfigError, match="16 channels of side 8"):
        parse_network([stem, "head_r4_i16_o10_ln_d0"])
    with pytest.raises(ConfigError, match="does not fit"):
        parse_network([stem, "mlp_r8_c16_h32", head])
    with pytest.raises(ConfigError, match="starts with a stem"):
        parse_network([stem])
    with pytest.raises(ConfigError, match="starts with a stem"):
        parse_network([])


def test_resizing_moves_every_block_and_back() -> None:
    blocks = blocks_of("efficientvit_m5")
    assert [block.resolution for block in resize(blocks, 224)] == [b.resolution for b in blocks]
    moved = resize(blocks, 100)
    assert [b.resolution for b in moved if b.kind == "cga"] == [7, 4, 4, 4, 2, 2, 2, 2]
    assert resize(moved, 224) == blocks


@pytest.mark.parametrize("name", PUBLISHED_PARAMS)
def test_strings_alone_give_the_parameters_of_published_networks(name: str) -> None:
    texts = [str(block) for block in blocks_of(name)]
    params = sum(block.params for block in parse_network(texts))
    assert params == PUBLISHED_PARAMS[name]
    assert params == count_params(timm.create_model(name, device="meta"))


@pytest.mark.parametrize(
    "name",
    [
        name if name in FAST else pytest.param(name, marks=pytest.mark.slow)
        for name in PUBLISHED_PARAMS
    ],
)
def test_macs_of_published_networks_are_half_the_flops_torch_counts(name: str) -> None:
    blocks = blocks_of(name)
    whole = build(blocks, device="meta")
    assert count_params(whole) == PUBLISHED_PARAMS[name]
    macs = sum(block.macs for block in blocks)
    assert count_macs(whole, blocks[0]) == macs
    assert count_macs(timm.create_model(name, device="meta"), blocks[0]) == macs

"""Stock networks: the torch-free rules against the modules that timm itself makes."""

from dataclasses import replace

import numpy as np
import pytest

from nas.block import parse_network
from nas.network.stock import PUBLISHED, blocks_of, stock_args
from nas.space import SearchSpace
from nas.space.spec import BlockOptions, Mb4dOptions
from nas.space.stock import StockGenes, is_stock

FORMER = [
    "stem_r224_i3_c4-8_b1_a1",
    "mb4d_r56_c8_h16_p3",
    "downsample_r56_i8_o12",
    "downsample_r28_i12_o16",
    "mb4d_r14_c16_h32_p3",
    "downsample_r14_i16_o24",
    "mb4d_r7_c24_h48_p3",
    "mb3d_r7_c24_n8_k32_v128_h48",
    "head_r7_i24_o10_ln_d1",
]
VIT = [
    "stem_r80_i3_c2-4-8-16_b0_a0",
    "cga_r5_c16_n2_k4_q5-3_w7_h32-32",
    "cga_r5_c16_n2_k4_q5-3_w7_h32-32",
    "patch_merge_r5_i16_o24_h64_s16_f32-48",
    "cga_r3_c24_n3_k5_q5-3-3_w7_h48-48",
    "head_r3_i24_o10_bn_d0",
]
CHANGES = [
    # what timm has once for a network, and what it fixes
    (FORMER, 1, "mb4d_r56_c8_h24_p3"),
    (FORMER, 1, "mb4d_r56_c8_h17_p3"),
    (FORMER, 1, "mb4d_r56_c8_h16_p5"),
    (FORMER, 1, "mb4d_r56_c8_h16_p3_relu"),
    (FORMER, 4, "mbconv_r14_c16_h32_k3_s0_a0"),
    (FORMER, 6, "mb3d_r7_c24_n8_k32_v128_h48"),
    (FORMER, 7, "mb3d_r7_c24_n4_k32_v128_h48"),
    (FORMER, 7, "mb3d_r7_c24_n8_k16_v128_h48"),
    (FORMER, 7, "mb3d_r7_c24_n8_k32_v64_h48"),
    (FORMER, 7, "mb4d_r7_c24_h48_p3"),
    (FORMER, 8, "head_r7_i24_o10_ln_d0"),
    (FORMER, 8, "head_r7_i24_o10_bn_d1"),
    (FORMER, 0, "stem_r224_i3_c6-8_b1_a1"),
    (FORMER, 0, "stem_r224_i3_c4-8_b0_a1"),
    (FORMER, 0, "stem_r224_i3_c4-8_b1_a0"),
    (FORMER, 0, "stem_r224_i3_c4-8_b1_a1_gelu"),
    (VIT, 0, "stem_r80_i3_c2-4-8-16_b1_a0"),
    (VIT, 0, "stem_r80_i3_c4-4-8-16_b0_a0"),
    (VIT, 1, "cga_r5_c16_n2_k8_q5-3_w7_h32-32"),
    (VIT, 1, "cga_r5_c16_n1_k4_q5_w7_h32-32"),
    (VIT, 1, "cga_r5_c16_n2_k4_q5-3_w4_h32-32"),
    (VIT, 1, "cga_r5_c16_n2_k4_q3-3_w7_h32-32"),
    (VIT, 1, "cga_r5_c16_n2_k4_q5-3_w7_h32-24"),
    (VIT, 1, "cga_r5_c16_n2_k4_q5-3_w7_h32-32_gelu"),
    (VIT, 3, "patch_merge_r5_i16_o24_h48_s16_f32-48"),
    (VIT, 3, "patch_merge_r5_i16_o24_h64_s8_f32-48"),
    (VIT, 3, "patch_merge_r5_i16_o24_h64_s16_f32-24"),
    (VIT, 3, "downsample_r5_i16_o24"),
    (VIT, 5, "head_r3_i24_o10_ln_d0"),
    (VIT, 5, "head_r3_i24_o10_bn_d1"),
]


@pytest.mark.parametrize("texts", [FORMER, VIT], ids=["former", "vit"])
def test_networks_like_timms_are_stock(texts: list[str]) -> None:
    assert is_stock(parse_network(texts)) and stock_args(texts) is not None


@pytest.mark.parametrize("name", PUBLISHED)
def test_published_networks_are_stock(name: str) -> None:
    assert is_stock(blocks_of(name))


@pytest.mark.parametrize(("base", "place", "text"), CHANGES, ids=[c[2] for c in CHANGES])
def test_a_network_with_one_other_block_is_what_timm_makes_of_it(
    base: list[str], place: int, text: str
) -> None:
    changed = [*base[:place], text, *base[place + 1 :]]
    assert is_stock(parse_network(changed)) == (stock_args(changed) is not None)


@pytest.mark.parametrize(
    ("texts", "expected"),
    [
        # other sides than 224: EfficientFormer's biases are for 7, windows for side // 16
        (["stem_r28_i3_c4-8_b1_a1", "mb3d_r7_c8_n8_k32_v128_h9", "head_r7_i8_o10_ln_d1"], True),
        (["stem_r32_i3_c4-8_b1_a1", "mb3d_r8_c8_n8_k32_v128_h9", "head_r8_i8_o10_ln_d1"], False),
        (["stem_r72_i3_c1-2-4-8_b0_a0", "cga_r5_c8_n1_k4_q3_w7_h16-16", "head_r5_i8_o9_bn_d0"],
         False),
        (["stem_r72_i3_c1-2-4-8_b0_a0", "cga_r5_c8_n1_k4_q7_w4_h16-16", "head_r5_i8_o9_bn_d0"],
         True),
        # a ratio that only the block with the largest hidden / width tells
        (["stem_r28_i3_c4-8_b1_a1", "mb3d_r7_c8_n8_k32_v128_h10", "mb3d_r7_c8_n8_k32_v128_h10",
          "head_r7_i8_o10_ln_d1"], True),
        (["stem_r56_i3_c4-8_b1_a1", "mb4d_r14_c8_h10_p3", "downsample_r14_i8_o12",
          "mb3d_r7_c12_n8_k32_v128_h16", "head_r7_i12_o10_ln_d1"], True),
        (["stem_r56_i3_c4-8_b1_a1", "mb4d_r14_c8_h10_p3", "downsample_r14_i8_o12",
          "mb3d_r7_c12_n8_k32_v128_h17", "head_r7_i12_o10_ln_d1"], False),
    ],
)  # fmt: skip
def test_sides_and_rounded_ratios(texts: list[str], expected: bool) -> None:
    assert is_stock(parse_network(texts)) == (stock_args(texts) is not None) == expected


def small(space: SearchSpace, depth: int = 2) -> SearchSpace:
    """Return a space whose networks timm makes quickly."""
    found = []
    for stage in space.stages:
        tail = tuple(t for t in stage.tail if t < depth) or (0,)
        found.append(replace(stage, depth=(1, depth), width=stage.width[:2], tail=tail))
    return space.replace(stages=tuple(found), num_classes=10)


# Rounded ratios (40 x 1.5 is 64), heads with keys that timm cannot divide, several kernels.
ODD = small(SearchSpace.load("efficientformer"))
ODD_BLOCKS = BlockOptions(mb4d=Mb4dOptions(expand=(1.5, 2.0, 3.0)))
SPACES = {
    "efficientformer": small(SearchSpace.load("efficientformer")),
    "efficientvit": small(SearchSpace.load("efficientvit")),
    "efficientvit at 200": small(SearchSpace.load("efficientvit")).replace(image_size=200),
    "odd": ODD.replace(
        stages=(replace(ODD.stages[0], width=(36, 40), blocks=ODD_BLOCKS), *ODD.stages[1:])
    ),
}


@pytest.mark.parametrize("name", SPACES)
def test_random_choices_are_stock_exactly_where_timm_says_so(name: str) -> None:
    space = SPACES[name]
    stock = StockGenes(space)
    rng = np.random.default_rng(0)
    yes = 0
    for turn in range(24):
        if (
            turn % 2 and not stock.is_empty
        ):  # among what is left of the genes; else anywhere in the space
            choice = {gene: options[rng.integers(len(options))] for gene, options in
                      stock.genes.items()}  # fmt: skip
            full = stock.full(choice)
        else:
            full = {g: o[rng.integers(len(o))] for g, o in space.genes().items()}
        blocks = space.blocks(space.architecture(full))
        expected = is_stock(blocks)
        assert bool(stock.is_stock(space.encode([full]))[0]) == expected
        if turn < 12:
            assert (stock_args(blocks) is not None) == expected, list(map(str, blocks))
        yes += expected and turn % 2
    assert yes >= 6 or stock.is_empty
    assert stock.is_empty == name.endswith("200")  # windows are of 200 // 16 / 2, a 6


def test_nearly_all_that_is_left_of_the_genes_is_stock() -> None:
    for name in ("efficientformer", "efficientvit"):
        space = SearchSpace.load(name)
        stock = StockGenes(space)
        rng = np.random.default_rng(1)
        draws = [
            {gene: options[rng.integers(len(options))] for gene, options in stock.genes.items()}
            for _ in range(200)
        ]
        share = stock.is_stock(space.encode([stock.full(draw) for draw in draws])).mean()
        assert share > 0.25, name
        for draw in draws[:20]:
            canonical = stock.canonical(draw)
            assert (
                stock.canonical(canonical) == canonical and canonical.keys() == stock.genes.keys()
            )
            one, other = (space.architecture(stock.full(c)) for c in (draw, canonical))
            assert one == other


@pytest.mark.parametrize("name", ["hybrid", "hybrid-64", "tiny"])
def test_spaces_without_any_stock_network_are_known(name: str) -> None:
    space = SearchSpace.load(name)
    stock = StockGenes(space)
    rng = np.random.default_rng(0)
    choices = [{g: o[rng.integers(len(o))] for g, o in space.genes().items()} for _ in range(50)]
    assert stock.is_empty and not stock.genes
    assert not stock.is_stock(space.encode(choices)).any()

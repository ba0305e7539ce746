from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from nas.block import Block, parse, parse_network
from nas.latency.recipes import chain_name, recipe, recipes
from nas.space import SearchSpace


def price(unit: Block, cost: Callable[[Sequence[Block]], float], copies: int = 3) -> float:
    return sum(weight * cost(chain) for chain, weight in recipe(unit, copies=copies).terms)


@pytest.mark.parametrize("copies", [2, 3, 5])
@pytest.mark.parametrize("name", ["tiny", "hybrid-64", "efficientvit"])
def test_where_costs_add_up_prices_add_up_exactly_edges_and_session_included(
    name: str, copies: int, true_ms: Any
) -> None:
    space = SearchSpace.load(name)
    rng = np.random.default_rng(0)
    for level in (0.0, 0.5, 1.0):
        parts = [
            part for block in space.blocks(space.sample(rng, level=level)) for part in block.parts()
        ]
        total = sum(price(part, true_ms, copies) for part in parts)
        assert total == pytest.approx(true_ms(parts), rel=1e-9)


def test_a_layout_change_between_two_kinds_of_part_is_paid_by_the_block_that_has_it() -> None:
    def cost(chain: Sequence[Block]) -> float:
        changes = sum(a.kind != b.kind for a, b in zip(chain, chain[1:], strict=False))
        return 10.0 + 5.0 * len(chain) + 1.0 * changes

    blocks = parse_network(
        ["stem_r32_i3_c8-16_b1_a1", *["mb4d_r8_c16_h32_p3"] * 4, "head_r8_i16_o10_bn_d0"]
    )
    parts = [part for block in blocks for part in block.parts()]
    total = sum(price(part, cost) for part in parts)
    assert total == pytest.approx(cost(parts), abs=2.0)  # the two ends, not the four blocks
    alone = sum(cost([part]) for part in parts)
    assert alone > 1.5 * cost(parts)


def test_a_slope_is_of_copies_behind_the_lead_in_less_the_companion_s() -> None:
    terms = dict(recipe(parse("ffn_r4_c32_h64"), copies=3).terms)
    names = {chain_name(chain): weight for chain, weight in terms.items()}
    lead, pair = "stem_r8_i3_c32_b1_a0", "dw_r4_c32+ffn_r4_c32_h64"
    assert names == {
        f"{lead}+{pair}+{pair}+{pair}": 0.5,
        f"{lead}+{pair}": -0.5,
        f"{lead}+dw_r4_c32*3": -0.5,
        f"{lead}+dw_r4_c32": 0.5,
    }


def test_an_inverted_residual_is_the_slope_of_its_copies_and_needs_no_companion() -> None:
    part = parse("mbconv_r4_c32_h64_k5_s16_a0")
    made = recipe(part, copies=3)
    assert [(chain_name(chain), weight) for chain, weight in made.terms] == [
        (f"stem_r8_i3_c32_b1_a0+{part}*3", 0.5),
        (f"stem_r8_i3_c32_b1_a0+{part}", -0.5),
    ]
    assert [item.entry for item in recipes([part, part], copies=3)] == [str(part)]


@pytest.mark.parametrize(
    ("text", "by", "chains"),
    [
        (
            "downsample_r8_i16_o48",
            "difference behind stem_r16_i3_c16_b1_a0",
            ["stem_r16_i3_c16_b1_a0+downsample_r8_i16_o48", "stem_r16_i3_c16_b1_a0"],
        ),
        (
            "head_r4_i48_o10_bn_d0",
            "difference behind stem_r8_i3_c48_b1_a0",
            ["stem_r8_i3_c48_b1_a0+head_r4_i48_o10_bn_d0", "stem_r8_i3_c48_b1_a0"],
        ),
        ("stem_r32_i3_c8-16_b1_a1", "alone", ["stem_r32_i3_c8-16_b1_a1"]),
    ],
)
def test_what_changes_shape_names_what_it_was_timed_behind(
    text: str, by: str, chains: list[str]
) -> None:
    made = recipe(parse(text), copies=3)
    assert made.by == by
    assert [chain_name(chain) for chain, _ in made.terms] == chains


def test_every_chain_fits_together() -> None:
    for block in SearchSpace.load("hybrid").every_block():
        for part in block.parts():
            for chain, _ in recipe(part, copies=3).terms:
                for before, after in zip(chain, chain[1:], strict=False):
                    assert before.out_channels == after.in_channels
                    assert before.out_resolution == after.resolution


def test_each_entry_is_needed_once_and_companions_come_with_it() -> None:
    blocks = [parse(text) for text in ["mb4d_r8_c16_h32_p5"] * 3 + ["downsample_r8_i16_o32"]]
    names = [item.entry for item in recipes(blocks, copies=3)]
    assert names == [
        "downsample_r8_i16_o32",
        "pool_r8_c16_p3",
        "mlp_r8_c16_h32",
        "pool_r8_c16_p5",
    ]


def test_a_patch_merge_is_priced_by_its_parts_around_the_merge() -> None:
    blocks = [parse("patch_merge_r8_i16_o32_h32_s8_f16-32")]
    assert {item.entry for item in recipes(blocks, copies=3)} == {
        "dw_r8_c16",
        "ffn_r8_c16_h16",
        "merge_r8_i16_o32_h32_s8",
        "dw_r4_c32",
        "ffn_r4_c32_h32",
    }

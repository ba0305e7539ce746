"""Every shipped space keeps the promises a user relies on."""

from typing import Any

import numpy as np
import pytest

from nas.block import BLOCKS, Block, parse, parse_network
from nas.space import Architecture, SearchSpace, architecture_of

NAMES = SearchSpace.names()


def macs(space: SearchSpace, architecture: Architecture) -> int:
    return sum(block.macs for block in space.blocks(architecture))


def drawn(space: SearchSpace, count: int, seed: int = 0) -> list[Architecture]:
    rng = np.random.default_rng(seed)
    levels = [None, *np.linspace(0, 1, count - 1)]
    return [space.sample(rng, level) for level in levels]


def test_the_five_spaces_are_there() -> None:
    assert NAMES == ["efficientformer", "efficientvit", "hybrid", "hybrid-64", "tiny"]


@pytest.mark.parametrize("name", NAMES)
def test_architectures_survive_json_genes_and_codes(name: str) -> None:
    space = SearchSpace.load(name)
    for architecture in drawn(space, 12):
        choice = space.choice(architecture)
        assert space.architecture(choice) == architecture
        assert Architecture.from_json(architecture.to_json()).id == architecture.id
        assert space.decode(space.encode([choice])) == [choice]
        assert space.contains(architecture)


@pytest.mark.parametrize("name", NAMES)
def test_blocks_make_one_network_whose_strings_parse(name: str) -> None:
    space = SearchSpace.load(name).replace(num_classes=7)
    for architecture in drawn(space, 8):
        blocks = space.blocks(architecture)
        assert parse_network([str(block) for block in blocks]) == blocks
        assert all(parse(str(part)) == part for block in blocks for part in block.parts())
        assert blocks[-1].out_channels == 7
        assert architecture_of(blocks, space=space.name) == architecture


@pytest.mark.parametrize("name", NAMES)
def test_smallest_and_largest_bound_every_draw(name: str) -> None:
    space = SearchSpace.load(name)
    low, high = macs(space, space.smallest()), macs(space, space.largest())
    costs = [macs(space, architecture) for architecture in drawn(space, 60)]
    assert low <= min(costs) < max(costs) <= high


@pytest.mark.parametrize("name", NAMES)
def test_the_pricer_equals_the_sum_over_blocks(name: str) -> None:
    space = SearchSpace.load(name)
    cost = {block: float(number) for number, block in enumerate(space.every_block(), 1)}
    architectures = drawn(space, 40, seed=3)
    codes = space.encode([space.choice(a) for a in architectures])
    expected = [sum(cost[block] for block in space.blocks(a)) for a in architectures]
    np.testing.assert_allclose(space.pricer(cost.__getitem__)(codes), expected, rtol=1e-12)


@pytest.mark.parametrize("name", NAMES)
def test_inactive_genes_change_nothing(name: str) -> None:
    space = SearchSpace.load(name)
    rng = np.random.default_rng(1)
    options = [len(values) for values in space.genes().values()]
    price = space.pricer(lambda block: float(block.macs))
    codes = rng.integers(0, options, size=(50, len(options)))
    for choice, cost in zip(space.decode(codes), price(codes), strict=True):
        architecture = space.architecture(choice)
        canonical = space.choice(architecture)
        assert space.architecture(canonical) == architecture
        assert cost == macs(space, architecture)


@pytest.mark.parametrize("name", NAMES)
def test_every_block_fits_the_hull_of_its_slot(name: str) -> None:
    space = SearchSpace.load(name)
    hulls, every = space.hulls(), set(space.every_block())
    for architecture in drawn(space, 10):
        for slot, block in zip(space.slots(architecture), space.blocks(architecture), strict=True):
            assert block in every
            hull = hulls[slot]
            assert hull.kind == block.kind and hull.params >= block.params
            assert hull.resolution == block.resolution


@pytest.mark.parametrize("name", NAMES)
def test_levels_reach_both_ends(name: str) -> None:
    space = SearchSpace.load(name)
    rng = np.random.default_rng(0)
    low = macs(space, space.sample(rng, 0.0)) / macs(space, space.smallest())
    high = macs(space, space.sample(rng, 1.0)) / macs(space, space.largest())
    assert low < 2 and high > 0.5


def test_a_smaller_depth_drops_the_middle_and_keeps_the_tail() -> None:
    space = SearchSpace.load("tiny")
    base: dict[str, Any] = {
        "s1.width": 24,
        "s1.depth": 2,
        "s1.mb4d.expand": 2,
        "s2.width": 32,
        "s2.tail": 1,
    }
    base |= {"s2.by": "downsample", "s2.mb4d.expand": 2, "s2.cga.expand": 1}
    base |= {f"s2.b{place}.kind": kind for place, kind in enumerate(["mb4d", "cga", "mb4d"])}
    deep = space.slots(space.architecture({**base, "s2.depth": 4}))
    flat = space.slots(space.architecture({**base, "s2.depth": 3}))
    assert deep[-5:] == ("s2.b0.mb4d", "s2.b1.cga", "s2.b2.mb4d", "s2.t0.mb3d", "head")
    assert flat[-4:] == ("s2.b0.mb4d", "s2.b1.cga", "s2.t0.mb3d", "head")


def test_a_tail_longer_than_the_stage_is_cut_to_what_fits() -> None:
    space = SearchSpace.load("hybrid")
    rng = np.random.default_rng(0)
    codes = rng.integers(
        0, [len(v) for v in space.genes().values()], size=(300, len(space.genes()))
    )
    for choice in space.decode(codes):
        choice |= {"s4.depth": 2, "s4.tail": 4}
        last = space.architecture(choice).stages[-1]
        assert [block.kind for block in last.blocks] == ["mb3d", "mb3d"]


def test_count_equals_what_enumeration_finds() -> None:
    space = SearchSpace.load("tiny")
    options = [len(values) for values in space.genes().values()]
    grid = np.stack(np.meshgrid(*map(np.arange, options), indexing="ij"), axis=-1)
    codes = grid.reshape(-1, len(options))
    rng = np.random.default_rng(0)
    some = codes[rng.choice(len(codes), size=4000, replace=False)]
    found = {space.architecture(choice).id for choice in space.decode(some)}
    assert len(found) < space.count
    small = space.replace(stages=space.stages[:1])
    codes = np.stack(np.meshgrid(*(np.arange(len(v)) for v in small.genes().values())), -1)
    ids = {small.architecture(c).id for c in small.decode(codes.reshape(-1, len(small.genes())))}
    assert small.count == len(ids) == 8


def test_hybrid_is_as_large_as_promised_and_holds_efficientformer_l1() -> None:
    space = SearchSpace.load("hybrid")
    assert space.count >= 1e15
    assert space.contains(architecture_of(efficientformer_l1(), space="hybrid"))


def test_hybrid_64_spans_half_a_mmac_to_about_thirty() -> None:
    space = SearchSpace.load("hybrid-64")
    assert 0.4e6 < macs(space, space.smallest()) < 0.7e6
    assert 25e6 < macs(space, space.largest()) < 35e6
    assert {block.kind for block in space.every_block()} == set(BLOCKS)


@pytest.mark.parametrize("name", ["hybrid", "hybrid-64"])
def test_hybrids_may_have_the_inverted_residual_where_maps_are_large(name: str) -> None:
    space = SearchSpace.load(name)
    slots = {slot for slot, _ in space.variants() if slot.endswith(".mbconv")}
    assert {slot.split(".")[0] for slot in slots} == {"s1", "s2", "s3"}
    parts = {part for block in space.every_block() for part in block.parts()}
    assert sum(part.kind == "mbconv" for part in parts) == 40  # to time, of about 400


def efficientformer_l1() -> tuple[Block, ...]:
    widths, depths = (48, 96, 224, 448), (3, 2, 6, 4)
    texts, side = ["stem_r224_i3_c24-48_b1_a1"], 56
    for index, (width, depth) in enumerate(zip(widths, depths, strict=True)):
        if index:
            texts.append(f"downsample_r{side}_i{widths[index - 1]}_o{width}")
            side //= 2
        texts += [f"mb4d_r{side}_c{width}_h{4 * width}_p3"] * (depth - (index == 3))
    texts += ["mb3d_r7_c448_n8_k32_v128_h1792", "head_r7_i448_o1000_ln_d1"]
    return parse_network(texts)

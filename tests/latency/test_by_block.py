"""Whole blocks in place of sums of parts, where networks held out show that the sums miss."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nas.block import Block, parse
from nas.latency import LatencyTable, ProfileConfig, plan, profile
from nas.latency.recipes import block_recipes, chain_name, recipe
from nas.space import SearchSpace
from nas.target import Target

CONFIG = ProfileConfig(samples=4, spread_s=0.1, time_limit_s=60.0, calibrate_on=24)
STAGES = [
    {"width": [16, 32], "depth": [1, 2, 3], "kinds": ["mb4d", "cga"], "head_dim": 16},
    {"width": [32, 64], "depth": [1, 2, 3], "kinds": ["mb4d", "cga"], "head_dim": 16,
     "by": ["downsample"]},
]  # fmt: skip
SPACE = {
    "schema": 1,
    "name": "mixed",
    "image_size": 32,
    "act": "relu",
    "stem": {"convs": 2, "bias": True, "act_last": True},
    "head": {"norm": "batch", "distilled": False},
    "blocks": {
        "mb4d": {"expand": [2, 4], "pool": [3]},
        "cga": {"expand": [1, 2, 4], "key": [8], "kernels": [[5, 3]], "window": [7]},
    },
    "stages": STAGES,
}  # fmt: skip


@pytest.fixture
def mixed() -> SearchSpace:
    return SearchSpace.from_plain(SPACE).replace(num_classes=10)


@pytest.fixture
def odd_cost(true_ms: Any) -> Any:
    """A machine on which an FFN makes the attention behind it dear, by its hidden width."""

    def cost(parts: Sequence[Block]) -> float:
        pairs = zip(parts, parts[1:], strict=False)
        held = [
            one.hidden**2  # type: ignore[attr-defined]
            for one, two in pairs
            if (one.kind, two.kind) == ("ffn", "group_attn")
        ]
        return float(true_ms(parts) + 2e-6 * sum(held))

    return cost


def parts_of(blocks: Sequence[Block]) -> list[Block]:
    return [part for block in blocks for part in block.parts()]


def test_a_whole_block_is_priced_by_the_slope_of_all_its_parts_together() -> None:
    cga = parse("cga_r4_c32_n2_k8_q5-3_w7_h32-64")
    made = recipe(cga, copies=3)
    assert made.entry == str(cga) and made.alone == cga.parts()
    (long, up), (short, down) = made.terms
    assert (up, down) == (0.5, -0.5)
    assert chain_name(long).count("group_attn") == 3 and len(long) - len(short) == 10
    merge = parse("patch_merge_r8_i16_o32_h32_s8_f16-32")
    terms = dict(recipe(merge, copies=3).terms)
    assert sorted(terms.values()) == [-1.0, 1.0]
    only = block_recipes([cga, merge, cga], ["cga"], copies=3)
    assert [item.entry for item in only] == [str(cga)]


def test_a_kind_whose_parts_act_on_each_other_is_priced_by_whole_blocks(
    make_bench: Any, export: Any, on: Any, odd_cost: Any, target: Target, tmp_path: Path,
    mixed: SearchSpace,
) -> None:  # fmt: skip
    path = tmp_path / "t.json"
    bench = make_bench(cost=odd_cost, jitter=0.002)
    seen: list[tuple[int, int, str]] = []
    table = profile(
        mixed, target, path, CONFIG, lambda *row: seen.append(row), benches=on(bench),
        export=export,
    )  # fmt: skip
    fit = table.calibration(mixed)
    assert fit is not None and fit.by_block == ("cga",)
    assert fit.held_out["mean"] < 0.02
    blocks = mixed.every_block()
    wholes = {str(block) for block in blocks if block.kind == "cga"}
    assert wholes <= table.entries.keys()
    assert not any(name.startswith("mb4d") for name in table.entries)
    rng = np.random.default_rng(3)
    for level in (0.2, 0.5, 0.8):
        network = mixed.blocks(mixed.sample(rng, level=level))
        truth = odd_cost(parts_of(network))
        assert table.estimate(network, mixed) == pytest.approx(truth, rel=0.03)
    assert all(done <= total for done, total, _ in seen) and seen[-1][0] == seen[-1][1]
    options = [len(values) for values in mixed.genes().values()]
    codes = rng.integers(0, options, size=(40, len(options)))
    for choice, ms in zip(mixed.decode(codes), table.pricer(mixed)(codes), strict=True):
        network = mixed.blocks(mixed.architecture(choice))
        assert table.estimate(network, mixed) == pytest.approx(ms, abs=1e-9)
    assert LatencyTable.load(path).calibration(mixed) == fit
    again = make_bench(cost=odd_cost, seed=1)
    profile(mixed, target, path, CONFIG, benches=on(again), export=export)
    assert again.loaded == []
    wider = SearchSpace.from_plain({**SPACE, "stages": STAGES + STAGES[1:]})
    missing = [item.entry for item in plan(wider, target, path, CONFIG).missing]
    assert any(name.startswith("cga_") for name in missing)  # of its sizes, whole too


def test_sums_of_parts_stay_where_they_are_true(
    make_bench: Any, export: Any, on: Any, target: Target, tmp_path: Path, mixed: SearchSpace
) -> None:
    bench = make_bench(jitter=0.002)
    table = profile(mixed, target, tmp_path / "t.json", CONFIG, benches=on(bench), export=export)
    fit = table.calibration(mixed)
    assert fit is not None and fit.by_block == ()
    assert not any(name.startswith(("cga", "mb4d")) for name in table.entries)


def test_few_networks_are_no_reason_to_measure_blocks(
    make_bench: Any, export: Any, on: Any, odd_cost: Any, target: Target, tmp_path: Path,
    mixed: SearchSpace,
) -> None:  # fmt: skip
    config = ProfileConfig(samples=4, spread_s=0.1, calibrate_on=12)
    bench = make_bench(cost=odd_cost, jitter=0.002)
    table = profile(mixed, target, tmp_path / "t.json", config, benches=on(bench), export=export)
    assert table.calibration(mixed).by_block == ()  # type: ignore[union-attr]

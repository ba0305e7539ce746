"""Completion of candidates: what is allocated, what it costs, that nothing better was missed."""

import itertools
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from nas.errors import ConfigError, InfeasibleBudget
from nas.latency.table import LatencyTable
from nas.pipeline.allocation import ALLOCATED, Allocator, GenesAlone
from nas.pipeline.part_costs import PartCosts
from nas.space import SearchSpace
from nas.space.loss_table import DimLoss, LossTable
from nas.supernet.taylor.losses import known_numbers, lost_by_kind

Made = Callable[..., LatencyTable]
HERE = "latency_ms:here"
SHARE = 0.4


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    """Return a space with every kind, several inner options, and few places."""
    blocks = {
        "mb4d": {"expand": [1, 2, 3, 4], "pool": [3, 5]},
        "cga": {"expand": [1, 1.5, 2], "key": [8, 16], "kernels": [[5, 3]], "window": [7]},
        "mb3d": {"expand": [1, 2], "heads": [2, 4], "key": [8, 16], "value": [8, 16]},
        "mbconv": {"expand": [1, 2, 4], "kernel": [3, 5], "se": [0, 0.25]},
        "patch_merge": {"expand": [1, 2], "expand_in": [1, 2], "expand_out": [1, 2]},
    }
    second = {"width": [32, 64], "depth": [1, 2, 3], "kinds": ["mb4d", "cga", "mbconv"]}
    plain = {
        "schema": 1,
        "name": "made",
        "image_size": 32,
        "act": "relu",
        "head": {"norm": "batch"},
        "blocks": blocks,
        "stages": [
            {"width": [16, 24], "depth": [1, 2], "kinds": ["mb4d"]},
            {**second, "head_dim": 16, "tail": [0, 1], "by": ["downsample", "patch_merge"]},
        ],
    }
    return SearchSpace.from_plain(plain)


@pytest.fixture(scope="module")
def losses(space: SearchSpace) -> LossTable:
    """Return a loss table of random importance, falling from channel to channel."""
    rng = np.random.default_rng(0)
    dims = {}
    for name, (kind, numbers) in known_numbers(space).items():
        kept = {}
        for heads, options in numbers.items():
            sums = np.concatenate([[0.0], np.cumsum(np.sort(rng.exponential(1, 512))[::-1])])
            kept[str(heads)] = {str(n): float(sums[n]) * max(heads, 1) for n in options}
        dims[name] = DimLoss(kind=kind, kept=kept)
    return LossTable(space=space.name, method="taylor", scales={"mlp.hidden": 0.5}, dims=dims)


def draws(space: SearchSpace, count: int, genes: Any) -> list[dict[str, Any]]:
    rng = np.random.default_rng(1)
    return [{g: o[rng.integers(len(o))] for g, o in genes.items()} for _ in range(count)]


@pytest.mark.parametrize("memory", [False, True], ids=["sum", "knee"])
def test_a_completed_network_is_within_the_budgets_and_priced_as_the_table_prices_it(
    space: SearchSpace, losses: LossTable, made_table: Made, memory: bool
) -> None:
    table = made_table(space, memory=memory)
    costs = PartCosts({HERE: table}, space)
    free = Allocator(space, losses, costs, {HERE: 1e6})
    used, different = [], 0
    for choice in draws(space, 40, free.genes):
        least, most = ({n: v[0] for n, v in end.items()} for end in free.bounds([choice]))
        limits = {HERE: least[HERE] + SHARE * (most[HERE] - least[HERE]), "params": most["params"]}
        allocator = Allocator(space, losses, costs, limits)
        price = {name: values[0] for name, values in allocator.price([choice]).items()}
        network = allocator.architecture(choice)
        blocks = space.blocks(network)
        assert price[HERE] == pytest.approx(table.estimate(blocks, space), rel=1e-12)
        for size in ("params", "macs", "bytes"):
            assert price[size] == sum(getattr(block, size) for block in blocks)
        assert all(price[metric] <= limit for metric, limit in limits.items())
        for metric, cost in price.items():
            assert least[metric] <= cost * (1 + 1e-9) and cost <= most[metric] * (1 + 1e-9)
        used.append((price[HERE] - least[HERE]) / (limits[HERE] - least[HERE]))
        different += not space.contains(network)
    assert np.mean(used) > 0.85  # steps between options are coarse
    assert different > 4  # blocks of a kind differ inside, which genes cannot say


@pytest.mark.parametrize("memory", [False, True], ids=["sum", "knee"])
@pytest.mark.slow
def test_no_other_inner_numbers_within_the_budget_lose_less(
    space: SearchSpace, losses: LossTable, made_table: Made, memory: bool
) -> None:
    small = space.replace(
        stages=tuple(
            type(stage)(**{**{f: getattr(stage, f) for f in stage.__slots__}, "depth": (1,)})
            for stage in space.stages
        )
    )
    table = made_table(space, memory=memory)
    costs = PartCosts({HERE: table}, space)
    compared = 0
    for choice in draws(small, 10, Allocator(small, losses, costs, {HERE: 1.0}).genes):
        every: list[tuple[float, float]] = []
        allocator = Allocator(small, losses, costs, {HERE: 1e6})
        widest = allocator.complete(choice)
        assert widest.loss == 0
        for numbers in every_numbers(small, allocator, choice):
            cost = table.estimate(small.blocks(numbers), small)
            every.append((sum(lost_by_kind(small, numbers, losses).values()), cost))
        limit = float(np.quantile([cost for _, cost in every], 0.4))
        best = min(loss for loss, cost in every if cost <= limit)
        worst = max(loss for loss, cost in every if cost <= limit)
        found = Allocator(small, losses, costs, {HERE: limit}).complete(choice)
        assert found.costs[HERE] <= limit
        assert found.loss <= best + 0.03 * (worst - best) + 1e-9
        compared += 1
    assert compared == 10


def every_numbers(space: SearchSpace, allocator: Allocator, choice: Any) -> Any:
    """Yield every network with one outline: all options of all parts, without an allocator."""
    from nas.supernet.taylor import allocated

    base = allocator.architecture(choice)
    per_block = []
    for slot in space.slots(base)[1:-1]:
        outer = allocator._shapes_at(slot, base, allocator.canonical(choice))
        for part in outer.parts:
            per_block.append([{f"{slot}.{n}": v for n, v in option} for option in part.options])
    for picked in itertools.product(*per_block):
        yield allocated(space, base, {k: v for own in picked for k, v in own.items()})


def test_two_devices_and_a_size_hold_at_once(
    space: SearchSpace, losses: LossTable, made_table: Made
) -> None:
    fast, slow = made_table(space), made_table(space, speed=3.0, memory=True)
    costs = PartCosts({HERE: fast, "latency_ms:there": slow}, space)
    whole = space.blocks(space.largest())
    limits = {
        HERE: 0.7 * fast.estimate(whole, space),
        "latency_ms:there": 0.6 * slow.estimate(whole, space),
        "macs": 0.6 * sum(block.macs for block in whole),
    }
    allocator = Allocator(space, losses, costs, limits)
    met = 0
    for choice in draws(space, 30, allocator.genes):
        price = {name: values[0] for name, values in allocator.price([choice]).items()}
        if np.isfinite(price[HERE]):
            assert all(price[metric] <= limit for metric, limit in limits.items())
            met += 1
    assert met > 15


def test_outlines_are_the_same_whatever_their_inactive_genes_say(
    space: SearchSpace, losses: LossTable, made_table: Made
) -> None:
    costs = PartCosts({HERE: made_table(space)}, space)
    allocator = Allocator(space, losses, costs, {HERE: 0.5})
    assert not any(gene.rpartition(".")[2] in ALLOCATED for gene in allocator.genes)
    for choice in draws(space, 40, allocator.genes):
        plain = {**allocator._inner, **choice}
        same = space.choice(space.architecture(plain))
        canonical = allocator.canonical(choice)
        assert canonical == {gene: same[gene] for gene in allocator.genes}
        assert allocator.canonical(canonical) == canonical


def test_genes_alone_are_priced_as_before(space: SearchSpace, made_table: Made) -> None:
    table = made_table(space, memory=True)
    alone = GenesAlone(space, {HERE: table.pricer(space)})
    choices = draws(space, 5, alone.genes)
    least, most = alone.bounds(choices)
    for place, choice in enumerate(choices):
        cost = table.estimate(space.blocks(alone.architecture(choice)), space)
        assert least[HERE][place] == most[HERE][place] == pytest.approx(cost)


def test_what_cannot_be_allocated_is_said(
    space: SearchSpace, losses: LossTable, made_table: Made
) -> None:
    costs = PartCosts({HERE: made_table(space)}, space)
    with pytest.raises(ConfigError, match="1 to 3 budgets, but there are 4"):
        Allocator(space, losses, costs, dict.fromkeys([HERE, "params", "macs", "bytes"], 1.0))
    allocator = Allocator(space, losses, costs, {HERE: 1e-6})
    choice = draws(space, 1, allocator.genes)[0]
    assert allocator.price([choice])[HERE][0] == np.inf
    with pytest.raises(InfeasibleBudget, match="no inner numbers"):
        allocator.architecture(choice)
    strange = LossTable(space="other", method="taylor", dims={})
    with pytest.raises(ConfigError, match="does not know s1"):
        Allocator(space, strange, costs, {HERE: 0.5}).complete(choice)

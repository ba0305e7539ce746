"""How large a space is: its count, its ends, and the hull of the blocks at one place."""

import dataclasses
from functools import lru_cache
from math import comb
from typing import TYPE_CHECKING, Any

from nas.block import Block
from nas.space.architecture import Architecture
from nas.space.spec import TAIL_KIND, StageSpec, block_choice, inner_values

if TYPE_CHECKING:
    from nas.space.search_space import SearchSpace


def hull(blocks: tuple[Block, ...]) -> Block:
    """Return the elementwise maximum of blocks of one kind; tuples count as far as they go."""
    largest: dict[str, Any] = {}
    for item in dataclasses.fields(blocks[0]):
        values = [getattr(block, item.name) for block in blocks]
        if isinstance(values[0], tuple):
            length = max(map(len, values))
            largest[item.name] = tuple(
                max(value[place] for value in values if place < len(value))
                for place in range(length)
            )
        else:
            largest[item.name] = max(values)
    return type(blocks[0])(**largest)


@lru_cache(maxsize=64)
def extreme(space: "SearchSpace", *, largest: bool) -> Architecture:
    """Return the architecture of most (fewest) MACs, kinds chosen stage by stage.

    MACs grow with every number, so numbers sit at their ends; MACs of stages add up once the
    widths stand, so kinds, transition and tail are chosen one stage at a time.
    """
    end = -1 if largest else 0
    choice = {gene: options[end] for gene, options in space.genes().items()}
    pick = max if largest else min
    price = space.macs_pricer()
    for number, stage in enumerate(space.stages, 1):
        trials = []
        for kind in stage.kinds:
            for tail in stage.tail:
                for by in stage.by if number > 1 else ("",):
                    changed = {f"s{number}.tail": tail, f"s{number}.by": by}
                    changed |= {
                        f"s{number}.b{p}.kind": kind
                        for p in range(max(depth - tail for depth, tail in stage.shapes))
                    }
                    kept = {gene: value for gene, value in changed.items() if gene in choice}
                    trials.append({**choice, **kept})
        costs = price(space.encode(trials))
        choice = trials[int(pick(range(len(trials)), key=costs.__getitem__))]
    return space.architecture(choice)


@lru_cache(maxsize=64)
def count(space: "SearchSpace") -> int:
    """Return the number of distinct architectures: a sum over widths, stage after stage."""
    ways: dict[int, int] = {}
    for index, stage in enumerate(space.stages):
        after: dict[int, int] = {}
        for width in stage.width:
            inside = _stage_count(stage, width)
            if index == 0:
                after[width] = inside
                continue
            after[width] = sum(
                total * sum(_inner_count(stage, kind, before, width) for kind in stage.by) * inside
                for before, total in ways.items()
            )
        ways = after
    return sum(ways.values())


def _inner_count(stage: StageSpec, kind: str, before: int, width: int) -> int:
    return len(
        {block_choice(stage, kind, values, before, width) for values in inner_values(stage, kind)}
    )


def _stage_count(stage: StageSpec, width: int) -> int:
    """Return how many different block lists one stage has at one width."""
    inner = {kind: _inner_count(stage, kind, width, width) for kind in stage.used_kinds}
    total = 0
    for depth, tail in stage.shapes:
        total += _front_count(depth - tail, [inner[kind] for kind in stage.kinds]) * (
            inner[TAIL_KIND] if tail else 1
        )
    return total


def _front_count(length: int, inner: list[int]) -> int:
    """Return the lists of `length` kinds, each list times the inner options of the kinds in it."""
    if length == 0:
        return 1
    total = 0
    for mask in range(1, 2 ** len(inner)):
        used = [count for bit, count in enumerate(inner) if mask >> bit & 1]
        size = len(used)
        onto = sum((-1) ** j * comb(size, j) * (size - j) ** length for j in range(size + 1))
        product = 1
        for count in used:
            product *= count
        total += onto * product
    return total

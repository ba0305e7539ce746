"""What can be cut inside one trained network: smaller numbers for its parts, with their prices."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np

from nas.block import Block
from nas.errors import ConfigError, InfeasibleBudget
from nas.pipeline.inner import Part, Spot, fit_parts, part_options
from nas.pipeline.part_costs import PartCosts, Terms
from nas.space import SearchSpace
from nas.space.architecture import TRANSITIONS
from nas.space.spec import ROWS, StageSpec, inner_values, make_block
from nas.study import describe_cost
from nas.supernet.gates import Dim, dims
from nas.supernet.taylor.alone import inner_places

STEP = 8  # channels
LEVELS, JOINT_LEVELS = 8, 4  # sizes of a number, where its part has one and where it has several

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Cuts:
    """The choices there are in one network, and the terms of all that stays as it is.

    Attributes:
        blocks: The network as it is.
        places: (place, block) of its inner blocks.
        spots: (place, part) of each part with a choice; the first option is what is there.
        fixed: Terms of everything else, shape (terms,).
        lacking: Smaller versions that the table has no price of, which are no choice.
        offered: How many versions there would be with them.
    """

    blocks: tuple[Block, ...]
    places: tuple[tuple[str, Block], ...]
    spots: tuple[tuple[str, Part], ...]
    fixed: Terms
    lacking: tuple[Block, ...]
    offered: int

    def applied(self, picked: Sequence[int]) -> tuple[Block, ...]:
        """Return the network's blocks with an option for each spot."""
        numbers: dict[str, dict[str, int]] = {}
        for (place, part), option in zip(self.spots, picked, strict=True):
            numbers.setdefault(place, {}).update(part.options[option])
        inner = [with_numbers(block, numbers.get(place, {})) for place, block in self.places]
        return (self.blocks[0], *inner, self.blocks[-1])

    def changes(self, blocks: tuple[Block, ...]) -> Iterator[tuple[str, str, int, int]]:
        """Yield (place, field, number before, number after) of what differs in smaller blocks."""
        for (place, before), after in zip(self.places, blocks[1:-1], strict=True):
            for dim in dims(before):
                if dim.size(before) != dim.size(after):
                    yield place, dim.field, dim.size(before), dim.size(after)

    def fit(
        self, losses: Sequence[list[float]], costs: PartCosts, limits: Mapping[str, float]
    ) -> list[int]:
        """Return the option of each spot: the least loss in all within the limits.

        Args:
            losses: In nats, of every option of every spot.
            costs: What terms cost.
            limits: {metric: limit} on the whole network.

        Raises:
            InfeasibleBudget: the smallest there is is over a limit, and is named.
        """
        self.check(costs, limits)
        spots = [
            Spot(place, part, own) for (place, part), own in zip(self.spots, losses, strict=True)
        ]
        return fit_parts(spots, self.fixed, costs, limits)[0]

    def check(self, costs: PartCosts, limits: Mapping[str, float]) -> None:
        """Raise InfeasibleBudget if even the smallest of every part is over a limit."""
        least = self.fixed + sum(
            (part.terms.min(axis=0) for _, part in self.spots), np.zeros(len(self.fixed))
        )
        totals = costs.totals(least)
        for metric, limit in limits.items():
            lowest = float(totals[metric])
            if lowest > limit:
                raise InfeasibleBudget(
                    f"no inner numbers of this network meet {metric} <= "
                    f"{describe_cost(metric, limit)}: the least possible here is "
                    f"{describe_cost(metric, lowest)}. Raise the budget, or prune a smaller "
                    f"network{self._way_out()}.",
                    metric=metric,
                    budget=limit,
                    smallest=lowest,
                )

    def _way_out(self) -> str:
        if not self.lacking:
            return ""
        return (
            f"; the table has no price of {len(self.lacking)} of {self.offered} smaller versions "
            "of its parts, which --measure times"
        )


def cuts_of(
    blocks: tuple[Block, ...],
    prefixes: Sequence[str],
    costs: PartCosts,
    *,
    priced: Callable[[Block], bool],
    space: SearchSpace | None,
) -> Cuts:
    """Return what may be cut in a network.

    Args:
        blocks: The network.
        prefixes: Of its blocks' tensors.
        costs: What parts cost.
        priced: Whether the table has a price of a block.
        space: Whose options count, as far as they are smaller; else multiples of 8.

    Raises:
        ConfigError: the table cannot price the network as it is.
    """
    places = tuple(inner_places(blocks, prefixes))
    fixed: Terms = costs.terms(blocks[0]) + costs.terms(blocks[-1])
    spots: list[tuple[str, Part]] = []
    lacking: dict[Block, None] = {}
    offered = 0
    for (place, block), every in zip(places, smaller(blocks, space), strict=True):
        there = [version for version in every if priced(version)]
        lacking |= dict.fromkeys(version for version in every if version not in there)
        offered += len(every)
        shape = part_options((block, *there), costs)
        spots += [(place, part) for part in shape.parts]
        fixed = fixed + shape.fixed
    return Cuts(
        blocks=blocks,
        places=places,
        spots=tuple(spots),
        fixed=fixed,
        lacking=tuple(lacking),
        offered=offered,
    )


def smaller(blocks: tuple[Block, ...], space: SearchSpace | None) -> list[list[Block]]:
    """Return the versions of each inner block with smaller inner numbers."""
    stages = _stages_of(blocks, space)
    return [list(versions(block, stage)) for block, stage in zip(blocks[1:-1], stages, strict=True)]


def _stages_of(blocks: tuple[Block, ...], space: SearchSpace | None) -> Iterator[StageSpec | None]:
    """Yield the stage of the space for each inner block; None if the network is not of it."""
    count = 1 + sum(block.kind in TRANSITIONS for block in blocks)
    if space is not None and len(space.stages) != count:
        log.warning(
            "%s has %d stages and the network %d: multiples of %d are the options",
            space.name, len(space.stages), count, STEP,
        )  # fmt: skip
        space = None
    number = 0
    for block in blocks[1:-1]:
        number += block.kind in TRANSITIONS
        yield None if space is None else space.stages[number]


# ---------------------------------------------------------------- smaller versions of a block
def versions(block: Block, stage: StageSpec | None) -> Iterator[Block]:
    """Yield the block with other numbers inside, none of them larger, a part at a time or all.

    Args:
        block: As it is.
        stage: Whose options to take; multiples of 8 if it is None, or has no such kind.
    """
    own = dims(block)
    known = list(_rows_of(block, stage)) if stage is not None else []
    seen: set[Block] = {block}
    for part in dict.fromkeys(dim.part for dim in own):
        inside = [dim for dim in own if dim.part == part]
        if known or stage is not None:
            rows = [{dim.field: row[dim.field] for dim in inside} for row in known]
        else:
            count = LEVELS if len(inside) == 1 else JOINT_LEVELS
            levels = [_levels(dim, block, count) for dim in inside]
            fields = [dim.field for dim in inside]
            rows = [dict(zip(fields, numbers, strict=True)) for numbers in product(*levels)]
        for row in rows:
            version = with_numbers(block, row)
            if version not in seen:
                seen.add(version)
                yield version
    for row in known:  # whole, for tables that price blocks as such
        version = with_numbers(block, row)
        if version not in seen:
            seen.add(version)
            yield version


def _rows_of(block: Block, stage: StageSpec) -> Iterator[dict[str, int]]:
    """Yield the inner numbers that a space has for the block's place, where none is larger."""
    if block.kind not in (*stage.used_kinds, *stage.by):
        return
    before, width = block.in_channels, block.out_channels
    for values in inner_values(stage, block.kind):
        try:
            version = make_block(
                block.kind,
                ROWS[block.kind](values, stage, before, width),
                side=block.resolution,
                before=before,
                width=width,
                act="",
            )
        except ConfigError:  # a width that is none of the space's
            continue
        row = {dim.field: dim.size(version) for dim in dims(block)}
        if all(0 < row[dim.field] <= dim.size(block) for dim in dims(block)):
            yield row


def _levels(dim: Dim, block: Block, count: int) -> list[int]:
    """Return the present number and up to `count` - 1 below it, evenly spaced."""
    present = dim.size(block)
    unit = 1 if dim.field == "heads" else STEP
    step = unit * max(1, -(-present // (unit * count)))
    return [*range(step, present, step), present]


def with_numbers(block: Block, numbers: Mapping[str, int]) -> Block:
    """Return a block with other inner numbers: {"hidden": 64}, {"ffn.1": 32}."""
    changes: dict[str, Any] = {}
    for field, number in numbers.items():
        name, _, place = field.partition(".")
        if place:
            values = list(changes.get(name, getattr(block, name)))
            values[int(place)] = number
            changes[name] = tuple(values)
        else:
            changes[name] = number
    return replace(block, **changes)

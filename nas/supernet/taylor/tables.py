"""Tables for allocating inner dimensions: what each option of each part of a path loses."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from nas.block import Block
from nas.errors import ConfigError
from nas.space import Architecture, SearchSpace
from nas.space.architecture import BlockChoice
from nas.space.spec import ROWS, inner_values, make_block
from nas.supernet.gates import DIMS, Dim, dims
from nas.supernet.taylor.importance import Importance

Numbers = npt.NDArray[np.float64]
InnerNumbers = Mapping[str, int]  # dimension -> its number


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class InnerDim:
    """One inner dimension of one part of a path, for an allocator: plain names and numbers.

    Attributes:
        name: "SLOT.FIELD", for example "s2.b0.cga.hidden.0".
        kind: The kind of part and dimension, for example "ffn.hidden". Importance is comparable
            inside a kind only: `fit_scales` finds a scale for each.
        options: What the number may be, ascending.
        lost: Importance of the channels that each option drops, shape (options,): falling, and 0
            for the largest. Since I_c is a squared change of the loss, so is this.
        kept: Importance of the channels that each option keeps.
    """

    name: str
    kind: str
    options: tuple[int, ...]
    lost: Numbers
    kept: Numbers

    def at(self, number: int) -> float:
        """Return what is lost at one of the options."""
        return float(self.lost[self.options.index(number)])


def inner_dims(
    space: SearchSpace, architecture: Architecture, importance: Importance
) -> tuple[InnerDim, ...]:
    """Return each inner dimension of a path that has a choice.

    Prefix sums of importance in the order the channels stand in, which is how they are sliced: on
    a supernet that was put in order they are the sums of the largest.

    Args:
        space: The space.
        architecture: A path; its widths, depths and kinds count, its inner numbers do not.
        importance: Measured on `widest` of the path; numbers there may also be larger.

    Raises:
        ConfigError: importance lacks a dimension, or knows fewer channels of it.
    """
    found = []
    for slot, dim, block, options in choices(space, architecture):
        name = f"{slot}.{dim.field}"
        values = importance.get(name)
        if values is None or values.shape[-1] < options[-1]:
            known = "nothing" if values is None else f"{values.shape[-1]} channels"
            raise ConfigError(
                f"importance must know the {options[-1]} channels of {name}, but knows {known}. "
                "Measure it on widest(space, architecture)."
            )
        if values.ndim == 2:
            values = values[: int(getattr(block, "heads"))].sum(0)  # noqa: B009 (no Block has it)
        sums = np.concatenate([[0.0], np.cumsum(values[: options[-1]])])
        kept = sums[list(options)]
        found.append(
            InnerDim(name=name, kind=dim.gate, options=options, kept=kept, lost=sums[-1] - kept)
        )
    return tuple(found)


def widest(space: SearchSpace, architecture: Architecture) -> Architecture:
    """Return a path with the same widths, depths and kinds and the largest inner numbers."""
    largest = {
        f"{slot}.{dim.field}": options[-1] for slot, dim, _, options in choices(space, architecture)
    }
    return allocated(space, architecture, largest)


def allocated(
    space: SearchSpace, architecture: Architecture, allocation: InnerNumbers
) -> Architecture:
    """Return a path with other inner numbers, each part its own; those not named stay.

    A supernet runs it and `space.blocks` builds it. `space.choice` does not know it where a gene
    rules several parts, whose numbers differ here.

    Raises:
        ConfigError: a dimension that the path does not have.
    """
    left = dict(allocation)
    slots = iter(space.slots(architecture)[1:-1])
    stages = []
    for stage in architecture.stages:
        transition = stage.transition
        if transition is not None:
            transition = _changed(transition, next(slots), left)
        blocks = tuple(_changed(block, next(slots), left) for block in stage.blocks)
        stages.append(replace(stage, transition=transition, blocks=blocks))
    if left:
        raise ConfigError(
            f"an allocation must name dimensions of its path, but {sorted(left)[0]} is none."
        )
    return replace(architecture, stages=tuple(stages))


def _changed(choice: BlockChoice, slot: str, left: dict[str, int]) -> BlockChoice:
    """Return a block with the numbers for its slot, which are taken out of `left`."""
    values = dict(choice.dims)
    for dim in DIMS.get(choice.kind, ()):
        number = left.pop(f"{slot}.{dim.field}", None)
        if number is None:
            continue
        field, _, place = dim.field.partition(".")
        before = values[field]
        if isinstance(before, tuple):
            at = int(place)
            values[field] = (*before[:at], number, *before[at + 1 :])
        else:
            values[field] = number
    return BlockChoice(choice.kind, tuple(values.items()))


def choices(
    space: SearchSpace, architecture: Architecture
) -> list[tuple[str, Dim, Block, tuple[int, ...]]]:
    """Return (slot, dimension, block, options) of every inner dimension with a choice."""
    pairs = list(zip(space.slots(architecture), space.blocks(architecture), strict=True))
    found = []
    for slot, block in pairs[1:-1]:
        stage = space.stages[int(slot.partition(".")[0].removeprefix("s")) - 1]
        versions = [
            make_block(
                block.kind,
                ROWS[block.kind](values, stage, block.in_channels, block.out_channels),
                side=block.resolution,
                before=block.in_channels,
                width=block.out_channels,
                act=space.act,
            )
            for values in inner_values(stage, block.kind)
        ]
        for dim in dims(block):
            options = tuple(sorted({dim.size(version) for version in versions}))
            if len(options) > 1:
                found.append((slot, dim, block, options))
    return found

"""Gates: inner dimensions of each kind of block, where their channels are scaled, what they own.

A gate z multiplies one channel of a feature map: 1 leaves the network as it is, 0 is the network
without the channel. Gates stand behind BatchNorm and activation, at the input of what reads the
channel, so that 0 takes all of it out. There is one row for each inner dimension in `GATES`, and
one for each kind of block in `DIMS`; a kind whose numbers are fixed needs none, and what can be
looked at but neither sliced nor moved stands in `FIXED`. What a stage's own channels are made of,
the stream that its blocks read and add to, stands in `READS` and `WRITES`.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from nas.block import Block
from nas.network import part_prefixes

Indices = npt.NDArray[np.int64]
Part = Any  # a part of the one kind that a row is for


@dataclass(frozen=True, slots=True, kw_only=True)
class Point:
    """A submodule of a part, at whose input or output gates are multiplied in.

    Attributes:
        module: Its name inside the part.
        is_output: Whether the output is scaled instead of the input.
        axis: That of the channels: 1 in maps, 2 in tokens.
        spread: From gates of shape (batch, *shape) to factors of shape (batch, channels).
    """

    module: str
    is_output: bool = False
    axis: int = 1
    spread: Callable[[Tensor], Tensor] = lambda gates: gates


@dataclass(frozen=True, slots=True)
class Move:
    """Entries of tensors that change their places together.

    Attributes:
        name: Of one tensor, or with a dot at its end what the names of several begin with.
        axis: Along which.
        index: Which entry stands at each place afterwards.
    """

    name: str
    axis: int
    index: Indices

    def concerns(self, name: str) -> bool:
        """Return whether a tensor of this name has such entries."""
        return name.startswith(self.name) if self.name.endswith(".") else name == self.name


@dataclass(frozen=True, slots=True, kw_only=True)
class Gate:
    """One inner dimension of a kind of part.

    Attributes:
        shape: (channels,), or (heads, channels) where each head has an order of its own.
        points: Where its gates are multiplied in.
        moves: What changes places when the channels get another order, of the same shape.
    """

    shape: Callable[[Part], tuple[int, ...]]
    points: Callable[[Part], tuple[Point, ...]]
    moves: Callable[[Part, Indices], tuple[Move, ...]]


@dataclass(frozen=True, slots=True)
class Dim:
    """One inner dimension of a kind of block.

    Attributes:
        field: The block's field, "hidden"; with a place where it holds several, "hidden.0".
        part: The number of the part whose dimension it is.
        gate: Its row in `GATES`, "ffn.hidden".
    """

    field: str
    part: int
    gate: str

    def size(self, block: Block) -> int:
        """Return the number that a block has in this field."""
        name, _, place = self.field.partition(".")
        value = getattr(block, name)
        return int(value[int(place)] if place else value)


def dims(block: Block) -> tuple[Dim, ...]:
    """Return the inner dimensions of a block, in the order in which they are put into order."""
    if block.kind == "stem":
        inner = len(getattr(block, "widths")) - 1  # noqa: B009 (Block itself has no widths)
        return DIMS["stem"][:inner]
    return tuple(dim for dim in DIMS.get(block.kind, ()) if dim.size(block) > 0)


def fixed_dims(block: Block) -> tuple[Dim, ...]:
    """Return the dimensions whose channels have gates, but are all there and in their places."""
    return FIXED.get(block.kind, ())


def moved(name: str, tensor: Tensor, moves: Iterable[Move]) -> Tensor:
    """Return a tensor with its entries where the moves, one after another, put them."""
    for move in moves:
        if tensor.ndim and move.concerns(name):
            index = torch.from_numpy(move.index).to(tensor.device)
            tensor = tensor.index_select(move.axis, index)
    return tensor


def inner_moves(block: Block, orders: Mapping[str, Indices]) -> list[Move]:
    """Return what changes places in a block when inner dimensions get other orders.

    Args:
        block: The block; names are those of its module's parameters and statistics.
        orders: Field -> the order of its channels; fields that are absent stay as they are.
    """
    parts, prefixes = block.parts(), part_prefixes(block)
    found = []
    for dim in dims(block):
        if dim.field in orders:
            moves = GATES[dim.gate].moves(parts[dim.part], orders[dim.field])
            found += [Move(prefixes[dim.part] + m.name, m.axis, m.index) for m in moves]
    return found


def stream_moves(block: Block, before: Indices | None, after: Indices | None) -> list[Move]:
    """Return what changes places in a block when the streams around it get other orders.

    Args:
        block: The block.
        before: Order of the channels it reads; None leaves them.
        after: Order of the channels it gives: `before` itself inside a stage.
    """
    order, found = before, []
    for part, prefix in zip(block.parts(), part_prefixes(block), strict=True):
        if order is not None:
            found += [Move(prefix + name, axis, order) for name, axis in READS[part.kind]]
        if part.kind in BETWEEN_STREAMS:
            order = after
        if order is not None:
            last = len(getattr(part, "widths", ())) - 1
            rows = [(name.format(last=last), axis) for name, axis in WRITES[part.kind]]
            found += [Move(prefix + name, axis, order) for name, axis in rows]
    return found


# ---------------------------------------------------------------- hidden channels
def _hidden(part: Part) -> tuple[int, ...]:
    return (part.hidden,)


def _hidden_moves(part: Part, order: Indices, *, project: str) -> tuple[Move, ...]:
    return Move("expand.", 0, order), Move(project, 1, order)


def _merge_moves(part: Part, order: Indices) -> tuple[Move, ...]:
    return (
        *_hidden_moves(part, order, project="project.conv.weight"),
        Move("depthwise.", 0, order),
        Move("se.fc1.weight", 1, order),
        Move("se.fc2.", 0, order),
    )


def _squeeze_moves(part: Part, order: Indices) -> tuple[Move, ...]:
    return Move("se.fc1.", 0, order), Move("se.fc2.weight", 1, order)


def _stem_gate(place: int) -> Gate:
    """Return the gate of what a convolution of the stem gives to the next one."""
    return Gate(
        shape=lambda part: (part.widths[place],),
        points=lambda part: (Point(module=f"convs.{place + 1}"),),
        moves=lambda part, order: (
            Move(f"convs.{place}.", 0, order),
            Move(f"convs.{place + 1}.conv.weight", 1, order),
        ),
    )


# ---------------------------------------------------------------- attention
def _attn_points(part: Part) -> tuple[Point, ...]:
    """A query and its key are one product: its gate stands at the query."""

    def spread(gates: Tensor) -> Tensor:
        rest = gates.new_ones(len(gates), part.heads, part.key + part.value)
        return torch.cat([gates, rest], 2).flatten(1)

    return (Point(module="qkv", is_output=True, axis=2, spread=spread),)


def _qkv_moves(part: Part, queries: Indices, values: Indices) -> tuple[Move, ...]:
    """Rows of `qkv` are head-major: the queries of a head, its keys, its values."""
    first = np.arange(part.heads)[:, None] * (2 * part.key + part.value)
    rows = [first + queries, first + part.key + queries, first + 2 * part.key + values]
    return (Move("qkv.", 0, np.concatenate(rows, 1).ravel()),)


def _attn_key_moves(part: Part, order: Indices) -> tuple[Move, ...]:
    return _qkv_moves(part, order, np.tile(np.arange(part.value), (part.heads, 1)))


def _attn_value_moves(part: Part, order: Indices) -> tuple[Move, ...]:
    columns = np.arange(part.heads)[:, None] * part.value + order
    keys = np.tile(np.arange(part.key), (part.heads, 1))
    return (*_qkv_moves(part, keys, order), Move("project.weight", 1, columns.ravel()))


def _heads_moves(part: Part, order: Indices) -> tuple[Move, ...]:
    rows, columns = 2 * part.key + part.value, part.value
    return (
        Move("qkv.", 0, (order[:, None] * rows + np.arange(rows)).ravel()),
        Move("project.weight", 1, (order[:, None] * columns + np.arange(columns)).ravel()),
        Move("bias.table", 0, order),
    )


def _heads_points(part: Part) -> tuple[Point, ...]:
    def spread(gates: Tensor) -> Tensor:
        return gates.repeat_interleave(part.value, 1)

    return (Point(module="project", axis=2, spread=spread),)


def _group_attn_points(part: Part) -> tuple[Point, ...]:
    def spread(gates: Tensor, *, head: int) -> Tensor:
        return gates[:, head]

    return tuple(
        Point(module=f"queries.{head}", is_output=True, spread=partial(spread, head=head))
        for head in range(part.heads)
    )


def _group_attn_moves(part: Part, order: Indices) -> tuple[Move, ...]:
    values = 2 * part.key + np.arange(part.value)
    found = []
    for head, own in enumerate(order):
        rows = np.concatenate([own, part.key + own, values])
        found += [Move(f"qkvs.{head}.", 0, rows), Move(f"queries.{head}.", 0, own)]
    return tuple(found)


def _group_value_points(part: Part) -> tuple[Point, ...]:
    """A head's values go to the projection and on to the next head: gated where they are made."""

    def spread(gates: Tensor, *, head: int) -> Tensor:
        rest = gates.new_ones(len(gates), 2 * part.key)
        return torch.cat([rest, gates[:, head]], 1)

    return tuple(
        Point(module=f"qkvs.{head}", is_output=True, spread=partial(spread, head=head))
        for head in range(part.heads)
    )


# ---------------------------------------------------------------- one row a dimension
_CONVS = partial(_hidden_moves, project="project.conv.weight")
_INTO_PROJECT = (Point(module="project"),)

GATES: dict[str, Gate] = {
    "mlp.hidden": Gate(shape=_hidden, points=lambda part: _INTO_PROJECT, moves=_CONVS),
    "ffn.hidden": Gate(shape=_hidden, points=lambda part: _INTO_PROJECT, moves=_CONVS),
    "token_mlp.hidden": Gate(
        shape=_hidden,
        points=lambda part: (Point(module="project", axis=2),),
        moves=partial(_hidden_moves, project="project.weight"),
    ),
    # In front of the squeeze: a gate behind the first activation would leave the depthwise bias.
    **dict.fromkeys(
        ("merge.hidden", "mbconv.hidden"),
        Gate(shape=_hidden, points=lambda part: (Point(module="se"),), moves=_merge_moves),
    ),
    **dict.fromkeys(
        ("merge.squeeze", "mbconv.squeeze"),
        Gate(
            shape=lambda part: (part.squeeze,),
            points=lambda part: (Point(module="se.fc2"),),
            moves=_squeeze_moves,
        ),
    ),
    "attn.key": Gate(
        shape=lambda part: (part.heads, part.key), points=_attn_points, moves=_attn_key_moves
    ),
    "attn.value": Gate(
        shape=lambda part: (part.heads, part.value),
        points=lambda part: (
            Point(module="project", axis=2, spread=lambda gates: gates.flatten(1)),
        ),
        moves=_attn_value_moves,
    ),
    "attn.heads": Gate(shape=lambda part: (part.heads,), points=_heads_points, moves=_heads_moves),
    "group_attn.key": Gate(
        shape=lambda part: (part.heads, part.key),
        points=_group_attn_points,
        moves=_group_attn_moves,
    ),
    "group_attn.value": Gate(
        shape=lambda part: (part.heads, part.value),
        points=_group_value_points,
        moves=lambda part, order: (),
    ),
    **{f"stem.{place}": _stem_gate(place) for place in range(4)},
}

DIMS: dict[str, tuple[Dim, ...]] = {
    "stem": tuple(Dim(f"widths.{place}", 0, f"stem.{place}") for place in range(4)),
    "mb4d": (Dim("hidden", 1, "mlp.hidden"),),
    "mbconv": (Dim("hidden", 0, "mbconv.hidden"), Dim("squeeze", 0, "mbconv.squeeze")),
    # heads last: the orders inside a head are those of the heads as they stood
    "mb3d": (
        Dim("key", 0, "attn.key"),
        Dim("value", 0, "attn.value"),
        Dim("heads", 0, "attn.heads"),
        Dim("hidden", 1, "token_mlp.hidden"),
    ),
    # its heads are a cascade, and its values the channels of a chunk: neither may change places
    "cga": (
        Dim("hidden.0", 1, "ffn.hidden"),
        Dim("key", 2, "group_attn.key"),
        Dim("hidden.1", 4, "ffn.hidden"),
    ),
    "patch_merge": (
        Dim("ffn.0", 1, "ffn.hidden"),
        Dim("hidden", 2, "merge.hidden"),
        Dim("squeeze", 2, "merge.squeeze"),
        Dim("ffn.1", 4, "ffn.hidden"),
    ),
}

FIXED: dict[str, tuple[Dim, ...]] = {"cga": (Dim("value", 2, "group_attn.value"),)}

# ---------------------------------------------------------------- one row a kind of part
# Tensors along whose axis the channels stand that a part reads, and those that it gives.
READS: dict[str, tuple[tuple[str, int], ...]] = {
    "stem": (),
    "downsample": (("conv.weight", 1),),
    "head": (("norm.", 0), ("fc.weight", 1), ("fc_dist.weight", 1)),
    "pool": (),
    "mbconv": (("expand.conv.weight", 1),),
    "mlp": (("expand.conv.weight", 1),),
    "attn": (("norm.", 0), ("qkv.weight", 1)),
    "token_mlp": (("norm.", 0), ("expand.weight", 1)),
    "dw": (),
    "ffn": (("expand.conv.weight", 1),),
    "merge": (("expand.conv.weight", 1),),
}
WRITES: dict[str, tuple[tuple[str, int], ...]] = {
    "stem": (("convs.{last}.", 0),),
    "downsample": (("conv.weight", 0), ("conv.bias", 0), ("bn.", 0)),
    "head": (),
    "pool": (("scale.", 0),),
    "mbconv": (("project.", 0),),
    "mlp": (("project.", 0), ("scale.", 0)),
    "attn": (("project.", 0), ("scale.", 0)),
    "token_mlp": (("project.", 0), ("scale.", 0)),
    "dw": (("conv.", 0),),
    "ffn": (("project.", 0),),
    "merge": (("project.", 0),),
}
BETWEEN_STREAMS = ("stem", "downsample", "merge")  # what they read and give are different streams

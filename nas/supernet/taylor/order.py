"""Ordering: important channels to the front, where every slice keeps them."""

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from torch import Tensor

from nas.block import Block
from nas.errors import ConfigError
from nas.space import SearchSpace
from nas.supernet.gates import GATES, Indices, Move, dims, inner_moves, moved, stream_moves
from nas.supernet.model import SuperNet
from nas.supernet.taylor.importance import Importance, is_free_stream

Orders = dict[str, Indices]


@torch.no_grad()
def order(
    supernet: SuperNet, importance: Importance, *, optimizer: torch.optim.Optimizer | None = None
) -> Orders:
    """Permute a supernet's channels in place, from the most to the least important.

    A slice keeps the first channels of a dimension, so that afterwards it keeps those that matter.
    Networks of the largest inner numbers and widths compute what they computed before. Inside a
    head of attention keys and values have orders of their own, and heads among each other; cga's
    heads, values and streams stay where they are, since a head sees the chunks before its own and
    slices drop whole chunks. Channels of equal importance keep their places.

    Args:
        supernet: Its parameters keep their identity and memory layout; gradients are dropped.
        importance: Of dimensions at their largest, as `measure_importance` gives them for
            `covering_paths`. Dimensions that are absent stay as they are.
        optimizer: What holds tensors of the parameters' shapes for them (AdamW's moments); they
            follow their parameters.

    Returns:
        Dimension -> order, of the shape of its importance: the channel that stands at each place
        now, by where it stood before.

    Raises:
        ConfigError: a dimension that is not there, or not of that shape; nothing is changed then.
    """
    orders = {
        name: np.argsort(-values, axis=-1, kind="stable").astype(np.int64)
        for name, values in importance.items()
    }
    _check(supernet, orders)
    for slot, moves in slot_moves(supernet, orders):
        for name, parameter in supernet.tensors(slot).items():
            if not any(move.concerns(name) for move in moves):
                continue
            followers = {} if optimizer is None else optimizer.state.get(parameter, {})
            for tensor in (parameter, *followers.values()):
                if isinstance(tensor, Tensor) and tensor.shape == parameter.shape:
                    tensor.copy_(moved(name, tensor, moves))
            parameter.grad = None
    return orders


def slot_moves(
    supernet: SuperNet, orders: Mapping[str, Indices]
) -> Iterator[tuple[str, list[Move]]]:
    """Yield (slot, what changes places in its tensors) for orders by dimension."""
    for slot, hull in supernet.hull_blocks.items():
        inner = {
            dim.field: orders[f"{slot}.{dim.field}"]
            for dim in dims(hull)
            if f"{slot}.{dim.field}" in orders
        }
        before, after = (
            orders.get(f"s{stage}.width") for stage in _stages(supernet.space, slot, hull)
        )
        yield slot, inner_moves(hull, inner) + stream_moves(hull, before, after)


def _stages(space: SearchSpace, slot: str, hull: Block) -> tuple[int, int]:
    """Return the numbers of the stages whose streams a slot reads and gives; 0 is none."""
    if hull.kind == "stem":
        return 0, 1
    if hull.kind == "head":
        return len(space.stages), 0
    number, _, rest = slot.partition(".")
    stage = int(number.removeprefix("s"))
    return stage - int(rest.startswith("by.")), stage


def _check(supernet: SuperNet, orders: Orders) -> None:
    """Raise ConfigError unless every order is that of a dimension of the supernet."""
    known: dict[str, tuple[int, ...]] = {}
    for slot, hull in supernet.hull_blocks.items():
        for dim in dims(hull):
            known[f"{slot}.{dim.field}"] = GATES[dim.gate].shape(hull.parts()[dim.part])
    for number, stage in enumerate(supernet.space.stages, 1):
        if is_free_stream(supernet.space, number):
            known[f"s{number}.width"] = (stage.width[-1],)
    for name, own in orders.items():
        if known.get(name) != own.shape:
            raise ConfigError(
                f"importance must be that of a dimension of {supernet.space.name} at its largest, "
                f"but {name} has the shape {own.shape} and should have {known.get(name, 'none')}. "
                "Measure it on covering_paths(space)."
            )

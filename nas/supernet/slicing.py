"""Slices: how the tensors of a smaller block lie inside those of the hull of its slot.

A supernet keeps, for each slot, the tensors of one hull block whose every number is the maximum
over the choices. `slice_block` cuts out of them exactly the tensors of a smaller block: views where
the small tensor is one corner of the hull's, copies where segments interleave. Gradients flow back
through both. There is one rule for each kind of part; a new kind needs a line in `RULES`.

A rule gets the tensor's name inside its part, the hull's tensor, the shape wanted, and the two
parts. Anything it does not cut to exactly that shape is refused: `functional_call` would accept a
tensor that merely broadcasts.
"""

from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import lru_cache

import torch
from torch import Tensor

from nas.block import Attn, Block, GroupAttn
from nas.network import part_prefixes

Shape = tuple[int, ...]
Rule = Callable[[str, Tensor, Shape, Block, Block], Tensor]


def slice_block(
    tensors: Mapping[str, Tensor], shapes: Mapping[str, Shape], hull: Block, small: Block
) -> dict[str, Tensor]:
    """Cut the parameters of `small` out of those of `hull`.

    Args:
        tensors: The hull's parameters by their names in the block's module.
        shapes: The small block's parameters by name, the shapes to cut to.
        hull: The block that `tensors` belong to; no number of it is below that of `small`.
        small: The block to cut out.

    Returns:
        One tensor for each name in `shapes`, of exactly that shape. A tensor may share memory
        with the hull's, and is the hull's own where nothing is cut.

    Raises:
        ValueError: the small block is not inside the hull, a tensor has no rule, or a shape does
            not fit.
    """
    if not (is_inside(small, hull) and shapes.keys() <= tensors.keys()):  # heads may be dropped
        raise ValueError(f"{small} cannot be cut out of {hull}: not all of it lies inside.")
    sliced: dict[str, Tensor] = {}
    pairs = zip(part_prefixes(hull), hull.parts(), small.parts(), strict=True)
    for prefix, hull_part, small_part in pairs:
        rule = RULES.get(hull_part.kind)
        if rule is None:
            raise ValueError(f"there is no slice rule for parts of kind {hull_part.kind}.")
        for name, shape in shapes.items():
            if not name.startswith(prefix):
                continue
            tensor = tensors[name]
            if tensor.shape != shape:  # no number is above the hull's: equal means uncut
                tensor = rule(name.removeprefix(prefix), tensor, shape, hull_part, small_part)
            if tensor.shape != shape:
                raise ValueError(
                    f"{name} of {small} has shape {tuple(shape)}, but is cut to "
                    f"{tuple(tensor.shape)} out of {hull}."
                )
            sliced[name] = tensor
    if len(sliced) < len(shapes):
        raise ValueError(f"{sorted(shapes.keys() - sliced.keys())} of {small} are in no part.")
    return sliced


@lru_cache(maxsize=4096)
def is_inside(small: Block, hull: Block) -> bool:
    """Return whether a block is of the hull's kind and none of its numbers is above the hull's."""
    if small.kind != hull.kind:
        return False
    for item in fields(small):
        own, largest = getattr(small, item.name), getattr(hull, item.name)
        if isinstance(own, str):
            is_fitting = own == largest
        elif isinstance(own, tuple):
            pairs = zip(own, largest, strict=False)
            is_fitting = len(own) <= len(largest) and all(a <= b for a, b in pairs)
        else:
            is_fitting = own <= largest
        if not is_fitting:
            return False
    return True


def corner(tensor: Tensor, shape: Shape) -> Tensor:
    """Return the first `shape` entries of a tensor along each of its dimensions, as a view."""
    return tensor[tuple(slice(length) for length in shape)]


# ---------------------------------------------------------------- rules
def _corner(name: str, tensor: Tensor, shape: Shape, hull: Block, small: Block) -> Tensor:
    """Channels and hidden units are dropped from the end."""
    return corner(tensor, shape)


def _attn(name: str, tensor: Tensor, shape: Shape, hull: Block, small: Block) -> Tensor:
    """Heads are dropped from the end; keys and values from the end of each head."""
    assert isinstance(hull, Attn) and isinstance(small, Attn)
    if name in ("qkv.weight", "qkv.bias"):
        heads = tensor.reshape(hull.heads, -1, *tensor.shape[1:])[: small.heads]
        rows = _segments(heads, (hull.key, hull.key), (small.key, small.key), small.value, dim=1)
        return corner(rows.flatten(0, 1), shape)
    if name == "project.weight":
        heads = tensor.reshape(-1, hull.heads, hull.value)[:, : small.heads, : small.value]
        return corner(heads.flatten(1), shape)
    if name == "bias.table":
        return _bias_table(tensor, small.heads, hull.resolution, small.resolution)
    return corner(tensor, shape)


def _group_attn(name: str, tensor: Tensor, shape: Shape, hull: Block, small: Block) -> Tensor:
    """Heads are dropped from the end, each with its chunk of the channels; keys inside a head.

    Head i sees the chunks up to i, so that channels are cut by whole chunks only.
    """
    assert isinstance(hull, GroupAttn) and isinstance(small, GroupAttn)
    if small.value != hull.value:
        raise ValueError(f"{small} has chunks of {small.value} channels, but {hull} others.")
    if name.startswith("qkvs."):
        keys = (hull.key, hull.key), (small.key, small.key)
        return corner(_segments(tensor, *keys, small.value, dim=0), shape)
    if name.startswith("queries.") and tensor.ndim == 4:
        return _centre(corner(tensor, (*shape[:2], *tensor.shape[2:])), shape)
    if name == "bias.table":
        return _bias_table(tensor, small.heads, hull.side, small.side)
    return corner(tensor, shape)


def _mbconv(name: str, tensor: Tensor, shape: Shape, hull: Block, small: Block) -> Tensor:
    """Hidden and squeeze units are dropped from the end; depthwise kernels keep their middle."""
    if name == "depthwise.conv.weight":
        return _centre(corner(tensor, (*shape[:2], *tensor.shape[2:])), shape)
    return corner(tensor, shape)


def _segments(
    tensor: Tensor, hull: tuple[int, ...], small: tuple[int, ...], last: int, *, dim: int
) -> Tensor:
    """Return the first entries of each segment along `dim`, put together.

    Args:
        tensor: Segments of the lengths `hull`, then one more, one after another along `dim`.
        hull: The lengths of all segments but the last.
        small: What to keep of each.
        last: What to keep of the last.
        dim: The dimension.
    """
    starts = [sum(hull[:place]) for place in range(len(hull) + 1)]
    lengths = (*small, last)
    if small == hull:
        return tensor.narrow(dim, 0, sum(lengths))
    kept = [
        tensor.narrow(dim, start, length) for start, length in zip(starts, lengths, strict=True)
    ]
    return torch.cat(kept, dim)


def _centre(kernels: Tensor, shape: Shape) -> Tensor:
    """Return the middle of square kernels of odd side: of shape (out, in, side, side)."""
    start = (kernels.shape[-1] - shape[-1]) // 2
    return kernels[:, :, start : start + shape[-1], start : start + shape[-1]]


def _bias_table(table: Tensor, heads: int, hull_side: int, side: int) -> Tensor:
    """Return the biases of the first heads and of all distances inside a smaller square.

    Tables have the shape (heads, side^2); entry |rows apart| * side + |columns apart|.
    """
    square = table[:heads].reshape(-1, hull_side, hull_side)
    return square[:, :side, :side].flatten(1)


RULES: dict[str, Rule] = {
    "stem": _corner,
    "downsample": _corner,
    "head": _corner,
    "pool": _corner,
    "mlp": _corner,
    "token_mlp": _corner,
    "dw": _corner,
    "ffn": _corner,
    "merge": _corner,
    "mbconv": _mbconv,
    "attn": _attn,
    "group_attn": _group_attn,
}

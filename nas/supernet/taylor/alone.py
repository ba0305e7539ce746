"""One trained network: which of its inner channels matter, and the same network without the rest.

What `importance` and `order` do for a supernet, for a network of its own: its BatchNorm statistics
are those it was trained with, and every channel it has is looked at.
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from nas.block import Attn, Block, GroupAttn
from nas.data import Data, eval_batches
from nas.network import NasHybrid, build, part_prefixes
from nas.space.loss_table import DimLoss
from nas.supernet.evaluate import EvaluateConfig, first_images, refit_images
from nas.supernet.gates import GATES, Indices, dims, inner_moves, moved
from nas.supernet.slicing import slice_block
from nas.supernet.taylor.importance import Importance, TaylorConfig, gated

ALL_HEADS = "0"  # in a LossTable: heads share their channels, or there are none


def inner_places(blocks: Sequence[Block], prefixes: Sequence[str]) -> Iterator[tuple[str, Block]]:
    """Yield (place, block) of the blocks between stem and head: "stages.1.0" and what is there."""
    for prefix, block in list(zip(prefixes, blocks, strict=True))[1:-1]:
        yield prefix.removesuffix("."), block


def network_importance(
    model: NasHybrid, data: Data, config: TaylorConfig | None = None
) -> Importance:
    """Return how much the loss of a trained network depends on each of its inner channels.

    I_c = mean over images i of (dL_i / dz_c)^2 at z = 1 (Molchanov et al., arXiv 1906.10771,
    equation 8 with gates), as `measure_importance` has it of a supernet. A channel that nothing
    depends on has exactly 0.

    Args:
        model: In any mode; it is not changed.
        data: The first images of its train split are measured on.
        config: How many.

    Returns:
        "PLACE.FIELD" ("stages.1.0.hidden") -> importance of shape (channels,), or (heads,
        channels) where each head has channels of its own.
    """
    config = config or TaylorConfig()
    images = first_images(data.split("train"), config.images)
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()
    sums: dict[str, Tensor] = {}
    for batch, labels in eval_batches(images, data, batch_size=config.batch_size, device=device):
        for name, gradient in _sample_gradients(model, batch, labels).items():
            squares = gradient.double().square().sum(0).cpu()
            sums[name] = sums[name] + squares if name in sums else squares
    model.train(was_training)
    return {name: (total / len(images)).numpy() for name, total in sums.items()}


def _sample_gradients(model: NasHybrid, images: Tensor, labels: Tensor) -> dict[str, Tensor]:
    """Return the derivatives of each image's loss by its own gates: (batch, *shape of them)."""
    if len(images) == 1:  # torch's BatchNorm may give wrong gradients to a single image
        pair = _sample_gradients(model, images.repeat(2, 1, 1, 1), labels.repeat(2))
        return {name: own[:1] for name, own in pair.items()}
    gates: dict[str, Tensor] = {}
    with ExitStack() as hooks, torch.enable_grad():
        for place, block in inner_places(model.blocks_spec, model.block_prefixes):
            parts = block.parts()
            for dim in dims(block):
                shape = GATES[dim.gate].shape(parts[dim.part])
                ones = images.new_ones(len(images), *shape).requires_grad_()
                gates[f"{place}.{dim.field}"] = ones
            hooks.enter_context(gated(model.get_submodule(place), block, place, gates))
        losses = F.cross_entropy(model(images), labels, reduction="none")
        found = torch.autograd.grad(losses.sum(), list(gates.values()), materialize_grads=True)
    return dict(zip(gates, found, strict=True))


def channel_orders(importance: Importance) -> dict[str, Indices]:
    """Return the order of each dimension's channels, the most important first."""
    return {
        name: np.argsort(-values, axis=-1, kind="stable").astype(np.int64)
        for name, values in importance.items()
    }


def kept_importance(model: NasHybrid, importance: Importance) -> dict[str, DimLoss]:
    """Return how much importance the first so many channels keep, in the order `cut` keeps them.

    Args:
        model: The network.
        importance: Of all its inner dimensions.
    """
    found: dict[str, DimLoss] = {}
    for place, block in inner_places(model.blocks_spec, model.block_prefixes):
        heads = importance.get(f"{place}.heads")
        for dim in dims(block):
            values = -np.sort(-importance[f"{place}.{dim.field}"], axis=-1)
            if values.ndim == 2 and heads is not None:  # rows follow their heads
                values = values[np.argsort(-heads, kind="stable")]
            rows = {ALL_HEADS: values}
            if values.ndim == 2:
                rows = {str(n): values[:n].sum(0) for n in range(1, len(values) + 1)}
            sums = {n: np.concatenate([[0.0], np.cumsum(own)]) for n, own in rows.items()}
            kept = {
                n: {str(number): float(total) for number, total in enumerate(own)}
                for n, own in sums.items()
            }
            found[f"{place}.{dim.field}"] = DimLoss(kind=dim.gate, kept=kept)
    return found


@torch.no_grad()
def cut(model: NasHybrid, blocks: Sequence[Block], orders: Mapping[str, Indices]) -> NasHybrid:
    """Return the network with smaller inner numbers, made of the channels that come first.

    Keys and values are chosen inside each head and heads among each other; cga's heads, values
    and chunks stay as they are (see `order`). BatchNorm's statistics are those of the channels
    that are kept. Blocks that stay as large as they were keep their channels where they are.

    Args:
        model: The network; it is not changed.
        blocks: The same blocks with inner numbers that are not larger.
        orders: "PLACE.FIELD" -> the order of its channels; those absent stand in theirs.

    Raises:
        ValueError: a block does not lie inside the one it is to be cut out of.
    """
    config = {key: model.pretrained_cfg[key] for key in ("mean", "std")}  # type: ignore[index]
    smaller = build(blocks, drop_rate=model.head.drop.p, pretrained_cfg_overlay=config)
    state, wanted = model.state_dict(), smaller.state_dict()
    found: dict[str, Tensor] = {}
    for prefix, before, after in zip(model.block_prefixes, model.blocks_spec, blocks, strict=True):
        own = _below(prefix, state)
        if before != after:
            fields = {dim.field: f"{prefix}{dim.field}" for dim in dims(before)}
            known = {field: orders[name] for field, name in fields.items() if name in orders}
            moves = inner_moves(before, known)
            own = {name: moved(name, tensor, moves) for name, tensor in own.items()}
        shapes = {name: tuple(tensor.shape) for name, tensor in _below(prefix, wanted).items()}
        sliced = _rescaled(slice_block(own, shapes, before, after), before, after)
        found |= {prefix + name: tensor for name, tensor in sliced.items()}
    smaller.load_state_dict(found)
    return smaller.to(next(model.parameters()).device).train(model.training)


def _rescaled(tensors: dict[str, Tensor], before: Block, after: Block) -> dict[str, Tensor]:
    """Return a cut block's tensors with queries as long as products with fewer keys need them.

    Attention divides its products by the root of the number of keys, which a supernet's slices
    are trained with; here the network was trained with the larger number.
    """
    found = dict(tensors)
    pairs = zip(part_prefixes(after), before.parts(), after.parts(), strict=True)
    for prefix, old, new in pairs:
        if not isinstance(old, Attn | GroupAttn) or not isinstance(new, Attn | GroupAttn):
            continue
        factor = (new.key / old.key) ** 0.5
        if factor == 1:
            continue
        for name, tensor in tensors.items():
            last = name.removeprefix(prefix)
            if last.startswith("qkv.") and isinstance(new, Attn):
                rows = tensor.clone().view(new.heads, 2 * new.key + new.value, -1)
                rows[:, : new.key] *= factor
                found[name] = rows.view(tensor.shape)
            elif last.startswith("queries.") and last.endswith(("bn.weight", "bn.bias")):
                found[name] = tensor * factor
    return found


def _below(prefix: str, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
    return {n.removeprefix(prefix): t for n, t in tensors.items() if n.startswith(prefix)}


@torch.no_grad()
def refit(model: nn.Module, data: Data, config: EvaluateConfig | None = None) -> None:
    """Fit BatchNorm's statistics to training images, not augmented, in place.

    Over one batch they are exact, over several of equal size the means of theirs.

    Args:
        model: A network; its mode and its weights stay.
        data: The first images of its train split are taken.
        config: How many.
    """
    images, size = refit_images(data, config or EvaluateConfig())
    device = next(model.parameters()).device
    norms = [module for module in model.modules() if isinstance(module, _BatchNorm)]
    momenta = [norm.momentum for norm in norms]
    was_training = model.training
    model.eval()
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a mean over all batches
        norm.train()
    for batch, _ in eval_batches(images, data, batch_size=size, device=device):
        model(batch)
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
    model.train(was_training)

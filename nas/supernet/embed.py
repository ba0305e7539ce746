"""Embed: a trained network's weights, written to where its own path lies in a supernet."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from nas import checkpoint
from nas.block import Block, Head
from nas.errors import ConfigError
from nas.network import NasHybrid
from nas.space import Architecture, SearchSpace, architecture_of
from nas.supernet.model import SuperNet
from nas.supernet.slicing import is_inside, slice_block

Tensors = Mapping[str, Tensor]


@torch.no_grad()
def embed(supernet: SuperNet, model: NasHybrid) -> Architecture:
    """Write a network's weights into the slices that its path through a supernet runs with.

    The path computes the network's function then: with the network's BatchNorm statistics,
    `supernet(x, architecture, statistics)` gives its class scores. Everything outside those
    slices stays as it was. Where the space has one classifier and the network two, their mean is
    embedded, which is what their scores are read as; where the classes are others, the
    classifier stays as it was drawn.

    Args:
        supernet: What to write into; nothing is written where the network does not fit.
        model: The network, at the space's image size. Its widths, kinds and inner numbers need
            not be options of the space; they must fit into the largest there is at each place.

    Returns:
        The network as a path.

    Raises:
        ConfigError: the supernet cannot hold the network; the message names the first difference.
    """
    architecture = architecture_of(model.blocks_spec, space=supernet.space.name)
    _check_outline(supernet.space, model, architecture)
    parameters = dict(model.named_parameters())
    writes: list[tuple[Tensor, Tensor, Tensor]] = []
    walk = zip(supernet.walk(architecture), model.blocks_spec, model.block_prefixes, strict=True)
    for (slot, own), block, prefix in walk:
        values: Tensors = {
            name.removeprefix(prefix): value
            for name, value in parameters.items()
            if name.startswith(prefix)
        }
        if isinstance(own, Head) and isinstance(block, Head):
            values = _classifier(own, block, values)
            block = replace(block, classes=own.classes, distilled=own.distilled)
        hull = supernet.hull_blocks.get(slot)
        if hull is None:
            raise _refusal(supernet, slot, block, "it has no such place")
        if own != block:
            raise _refusal(supernet, slot, block, f"it has {own} there")
        if not is_inside(block, hull):
            raise _refusal(supernet, slot, block, f"the largest there is {hull}")
        tensors = supernet.tensors(slot)
        try:
            places = _places(tensors, values, hull, block)
        except ValueError as error:
            raise _refusal(supernet, slot, block, str(error).rstrip(".")) from error
        writes += [(tensors[name], places[name], value) for name, value in values.items()]
    for tensor, entries, value in writes:
        flat = tensor.flatten().clone()  # whatever the memory layout
        flat[entries.flatten().to(flat.device)] = value.flatten().to(flat)
        tensor.copy_(flat.view(tensor.shape))
    supernet.start = checkpoint.digest_tensors(model.state_dict())
    return architecture


def _check_outline(space: SearchSpace, model: NasHybrid, architecture: Architecture) -> None:
    """Raise ConfigError unless image size and number of stages are the space's."""
    if architecture.image_size != space.image_size:
        raise ConfigError(
            f"the network must take images of the space's size, {space.image_size}, but takes "
            f"{architecture.image_size}. Move it there: model.set_input_size({space.image_size})."
        )
    if len(architecture.stages) != len(space.stages):
        raise ConfigError(
            f"a network that starts the space {space.name} must have its {len(space.stages)} "
            f"stages, but this one has {len(architecture.stages)}."
        )


def _refusal(supernet: SuperNet, slot: str, block: Block, reason: str) -> ConfigError:
    """Return the error of a block for which there is no room."""
    return ConfigError(
        f"the space {supernet.space.name} cannot hold the network's {block} at {slot}: {reason}. "
        "Start from another network, or use a space with room for this one."
    )


def _places(tensors: Tensors, values: Tensors, hull: Block, block: Block) -> dict[str, Tensor]:
    """Return for each value which entries of the hull's flattened tensor a slice takes.

    Slicing tensors of entry numbers inverts every slice rule, those that gather included.
    """
    numbers = {
        name: torch.arange(value.numel()).reshape(value.shape) for name, value in tensors.items()
    }
    shapes = {name: value.shape for name, value in values.items()}
    return slice_block(numbers, shapes, hull, block)


def _classifier(own: Head, block: Head, values: Tensors) -> Tensors:
    """Return a head's tensors for the space's head, without classifiers if classes differ."""
    kept = {name: value for name, value in values.items() if name.startswith("norm.")}
    if own.classes != block.classes or "fc.weight" not in values:
        return kept
    for name in ("weight", "bias"):
        first = values[f"fc.{name}"]
        second = values.get(f"fc_dist.{name}", first)
        if own.distilled:
            kept |= {f"fc.{name}": first, f"fc_dist.{name}": second}
        else:
            kept[f"fc.{name}"] = (first + second) / 2
    return kept

"""Importance of channels: what the loss does when they are scaled, to first order (Taylor)."""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from nas.block import Block
from nas.data import Data, eval_batches
from nas.errors import ConfigError
from nas.network import part_prefixes
from nas.space import Architecture, SearchSpace
from nas.supernet.choice import kind_genes
from nas.supernet.evaluate import EvaluateConfig, first_images, fit_statistics
from nas.supernet.gates import GATES, Point, dims, fixed_dims
from nas.supernet.model import Statistics, SuperNet
from nas.supernet.template import template_of

# Dimension -> importance of its channels: "SLOT.FIELD" of shape (channels,), or (heads, channels)
# where each head has channels of its own; "sN.width" for the stream of stage N.
Importance = dict[str, npt.NDArray[np.float64]]


@dataclass(frozen=True, slots=True, kw_only=True)
class TaylorConfig:
    """What importance is measured on.

    Attributes:
        images: Training images, not augmented; always the same ones.
        batch_size: Images run at once; it changes results in their last bits only.
        fixed: Whether to measure what no slice drops and no order moves too: cga's values.
            `order` and `groups` do not take it.
    """

    images: int = 256
    batch_size: int = 64
    fixed: bool = False

    def __post_init__(self) -> None:
        for name, low in (("images", 2), ("batch_size", 1)):
            if not low <= getattr(self, name) <= 1_000_000:
                raise ConfigError(
                    f"{name} must be from {low} to 1000000, but is {getattr(self, name)}."
                )


def measure_importance(
    supernet: SuperNet,
    architectures: Sequence[Architecture],
    data: Data,
    config: TaylorConfig | None = None,
) -> Importance:
    """Return how much the loss depends on each channel that a slice may drop.

    I_c = mean over images i of (dL_i / dz_c)^2 at z = 1, for a gate z_c that multiplies channel c
    (Molchanov et al., arXiv 1906.10771, equation 8 with gates), L_i being the cross-entropy of one
    image. BatchNorm uses statistics fitted to the sub-network: normalising by the batch would hide
    scales, and mix images. The stream of a stage has one gate a channel for all its readers (the
    blocks, and the transition or head behind them); its derivative, a sum over the readers, is
    divided by their number. Stages where cga may stand have no stream here: their channels cannot
    change places. A query channel and its key are one product and have one gate.

    Args:
        supernet: Its weights are not changed.
        architectures: The paths to measure on. A dimension's importance is the mean over the
            paths it is in.
        data: Its train split is measured on.
        config: How many images.

    Raises:
        ConfigError: data and space do not fit, there is no path, or two paths have different
            blocks in one slot.
    """
    config = config or TaylorConfig()
    if not architectures:
        raise ConfigError("importance must be measured on at least one path, but there is none.")
    images = first_images(data.split("train"), config.images)
    refit = EvaluateConfig(refit_images=config.images)
    device = next(supernet.parameters()).device
    sums: dict[str, Tensor] = {}
    paths: dict[str, int] = {}
    for architecture in architectures:
        own: dict[str, Tensor] = {}
        statistics = fit_statistics(supernet, architecture, data, refit)
        for batch, labels in eval_batches(
            images, data, batch_size=config.batch_size, device=device
        ):
            gradients = sample_gradients(
                supernet, batch, labels, architecture, statistics, fixed=config.fixed
            )
            for name, gradient in gradients.items():
                squares = gradient.double().square().sum(0).cpu()
                own[name] = own[name] + squares if name in own else squares
        for name, total in own.items():
            if name in sums and sums[name].shape != total.shape:
                raise ConfigError(
                    f"paths must have equal blocks in one slot, but {name} has the shapes "
                    f"{tuple(sums[name].shape)} and {tuple(total.shape)}. Measure them apart."
                )
            sums[name] = sums[name] + total if name in sums else total
            paths[name] = paths.get(name, 0) + 1
    return {name: (total / (paths[name] * len(images))).numpy() for name, total in sums.items()}


def sample_gradients(
    supernet: SuperNet,
    images: Tensor,
    labels: Tensor,
    architecture: Architecture,
    statistics: Statistics,
    *,
    fixed: bool = False,
) -> dict[str, Tensor]:
    """Return the derivatives of each image's loss by its own gates: (batch, *shape of the gates).

    Every image has gates of its own, so that one backward pass of the sum of all losses gives
    each image's derivatives. Those of a stream are divided by the number of its readers.
    """
    if len(images) == 1:
        # torch 2.14's BatchNorm on the CPU gives wrong gradients, with statistics or without, to
        # a batch of one whose output's gradient is a transposed tensor, as attention makes it.
        twice = images.repeat(2, 1, 1, 1), labels.repeat(2)
        pair = sample_gradients(supernet, *twice, architecture, statistics, fixed=fixed)
        return {name: own[:1] for name, own in pair.items()}
    gates = unit_gates(supernet, architecture, images, fixed=fixed)
    for each in gates.values():
        each.requires_grad_()
    with torch.enable_grad():
        losses = gated_losses(supernet, images, labels, architecture, statistics, gates)
        found = torch.autograd.grad(  # 0 for a channel that nothing depends on
            losses.sum(), list(gates.values()), materialize_grads=True
        )
    readers = [_read_stream(supernet.space, slot) for slot in supernet.space.slots(architecture)]
    return {
        name: gradient / max(1, readers.count(name))
        for name, gradient in zip(gates, found, strict=True)
    }


def gated_losses(
    supernet: SuperNet,
    images: Tensor,
    labels: Tensor,
    architecture: Architecture,
    statistics: Statistics,
    gates: Mapping[str, Tensor],
) -> Tensor:
    """Return the cross-entropy of each image in nats, shape (batch,), with channels scaled.

    Args:
        supernet: Where the weights come from.
        images: Of shape (batch, channels, side, side).
        labels: Classes of shape (batch,).
        architecture: One of the space.
        statistics: BatchNorm's, fitted to it.
        gates: As `unit_gates` gives them; those that are absent count as 1.
    """
    x = images
    for place, (slot, block) in enumerate(supernet.walk(architecture)):
        stream = gates.get(_read_stream(supernet.space, slot))
        if stream is not None:
            x = _scaled(x, stream, 1)
        module = template_of(block, x.device).module
        with gated(module, block, slot, gates):
            x = supernet.run_block(x, slot, block, statistics[place])
    return F.cross_entropy(x, labels, reduction="none")


def unit_gates(
    supernet: SuperNet, architecture: Architecture, images: Tensor, *, fixed: bool = False
) -> dict[str, Tensor]:
    """Return gates of 1 for every dimension of a path: (batch, *shape of the dimension)."""
    shapes: dict[str, tuple[int, ...]] = {}
    for slot, block in supernet.walk(architecture):
        stream = _read_stream(supernet.space, slot)
        if stream:
            shapes[stream] = (block.in_channels,)
        parts = block.parts()
        for dim in (*dims(block), *(fixed_dims(block) if fixed else ())):
            shapes[f"{slot}.{dim.field}"] = GATES[dim.gate].shape(parts[dim.part])
    return {name: images.new_ones(len(images), *shape) for name, shape in shapes.items()}


def covering_paths(space: SearchSpace) -> tuple[Architecture, ...]:
    """Return paths of the largest numbers that together stand in every slot of a supernet.

    Every kind has its turn at every place, with the fewest and with the most mb3d at the end.
    """
    genes, kinds = space.genes(), kind_genes(space)
    turns = max((len(options) for options in kinds.values()), default=1)
    found = {}
    for end in (0, -1):
        for turn in range(turns):
            choice = {gene: options[-1] for gene, options in genes.items()}
            choice |= {gene: options[turn % len(options)] for gene, options in kinds.items()}
            choice |= {gene: genes[gene][end] for gene in genes if gene.endswith(".tail")}
            path = space.architecture(choice)
            found[path.id] = path
    return tuple(found.values())


def is_free_stream(space: SearchSpace, stage: int) -> bool:
    """Return whether a stage's channels may change places: cga's chunks see those before them."""
    return "cga" not in space.stages[stage - 1].kinds


def _read_stream(space: SearchSpace, slot: str) -> str:
    """Return the name of the stream that a slot's block reads, "" if it has no gates."""
    if slot == "stem":
        return ""
    number, _, rest = slot.partition(".")
    if slot == "head":
        stage = len(space.stages)
    else:
        stage = int(number.removeprefix("s")) - int(rest.startswith("by."))
    return f"s{stage}.width" if is_free_stream(space, stage) else ""


@contextmanager
def gated(
    module: nn.Module, block: Block, slot: str, gates: Mapping[str, Tensor]
) -> Iterator[None]:
    """Multiply a block's gates in while it runs."""
    handles: list[RemovableHandle] = []
    parts, prefixes = block.parts(), part_prefixes(block)
    try:
        for dim in (*dims(block), *fixed_dims(block)):
            given = gates.get(f"{slot}.{dim.field}")
            if given is None:
                continue
            for point in GATES[dim.gate].points(parts[dim.part]):
                inner = module.get_submodule(prefixes[dim.part] + point.module)
                handles.append(_attach(inner, point, point.spread(given)))
        yield
    finally:
        for handle in handles:
            handle.remove()


def _attach(module: nn.Module, point: Point, factors: Tensor) -> RemovableHandle:
    if point.is_output:
        return module.register_forward_hook(
            lambda module, given, output: _scaled(output, factors, point.axis)
        )
    return module.register_forward_pre_hook(
        lambda module, given: (_scaled(given[0], factors, point.axis), *given[1:])
    )


def _scaled(x: Tensor, factors: Tensor, axis: int) -> Tensor:
    """Return x with its channels along `axis` times factors of shape (batch, channels).

    Where x has a multiple of the batch, an image's windows follow one another.
    """
    shape = [1] * x.ndim
    shape[0], shape[axis] = x.shape[0], x.shape[axis]
    return x * factors.repeat_interleave(x.shape[0] // factors.shape[0], 0).view(shape)

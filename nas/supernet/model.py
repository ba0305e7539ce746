"""SuperNet: the tensors of every slot at their largest, and sub-networks cut out of them."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from nas import network
from nas.block import Block
from nas.network import NasHybrid, build_block, scale_residuals
from nas.seeds import stage_seed
from nas.space import Architecture, SearchSpace
from nas.supernet.choice import Spot
from nas.supernet.slicing import slice_block
from nas.supernet.template import BlockStatistics, drop_running_statistics, template_of

# Every residual branch starts at this scale. From 1e-5, as published, gradients of a choice between
# kinds are 1e-8, and initialisation would decide it. From 1, paths of a dozen blocks whose kinds
# change from step to step hardly learn (LOG.md, 2026-11-22).
RESIDUAL_SCALE = 0.05

# One mapping a block, in the order of `space.blocks(architecture)`.
Statistics = tuple[BlockStatistics, ...]


class SuperNet(nn.Module):
    """All networks of a space in one set of weights.

    `supernet(x, architecture)` runs the small network: for each block the plain module of exactly
    its size, with slices of its slot's tensors for weights. What the BatchNorms do is said by the
    arguments of a call, not by `train()` and `eval()`; the supernet has no running statistics.
    Several threads may run it at once.

    Args:
        space: Where the architectures come from; its classes and channels are those of the data.
        seed: What the initial weights are drawn from.

    Attributes:
        hull_blocks: Slot -> the block whose tensors are kept there.
        start: Digest of the network whose weights were embedded at first; None for random ones.
    """

    def __init__(self, space: SearchSpace, *, seed: int = 0) -> None:
        super().__init__()
        self.space = space
        self.seed = seed
        self.start: str | None = None
        self.hull_blocks = space.hulls()
        self.hulls = nn.ModuleDict()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(stage_seed(seed, "supernet"))
            for slot, block in self.hull_blocks.items():
                self.hulls[_key(slot)] = build_block(block)
        scale_residuals(self.hulls, RESIDUAL_SCALE)
        drop_running_statistics(self.hulls)
        self._owners = {slot: _owners(self.hulls[_key(slot)]) for slot in self.hull_blocks}

    # ------------------------------------------------------------ running
    def forward(
        self,
        x: Tensor,
        architecture: Architecture,
        statistics: Statistics | None = None,
        *,
        fit: bool = False,
    ) -> Tensor:
        """Return the class scores that one sub-network gives a batch.

        Args:
            x: Images of shape (batch, channels, side, side).
            architecture: One of the space.
            statistics: BatchNorm's running statistics of this sub-network. Without them it
                normalises by the batch and keeps nothing: a training step.
            fit: Normalise by the batch, and add it to `statistics` in place.
        """
        for place, (slot, block) in enumerate(self.walk(architecture)):
            own = None if statistics is None else statistics[place]
            x = self.run_block(x, slot, block, own, fit=fit)
        return x

    def run_block(
        self,
        x: Tensor,
        slot: str,
        block: Block,
        statistics: BlockStatistics | None = None,
        *,
        fit: bool = False,
    ) -> Tensor:
        """Return the output of one block, with its slice of the slot's tensors for weights."""
        runner = template_of(block, x.device)
        tensors = slice_block(self.tensors(slot), runner.shapes, self.hull_blocks[slot], block)
        if statistics is not None:
            # The memory an extracted network would have, so that the same kernels are chosen.
            tensors = {name: value.contiguous() for name, value in tensors.items()}
        return runner.run(x, tensors, statistics, fit=fit)

    def forward_mixed(
        self, x: Tensor, spots: Sequence[Spot], weights: Mapping[str, Tensor]
    ) -> Tensor:
        """Return the class scores of a path, with a gradient for every weight of every spot.

        At a spot with several candidates the output is the sum of weight x output. The weights
        are one-hot: the sum is the chosen candidate's output, and the gradient of a weight is the
        inner product of that candidate's output with the gradient of the sum. The candidates that
        were not chosen are run without a graph, since nothing flows back through a zero; the
        supernet's own tensors get no gradients.

        Args:
            x: Images of shape (batch, channels, side, side).
            spots: The path, from `choice.spots`.
            weights: Gene -> one-hot weights of shape (candidates,).
        """
        for spot in spots:
            if spot.gene is None:
                ((slot, block),) = spot.candidates
                x = self._run_frozen(x, slot, block)
                continue
            chosen = int(weights[spot.gene].argmax())
            each = weights[spot.gene].to(x.device)
            total = torch.zeros((), device=x.device)
            for number, (slot, block) in enumerate(spot.candidates):
                with torch.set_grad_enabled(torch.is_grad_enabled() and number == chosen):
                    output = self._run_frozen(x, slot, block)
                total = total + each[number] * output
            x = total
        return x

    def _run_frozen(self, x: Tensor, slot: str, block: Block) -> Tensor:
        """Return a block's output with a graph that leads to `x` only."""
        runner = template_of(block, x.device)
        own = {name: value.detach() for name, value in self.tensors(slot).items()}
        tensors = slice_block(own, runner.shapes, self.hull_blocks[slot], block)
        return runner.run(x, tensors)

    def walk(self, architecture: Architecture) -> Iterator[tuple[str, Block]]:
        """Yield (slot, block) from stem to head."""
        slots, blocks = self.space.slots(architecture), self.space.blocks(architecture)
        yield from zip(slots, blocks, strict=True)

    def tensors(self, slot: str) -> dict[str, Tensor]:
        """Return the parameters of one slot by their names in its block's module."""
        return {name: getattr(owner, last) for name, owner, last in self._owners[slot]}

    # ------------------------------------------------------------ leaving
    def empty_statistics(self, architecture: Architecture) -> Statistics:
        """Return statistics of no batch at all, for `forward(..., fit=True)` to be fitted on."""
        device = next(self.parameters()).device
        return tuple(
            template_of(block, device).empty_statistics(device)
            for _, block in self.walk(architecture)
        )

    @torch.no_grad()
    def extract(self, architecture: Architecture, statistics: Statistics) -> NasHybrid:
        """Return a sub-network as a timm model of its own, in eval mode.

        It holds copies of the slices that were evaluated and the statistics fitted for them, and
        gives bit-equal class scores.
        """
        model = network.build(self.space.blocks(architecture))
        state: dict[str, Tensor] = {}
        for place, (slot, block) in enumerate(self.walk(architecture)):
            shapes = template_of(block, torch.device("cpu")).shapes
            tensors = slice_block(self.tensors(slot), shapes, self.hull_blocks[slot], block)
            prefix = model.block_prefixes[place]
            for name, value in {**tensors, **statistics[place]}.items():
                state[prefix + name] = value
        model.load_state_dict(state, strict=True)
        return model.eval().to(next(self.parameters()).device)

    def weight_groups(self, weight_decay: float) -> list[dict[str, Any]]:  # Any: as torch has it
        """Return the parameters for an optimizer: weight decay for matrices and kernels only.

        Norms, biases, layer scales and attention bias tables are spared.
        """
        decayed: list[Tensor] = []
        spared: list[Tensor] = []
        for name, value in self.named_parameters():
            is_spared = value.ndim <= 1 or name.endswith("bias.table")
            (spared if is_spared else decayed).append(value)
        return [
            {"params": decayed, "weight_decay": weight_decay},
            {"params": spared, "weight_decay": 0.0},
        ]


class SubNetwork:
    """A sub-network whose slices are cut out once, to be run on many batches.

    It gives what `supernet(x, architecture, statistics)` gives, bit for bit, as long as the weights
    stay as they are. It has no gradients, and belongs to the thread that made it.

    Args:
        supernet: Where the slices come from.
        architecture: One of its space.
    """

    def __init__(self, supernet: SuperNet, architecture: Architecture) -> None:
        device = next(supernet.parameters()).device
        self._blocks = []
        for slot, block in supernet.walk(architecture):
            runner = template_of(block, device)
            own = {name: value.detach() for name, value in supernet.tensors(slot).items()}
            tensors = slice_block(own, runner.shapes, supernet.hull_blocks[slot], block)
            # the memory an extracted network would have, so that the same kernels are chosen
            self._blocks.append((runner, {name: v.contiguous() for name, v in tensors.items()}))

    @torch.no_grad()
    def __call__(self, x: Tensor, statistics: Statistics, *, fit: bool = False) -> Tensor:
        """Return the class scores of a batch; arguments are those of `SuperNet.forward`."""
        for (runner, tensors), own in zip(self._blocks, statistics, strict=True):
            x = runner.run(x, tensors, own, fit=fit)
        return x


def _key(slot: str) -> str:
    """Return a slot's name as torch's module names may be: without dots."""
    return slot.replace(".", "-")


def _owners(module: nn.Module) -> list[tuple[str, nn.Module, str]]:
    """Return (name, the module that has it, its name there) of each parameter, looked up once."""
    names = [name for name, _ in module.named_parameters()]
    split = [(name, *name.rpartition(".")[::2]) for name in names]
    return [(name, module.get_submodule(owner), last) for name, owner, last in split]

"""How alike the heads of an attention are: the redundancy that cascaded group attention is for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.block import Block
from nas.data import Data, eval_batches
from nas.network import part_prefixes
from nas.space import Architecture
from nas.supernet.evaluate import EvaluateConfig, first_images, fit_statistics
from nas.supernet.model import Statistics, SuperNet
from nas.supernet.taylor.importance import TaylorConfig
from nas.supernet.template import template_of

# Kind of block: the number of the part with the heads, and the module that is given all of their
# outputs: (windows, channels, side, side) in cga, (images, tokens, channels) in mb3d.
PLACES = {"cga": (2, "act"), "mb3d": (0, "project")}


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadSimilarity:
    """One attention: its slot, kind of block, heads, and their mean maximum cosine similarity."""

    slot: str
    kind: str
    heads: int
    similarity: float


@torch.no_grad()
def head_similarities(
    supernet: SuperNet,
    architectures: Sequence[Architecture],
    data: Data,
    config: TaylorConfig | None = None,
) -> tuple[HeadSimilarity, ...]:
    """Return how alike the heads of each attention of some paths are.

    For each image and head, the largest cosine similarity of its output with that of another head
    of the block, outputs as vectors over tokens and value channels; the mean over heads and images
    (EfficientViT, arXiv 2305.07027, section 2.2 and figure 4). Attentions of one head are left
    out; one that several paths share is measured on the first.

    Args:
        supernet: Its weights are not changed.
        architectures: The paths.
        data: Its train split is run.
        config: How many images.
    """
    config = config or TaylorConfig()
    images = first_images(data.split("train"), config.images)
    device = next(supernet.parameters()).device
    found: dict[str, HeadSimilarity] = {}
    for architecture in architectures:
        statistics = fit_statistics(
            supernet, architecture, data, EvaluateConfig(refit_images=config.images)
        )
        sums: dict[str, tuple[Block, float]] = {}
        for batch, _ in eval_batches(images, data, batch_size=config.batch_size, device=device):
            for slot, block, outputs in head_outputs(supernet, batch, architecture, statistics):
                before = sums[slot][1] if slot in sums else 0.0
                sums[slot] = (block, before + float(most_alike(outputs).sum()))
        for slot, (block, total) in sums.items():
            row = HeadSimilarity(
                slot=slot, kind=block.kind, heads=_heads(block), similarity=total / len(images)
            )
            found.setdefault(slot, row)
    return tuple(found[slot] for slot in sorted(found))


def head_outputs(
    supernet: SuperNet, images: Tensor, architecture: Architecture, statistics: Statistics
) -> list[tuple[str, Block, Tensor]]:
    """Return (slot, block, outputs of shape (batch, heads, numbers)) of every attention."""
    x, found = images, []
    for place, (slot, block) in enumerate(supernet.walk(architecture)):
        if block.kind not in PLACES or _heads(block) < 2:
            x = supernet.run_block(x, slot, block, statistics[place])
            continue
        number, name = PLACES[block.kind]
        module = template_of(block, x.device).module
        inner = module.get_submodule(part_prefixes(block)[number] + name)
        seen: list[Tensor] = []
        handle = inner.register_forward_pre_hook(_keeps(seen))
        try:
            x = supernet.run_block(x, slot, block, statistics[place])
        finally:
            handle.remove()
        found.append((slot, block, by_head(seen[0], block, len(images))))
    return found


def _keeps(seen: list[Tensor]) -> Callable[[nn.Module, tuple[Tensor, ...]], None]:
    return lambda module, given: seen.append(given[0])


def by_head(outputs: Tensor, block: Block, images: int) -> Tensor:
    """Return what an attention's heads gave as (images, heads, numbers).

    Args:
        outputs: (images x windows, channels, side, side) of a cga, (images, tokens, channels) of
            an mb3d; channels are head after head.
        block: The block.
        images: How many.
    """
    heads = _heads(block)
    if block.kind == "mb3d":
        tokens = outputs.reshape(images, outputs.shape[1], heads, -1)
        return tokens.transpose(1, 2).flatten(2)
    windows = outputs.reshape(images, len(outputs) // images, heads, -1)
    return windows.transpose(1, 2).flatten(2)


def most_alike(outputs: Tensor) -> Tensor:
    """Return each image's mean over heads of the largest cosine with another head: (images,)."""
    units = F.normalize(outputs.double(), dim=2)
    cosines = units @ units.transpose(1, 2)
    own = torch.eye(cosines.shape[1], dtype=torch.bool, device=cosines.device)
    return cosines.masked_fill(own, -2.0).amax(2).mean(1)


def _heads(block: Block) -> int:
    return int(getattr(block, "heads"))  # noqa: B009 (Block itself has none)

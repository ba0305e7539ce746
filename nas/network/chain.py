"""A network's blocks as arguments: read from strings, adapted to images and classes."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from nas.block import Block, Head, Stem, check_chain, parse, resize
from nas.errors import ConfigError
from nas.network.kinds import WITH_BRANCH


def read_blocks(blocks: Sequence[Block | str]) -> tuple[Block, ...]:
    """Return the blocks of a network from strings or blocks, checked to fit.

    Raises:
        ConfigError: not a list, a wrong string, or blocks that do not fit.
    """
    if isinstance(blocks, str) or not isinstance(blocks, Sequence):
        raise ConfigError(f"blocks must be a list of block strings, but is {blocks!r:.80}.")
    read = tuple(item if isinstance(item, Block) else parse(item) for item in blocks)
    check_chain(read)
    return read


def square_side(img_size: int | Sequence[int]) -> int:
    """Return the side of an image size given as a number or as (height, width).

    Raises:
        ConfigError: it is not square; every block is written for one side.
    """
    if isinstance(img_size, int):
        return img_size
    if len(img_size) != 2 or img_size[0] != img_size[1]:
        raise ConfigError(
            f"img_size must be square, but is {tuple(img_size)}. Blocks are written for one side: "
            "resize or crop the images to a square."
        )
    return int(img_size[0])


def adapt(
    blocks: tuple[Block, ...],
    img_size: int | Sequence[int] | None,
    num_classes: int | None,
    in_chans: int | None,
) -> tuple[Block, ...]:
    """Return the blocks for other images or classes; None keeps what the strings say.

    With 0 classes the head's string keeps its number: it says which head to put back.
    """
    stem, head = blocks[0], blocks[-1]
    assert isinstance(stem, Stem) and isinstance(head, Head)
    if in_chans is not None:
        stem = replace(stem, channels=in_chans)
    if num_classes:
        head = replace(head, classes=num_classes)
    blocks = (stem, *blocks[1:-1], head)
    return blocks if img_size is None else resize(blocks, square_side(img_size))


def drop_path_rates(blocks: tuple[Block, ...], rate: float) -> list[float]:
    """Return the rate of each block between stem and head: 0 to `rate`, linear in depth.

    Only blocks with residual branches count; the others get 0.
    """
    inner = blocks[1:-1]
    num_steps = max(sum(block.kind in WITH_BRANCH for block in inner) - 1, 1)
    rates, depth = [], 0
    for block in inner:
        has_branch = block.kind in WITH_BRANCH
        rates.append(rate * depth / num_steps if has_branch else 0.0)
        depth += has_branch
    return rates


def split_stages(blocks: tuple[Block, ...]) -> list[tuple[Block, ...]]:
    """Return the blocks between stem and head by stage; each but the first starts a new side."""
    stages: list[list[Block]] = [[]]
    for block in blocks[1:]:
        if block.kind == "head":
            break
        if block.kind in ("downsample", "patch_merge"):
            stages.append([])
        stages[-1].append(block)
    return [tuple(stage) for stage in stages]


def block_prefixes(blocks: tuple[Block, ...]) -> tuple[str, ...]:
    """Return what the state dict keys of each block of a network begin with, in order."""
    stages = split_stages(blocks)
    inner = [f"stages.{i}.{j}." for i, stage in enumerate(stages) for j in range(len(stage))]
    return ("stem.", *inner, "head.")[: len(blocks)]


def feature_info(blocks: tuple[Block, ...]) -> list[dict[str, Any]]:
    """Return what timm wants to know of each stage: channels, reduction, module name."""
    rows, last = [], blocks[0]
    reduction = 2 ** len(last.widths) if isinstance(last, Stem) else 1
    for index, stage in enumerate(split_stages(blocks)):
        last = stage[-1] if stage else last
        reduction *= 1 if index == 0 else 2
        rows.append(
            {"num_chs": last.out_channels, "reduction": reduction, "module": f"stages.{index}"}
        )
    return rows


def timm_config(blocks: tuple[Block, ...]) -> dict[str, Any]:
    """Return the entries of a timm pretrained_cfg that follow from the blocks."""
    stem, head = blocks[0], blocks[-1]
    assert isinstance(head, Head)
    return {
        "input_size": (stem.in_channels, stem.resolution, stem.resolution),
        "pool_size": (head.resolution, head.resolution),
        "num_classes": head.classes,
        "classifier": ("head.fc", "head.fc_dist") if head.distilled else "head.fc",
    }

"""The published networks of timm and ours, in both directions, weights included.

timm's EfficientFormer (L1, L3, L7) and EfficientVitMsra (M0-M5), and any instance of the two
classes, are lists of blocks like any other network.
"""

import math
from collections.abc import Iterator, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import timm
import torch.nn as nn

from nas.block import Block, Cga, Head, Mb3d, Mb4d, check_chain
from nas.errors import ConfigError
from nas.network import timm_models
from nas.network.chain import adapt, read_blocks, split_stages
from nas.network.model import NasHybrid, build
from nas.network.stock_blocks import INDEX, Found, walk
from nas.network.timm_models import LOCAL

EFFICIENTFORMERS: tuple[str, ...] = (
    "efficientformer_l1",
    "efficientformer_l3",
    "efficientformer_l7",
)
EFFICIENTVITS = tuple(f"efficientvit_m{i}" for i in range(6))
PUBLISHED = EFFICIENTFORMERS + EFFICIENTVITS

# What converted weights keep of their source's configuration: how images are prepared, and
# whose weights they are.
CARRIED = (
    "mean", "std", "interpolation", "crop_pct", "crop_mode",
    "license", "tag", "origin_url", "paper_name", "paper_ids",
)  # fmt: skip


def blocks_of(source: str | nn.Module) -> tuple[Block, ...]:
    """Return the blocks of a published network by its timm name, or of a model.

    Raises:
        ConfigError: an unknown name, or a model that is no list of blocks.
    """
    if isinstance(source, NasHybrid):
        return source.blocks_spec
    if isinstance(source, nn.Module):
        return tuple(item.block for item in walk(source))
    if source not in PUBLISHED:
        raise ConfigError(f"{source!r} is not one of {', '.join(PUBLISHED)}.")
    return _published(source)


def space_of(name: str) -> str:
    """Return the name of the shipped search space that a published network is of."""
    return name.rpartition("_")[0]


@cache
def _published(name: str) -> tuple[Block, ...]:
    return blocks_of(timm.create_model(name, device="meta"))


# ---------------------------------------------------------------- weights
def from_timm(model: nn.Module, **timm_kwargs: Any) -> NasHybrid:
    """Return our network that computes the same function as a timm model, with its weights.

    Device, precision, mode, classifier dropout, preprocessing and licence are kept; other drop
    rates are not read, as they do nothing in evaluation.

    Args:
        model: An `EfficientFormer` or `EfficientVitMsra`.
        timm_kwargs: As for `nas.network.build`, for example `drop_path_rate`; nothing that
            changes a shape.

    Raises:
        ConfigError: another class, no classifier, or tensors our network has no place for.
    """
    found = walk(model)
    options: dict[str, Any] = {
        "drop_rate": _head_dropout(model),
        "pretrained_cfg_overlay": _carried(model),
        **timm_kwargs,
    }
    ours = build([item.block for item in found], **options)
    like = next(model.parameters())
    ours.to(device=like.device, dtype=like.dtype)
    theirs = model.state_dict()
    names = dict(_pairs(ours, found))
    left = {name for name in theirs if not name.endswith(INDEX)} - set(names.values())
    if left:
        raise ConfigError(f"no block has a place for {', '.join(sorted(left))}.")
    ours.load_state_dict({our: theirs[their] for our, their in names.items()})
    return ours.train(model.training)


def pretrained(source: str, *, image_size: int, in_chans: int) -> NasHybrid:
    """Return a published network, or the one in a folder, as ours and with its weights.

    Args:
        source: The timm name of an EfficientFormer or EfficientViT, whose weights are fetched, or
            a folder that timm loads, also one of ours; with `local-dir:` in front or without.
        image_size: Side of the images it is moved to; attention biases are resized.
        in_chans: Channels of the images; timm adapts the first convolution.

    Raises:
        ConfigError: no such network, its weights cannot be had, or it is no list of blocks.
    """
    folder = source.removeprefix(LOCAL)
    name = f"{LOCAL}{folder}" if Path(folder).is_dir() else source
    model = timm_models.create(name, pretrained=True, in_chans=in_chans)
    ours = model if isinstance(model, NasHybrid) else from_timm(model)
    ours.set_input_size(image_size)
    return ours


def to_timm(model: NasHybrid) -> nn.Module:
    """Return the timm model that computes the same function, with the weights of `model`.

    Raises:
        ConfigError: no timm model is made of these blocks (see `stock_args`).
    """
    expressed = stock_args(model.blocks_spec) if model.num_classes else None
    if expressed is None:
        raise ConfigError(
            "no stock timm class can be these blocks: they must be all EfficientFormer's or all "
            "EfficientViT's, with a classifier. Save the model as it is; timm loads it after "
            "`import nas.network`."
        )
    name, args = expressed
    theirs: nn.Module = timm.create_model(
        name, drop_rate=model.head.drop.p, pretrained_cfg_overlay=_carried(model), **args
    )
    like = next(model.parameters())
    theirs.to(device=like.device, dtype=like.dtype)
    ours = model.state_dict()
    state = {their: ours[our] for our, their in _pairs(model, walk(theirs))}
    index = {key: value for key, value in theirs.state_dict().items() if key.endswith(INDEX)}
    theirs.load_state_dict(state | index)
    return theirs.train(model.training)


def _pairs(ours: NasHybrid, found: list[Found]) -> Iterator[tuple[str, str]]:
    """Yield (our name, timm's name) of every tensor in our state dict."""
    keys = list(ours.state_dict())
    for prefix, item in zip(ours.block_prefixes, found, strict=True):
        for our, their in item.names.items():
            whole = prefix + our
            for key in keys:
                if key == whole or key.startswith(whole + "."):
                    yield key, their + key[len(whole) :]


def _head_dropout(model: Any) -> float:  # Any: the two timm classes
    rate: float = (model.head_drop if hasattr(model, "head_drop") else model.head.drop).p
    return rate


def _carried(model: nn.Module) -> dict[str, Any]:
    config: dict[str, Any] = getattr(model, "pretrained_cfg", {})
    return {key: config[key] for key in CARRIED if config.get(key) is not None}


# ---------------------------------------------------------------- arguments
def stock_args(blocks: Sequence[Block | str]) -> tuple[str, dict[str, Any]] | None:
    """Return a timm entrypoint and its arguments that give exactly these blocks, or None.

    The arguments are plain JSON values and name only what differs from the entrypoint's own.
    """
    wanted = read_blocks(blocks)
    check_chain(wanted)
    for name, args in _candidates(wanted):
        try:
            given = blocks_of(timm.create_model(name, device="meta", **args))
        except ConfigError:  # a combination the class accepts and then cannot run
            continue
        if given == wanted:
            return name, args
    return None


def _candidates(blocks: tuple[Block, ...]) -> Iterator[tuple[str, dict[str, Any]]]:
    kinds = {block.kind for block in blocks[1:-1]}
    stem, head = blocks[0], blocks[-1]
    assert isinstance(head, Head)
    common: dict[str, Any] = {}
    if head.classes != 1000:
        common["num_classes"] = head.classes
    if stem.in_channels != 3:
        common["in_chans"] = stem.in_channels
    if stem.resolution != 224:
        common["img_size"] = stem.resolution
    if kinds <= {"mb4d", "mb3d", "downsample"} and blocks[-2].kind == "mb3d":
        names, arguments = EFFICIENTFORMERS, list(_efficientformer(blocks))
    elif kinds <= {"cga", "patch_merge"} and stem.out_channels >= 8:
        names, arguments = EFFICIENTVITS, [_efficientvit(blocks)]
    else:
        return
    for name in names:
        if adapt(_published(name), stem.resolution, head.classes, stem.in_channels) == blocks:
            yield name, common
    yield from ((names[0], args | common) for args in arguments)


def _efficientformer(blocks: tuple[Block, ...]) -> Iterator[dict[str, Any]]:
    stages = split_stages(blocks)
    inner = [[b for b in stage if isinstance(b, Mb4d | Mb3d)] for stage in stages]
    ratio = max(b.hidden / b.channels for stage in inner for b in stage)
    pools = [b.pool for stage in inner for b in stage if isinstance(b, Mb4d)]
    # timm computes int(width * ratio), which may fall one short of the hidden width.
    for mlp_ratio in (ratio, math.nextafter(ratio, math.inf)):
        yield {
            "depths": [len(stage) for stage in inner],
            "embed_dims": _widths(blocks, stages),
            "num_vit": sum(isinstance(b, Mb3d) for b in inner[-1]),
            "mlp_ratios": mlp_ratio,
            "pool_size": pools[0] if pools else 3,
        }


def _efficientvit(blocks: tuple[Block, ...]) -> dict[str, Any]:
    stages = split_stages(blocks)
    inner = [[b for b in stage if isinstance(b, Cga)] for stage in stages]
    every = [cga.kernels for stage in inner for cga in stage]
    kernels: tuple[int, ...] = max(every, key=len, default=(5,))
    return {
        "embed_dim": _widths(blocks, stages),
        "depth": [len(stage) for stage in inner],
        "key_dim": [stage[0].key if stage else 16 for stage in inner],
        "num_heads": [stage[0].heads if stage else 1 for stage in inner],
        "window_size": [stage[0].window if stage else 7 for stage in inner],
        "kernels": list(kernels),
        "down_ops": [["", 1], *(["subsample", 2] for _ in stages[1:])],
    }


def _widths(blocks: tuple[Block, ...], stages: list[tuple[Block, ...]]) -> list[int]:
    widths, last = [], blocks[0]
    for stage in stages:
        last = stage[-1] if stage else last
        widths.append(last.out_channels)
    return widths

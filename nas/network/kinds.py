"""Every kind of block and part as a plain module on feature maps, looked up by its description."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn as nn

from nas.block import BLOCKS, Block
from nas.errors import ConfigError
from nas.network.attention_bias import AttentionBias
from nas.network.cga import Cga, DwConv, Ffn, GroupAttention
from nas.network.downsample import Downsample
from nas.network.head import Head
from nas.network.mb3d import Attention, Mb3d, OnTokens, TokenMlp
from nas.network.mb4d import ConvMlp, Mb4d, PoolMixer
from nas.network.mbconv import MbConv
from nas.network.patch_merge import Merge, PatchMerge
from nas.network.stem import Stem

Maker = Callable[..., nn.Module]


def _attention(part: Block, **options: Any) -> nn.Module:
    return OnTokens(Attention(part, **options))  # type: ignore[arg-type]  # chosen by its kind


def _token_mlp(part: Block, **options: Any) -> nn.Module:
    return OnTokens(TokenMlp(part, **options))  # type: ignore[arg-type]  # chosen by its kind


WITHOUT_BRANCH: dict[str, Maker] = {
    "stem": Stem,
    "downsample": Downsample,
    "merge": Merge,
    "head": Head,
}
WITH_BRANCH: dict[str, Maker] = {
    "mb4d": Mb4d,
    "mb3d": Mb3d,
    "cga": Cga,
    "mbconv": MbConv,
    "patch_merge": PatchMerge,
    "pool": PoolMixer,
    "mlp": ConvMlp,
    "attn": _attention,
    "token_mlp": _token_mlp,
    "dw": DwConv,
    "ffn": Ffn,
    "group_attn": GroupAttention,
}


def build_block(block: Block, drop_path: float = 0.0, **factory: Any) -> nn.Module:
    """Return a block as a module from NCHW to NCHW (a head: to class scores).

    Args:
        block: What to build.
        drop_path: Probability that a residual branch is dropped, in training.
        factory: `device` and `dtype`, as torch's modules take them.
    """
    if block.kind not in BLOCKS:
        raise ConfigError(f"{block} is a part, not a block; use build_part.")
    return _build(block, drop_path, factory)


def build_part(part: Block, **factory: Any) -> nn.Module:
    """Return one part (see `block.parts()`) as a module from NCHW to NCHW.

    `attn` and `token_mlp` flatten the map and restore it: alone, that is their cost.
    """
    if part.parts() != (part,):
        raise ConfigError(f"{part} is a block of {len(part.parts())} parts; use build_block.")
    return _build(part, 0.0, factory)


def _build(block: Block, drop_path: float, factory: dict[str, Any]) -> nn.Module:
    if block.kind in WITHOUT_BRANCH:
        return WITHOUT_BRANCH[block.kind](block, **factory)
    return WITH_BRANCH[block.kind](block, drop_path=drop_path, **factory)


def template(block: Block, device: torch.device | str = "cpu") -> nn.Module:
    """Return a block without weights, to be run through `torch.func.functional_call`.

    Parameters and BatchNorm buffers are on the meta device and all have to be given; the index
    buffers, which are in no state dict, are real tensors on `device`. (Indexing a real table by
    a meta index gives uninitialised memory, without an error.)
    """
    module = build_block(block, device="meta")
    for inner in module.modules():
        if isinstance(inner, AttentionBias):
            inner.init_non_persistent_buffers(device)
    return module


def part_prefixes(block: Block) -> tuple[str, ...]:
    """Return what the state dict keys of each part of `block` begin with, in their order."""
    parts = block.parts()
    if parts == (block,):
        return ("",)
    return tuple(f"parts.{index}." for index in range(len(parts)))

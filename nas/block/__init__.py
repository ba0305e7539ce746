"""Blocks and their parts: one concrete layer with every number fixed, as text and as formulas.

A network is a list of blocks. A block is a chain of parts, each one residual branch; parts are the
keys of a latency table, the groups of allocation and the units of Taylor importance. Everything
here is arithmetic on integers: no torch. The blocks are EfficientFormer's (arXiv 2206.01191,
section 3.1), EfficientViT's (arXiv 2305.07027, section 3) and MobileNetV2's inverted residual
(arXiv 1801.04381, section 3.3).

MACs count multiply-accumulates of convolutions, linear layers and attention products (what
`torch.utils.flop_counter` counts, halved) at batch 1; pooling, norms and activations are free.
"""

from nas.block.base import ACTIVATIONS, Block, halve
from nas.block.kinds import Cga, Mb3d, Mb4d, PatchMerge
from nas.block.parts import (
    Attn,
    Downsample,
    Dw,
    Ffn,
    GroupAttn,
    Head,
    MbConv,
    Merge,
    Mlp,
    Pool,
    Stem,
    TokenMlp,
)
from nas.block.text import BLOCKS, PARTS, check_chain, parse, parse_network, resize

__all__ = [
    "ACTIVATIONS",
    "Attn",
    "BLOCKS",
    "Block",
    "Cga",
    "Downsample",
    "Dw",
    "Ffn",
    "GroupAttn",
    "Head",
    "Mb3d",
    "Mb4d",
    "MbConv",
    "Merge",
    "Mlp",
    "PARTS",
    "PatchMerge",
    "Pool",
    "Stem",
    "TokenMlp",
    "check_chain",
    "halve",
    "parse",
    "parse_network",
    "resize",
]

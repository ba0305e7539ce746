"""Blocks and networks as plain torch modules; importing this registers `nas_hybrid` with timm.

State dicts follow one scheme. A block of several parts keeps them in `parts`, in the order of
`block.parts()`: `parts.0.scale.gamma`. A block that is its own part (stem, downsample, head) has
that part's names without a prefix: `conv.weight`. `part_prefixes(block)` says which it is. A
network keeps its blocks under `stem`, `stages.<stage>.<position>` and `head`;
`model.block_prefixes` lists them in order.
"""

from nas.network import stock
from nas.network.kinds import build_block, build_part, part_prefixes, template
from nas.network.model import NasHybrid, build, load_folder
from nas.network.onnx import parts_to_onnx, to_onnx
from nas.network.residual import scale_residuals

__all__ = [
    "NasHybrid",
    "build",
    "build_block",
    "build_part",
    "load_folder",
    "part_prefixes",
    "parts_to_onnx",
    "scale_residuals",
    "stock",
    "template",
    "to_onnx",
]

"""Downsample: EfficientFormer's embedding between stages."""

from typing import Any

from nas import block
from nas.network.affine import ConvNorm


class Downsample(ConvNorm):
    """Part and block `downsample`: parameters `conv` (with bias) and `bn`."""

    def __init__(self, part: block.Downsample, **factory: Any) -> None:
        super().__init__(part.channels, part.out, kernel=3, stride=2, bias=True, **factory)

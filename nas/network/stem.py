"""Stem: stacked 3x3 stride-2 convolutions (EfficientFormer: two; EfficientViT: four)."""

from typing import Any

import torch
import torch.nn as nn

from nas import block
from nas.network.affine import ConvNorm, activation


class Stem(nn.Module):
    """Part and block `stem`: parameters `convs.<i>.conv`, `convs.<i>.bn`."""

    def __init__(self, part: block.Stem, **factory: Any) -> None:
        super().__init__()
        chain = zip((part.channels, *part.widths), part.widths, strict=False)
        self.convs = nn.ModuleList(
            ConvNorm(i, o, kernel=3, stride=2, bias=bool(part.bias), **factory) for i, o in chain
        )
        self.act = activation(part.act)
        self.num_acts = len(part.widths) - 1 + part.act_last

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the feature map of an image."""
        for position, conv in enumerate(self.convs):
            x = conv(x)
            if position < self.num_acts:
                x = self.act(x)
        return x

"""Patch merging: EfficientViT's subsampling between stages (arXiv 2305.07027, section 3.2)."""

from typing import Any

import torch
import torch.nn as nn
from timm.layers.squeeze_excite import SqueezeExcite

from nas import block
from nas.network.affine import ConvNorm, activation
from nas.network.cga import DwConv, Ffn


class Merge(nn.Module):
    """Part `merge`: `expand`, act, `depthwise` of stride 2, act, `se`, `project`; no residual."""

    def __init__(self, part: block.Merge, **factory: Any) -> None:
        super().__init__()
        h = part.hidden
        self.expand = ConvNorm(part.channels, h, **factory)
        self.act = activation(part.act)
        self.depthwise = ConvNorm(h, h, kernel=3, stride=2, groups=h, **factory)
        self.se = SqueezeExcite(h, rd_channels=part.squeeze, **factory)
        self.project = ConvNorm(h, part.out, **factory)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return a feature map of half the side."""
        x = self.act(self.depthwise(self.act(self.expand(x))))
        x = self.project(self.se(x))
        return x


class PatchMerge(nn.Module):
    """Block `patch_merge`: `parts` are dw, ffn, merge, dw, ffn.

    Its depthwise BatchNorms start at 1 as the published code has it, unlike those inside `cga`.
    """

    def __init__(self, spec: block.PatchMerge, *, drop_path: float = 0.0, **factory: Any) -> None:
        super().__init__()
        dw, ffn, merge, dw_after, ffn_after = spec.parts()
        assert isinstance(dw, block.Dw) and isinstance(dw_after, block.Dw)
        assert isinstance(ffn, block.Ffn) and isinstance(ffn_after, block.Ffn)
        assert isinstance(merge, block.Merge)
        self.parts = nn.Sequential(
            DwConv(dw, drop_path=drop_path, gamma=1.0, **factory),
            Ffn(ffn, drop_path=drop_path, **factory),
            Merge(merge, **factory),
            DwConv(dw_after, drop_path=drop_path, gamma=1.0, **factory),
            Ffn(ffn_after, drop_path=drop_path, **factory),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return a feature map of half the side."""
        x = self.parts(x)
        return x

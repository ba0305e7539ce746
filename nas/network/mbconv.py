"""MBConv: MobileNetV2's inverted residual (arXiv 1801.04381, section 3.3), as TinyViT's too."""

from typing import Any

import torch
import torch.nn as nn
from timm.layers.squeeze_excite import SqueezeExcite

from nas import block
from nas.network.affine import ConvNorm, activation
from nas.network.residual import drop_branch


class MbConv(nn.Module):
    """Part and block `mbconv`: x + project(se(act(depthwise(act(expand(x)))))), convs with BN.

    Without `squeeze` there is no `se`; with `act_last` an activation follows the sum. The squeeze
    has a ReLU and a sigmoid, as MnasNet has it (arXiv 1807.11626) and `merge` here. Hidden channel
    i is row i of `expand`, channel i of `depthwise`, entry i of both ends of `se` and column i of
    `project`: permuted together they change nothing.
    """

    def __init__(self, part: block.MbConv, *, drop_path: float = 0.0, **factory: Any) -> None:
        super().__init__()
        c, h = part.channels, part.hidden
        self.expand = ConvNorm(c, h, **factory)
        self.act = activation(part.act)
        self.depthwise = ConvNorm(h, h, kernel=part.kernel, groups=h, **factory)
        self.se: nn.Module = nn.Identity()
        if part.squeeze:
            self.se = SqueezeExcite(h, rd_channels=part.squeeze, **factory)
        self.project = ConvNorm(h, c, gamma=0.0, **factory)
        self.drop_path = drop_branch(drop_path)
        self.act_last = activation(part.act) if part.act_last else nn.Identity()

    def residual_scale(self) -> torch.Tensor:
        """Return the tensor that scales the branch."""
        return self.project.get_parameter("bn.weight")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return a feature map of the same shape."""
        hidden = self.se(self.act(self.depthwise(self.act(self.expand(x)))))
        branch: torch.Tensor = self.drop_path(self.project(hidden))
        x = self.act_last(x + branch)
        return x

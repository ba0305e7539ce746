"""MB4D: EfficientFormer's block on feature maps (arXiv 2206.01191, equation 4)."""

from typing import Any

import torch
import torch.nn as nn
from timm.layers.layer_scale import LayerScale2d

from nas import block
from nas.network.affine import ConvNorm, activation
from nas.network.residual import drop_branch


class PoolMixer(nn.Module):
    """Part `pool`: x + scale * (average pool(x) - x), borders averaged over what is inside."""

    def __init__(self, part: block.Pool, *, drop_path: float = 0.0, **factory: Any) -> None:
        super().__init__()
        side = part.pool
        self.pool = nn.AvgPool2d(side, stride=1, padding=side // 2, count_include_pad=False)
        self.scale = LayerScale2d(part.channels, **factory)
        self.drop_path = drop_branch(drop_path)

    def residual_scale(self) -> torch.Tensor:
        """Return the tensor that scales the branch."""
        gamma: torch.Tensor = self.scale.gamma
        return gamma

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return a feature map of the same shape."""
        branch: torch.Tensor = self.drop_path(self.scale(self.pool(x) - x))
        return x + branch


class ConvMlp(nn.Module):
    """Part `mlp`: x + scale * project(act(expand(x))), 1x1 convolutions with bias and BatchNorm."""

    def __init__(self, part: block.Mlp, *, drop_path: float = 0.0, **factory: Any) -> None:
        super().__init__()
        self.expand = ConvNorm(part.channels, part.hidden, bias=True, **factory)
        self.act = activation(part.act)
        self.project = ConvNorm(part.hidden, part.channels, bias=True, **factory)
        self.scale = LayerScale2d(part.channels, **factory)
        self.drop_path = drop_branch(drop_path)

    def residual_scale(self) -> torch.Tensor:
        """Return the tensor that scales the branch."""
        gamma: torch.Tensor = self.scale.gamma
        return gamma

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return a feature map of the same shape."""
        branch: torch.Tensor = self.scale(self.project(self.act(self.expand(x))))
        branch = self.drop_path(branch)
        return x + branch


class Mb4d(nn.Module):
    """Block `mb4d`: `parts.0` mixes by pooling, `parts.1` is the MLP."""

    def __init__(self, spec: block.Mb4d, *, drop_path: float = 0.0, **factory: Any) -> None:
        super().__init__()
        pool, mlp = spec.parts()
        assert isinstance(pool, block.Pool) and isinstance(mlp, block.Mlp)
        self.parts = nn.Sequential(
            PoolMixer(pool, drop_path=drop_path, **factory),
            ConvMlp(mlp, drop_path=drop_path, **factory),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return a feature map of the same shape."""
        x = self.parts(x)
        return x

"""MB3D: EfficientFormer's block on tokens (arXiv 2206.01191, equations 6 and 7)."""

from typing import Any

import torch
import torch.nn as nn
from timm.layers.layer_scale import LayerScale

from nas import block
from nas.network.affine import activation, linear
from nas.network.attention_bias import AttentionBias
from nas.network.residual import drop_branch


class Attention(nn.Module):
    """Part `attn` on tokens of shape (batch, side^2, channels).

    Rows of `qkv` are head-major: for each head its queries, keys, values.
    """

    def __init__(self, part: block.Attn, *, drop_path: float = 0.0, **factory: Any) -> None:
        super().__init__()
        self.heads, self.key, self.value = part.heads, part.key, part.value
        self.norm = nn.LayerNorm(part.channels, **factory)
        self.qkv = linear(part.channels, part.heads * (2 * part.key + part.value), **factory)
        self.bias = AttentionBias(part.heads, part.resolution, **factory)
        self.project = linear(part.heads * part.value, part.channels, **factory)
        self.scale = LayerScale(part.channels, **factory)
        self.drop_path = drop_branch(drop_path)

    def residual_scale(self) -> torch.Tensor:
        """Return the tensor that scales the branch."""
        gamma: torch.Tensor = self.scale.gamma
        return gamma

    def resize(self, part: block.Attn) -> None:
        """Become `part`, which differs in its resolution only."""
        self.bias.resize(part.resolution)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return tokens of the same shape."""
        heads = self.qkv(self.norm(x)).unflatten(2, (self.heads, -1)).transpose(1, 2)
        q, k, v = heads.split([self.key, self.key, self.value], dim=3)
        weights = (q * self.key**-0.5) @ k.transpose(2, 3) + self.bias()
        mixed = (weights.softmax(dim=-1) @ v).transpose(1, 2).flatten(2)
        branch: torch.Tensor = self.drop_path(self.scale(self.project(mixed)))
        return x + branch


class TokenMlp(nn.Module):
    """Part `token_mlp` on tokens: x + scale * project(act(expand(norm(x))))."""

    def __init__(self, part: block.TokenMlp, *, drop_path: float = 0.0, **factory: Any) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(part.channels, **factory)
        self.expand = linear(part.channels, part.hidden, **factory)
        self.act = activation(part.act)
        self.project = linear(part.hidden, part.channels, **factory)
        self.scale = LayerScale(part.channels, **factory)
        self.drop_path = drop_branch(drop_path)

    def residual_scale(self) -> torch.Tensor:
        """Return the tensor that scales the branch."""
        gamma: torch.Tensor = self.scale.gamma
        return gamma

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return tokens of the same shape."""
        branch: torch.Tensor = self.project(self.act(self.expand(self.norm(x))))
        branch = self.drop_path(self.scale(branch))
        return x + branch


class OnTokens(nn.Module):
    """Parts on tokens as one module on feature maps: flatten, run `parts.<i>`, restore."""

    def __init__(self, *parts: nn.Module) -> None:
        super().__init__()
        self.parts = nn.Sequential(*parts)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return a feature map of the same shape."""
        tokens: torch.Tensor = self.parts(x.flatten(2).transpose(1, 2))
        return tokens.transpose(1, 2).reshape(x.shape)


class Mb3d(OnTokens):
    """Block `mb3d`: `parts.0` is the attention, `parts.1` the MLP."""

    def __init__(self, spec: block.Mb3d, *, drop_path: float = 0.0, **factory: Any) -> None:
        attention, mlp = spec.parts()
        assert isinstance(attention, block.Attn) and isinstance(mlp, block.TokenMlp)
        super().__init__(
            Attention(attention, drop_path=drop_path, **factory),
            TokenMlp(mlp, drop_path=drop_path, **factory),
        )

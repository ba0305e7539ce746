"""CGA: EfficientViT's sandwich around cascaded group attention (arXiv 2305.07027, section 3)."""

from typing import Any

import torch
import torch.nn as nn
import torch.nn.functional as F

from nas import block
from nas.network.affine import ConvNorm, activation
from nas.network.attention_bias import AttentionBias
from nas.network.residual import drop_branch


class DwConv(nn.Module):
    """Part `dw`: x + 3x3 depthwise convolution with BatchNorm, `conv.conv` and `conv.bn`."""

    def __init__(
        self, part: block.Dw, *, drop_path: float = 0.0, gamma: float = 0.0, **factory: Any
    ) -> None:
        super().__init__()
        c = part.channels
        self.conv = ConvNorm(c, c, kernel=3, groups=c, gamma=gamma, **factory)
        self.drop_path = drop_branch(drop_path)

    def residual_scale(self) -> torch.Tensor:
        """Return the tensor that scales the branch."""
        return self.conv.get_parameter("bn.weight")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return a feature map of the same shape."""
        branch: torch.Tensor = self.drop_path(self.conv(x))
        return x + branch


class Ffn(nn.Module):
    """Part `ffn`: x + project(act(expand(x))), 1x1 convolutions without bias, with BatchNorm."""

    def __init__(self, part: block.Ffn, *, drop_path: float = 0.0, **factory: Any) -> None:
        super().__init__()
        self.expand = ConvNorm(part.channels, part.hidden, **factory)
        self.act = activation(part.act)
        self.project = ConvNorm(part.hidden, part.channels, gamma=0.0, **factory)
        self.drop_path = drop_branch(drop_path)

    def residual_scale(self) -> torch.Tensor:
        """Return the tensor that scales the branch."""
        return self.project.get_parameter("bn.weight")

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return a feature map of the same shape."""
        branch: torch.Tensor = self.drop_path(self.project(self.act(self.expand(x))))
        return x + branch


class GroupAttention(nn.Module):
    """Part `group_attn`: x + cascaded group attention inside windows.

    Head i attends over its chunk of the channels plus what head i - 1 gave. Its parameters are
    `qkvs.<i>` (rows: queries, keys, values), `queries.<i>` (depthwise, on the queries); shared
    are `bias.table` of shape (heads, window side^2) and `project`. Maps that are no multiple of
    the window are padded below and to the right with zeros, which are attended to like any value.
    """

    def __init__(self, part: block.GroupAttn, *, drop_path: float = 0.0, **factory: Any) -> None:
        super().__init__()
        self.heads, self.key, self.value = part.heads, part.key, part.value
        self.channels = part.channels
        self.qkvs = nn.ModuleList(
            ConvNorm(part.value, 2 * part.key + part.value, **factory) for _ in range(part.heads)
        )
        self.queries = nn.ModuleList(
            ConvNorm(part.key, part.key, kernel=kernel, groups=part.key, **factory)
            for kernel in part.kernels
        )
        self.bias = AttentionBias(part.heads, part.side, **factory)
        self.act = activation(part.act)
        self.project = ConvNorm(part.channels, part.channels, gamma=0.0, **factory)
        self.drop_path = drop_branch(drop_path)
        self.resize(part)

    def residual_scale(self) -> torch.Tensor:
        """Return the tensor that scales the branch."""
        return self.project.get_parameter("bn.weight")

    def resize(self, part: block.GroupAttn) -> None:
        """Become `part`, which differs in its resolution and window only."""
        self.resolution, self.side = part.resolution, part.side
        self.across = -(-part.resolution // part.side)
        self.padding = self.across * part.side - part.resolution
        self.bias.resize(part.side)

    def attend(self, x: torch.Tensor) -> torch.Tensor:
        """Return the attention's output of windows of shape (windows, channels, side, side)."""
        chunks = x.chunk(self.heads, dim=1)
        bias = self.bias()
        given = chunks[0]
        outputs = []
        for head, (qkv, query) in enumerate(zip(self.qkvs, self.queries)):  # noqa: B905 (script)
            if head > 0:
                given = given + chunks[head]
            q, k, v = qkv(given).split([self.key, self.key, self.value], dim=1)
            q, k, v = query(q).flatten(2), k.flatten(2), v.flatten(2)
            weights = (q * self.key**-0.5).transpose(1, 2) @ k + bias[head]
            given = v @ weights.softmax(dim=-1).transpose(1, 2)
            given = given.unflatten(2, (self.side, self.side))
            outputs.append(given)
        x = self.project(self.act(torch.cat(outputs, 1)))
        return x

    def attend_windows(self, x: torch.Tensor) -> torch.Tensor:
        """Return the attention's output of a feature map, window by window."""
        side, across, channels = self.side, self.across, self.channels
        padded = F.pad(x, [0, self.padding, 0, self.padding])
        grid = padded.reshape(-1, channels, across, side, across, side)
        windows = grid.permute(0, 2, 4, 1, 3, 5).reshape(-1, channels, side, side)
        grid = self.attend(windows).reshape(-1, across, across, channels, side, side)
        whole = grid.permute(0, 3, 1, 4, 2, 5).reshape(-1, channels, across * side, across * side)
        return whole[:, :, : self.resolution, : self.resolution]

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return a feature map of the same shape."""
        mixed = self.attend(x) if self.across == 1 else self.attend_windows(x)
        branch: torch.Tensor = self.drop_path(mixed)
        return x + branch


class Cga(nn.Module):
    """Block `cga`: `parts` are dw, ffn, group attention, dw, ffn."""

    def __init__(self, spec: block.Cga, *, drop_path: float = 0.0, **factory: Any) -> None:
        super().__init__()
        dw, ffn, attention, dw_after, ffn_after = spec.parts()
        assert isinstance(dw, block.Dw) and isinstance(dw_after, block.Dw)
        assert isinstance(ffn, block.Ffn) and isinstance(ffn_after, block.Ffn)
        assert isinstance(attention, block.GroupAttn)
        self.parts = nn.Sequential(
            DwConv(dw, drop_path=drop_path, **factory),
            Ffn(ffn, drop_path=drop_path, **factory),
            GroupAttention(attention, drop_path=drop_path, **factory),
            DwConv(dw_after, drop_path=drop_path, **factory),
            Ffn(ffn_after, drop_path=drop_path, **factory),
        )

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return a feature map of the same shape."""
        x = self.parts(x)
        return x

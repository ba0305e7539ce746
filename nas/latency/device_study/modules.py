"""The few networks that no block string describes, as plain torch modules."""

from collections.abc import Collection, Sequence

import torch
import torch.nn as nn

from nas.block import parse
from nas.network.affine import ConvNorm, linear
from nas.network.mb3d import OnTokens
from nas.network.onnx import sample_module
from nas.seeds import stage_seed

PARTS = ("transposes", "norms", "softmax", "activation", "adds")  # what MemoryBound can leave out


def chain(*texts: str) -> nn.Module:
    """Return parts or blocks one behind the other, each with weights of its own."""
    return distinct(nn.Sequential(*(sample_module(parse(text)) for text in texts)))


def on_tokens(text: str, copies: int) -> nn.Module:
    """Return a part on tokens several times, with one flatten in front and one restore behind."""
    inner: list[nn.Module] = []
    for _ in range(copies):
        wrapped = sample_module(parse(text))
        assert isinstance(wrapped, OnTokens)
        inner.extend(wrapped.parts)
    return distinct(OnTokens(*inner))


def without_norm(text: str, copies: int) -> nn.Module:
    """Return `on_tokens` with the LayerNorm of each part left out."""
    module = on_tokens(text, copies)
    for part in module.modules():
        if hasattr(part, "norm"):
            part.norm = nn.Identity()
    return module


def patch_embedding(channels: int, side: int) -> nn.Module:
    """Return one convolution whose kernel is as large as its stride, with BatchNorm."""
    conv = nn.Conv2d(3, channels, side, side, bias=False)
    return distinct(nn.Sequential(conv, nn.BatchNorm2d(channels)))


def with_transposes(texts: Sequence[str]) -> nn.Module:
    """Return a chain whose map is flattened to tokens and back between any two blocks."""
    blocks: list[nn.Module] = []
    for text in texts:
        blocks += [ThereAndBack()] if blocks else []
        blocks.append(sample_module(parse(text)))
    return distinct(nn.Sequential(*blocks))


def separable(channels: int, copies: int) -> nn.Module:
    """Return 1x1 convolutions and 3x3 depthwise ones in turn, each with BatchNorm and ReLU."""
    layers: list[nn.Module] = []
    for _ in range(copies):
        layers += [ConvNorm(channels, channels), nn.ReLU()]
        layers += [ConvNorm(channels, channels, kernel=3, groups=channels), nn.ReLU()]
    return distinct(nn.Sequential(*layers))


def distinct(module: nn.Module) -> nn.Module:
    """Change every number a little: exporters merge tensors that are equal."""
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(stage_seed(0, type(module).__name__))
        for value in module.state_dict().values():
            if value.is_floating_point():
                value += 1e-3 * torch.rand_like(value)
    return module


class ThereAndBack(nn.Module):
    """The cost of map -> tokens -> map: two transposes that no runtime can cancel.

    After each the memory is read as a map again, without restoring the order: a real transpose
    followed by its inverse would be removed by every optimiser, and nothing would be timed.
    """

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return a map of the same shape, its numbers in another order."""
        for _ in range(2):
            x = x.flatten(2).transpose(1, 2).reshape(x.shape)
        return x


class MemoryBound(nn.Module):
    """A transformer block on a feature map, with kinds of memory-bound operations left out.

    Left out are transposes (the memory is read as if they had been done), norms, the softmax, the
    activation, the residual adds. The products are the same in every variant.

    Args:
        channels: Of the map.
        heads: Of the attention; each has channels / heads of queries, keys and values.
        hidden: Of the MLP.
        without: Some of PARTS.
    """

    def __init__(
        self, channels: int, heads: int, hidden: int, without: Collection[str] = ()
    ) -> None:
        super().__init__()
        self.heads, self.without = heads, frozenset(without)
        self.norms = nn.ModuleList(nn.LayerNorm(channels) for _ in range(2))
        self.qkv = linear(channels, 3 * channels)
        self.project = linear(channels, channels)
        self.expand, self.shrink = linear(channels, hidden), linear(hidden, channels)
        self.act = nn.Identity() if "activation" in self.without else nn.GELU()
        distinct(self)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return a map of the same shape."""
        batch, channels, height, width = x.shape
        tokens = self._swap(x.flatten(2), (batch, height * width, channels))
        tokens = self._add(tokens, self._attend(self._norm(tokens, 0)))
        hidden = self.act(self.expand(self._norm(tokens, 1)))
        tokens = self._add(tokens, self.shrink(hidden))
        return self._swap(tokens, (batch, channels, height * width)).reshape(x.shape)

    def _attend(self, tokens: torch.Tensor) -> torch.Tensor:
        batch, count, channels = tokens.shape
        each = channels // self.heads
        q, k, v = self.qkv(tokens).split(channels, dim=2)
        if "transposes" in self.without:
            heads = (batch, self.heads, count, each)
            q, v = q.reshape(heads), v.reshape(heads)
            k = k.reshape(batch, self.heads, each, count)
        else:
            apart = (batch, count, self.heads, each)
            q, v = q.reshape(apart).transpose(1, 2), v.reshape(apart).transpose(1, 2)
            k = k.reshape(apart).permute(0, 2, 3, 1)
        weights = q @ k
        if "softmax" not in self.without:
            weights = weights.softmax(dim=-1)
        mixed = weights @ v
        if "transposes" not in self.without:
            mixed = mixed.transpose(1, 2)
        projected: torch.Tensor = self.project(mixed.reshape(batch, count, channels))
        return projected

    def _swap(self, x: torch.Tensor, shape: tuple[int, int, int]) -> torch.Tensor:
        return x.reshape(shape) if "transposes" in self.without else x.transpose(1, 2)

    def _norm(self, x: torch.Tensor, place: int) -> torch.Tensor:
        normed: torch.Tensor = x if "norms" in self.without else self.norms[place](x)
        return normed

    def _add(self, x: torch.Tensor, branch: torch.Tensor) -> torch.Tensor:
        return branch if "adds" in self.without else x + branch

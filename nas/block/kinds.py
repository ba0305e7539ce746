"""The kinds of several parts: mb4d, mb3d, cga and patch_merge."""

from dataclasses import dataclass
from typing import ClassVar

from nas.block.base import ACTIVATIONS, Block, check_attention, check_pair, code, halve, word
from nas.block.parts import Attn, Dw, Ffn, GroupAttn, Merge, Mlp, Pool, TokenMlp
from nas.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Mb4d(Block):
    """EfficientFormer's 4-D block: pool mixer, CONV-BN MLP."""

    kind: ClassVar[str] = "mb4d"
    hidden: int = code("h")
    pool: int = code("p")
    act: str = word(ACTIVATIONS, "gelu")

    def check(self) -> None:
        if self.pool % 2 == 0:
            raise ConfigError(f"mb4d.pool must be odd, but is {self.pool}.")

    def parts(self) -> tuple[Block, ...]:
        r, c = self.resolution, self.channels
        return (
            Pool(resolution=r, channels=c, pool=self.pool),
            Mlp(resolution=r, channels=c, hidden=self.hidden, act=self.act),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Mb3d(Block):
    """EfficientFormer's 3-D block: self-attention and MLP on the flattened tokens."""

    kind: ClassVar[str] = "mb3d"
    heads: int = code("n")
    key: int = code("k")
    value: int = code("v")
    hidden: int = code("h")
    act: str = word(ACTIVATIONS, "gelu")

    def parts(self) -> tuple[Block, ...]:
        r, c = self.resolution, self.channels
        return (
            Attn(resolution=r, channels=c, heads=self.heads, key=self.key, value=self.value),
            TokenMlp(resolution=r, channels=c, hidden=self.hidden, act=self.act),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Cga(Block):
    """EfficientViT's sandwich: dw, FFN, cascaded group attention, dw, FFN."""

    kind: ClassVar[str] = "cga"
    heads: int = code("n")
    key: int = code("k")
    kernels: tuple[int, ...] = code("q")
    window: int = code("w")
    hidden: tuple[int, ...] = code("h")
    act: str = word(ACTIVATIONS, "relu")

    def check(self) -> None:
        check_attention(self)
        check_pair(self, self.hidden, "hidden")

    def parts(self) -> tuple[Block, ...]:
        r, c = self.resolution, self.channels
        before, after = self.hidden
        attention = GroupAttn(
            resolution=r,
            channels=c,
            heads=self.heads,
            key=self.key,
            kernels=self.kernels,
            window=min(self.window, r),
            act=self.act,
        )
        dw = Dw(resolution=r, channels=c)
        return (
            dw,
            Ffn(resolution=r, channels=c, hidden=before, act=self.act),
            attention,
            dw,
            Ffn(resolution=r, channels=c, hidden=after, act=self.act),
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchMerge(Block):
    """EfficientViT's subsampling: dw + FFN, patch merging, dw + FFN on the output width."""

    kind: ClassVar[str] = "patch_merge"
    channels: int = code("i")
    out: int = code("o")
    hidden: int = code("h")
    squeeze: int = code("s")
    ffn: tuple[int, ...] = code("f")
    act: str = word(ACTIVATIONS, "relu")

    def check(self) -> None:
        check_pair(self, self.ffn, "ffn")

    @property
    def out_channels(self) -> int:
        return self.out

    @property
    def out_resolution(self) -> int:
        return halve(self.resolution)

    def parts(self) -> tuple[Block, ...]:
        r, small = self.resolution, self.out_resolution
        before, after = self.ffn
        merge = Merge(
            resolution=r,
            channels=self.channels,
            out=self.out,
            hidden=self.hidden,
            squeeze=self.squeeze,
            act=self.act,
        )
        return (
            Dw(resolution=r, channels=self.channels),
            Ffn(resolution=r, channels=self.channels, hidden=before, act=self.act),
            merge,
            Dw(resolution=small, channels=self.out),
            Ffn(resolution=small, channels=self.out, hidden=after, act=self.act),
        )

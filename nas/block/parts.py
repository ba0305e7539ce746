"""The kinds of one part: stem, downsample, mbconv, head; the residual branches of the others."""

from dataclasses import dataclass
from typing import ClassVar

from nas.block.base import (
    ACTIVATIONS,
    HEAD_NORMS,
    Block,
    check_attention,
    code,
    flag,
    halve,
    word,
)
from nas.errors import ConfigError


@dataclass(frozen=True, slots=True, kw_only=True)
class Stem(Block):
    """n stacked 3x3 stride-2 convolutions, each with BatchNorm and (the last optionally) act."""

    kind: ClassVar[str] = "stem"
    channels: int = code("i")
    widths: tuple[int, ...] = code("c")
    bias: int = flag("b", default=1)
    act_last: int = flag("a", default=1)
    act: str = word(ACTIVATIONS, "relu")

    @property
    def out_channels(self) -> int:
        return self.widths[-1]

    @property
    def out_resolution(self) -> int:
        side = self.resolution
        for _ in self.widths:
            side = halve(side)
        return side

    @property
    def params(self) -> int:
        chain = zip((self.channels, *self.widths), self.widths, strict=False)
        return sum(9 * i * o + o * self.bias + 2 * o for i, o in chain)

    @property
    def macs(self) -> int:
        total, side = 0, self.resolution
        for i, o in zip((self.channels, *self.widths), self.widths, strict=False):
            side = halve(side)
            total += 9 * i * o * side * side
        return total


@dataclass(frozen=True, slots=True, kw_only=True)
class Downsample(Block):
    """EfficientFormer's embedding between stages: 3x3 stride-2 convolution with bias, BatchNorm."""

    kind: ClassVar[str] = "downsample"
    channels: int = code("i")
    out: int = code("o")

    @property
    def out_channels(self) -> int:
        return self.out

    @property
    def out_resolution(self) -> int:
        return halve(self.resolution)

    @property
    def params(self) -> int:
        return 9 * self.channels * self.out + 3 * self.out

    @property
    def macs(self) -> int:
        return 9 * self.channels * self.out * self.out_resolution**2


@dataclass(frozen=True, slots=True, kw_only=True)
class MbConv(Block):
    """Inverted residual of stride 1: 1x1, act, k x k depthwise, act, SE, 1x1; BN each, no bias.

    MobileNetV2's (arXiv 1801.04381, section 3.3) ends with the sum; TinyViT's (arXiv 2207.10666)
    has an activation behind it: `act_last`. `squeeze` is the width inside the
    squeeze-and-excitation, 0 for none.
    """

    kind: ClassVar[str] = "mbconv"
    hidden: int = code("h")
    kernel: int = code("k")
    squeeze: int = code("s", low=0, default=0)
    act_last: int = flag("a", default=0)
    act: str = word(ACTIVATIONS, "relu6")

    def check(self) -> None:
        if self.kernel % 2 == 0:
            raise ConfigError(f"mbconv.kernel must be odd, but is {self.kernel}.")

    @property
    def params(self) -> int:
        c, h, s = self.channels, self.hidden, self.squeeze
        excite = (2 * h * s + s + h) if s else 0
        return 2 * c * h + self.kernel**2 * h + 4 * h + 2 * c + excite

    @property
    def macs(self) -> int:
        h = self.hidden
        a_pixel = h * (2 * self.channels + self.kernel**2)
        return a_pixel * self.resolution**2 + 2 * h * self.squeeze


@dataclass(frozen=True, slots=True, kw_only=True)
class Head(Block):
    """Classifier. `ln`: LayerNorm on tokens, mean, Linear; `bn`: mean, BatchNorm, Linear.

    With a distillation head the output is the mean of two Linears (EfficientFormer, DeiT).
    """

    kind: ClassVar[str] = "head"
    channels: int = code("i")
    classes: int = code("o")
    norm: str = word(HEAD_NORMS, "ln", always=True)
    distilled: int = flag("d", default=0)

    @property
    def out_channels(self) -> int:
        return self.classes

    @property
    def out_resolution(self) -> int:
        return 1

    @property
    def params(self) -> int:
        linears = (1 + self.distilled) * (self.channels + 1) * self.classes
        return 2 * self.channels + linears

    @property
    def macs(self) -> int:
        return (1 + self.distilled) * self.channels * self.classes


# ---------------------------------------------------------------- parts
@dataclass(frozen=True, slots=True, kw_only=True)
class Pool(Block):
    """MB4D's token mixer: x + scale * (average pool(x) - x)."""

    kind: ClassVar[str] = "pool"
    pool: int = code("p")

    @property
    def params(self) -> int:
        return self.channels

    @property
    def macs(self) -> int:
        return 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Mlp(Block):
    """MB4D's CONV-BN MLP: 1x1 (bias), BN, act, 1x1 (bias), BN, layer scale, residual."""

    kind: ClassVar[str] = "mlp"
    hidden: int = code("h")
    act: str = word(ACTIVATIONS, "gelu")

    @property
    def params(self) -> int:
        return 2 * self.channels * self.hidden + 3 * self.hidden + 4 * self.channels

    @property
    def macs(self) -> int:
        return 2 * self.channels * self.hidden * self.resolution**2


@dataclass(frozen=True, slots=True, kw_only=True)
class Attn(Block):
    """MB3D's mixer: LayerNorm, multi-head self-attention with attention bias, layer scale."""

    kind: ClassVar[str] = "attn"
    heads: int = code("n")
    key: int = code("k")
    value: int = code("v")

    @property
    def params(self) -> int:
        c, n = self.channels, self.heads
        qkv = (c + 1) * n * (2 * self.key + self.value)
        return 2 * c + qkv + (n * self.value + 1) * c + n * self.resolution**2 + c

    @property
    def macs(self) -> int:
        tokens, n = self.resolution**2, self.heads
        linears = tokens * self.channels * n * (2 * self.key + 2 * self.value)
        return linears + tokens * tokens * n * (self.key + self.value)


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenMlp(Block):
    """MB3D's MLP on tokens: LayerNorm, Linear, act, Linear, layer scale, residual."""

    kind: ClassVar[str] = "token_mlp"
    hidden: int = code("h")
    act: str = word(ACTIVATIONS, "gelu")

    @property
    def params(self) -> int:
        c, h = self.channels, self.hidden
        return 2 * c + (c + 1) * h + (h + 1) * c + c

    @property
    def macs(self) -> int:
        return 2 * self.channels * self.hidden * self.resolution**2


@dataclass(frozen=True, slots=True, kw_only=True)
class Dw(Block):
    """Residual 3x3 depthwise convolution with BatchNorm, no bias."""

    kind: ClassVar[str] = "dw"

    @property
    def params(self) -> int:
        return 11 * self.channels

    @property
    def macs(self) -> int:
        return 9 * self.channels * self.resolution**2


@dataclass(frozen=True, slots=True, kw_only=True)
class Ffn(Block):
    """Residual feed-forward: 1x1, BN, act, 1x1, BN, no bias."""

    kind: ClassVar[str] = "ffn"
    hidden: int = code("h")
    act: str = word(ACTIVATIONS, "relu")

    @property
    def params(self) -> int:
        return 2 * self.channels * self.hidden + 2 * self.hidden + 2 * self.channels

    @property
    def macs(self) -> int:
        return 2 * self.channels * self.hidden * self.resolution**2


@dataclass(frozen=True, slots=True, kw_only=True)
class GroupAttn(Block):
    """Residual cascaded group attention in windows (EfficientViT section 3.1, equations 2-3)."""

    kind: ClassVar[str] = "group_attn"
    heads: int = code("n")
    key: int = code("k")
    kernels: tuple[int, ...] = code("q")
    window: int = code("w")
    act: str = word(ACTIVATIONS, "relu")

    def check(self) -> None:
        check_attention(self)

    @property
    def side(self) -> int:
        """Side of one attention window: never larger than the feature map."""
        return min(self.window, self.resolution)

    @property
    def value(self) -> int:
        """Value channels a head: the input chunk it is added to fixes them."""
        return self.channels // self.heads

    @property
    def params(self) -> int:
        c, k, v = self.channels, self.key, self.value
        qkv = sum(v * (2 * k + v) + 2 * (2 * k + v) + k * q * q + 2 * k for q in self.kernels)
        return qkv + c * c + 2 * c + self.heads * self.side**2

    @property
    def macs(self) -> int:
        windows = (-(-self.resolution // self.side)) ** 2  # padded up to whole windows
        tokens, k, v = self.side**2, self.key, self.value
        a_head = sum(
            tokens * (v * (2 * k + v) + k * q * q) + tokens * tokens * (k + v) for q in self.kernels
        )
        return windows * (a_head + tokens * self.channels**2)


@dataclass(frozen=True, slots=True, kw_only=True)
class Merge(Block):
    """EfficientViT's patch merging: 1x1, act, 3x3 depthwise stride 2, act, SE, 1x1; BN each."""

    kind: ClassVar[str] = "merge"
    channels: int = code("i")
    out: int = code("o")
    hidden: int = code("h")
    squeeze: int = code("s")
    act: str = word(ACTIVATIONS, "relu")

    @property
    def out_channels(self) -> int:
        return self.out

    @property
    def out_resolution(self) -> int:
        return halve(self.resolution)

    @property
    def params(self) -> int:
        h, s = self.hidden, self.squeeze
        convs = self.channels * h + 2 * h + 9 * h + 2 * h + h * self.out + 2 * self.out
        return convs + 2 * h * s + s + h

    @property
    def macs(self) -> int:
        h, small = self.hidden, self.out_resolution**2
        squeeze = 2 * h * self.squeeze
        return self.channels * h * self.resolution**2 + small * h * (9 + self.out) + squeeze

"""Blocks and their parts: one concrete layer with every number fixed, as text and as formulas.

A network is a list of blocks. A block is a chain of parts, each one residual branch; parts are the
keys of a latency table, the groups of allocation and the units of Taylor importance. Everything
here is arithmetic on integers: no torch. The blocks are EfficientFormer's (arXiv 2206.01191,
section 3.1) and EfficientViT's (arXiv 2305.07027, section 3).

MACs count multiply-accumulates of convolutions, linear layers and attention products (what
`torch.utils.flop_counter` counts, halved) at batch 1; pooling, norms and activations are free.
"""

import re
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Self

from nas.errors import ConfigError

ACTIVATIONS = ("relu", "gelu", "hardswish", "silu")
HEAD_NORMS = ("ln", "bn")
MAX_FIELD = 1_000_000


def code(letter: str, **options: Any) -> Any:
    """Return a dataclass field written in block strings as `letter` + number(s)."""
    return field(metadata={"letter": letter}, **options)


def word(choices: tuple[str, ...], default: str, *, always: bool = False) -> Any:
    """Return a dataclass field written as a bare word, left out when it is the default."""
    return field(default=default, metadata={"words": choices, "always": always})


def halve(resolution: int) -> int:
    """Return the side after a 3x3 stride-2 convolution with padding 1."""
    return (resolution - 1) // 2 + 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Block:
    """One concrete layer, NCHW to NCHW. `str(block)` is its name; `parse` is the inverse."""

    kind: ClassVar[str]
    resolution: int = code("r")
    channels: int = code("c")

    def __post_init__(self) -> None:
        for item in fields(self):
            value = getattr(self, item.name)
            if "words" in item.metadata:
                if value not in item.metadata["words"]:
                    raise ConfigError(
                        f"{self.kind}.{item.name} must be one of "
                        f"{', '.join(item.metadata['words'])}, but is {value!r}."
                    )
                continue
            low = 0 if item.metadata["letter"] in ("b", "a", "d") else 1
            high = 1 if low == 0 else MAX_FIELD
            is_list = str(item.type).startswith("tuple")
            numbers = value if isinstance(value, tuple) and is_list else (value,)
            if (
                is_list != isinstance(value, tuple)
                or not numbers
                or not all(type(n) is int and low <= n <= high for n in numbers)
            ):
                raise ConfigError(
                    f"{self.kind}.{item.name} must be whole numbers from {low} to {high}, "
                    f"but is {value!r}."
                )
        self.check()

    def check(self) -> None:
        """Raise ConfigError where fields that are each valid do not fit together."""

    def __str__(self) -> str:
        words = [self.kind]
        for item in fields(self):
            value = getattr(self, item.name)
            if "words" in item.metadata:
                if item.metadata["always"] or value != item.default:
                    words.append(value)
            else:
                numbers = value if isinstance(value, tuple) else (value,)
                words.append(item.metadata["letter"] + "-".join(map(str, numbers)))
        return "_".join(words)

    @property
    def in_channels(self) -> int:
        """Channels of the input."""
        return self.channels

    @property
    def out_channels(self) -> int:
        """Channels of the output."""
        return self.in_channels

    @property
    def out_resolution(self) -> int:
        """Side of the (square) output."""
        return self.resolution

    def parts(self) -> tuple["Block", ...]:
        """Return the residual branches in order; a block of one part is its own part."""
        return (self,)

    @property
    def params(self) -> int:
        """Learnable parameters, as torch counts them before BatchNorm is folded."""
        return sum(part.params for part in self.parts())

    @property
    def macs(self) -> int:
        """Multiply-accumulates of one image."""
        return sum(part.macs for part in self.parts())

    @property
    def bytes(self) -> int:
        """Bytes of the parameters in fp32."""
        return 4 * self.params

    def at(self, resolution: int) -> Self:
        """Return the same block for another input side."""
        return replace(self, resolution=resolution)


# ---------------------------------------------------------------- kinds of one part
@dataclass(frozen=True, slots=True, kw_only=True)
class Stem(Block):
    """n stacked 3x3 stride-2 convolutions, each with BatchNorm and (the last optionally) act."""

    kind: ClassVar[str] = "stem"
    channels: int = code("i")
    widths: tuple[int, ...] = code("c")
    bias: int = code("b", default=1)
    act_last: int = code("a", default=1)
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
class Head(Block):
    """Classifier. `ln`: LayerNorm on tokens, mean, Linear; `bn`: mean, BatchNorm, Linear.

    With a distillation head the output is the mean of two Linears (EfficientFormer, DeiT).
    """

    kind: ClassVar[str] = "head"
    channels: int = code("i")
    classes: int = code("o")
    norm: str = word(HEAD_NORMS, "ln", always=True)
    distilled: int = code("d", default=0)

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
        _check_attention(self)

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


# ---------------------------------------------------------------- kinds of several parts
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
        _check_attention(self)
        _check_pair(self, self.hidden, "hidden")

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
        _check_pair(self, self.ffn, "ffn")

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


def _check_attention(block: GroupAttn | Cga) -> None:
    if block.channels % block.heads:
        raise ConfigError(
            f"{block.kind}: channels must be a multiple of heads, "
            f"but {block.channels} is not a multiple of {block.heads}."
        )
    if len(block.kernels) != block.heads:
        raise ConfigError(
            f"{block.kind}: one query kernel a head, "
            f"but {block.heads} heads have kernels {block.kernels}."
        )
    if any(kernel % 2 == 0 for kernel in block.kernels):
        raise ConfigError(f"{block.kind}: query kernels must be odd, but are {block.kernels}.")


def _check_pair(block: Block, pair: tuple[int, ...], name: str) -> None:
    if len(pair) != 2:
        raise ConfigError(
            f"{block.kind}.{name} must be two numbers, before and after, but is {pair}."
        )


# ---------------------------------------------------------------- text
BLOCKS: dict[str, type[Block]] = {
    cls.kind: cls for cls in (Stem, Mb4d, Mb3d, Cga, Downsample, PatchMerge, Head)
}
PARTS: dict[str, type[Block]] = {
    cls.kind: cls
    for cls in (Stem, Downsample, Head, Pool, Mlp, Attn, TokenMlp, Dw, Ffn, GroupAttn, Merge)
}


def _pattern(cls: type[Block]) -> re.Pattern[str]:
    number = "(0|[1-9][0-9]{0,6})"
    text = cls.kind
    for item in fields(cls):
        if "words" in item.metadata:
            group = f"(?P<{item.name}>{'|'.join(item.metadata['words'])})"
            text += f"_{group}" if item.metadata["always"] else f"(?:_{group})?"
        else:
            many = f"(?:-{number})*" if str(item.type).startswith("tuple") else ""
            text += f"_{item.metadata['letter']}(?P<{item.name}>{number}{many})"
    return re.compile(text)


_PATTERNS: dict[str, re.Pattern[str]] = {
    kind: _pattern(cls) for kind, cls in {**BLOCKS, **PARTS}.items()
}


def parse(text: str) -> Block:
    """Return the block or part whose string is `text`; `str(parse(text)) == text`.

    Raises:
        ConfigError: the text is not exactly what `str` would write.
    """
    for kind, pattern in _PATTERNS.items():
        match = pattern.fullmatch(text)
        if match is None:
            continue
        cls = BLOCKS.get(kind) or PARTS[kind]
        block = cls(**_values(cls, match))
        if str(block) == text:
            return block
    known = ", ".join(sorted(_PATTERNS))
    raise ConfigError(
        f"{text!r} is not a block string. It is a kind ({known}) followed by its fields in order, "
        "for example mb4d_r56_c48_h192_p3."
    )


def _values(cls: type[Block], match: re.Match[str]) -> dict[str, Any]:
    values: dict[str, Any] = {}
    for item in fields(cls):
        raw = match[item.name]
        if raw is None:
            continue
        convert: Callable[[str], Any] = str if "words" in item.metadata else int
        if str(item.type).startswith("tuple"):
            values[item.name] = tuple(int(number) for number in raw.split("-"))
        else:
            values[item.name] = convert(raw)
    return values


def parse_network(texts: list[str] | tuple[str, ...]) -> tuple[Block, ...]:
    """Return the blocks of a network, checked to fit: stem first, head last, shapes chained.

    Raises:
        ConfigError: a string is wrong, or a block does not take what the one before gives.
    """
    blocks = tuple(parse(text) for text in texts)
    check_chain(blocks)
    return blocks


def check_chain(blocks: tuple[Block, ...]) -> None:
    """Raise ConfigError unless the blocks make one network, from stem to head."""
    if len(blocks) < 2 or blocks[0].kind != "stem" or blocks[-1].kind != "head":
        kinds = [block.kind for block in blocks]
        raise ConfigError(f"a network starts with a stem and ends with a head, but is {kinds}.")
    for before, after in zip(blocks, blocks[1:], strict=False):
        given = (before.out_channels, before.out_resolution)
        taken = (after.in_channels, after.resolution)
        if given != taken or after.kind not in BLOCKS or after.kind == "stem":
            raise ConfigError(
                f"{after} does not fit behind {before}, which gives {given[0]} channels "
                f"of side {given[1]}."
            )


def resize(blocks: tuple[Block, ...], image_size: int) -> tuple[Block, ...]:
    """Return the same network for another (square) image size."""
    resized, side = [], image_size
    for block in blocks:
        resized.append(block.at(side))
        side = resized[-1].out_resolution
    return tuple(resized)

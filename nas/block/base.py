"""Block: one concrete layer, as text and as the formulas every kind has."""

from dataclasses import dataclass, field, fields, replace
from typing import Any, ClassVar, Self

from nas.errors import ConfigError

ACTIVATIONS = ("relu", "gelu", "hardswish", "silu", "relu6")
HEAD_NORMS = ("ln", "bn")
MAX_FIELD = 1_000_000


def code(letter: str, *, low: int = 1, high: int = MAX_FIELD, **options: Any) -> Any:
    """Return a dataclass field written in block strings as `letter` + number(s), low to high."""
    return field(metadata={"letter": letter, "low": low, "high": high}, **options)


def flag(letter: str, *, default: int) -> Any:
    """Return a dataclass field written in block strings as `letter` + 0 or 1."""
    return code(letter, low=0, high=1, default=default)


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
            low, high = item.metadata["low"], item.metadata["high"]
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


def check_attention(block: Any) -> None:
    """Raise ConfigError unless heads divide the channels and each has an odd query kernel."""
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


def check_pair(block: Block, pair: tuple[int, ...], name: str) -> None:
    """Raise ConfigError unless the field is a pair, before and after."""
    if len(pair) != 2:
        raise ConfigError(
            f"{block.kind}.{name} must be two numbers, before and after, but is {pair}."
        )

"""The YAML of a search space as dataclasses, and the rules its numbers obey."""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, fields
from itertools import product
from math import prod
from typing import Any

from nas.block import ACTIVATIONS, BLOCKS, Block
from nas.errors import ConfigError
from nas.space.architecture import TRANSITIONS, BlockChoice

MAX_OPTIONS = 64
MAX_DEPTH = 64
MAX_INNER = 4096
FRONT_KINDS = ("mb4d", "cga", "mbconv")
TAIL_KIND = "mb3d"


def to_multiple(value: float, step: int = 8) -> int:
    """Return `value` rounded to the nearest multiple of `step`, at least `step`."""
    return max(step, int(value / step + 0.5) * step)


def check_ascending(
    name: str, options: Iterable[float], *, low: float = 1, high: float = 8192
) -> None:
    """Raise ConfigError unless there are 1 to 64 options, ascending, from `low` to `high`."""
    listed = list(options)
    ascends = all(a < b for a, b in zip(listed, listed[1:], strict=False))
    fits = listed and low <= listed[0] and listed[-1] <= high
    if not 1 <= len(listed) <= MAX_OPTIONS or not ascends or not fits:
        raise ConfigError(
            f"{name} must list 1 to {MAX_OPTIONS} options, ascending, from {low} to {high}, "
            f"but is {listed}."
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class StemSpec:
    """How many 3x3 stride-2 convolutions open the network, and what follows each."""

    convs: int = 2
    bias: bool = True
    act_last: bool = True
    act: str = "relu"

    def __post_init__(self) -> None:
        if not 1 <= self.convs <= 5:
            raise ConfigError(f"stem.convs must be 1 to 5, but is {self.convs}.")
        check_activation("stem.act", self.act)


@dataclass(frozen=True, slots=True, kw_only=True)
class HeadSpec:
    """`layer`: LN then mean (EfficientFormer); `batch`: mean then BN (EfficientViT)."""

    norm: str = "layer"
    distilled: bool = False

    def __post_init__(self) -> None:
        if self.norm not in ("layer", "batch"):
            raise ConfigError(f"head.norm must be layer or batch, but is {self.norm!r}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Mb4dOptions:
    """Options of EfficientFormer's 4-D block."""

    expand: tuple[float, ...]
    pool: tuple[int, ...] = (3,)

    def __post_init__(self) -> None:
        check_ascending("mb4d.expand", self.expand, low=0.25, high=16)
        check_odd("mb4d.pool", self.pool)


@dataclass(frozen=True, slots=True, kw_only=True)
class Mb3dOptions:
    """Options of EfficientFormer's 3-D block; key and value are channels a head."""

    expand: tuple[float, ...]
    heads: tuple[int, ...] = (8,)
    key: tuple[int, ...] = (32,)
    value: tuple[int, ...] = (128,)

    def __post_init__(self) -> None:
        check_ascending("mb3d.expand", self.expand, low=0.25, high=16)
        for name in ("heads", "key", "value"):
            check_ascending(f"mb3d.{name}", getattr(self, name))


@dataclass(frozen=True, slots=True, kw_only=True)
class CgaOptions:
    """Options of EfficientViT's block; heads and value width follow from the stage's head_dim."""

    expand: tuple[float, ...]
    key: tuple[int, ...] = (16,)
    kernels: tuple[tuple[int, ...], ...] = ((5,),)
    window: tuple[int, ...] = (7,)

    def __post_init__(self) -> None:
        check_ascending("cga.expand", self.expand, low=0.25, high=16)
        check_ascending("cga.key", self.key)
        check_ascending("cga.window", self.window)
        if not 1 <= len(self.kernels) <= MAX_OPTIONS:
            raise ConfigError(f"cga.kernels must list 1 to {MAX_OPTIONS} options.")
        for kernels in self.kernels:
            check_odd("cga.kernels", kernels)


@dataclass(frozen=True, slots=True, kw_only=True)
class MbConvOptions:
    """Options of the inverted residual; `se` is the squeeze's share of the hidden width, 0 none."""

    expand: tuple[float, ...]
    kernel: tuple[int, ...] = (3,)
    se: tuple[float, ...] = (0,)
    act_last: tuple[int, ...] = (0,)

    def __post_init__(self) -> None:
        check_ascending("mbconv.expand", self.expand, low=0.25, high=16)
        check_odd("mbconv.kernel", self.kernel)
        check_ascending("mbconv.kernel", self.kernel, high=15)
        check_ascending("mbconv.se", self.se, low=0, high=1)
        check_ascending("mbconv.act_last", self.act_last, low=0, high=1)


@dataclass(frozen=True, slots=True, kw_only=True)
class PatchMergeOptions:
    """Options of EfficientViT's subsampling: merge hidden, SE ratio, FFN before and after."""

    expand: tuple[float, ...]
    se: tuple[float, ...] = (0.25,)
    expand_in: tuple[float, ...] = (2,)
    expand_out: tuple[float, ...] = (2,)

    def __post_init__(self) -> None:
        for name in ("expand", "se", "expand_in", "expand_out"):
            low = 0.01 if name == "se" else 0.25
            check_ascending(f"patch_merge.{name}", getattr(self, name), low=low, high=16)


@dataclass(frozen=True, slots=True, kw_only=True)
class BlockOptions:
    """The inner options of every kind a stage may use."""

    mb4d: Mb4dOptions | None = None
    mb3d: Mb3dOptions | None = None
    cga: CgaOptions | None = None
    mbconv: MbConvOptions | None = None
    patch_merge: PatchMergeOptions | None = None


def check_odd(name: str, kernels: Iterable[int]) -> None:
    """Raise ConfigError unless every number is odd and positive."""
    listed = list(kernels)
    if not listed or any(kernel < 1 or kernel % 2 == 0 for kernel in listed):
        raise ConfigError(f"{name} must be odd numbers from 1, but is {listed}.")


def check_activation(name: str, act: str) -> None:
    """Raise ConfigError unless `act` is an activation that blocks know."""
    if act not in ACTIVATIONS:
        raise ConfigError(f"{name} must be one of {', '.join(ACTIVATIONS)}, but is {act!r}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class StageSpec:
    """What may vary in one stage: width, depth, kinds in front, number of mb3d at its end."""

    width: tuple[int, ...]
    depth: tuple[int, ...]
    kinds: tuple[str, ...]
    head_dim: int | None = None
    tail: tuple[int, ...] = (0,)
    by: tuple[str, ...] = ("downsample",)
    blocks: BlockOptions = BlockOptions()

    def __post_init__(self) -> None:
        check_ascending("width", self.width)
        check_ascending("depth", self.depth, high=MAX_DEPTH)
        check_ascending("tail", self.tail, low=0, high=MAX_DEPTH)
        if self.tail[0] > self.depth[0]:
            raise ConfigError(
                f"the smallest tail must fit the smallest depth, but {self.tail[0]} mb3d "
                f"do not fit {self.depth[0]} blocks. Add a smaller tail, 0 for example."
            )
        self._check_kinds()
        self._check_heads()
        for kind in (*self.used_kinds, *self.by):
            inner = prod(len(options) for options in inner_options(self, kind).values())
            if inner > MAX_INNER:
                raise ConfigError(
                    f"a kind may have {MAX_INNER} combinations of inner options in a stage, "
                    f"but {kind} has {inner}. List fewer options."
                )

    def _check_kinds(self) -> None:
        if TAIL_KIND in self.kinds:
            raise ConfigError(
                f"kinds may not hold mb3d: attention on tokens stands at the end of a stage only. "
                f"Use tail, for example tail: [0, 1], but kinds is {list(self.kinds)}."
            )
        for name, chosen, known in (
            ("kinds", self.kinds, FRONT_KINDS),
            ("by", self.by, TRANSITIONS),
        ):
            strange = [kind for kind in chosen if kind not in known]
            if strange or not chosen or len(set(chosen)) < len(chosen):
                raise ConfigError(
                    f"{name} must list each of {', '.join(known)} at most once, "
                    f"but is {list(chosen)}."
                )
        tail = (TAIL_KIND,) if self.tail[-1] else ()
        for kind in (*self.kinds, *self.by, *tail):
            if kind != "downsample" and getattr(self.blocks, kind) is None:
                raise ConfigError(f"blocks must give the options of {kind}, which a stage uses.")

    def _check_heads(self) -> None:
        if "cga" in self.kinds and self.head_dim is None:
            raise ConfigError("a stage with cga needs head_dim, the channels of one head.")
        for width in self.width:
            if self.head_dim is not None and width % self.head_dim:
                low = width // self.head_dim * self.head_dim
                raise ConfigError(
                    f"width must be a multiple of head_dim, but {width} is not a multiple of "
                    f"{self.head_dim}. Use {low or self.head_dim} or {low + self.head_dim}."
                )

    @property
    def used_kinds(self) -> tuple[str, ...]:
        """The kinds in front, and mb3d where there may be a tail."""
        return (*self.kinds, TAIL_KIND) if self.tail[-1] else self.kinds

    @property
    def shapes(self) -> tuple[tuple[int, int], ...]:
        """Every different (depth, number of mb3d at the end)."""
        pairs = [(d, self.fit_tail(t, d)) for d in self.depth for t in self.tail]
        return tuple(dict.fromkeys(pairs))

    def fit_tail(self, tail: int, depth: int) -> int:
        """Return the largest tail on offer that is at most `tail` and fits `depth`."""
        return max(option for option in self.tail if option <= min(tail, depth))


# ---------------------------------------------------------------- one row a kind
Values = Mapping[str, Any]
Dims = dict[str, Any]


def _mb4d(values: Values, stage: StageSpec, before: int, width: int) -> Dims:
    return {"hidden": to_multiple(values["expand"] * width), "pool": values["pool"]}


def _mb3d(values: Values, stage: StageSpec, before: int, width: int) -> Dims:
    inner = {name: values[name] for name in ("heads", "key", "value")}
    return {**inner, "hidden": to_multiple(values["expand"] * width)}


def _cga(values: Values, stage: StageSpec, before: int, width: int) -> Dims:
    assert stage.head_dim is not None
    heads = width // stage.head_dim
    kernels = values["kernels"]
    hidden = to_multiple(values["expand"] * width)
    return {
        "heads": heads,
        "key": values["key"],
        "kernels": (kernels + kernels[-1:] * heads)[:heads],
        "window": values["window"],
        "hidden": (hidden, hidden),
    }


def _mbconv(values: Values, stage: StageSpec, before: int, width: int) -> Dims:
    hidden = to_multiple(values["expand"] * width)
    return {
        "hidden": hidden,
        "kernel": values["kernel"],
        "squeeze": to_multiple(values["se"] * hidden) if values["se"] else 0,
        "act_last": values["act_last"],
    }


def _downsample(values: Values, stage: StageSpec, before: int, width: int) -> Dims:
    return {}


def _patch_merge(values: Values, stage: StageSpec, before: int, width: int) -> Dims:
    hidden = to_multiple(values["expand"] * before)
    pair = (to_multiple(values["expand_in"] * before), to_multiple(values["expand_out"] * width))
    return {"hidden": hidden, "squeeze": to_multiple(values["se"] * hidden), "ffn": pair}


ROWS: dict[str, Callable[[Values, StageSpec, int, int], Dims]] = {
    "mb4d": _mb4d,
    "mb3d": _mb3d,
    "cga": _cga,
    "mbconv": _mbconv,
    "downsample": _downsample,
    "patch_merge": _patch_merge,
}


def inner_options(stage: StageSpec, kind: str) -> dict[str, tuple[Any, ...]]:
    """Return {dimension: options} of one kind in one stage, in field order."""
    options = getattr(stage.blocks, kind, None)
    if options is None:
        return {}
    return {item.name: getattr(options, item.name) for item in fields(options)}


def inner_values(stage: StageSpec, kind: str) -> list[dict[str, Any]]:
    """Return every combination of a kind's inner options, first dimension slowest."""
    options = inner_options(stage, kind)
    return [dict(zip(options, picked, strict=True)) for picked in product(*options.values())]


def make_block(kind: str, dims: Dims, *, side: int, before: int, width: int, act: str) -> Block:
    """Return the concrete block of a kind at its place; `act` "" keeps the kind's own."""
    place: dict[str, Any] = {"resolution": side, "channels": before}
    if kind in TRANSITIONS:
        place["out"] = width
    if act and any(item.name == "act" for item in fields(BLOCKS[kind])):
        place["act"] = act
    return BLOCKS[kind](**place, **dims)


def block_choice(
    stage: StageSpec, kind: str, values: Mapping[str, Any], before: int, width: int
) -> BlockChoice:
    """Return the absolute numbers behind a kind's options at a width."""
    return BlockChoice(kind, tuple(ROWS[kind](values, stage, before, width).items()))

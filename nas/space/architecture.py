"""Architecture: one choice from a space, active blocks only, absolute numbers."""

from dataclasses import dataclass, fields
from functools import cached_property
from typing import Any

from nas.block import BLOCKS, Block, Head, Stem, check_chain
from nas.errors import ConfigError, CorruptFile, NasError
from nas.files import digest_json

SCHEMA = 1
# What a block takes from its place in the network; the rest is the choice.
PLACED = ("resolution", "channels", "out", "act")
TRANSITIONS = ("downsample", "patch_merge")

Dim = int | tuple[int, ...]


@dataclass(frozen=True, slots=True)
class BlockChoice:
    """A kind and its inner dimensions, for example mb4d with hidden 32 and pool 3."""

    kind: str
    dims: tuple[tuple[str, Dim], ...]

    @classmethod
    def of(cls, block: Block) -> "BlockChoice":
        """Return what was chosen in a concrete block."""
        names = [item.name for item in fields(block) if item.name not in PLACED]
        return cls(block.kind, tuple((name, getattr(block, name)) for name in names))

    def to_json(self) -> dict[str, Any]:
        """Return {"kind": ..., dim: number or list, ...}."""
        plain = {name: list(dim) if isinstance(dim, tuple) else dim for name, dim in self.dims}
        return {"kind": self.kind, **plain}

    @classmethod
    def from_json(cls, value: Any) -> "BlockChoice":
        """Read what `to_json` wrote; raises ConfigError for other keys or values."""
        if not isinstance(value, dict) or value.get("kind") not in BLOCKS:
            raise ConfigError(f"a block needs a kind of {', '.join(BLOCKS)}, but is {value!r:.80}.")
        kind = value["kind"]
        names = [item.name for item in fields(BLOCKS[kind]) if item.name not in PLACED]
        if set(value) - {"kind"} != set(names):
            raise ConfigError(f"{kind} has the keys {names}, but is given {sorted(value)}.")
        dims = []
        for name in names:
            dim = value[name]
            if not _is_dim(dim):
                raise ConfigError(f"{kind}.{name} must be whole numbers, but is {dim!r:.80}.")
            dims.append((name, tuple(dim) if isinstance(dim, list) else dim))
        return cls(kind, tuple(dims))


def _is_dim(value: Any) -> bool:
    if isinstance(value, list):
        return bool(value) and all(type(item) is int for item in value)
    return type(value) is int


@dataclass(frozen=True, slots=True)
class StageChoice:
    """A width, the transition into it (None for the first stage) and its blocks."""

    width: int
    transition: BlockChoice | None
    blocks: tuple[BlockChoice, ...]


@dataclass(frozen=True)
class Architecture:
    """One network of a space, as numbers. Equal architectures have equal `id`s."""

    space: str
    image_size: int
    stages: tuple[StageChoice, ...]

    def to_json(self) -> dict[str, Any]:
        """Return the plain form of schema 1."""
        stages = []
        for stage in self.stages:
            plain: dict[str, Any] = {"width": stage.width}
            if stage.transition is not None:
                plain["transition"] = stage.transition.to_json()
            plain["blocks"] = [block.to_json() for block in stage.blocks]
            stages.append(plain)
        return {
            "schema": SCHEMA,
            "space": self.space,
            "image_size": self.image_size,
            "stages": stages,
        }

    @classmethod
    def from_json(cls, value: Any, *, source: str = "architecture") -> "Architecture":
        """Read what `to_json` wrote.

        Raises:
            CorruptFile: a key is missing or unknown, a number is not one, another schema.
        """
        try:
            if value["schema"] != SCHEMA:
                raise ConfigError(f"schema {value['schema']!r} is not known; this is {SCHEMA}.")
            if set(value) != {"schema", "space", "image_size", "stages"}:
                raise ConfigError(f"unexpected keys {sorted(value)}.")
            if type(value["image_size"]) is not int or not isinstance(value["space"], str):
                raise ConfigError("space must be a name and image_size a whole number.")
            stages = tuple(_stage_from_json(stage) for stage in value["stages"])
        except (KeyError, TypeError, AttributeError) as error:
            raise CorruptFile(f"{source} is not an Architecture: {error!r}.") from error
        except NasError as error:
            raise CorruptFile(f"{source} is not an Architecture: {error}") from error
        return cls(value["space"], value["image_size"], stages)

    @cached_property
    def id(self) -> str:
        """First 12 hex digits of the sha256 of the canonical JSON."""
        return digest_json(self.to_json())[:12]


def _stage_from_json(value: Any) -> StageChoice:
    unknown = set(value) - {"width", "transition", "blocks"}
    if unknown or type(value["width"]) is not int or value["width"] < 1:
        raise ConfigError(f"a stage has width, transition and blocks, but is {value!r:.120}.")
    transition = value.get("transition")
    return StageChoice(
        value["width"],
        None if transition is None else BlockChoice.from_json(transition),
        tuple(BlockChoice.from_json(block) for block in value["blocks"]),
    )


def architecture_of(blocks: tuple[Block, ...], *, space: str) -> Architecture:
    """Return a network's blocks as an Architecture named after `space`.

    The stem, head and activation are the space's; what is kept is widths, kinds and inner numbers.

    Raises:
        ConfigError: the blocks are not one network.
    """
    check_chain(blocks)
    stem, head = blocks[0], blocks[-1]
    assert isinstance(stem, Stem) and isinstance(head, Head)
    widths, transitions = [stem.out_channels], [None]  # type: tuple[list[int], list[Any]]
    inner: list[list[BlockChoice]] = [[]]
    for block in blocks[1:-1]:
        if block.kind in TRANSITIONS:
            widths.append(block.out_channels)
            transitions.append(BlockChoice.of(block))
            inner.append([])
        else:
            inner[-1].append(BlockChoice.of(block))
    stages = zip(widths, transitions, inner, strict=True)
    return Architecture(
        space, stem.resolution, tuple(StageChoice(w, t, tuple(b)) for w, t, b in stages)
    )

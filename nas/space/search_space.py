"""SearchSpace: what may vary, as YAML, as genes, and as the one walk from choices to blocks."""

import dataclasses
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from nas.block import Block, Head, Stem
from nas.errors import ConfigError, NasError
from nas.files import digest_json, into, packaged_folder, read_yaml, unknown_key
from nas.space import extent
from nas.space import genes as gene_code
from nas.space.architecture import Architecture, BlockChoice, StageChoice
from nas.space.spec import (
    ROWS,
    TAIL_KIND,
    HeadSpec,
    StageSpec,
    StemSpec,
    block_choice,
    check_activation,
    inner_values,
    make_block,
)

SCHEMA = 1
Codes = npt.NDArray[np.int64]
Costs = npt.NDArray[np.float64]
Choice = Mapping[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchSpace:
    """A family of networks. Sides are pixels of a square image; every list is ascending options.

    `act` "" keeps each kind's own activation; `num_classes` and `in_chans` come from the data.
    """

    name: str
    image_size: int
    stages: tuple[StageSpec, ...]
    act: str = ""
    stem: StemSpec = StemSpec()
    head: HeadSpec = HeadSpec()
    num_classes: int = 1000
    in_chans: int = 3

    def __post_init__(self) -> None:
        if self.act:
            check_activation("act", self.act)
        for name in ("image_size", "num_classes", "in_chans"):
            if not 1 <= getattr(self, name) <= 100_000:
                raise ConfigError(f"{name} must be 1 to 100000, but is {getattr(self, name)}.")
        if not self.stages:
            raise ConfigError("stages must list at least one stage.")
        step = 2 ** (self.stem.convs - 1)
        for width in self.stages[0].width:
            if width % step:
                raise ConfigError(
                    f"the first stage's width must be a multiple of {step}, since a stem of "
                    f"{self.stem.convs} convolutions doubles its channels, but {width} is not."
                )

    # ------------------------------------------------------------ files
    @classmethod
    def load(cls, name_or_path: str | Path) -> Self:
        """Return a shipped space by name ("tiny") or one from a YAML file.

        Raises:
            ConfigError: no such space, or its YAML breaks a rule (named with its place).
        """
        path = Path(name_or_path)
        if path.suffix not in (".yaml", ".yml"):
            path = packaged_folder("search_spaces") / f"{name_or_path}.yaml"
            if not path.is_file():
                raise ConfigError(unknown_key(str(name_or_path), cls.names(), what="search space"))
        return cls.from_plain(read_yaml(path), source=str(name_or_path))

    @classmethod
    def from_plain(cls, value: Any, *, source: str = "space") -> Self:
        """Return a space from the plain values of its YAML."""
        if not isinstance(value, dict):
            raise ConfigError(f"{source}: a space is a mapping of keys, but is {value!r:.80}.")
        plain = dict(value)
        if plain.pop("schema", None) != SCHEMA:
            raise ConfigError(f"{source}: schema must be {SCHEMA}, but is {value.get('schema')!r}.")
        shared = plain.pop("blocks", {})
        if isinstance(shared, dict) and isinstance(plain.get("stages"), list):
            plain["stages"] = [_with_shared(stage, shared) for stage in plain["stages"]]
        return into(cls, plain, source=source)

    @staticmethod
    def names() -> list[str]:
        """Return the names of the shipped spaces."""
        return sorted(path.stem for path in packaged_folder("search_spaces").glob("*.yaml"))

    def replace(self, **changes: Any) -> Self:
        """Return the same space with other fields, `num_classes` of a data set for example."""
        return dataclasses.replace(self, **changes)

    @property
    def digest(self) -> str:
        """Sha256 (hex) of everything in the space."""
        return digest_json(self)

    # ------------------------------------------------------------ genes
    def genes(self) -> dict[str, tuple[Any, ...]]:
        """Return {gene: options}, only genes with a choice, in a stable order."""
        return {name: options for name, options in all_genes(self).items() if len(options) > 1}

    def encode(self, choices: Sequence[Choice]) -> Codes:
        """Return option numbers of shape (choices, genes); an absent gene counts as its first."""
        return gene_code.encode(self.genes(), choices)

    def decode(self, codes: Codes) -> list[dict[str, Any]]:
        """Return the choices behind an int array of shape (n, genes)."""
        return gene_code.decode(self.genes(), codes)

    def architecture(self, choice: Choice) -> Architecture:
        """Return what a choice of genes builds; inactive genes are dropped.

        Raises:
            ConfigError: an unknown gene, an option that is not on offer, an active gene missing.
        """
        full = gene_code.complete(all_genes(self), choice)
        stages = []
        before = 0
        for number, stage in enumerate(self.stages, 1):
            picked = _StageGenes(full, number, stage)
            width = picked("width")
            transition = None if number == 1 else picked.block(picked("by"), before, width)
            depth = picked("depth")
            tail = stage.fit_tail(picked("tail"), depth)
            kinds = [picked(f"b{place}.kind") for place in range(depth - tail)]
            kinds += [TAIL_KIND] * tail
            of_kind = {kind: picked.block(kind, width, width) for kind in dict.fromkeys(kinds)}
            blocks = tuple(of_kind[kind] for kind in kinds)
            stages.append(StageChoice(width, transition, blocks))
            before = width
        return Architecture(self.name, self.image_size, tuple(stages))

    def choice(self, architecture: Architecture) -> dict[str, Any]:
        """Return the genes of an architecture, inactive ones at their first option.

        Raises:
            ConfigError: the architecture is not in this space; the message says where it leaves.
        """
        return gene_code.invert(self, architecture, all_genes(self))

    def contains(self, architecture: Architecture) -> bool:
        """Return whether some choice of genes builds this architecture."""
        try:
            self.choice(architecture)
        except NasError:
            return False
        return True

    # ------------------------------------------------------------ the walk
    def blocks(self, architecture: Architecture) -> tuple[Block, ...]:
        """Return the concrete blocks of an architecture, stem to head."""
        return tuple(self._walk(architecture))

    def slots(self, architecture: Architecture) -> tuple[str, ...]:
        """Return each block's place in a supernet, in the order of `blocks`.

        Front blocks count from the start of their stage (s3.b0.cga), tail blocks from its end
        (s4.t0.mb3d is the last), so that a smaller depth drops the middle.
        """
        found = ["stem"]
        for number, stage in enumerate(architecture.stages, 1):
            if stage.transition is not None:
                found.append(f"s{number}.by.{stage.transition.kind}")
            tail = sum(choice.kind == TAIL_KIND for choice in stage.blocks)
            for place, choice in enumerate(stage.blocks):
                left = len(stage.blocks) - 1 - place
                found.append(
                    f"s{number}.{f't{left}' if left < tail else f'b{place}'}.{choice.kind}"
                )
        return (*found, "head")

    def _walk(self, architecture: Architecture) -> Iterator[Block]:
        first = architecture.stages[0].width
        stem = self._stem(first, architecture.image_size)
        yield stem
        side, before = stem.out_resolution, first
        for stage in architecture.stages:
            if stage.transition is not None:
                block = self._block(stage.transition, side, before, stage.width)
                yield block
                side = block.out_resolution
            for choice in stage.blocks:
                yield self._block(choice, side, stage.width, stage.width)
            before = stage.width
        yield self._head(before, side)

    def _block(self, choice: BlockChoice, side: int, before: int, width: int) -> Block:
        dims = dict(choice.dims)
        return make_block(choice.kind, dims, side=side, before=before, width=width, act=self.act)

    def _stem(self, width: int, image_size: int) -> Stem:
        last = self.stem.convs - 1
        return Stem(
            resolution=image_size,
            channels=self.in_chans,
            widths=tuple(width // 2 ** (last - step) for step in range(last + 1)),
            bias=int(self.stem.bias),
            act_last=int(self.stem.act_last),
            act=self.stem.act,
        )

    def _head(self, width: int, side: int) -> Head:
        return Head(
            resolution=side,
            channels=width,
            classes=self.num_classes,
            norm="ln" if self.head.norm == "layer" else "bn",
            distilled=int(self.head.distilled),
        )

    def sides(self) -> tuple[int, ...]:
        """Return the side in pixels of every stage's feature map."""
        side = self._stem(self.stages[0].width[0], self.image_size).out_resolution
        sides = [side]
        for _ in self.stages[1:]:
            side = (side - 1) // 2 + 1
            sides.append(side)
        return tuple(sides)

    # ------------------------------------------------------------ the whole of it
    def variants(self) -> Iterator[tuple[str, tuple[Block, ...]]]:
        """Yield every slot with all the blocks that may stand there, smallest first."""
        sides = self.sides()
        first = self.stages[0].width
        yield "stem", tuple(self._stem(width, self.image_size) for width in first)
        for index, stage in enumerate(self.stages):
            befores = self.stages[index - 1].width if index else ()
            for kind in stage.by if index else ():
                yield f"s{index + 1}.by.{kind}", self._versions(index, kind, sides, befores)
            front = max(depth - tail for depth, tail in stage.shapes)
            for kind in stage.kinds:
                versions = self._versions(index, kind, sides, ())
                for place in range(front):
                    yield f"s{index + 1}.b{place}.{kind}", versions
            tail = max(tail for _, tail in stage.shapes)
            for place in range(tail):
                yield (
                    f"s{index + 1}.t{place}.{TAIL_KIND}",
                    self._versions(index, TAIL_KIND, sides, ()),
                )
        yield "head", tuple(self._head(width, sides[-1]) for width in self.stages[-1].width)

    def _versions(
        self, index: int, kind: str, sides: tuple[int, ...], befores: tuple[int, ...]
    ) -> tuple[Block, ...]:
        stage = self.stages[index]
        seen: dict[Block, None] = {}
        for width in stage.width:
            for before in befores or (width,):
                side = sides[index - 1] if befores else sides[index]
                for values in inner_values(stage, kind):
                    dims = ROWS[kind](values, stage, before, width)
                    block = make_block(
                        kind, dims, side=side, before=before, width=width, act=self.act
                    )
                    seen[block] = None
        return tuple(seen)

    def every_block(self) -> tuple[Block, ...]:
        """Return each distinct block that some architecture contains."""
        return tuple(dict.fromkeys(block for _, blocks in self.variants() for block in blocks))

    def hulls(self) -> dict[str, Block]:
        """Return {slot: the block whose every number is the maximum over the choices there}."""
        return {slot: extent.hull(blocks) for slot, blocks in self.variants()}

    @property
    def count(self) -> int:
        """How many different architectures there are."""
        return extent.count(self)

    def smallest(self) -> Architecture:
        """Return the architecture with the fewest MACs."""
        return extent.extreme(self, largest=False)

    def largest(self) -> Architecture:
        """Return the architecture with the most MACs."""
        return extent.extreme(self, largest=True)

    def sample(
        self,
        rng: np.random.Generator,
        level: float | None = None,
        *,
        price: Callable[[Codes], Costs] | None = None,
    ) -> Architecture:
        """Draw an architecture: uniform over genes, or near a level of cost.

        Args:
            rng: Source of randomness.
            level: 0 to 1, from the cheapest to the dearest on a log scale. Uniform draws
                concentrate in the middle; levels reach the ends.
            price: Cost of codes of shape (n, genes); MACs where not given.
        """
        options = np.array([len(values) for values in self.genes().values()], dtype=np.int64)
        if level is None:
            return self.architecture(self.decode(rng.integers(0, options)[None, :])[0])
        pricer = price or self.macs_pricer()
        lean = rng.random((64, 1))
        codes = rng.binomial(options - 1, lean, size=(64, len(options)))
        ends = self.encode([self.choice(self.smallest()), self.choice(self.largest())])
        low, high = pricer(ends)
        aim = low * (high / low) ** level
        nearest = int(np.argmin(np.abs(np.log(pricer(codes) / aim))))
        return self.architecture(self.decode(codes[nearest : nearest + 1])[0])

    def pricer(self, cost: Callable[[Block], float]) -> Callable[[Codes], Costs]:
        """Return a function from codes (n, genes) to additive costs (n,).

        Args:
            cost: Cost of one block; it is asked once for each distinct block of the space.
        """
        return gene_code.pricer(self, all_genes(self), cost)

    def macs_pricer(self) -> Callable[[Codes], Costs]:
        """Return the pricer of multiply-accumulates, made once a space."""
        return _macs_pricer(self)


class _StageGenes:
    """The genes of one stage by their short names."""

    def __init__(self, full: Mapping[str, Any], number: int, stage: StageSpec) -> None:
        self.full, self.number, self.stage = full, number, stage

    def __call__(self, name: str) -> Any:
        value = self.full[f"s{self.number}.{name}"]
        if value is gene_code.MISSING:
            raise ConfigError(f"the choice lacks the active gene s{self.number}.{name}.")
        return value

    def block(self, kind: str, before: int, width: int) -> BlockChoice:
        names = gene_code.inner_names(self.stage, kind)
        values = {name: self(f"{kind}.{name}") for name in names}
        return block_choice(self.stage, kind, values, before, width)


def _with_shared(stage: Any, shared: Mapping[str, Any]) -> Any:
    """Return a stage's plain values with the space's block options under its own."""
    if not isinstance(stage, dict):
        return stage
    own = stage.get("blocks", {})
    if not isinstance(own, dict):
        return stage
    merged = {
        kind: {**shared.get(kind, {}), **own.get(kind, {})}
        if isinstance(shared.get(kind, {}), dict) and isinstance(own.get(kind, {}), dict)
        else own.get(kind, shared.get(kind))
        for kind in {**shared, **own}
    }
    return {**stage, "blocks": merged}


@lru_cache(maxsize=64)
def all_genes(space: SearchSpace) -> dict[str, tuple[Any, ...]]:
    """Return every gene with its options, those without a choice included."""
    genes: dict[str, tuple[Any, ...]] = {}
    for number, stage in enumerate(space.stages, 1):
        genes |= gene_code.stage_genes(f"s{number}", stage, first=number == 1)
    return genes


@lru_cache(maxsize=64)
def _macs_pricer(space: SearchSpace) -> Callable[[Codes], Costs]:
    return space.pricer(lambda block: float(block.macs))

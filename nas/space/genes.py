"""Genes: a space's choices by name, as integer codes, and priced by the hundred thousand."""

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from nas.block import Block
from nas.errors import ConfigError
from nas.files import unknown_key
from nas.space.architecture import Architecture, BlockChoice
from nas.space.spec import (
    ROWS,
    TAIL_KIND,
    StageSpec,
    inner_options,
    inner_values,
    make_block,
)

if TYPE_CHECKING:
    from nas.space.search_space import SearchSpace

Codes = npt.NDArray[np.int64]
Costs = npt.NDArray[np.float64]
Genes = Mapping[str, tuple[Any, ...]]
MISSING = object()


def inner_names(stage: StageSpec, kind: str) -> list[str]:
    """Return the inner dimensions of a kind that are genes."""
    return list(inner_options(stage, kind))


def stage_genes(prefix: str, stage: StageSpec, *, first: bool) -> dict[str, tuple[Any, ...]]:
    """Return the genes of one stage, `prefix` "s2" for example; the first has no transition."""
    genes: dict[str, tuple[Any, ...]] = {"width": stage.width, "depth": stage.depth}
    genes["tail"] = stage.tail
    if not first:
        genes["by"] = stage.by
    for place in range(max(depth - tail for depth, tail in stage.shapes)):
        genes[f"b{place}.kind"] = stage.kinds
    for kind in (*stage.used_kinds, *(() if first else stage.by)):
        for name, options in inner_options(stage, kind).items():
            genes[f"{kind}.{name}"] = options
    return {f"{prefix}.{name}": options for name, options in genes.items()}


# ---------------------------------------------------------------- choices and codes
def complete(genes: Genes, choice: Mapping[str, Any]) -> dict[str, Any]:
    """Return a value for every gene: the choice's, the only option, or MISSING.

    Raises:
        ConfigError: an unknown gene, or an option that is not on offer.
    """
    for gene in choice:
        if gene not in genes:
            raise ConfigError(unknown_key(gene, list(genes), what="gene"))
    full = {gene: options[0] if len(options) == 1 else MISSING for gene, options in genes.items()}
    for gene, value in choice.items():
        full[gene] = genes[gene][index_of(gene, genes[gene], value)]
    return full


def index_of(gene: str, options: tuple[Any, ...], value: Any) -> int:
    """Return the place of an option; a list stands for the tuple of its items."""
    wanted = tuple(value) if isinstance(value, list) else value
    try:
        return options.index(wanted)
    except ValueError:
        raise ConfigError(f"{gene} must be one of {list(options)}, but is {value!r}.") from None


def encode(genes: Genes, choices: Sequence[Mapping[str, Any]]) -> Codes:
    """Return option numbers of shape (choices, genes); an absent gene counts as its first."""
    codes = np.zeros((len(choices), len(genes)), dtype=np.int64)
    for column, (gene, options) in enumerate(genes.items()):
        place = {option: number for number, option in enumerate(options)}
        for row, choice in enumerate(choices):
            value = choice.get(gene, options[0])
            known = isinstance(value, list) or value not in place
            codes[row, column] = index_of(gene, options, value) if known else place[value]
    return codes


def decode(genes: Genes, codes: Codes) -> list[dict[str, Any]]:
    """Return the choices behind codes of shape (n, genes)."""
    columns = [
        [options[number] for number in codes[:, c]] for c, options in enumerate(genes.values())
    ]
    return [dict(zip(genes, row, strict=True)) for row in zip(*columns, strict=True)]


# ---------------------------------------------------------------- the way back
def invert(space: "SearchSpace", architecture: Architecture, genes: Genes) -> dict[str, Any]:
    """Return the choice that builds `architecture`, inactive genes at their first option."""
    if len(architecture.stages) != len(space.stages):
        raise ConfigError(
            f"{space.name} has {len(space.stages)} stages, "
            f"but the architecture has {len(architecture.stages)}."
        )
    found: dict[str, Any] = {}
    before = 0
    for number, (stage, chosen) in enumerate(
        zip(space.stages, architecture.stages, strict=True), 1
    ):
        kinds = [block.kind for block in chosen.blocks]
        tail = sum(kind == TAIL_KIND for kind in kinds)
        front = kinds[: len(kinds) - tail]
        own: dict[str, Any] = {"width": chosen.width, "depth": len(kinds), "tail": tail}
        if chosen.transition is not None:
            own["by"] = chosen.transition.kind
        own |= {f"b{place}.kind": kind for place, kind in enumerate(front)}
        if TAIL_KIND in front or (chosen.transition is None) != (number == 1):
            raise ConfigError(f"stage {number} of the architecture has another order of blocks.")
        for block in dict.fromkeys(chosen.blocks):
            own |= _inner(stage, block, chosen.width, chosen.width, number, own)
        if chosen.transition is not None:
            own |= _inner(stage, chosen.transition, before, chosen.width, number, own)
        found |= {f"s{number}.{name}": value for name, value in own.items()}
        before = chosen.width
    full = complete(genes, found)
    return {
        gene: options[0] if full[gene] is MISSING else full[gene]
        for gene, options in genes.items()
        if len(options) > 1
    }


def _inner(
    stage: StageSpec,
    block: BlockChoice,
    before: int,
    width: int,
    number: int,
    known: Mapping[str, Any],
) -> dict[str, Any]:
    """Return {kind.dimension: option} that gives a block its numbers, equal in a whole stage."""
    if block.kind in ROWS and (block.kind == "downsample" or inner_options(stage, block.kind)):
        for values in inner_values(stage, block.kind):
            dims = tuple(ROWS[block.kind](values, stage, before, width).items())
            named = {f"{block.kind}.{name}": value for name, value in values.items()}
            fits = all(known.get(name, value) == value for name, value in named.items())
            if dims == block.dims and fits:
                return named
    raise ConfigError(
        f"stage {number} cannot be {block.to_json()} at width {width}: "
        "no one value per stage and kind gives these numbers."
    )


# ---------------------------------------------------------------- prices
def pricer(
    space: "SearchSpace", genes: Genes, cost: Callable[[Block], float]
) -> Callable[[Codes], Costs]:
    """Return codes (n, genes) -> additive cost (n,): array gathers, one table a stage and kind."""
    column = {gene: c for c, gene in enumerate(g for g in genes if len(genes[g]) > 1)}
    known: dict[Block, float] = {}

    def price_of(block: Block) -> float:
        if block not in known:
            known[block] = float(cost(block))
        return known[block]

    stages = [
        _StagePrices(space, index, genes, column, price_of) for index in range(len(space.stages))
    ]
    by_slot = {slot: blocks for slot, blocks in space.variants() if slot in ("stem", "head")}
    stem = np.array([price_of(block) for block in by_slot["stem"]])
    head = np.array([price_of(block) for block in by_slot["head"]])

    def price(codes: Codes) -> Costs:
        widths = [stage.gather(codes, "width") for stage in stages]
        total: Costs = stem[widths[0]] + head[widths[-1]]
        for index, stage in enumerate(stages):
            total = total + stage.price(codes, widths[index - 1] if index else None, widths[index])
        return total

    return price


class _StagePrices:
    """The cost tables of one stage and how to look codes up in them."""

    def __init__(
        self,
        space: "SearchSpace",
        index: int,
        genes: Genes,
        column: Mapping[str, int],
        price_of: Callable[[Block], float],
    ) -> None:
        self.stage = space.stages[index]
        self.prefix = f"s{index + 1}"
        self.genes, self.column = genes, column
        self.space, self.index, self.price_of = space, index, price_of
        self.blocks = {kind: self._table(kind, ()) for kind in self.stage.used_kinds}
        befores = space.stages[index - 1].width if index else ()
        self.moves = {kind: self._table(kind, befores) for kind in self.stage.by if index}
        depths = np.array(self.stage.depth)
        self.tails = np.array(
            [[self.stage.fit_tail(t, d) for t in self.stage.tail] for d in self.stage.depth]
        )
        self.fronts = depths[:, None] - self.tails

    def _table(self, kind: str, befores: tuple[int, ...]) -> Costs:
        """Return costs of shape (widths before or 1, widths, combinations of inner options)."""
        sides = self.space.sides()
        side = sides[self.index - 1] if befores else sides[self.index]
        combos = inner_values(self.stage, kind)
        table = np.empty((len(befores) or 1, len(self.stage.width), len(combos)))
        for w, width in enumerate(self.stage.width):
            for b, before in enumerate(befores or (width,)):
                for c, values in enumerate(combos):
                    dims = ROWS[kind](values, self.stage, before, width)
                    table[b, w, c] = self.price_of(
                        make_block(
                            kind, dims, side=side, before=before, width=width, act=self.space.act
                        )
                    )
        return table

    def gather(self, codes: Codes, name: str) -> Codes:
        """Return the option numbers of one gene, zeros where it has one option."""
        place = self.column.get(f"{self.prefix}.{name}")
        return np.zeros(len(codes), dtype=np.int64) if place is None else codes[:, place]

    def _combination(self, codes: Codes, kind: str) -> Codes:
        number = np.zeros(len(codes), dtype=np.int64)
        for name, options in inner_options(self.stage, kind).items():
            number = number * len(options) + self.gather(codes, f"{kind}.{name}")
        return number

    def price(self, codes: Codes, before: Codes | None, width: Codes) -> Costs:
        """Return the cost (n,) of this stage and of the transition into it."""
        depth, tail = self.gather(codes, "depth"), self.gather(codes, "tail")
        front = self.fronts[depth, tail]
        total = np.zeros(len(codes))
        kinds = np.stack(
            [self.gather(codes, f"b{place}.kind") for place in range(int(self.fronts.max()))]
            or [np.zeros(len(codes), dtype=np.int64)]
        )
        active = np.arange(len(kinds))[:, None] < front
        for number, kind in enumerate(self.stage.kinds):
            times = ((kinds == number) & active).sum(axis=0)
            total += times * self.blocks[kind][0, width, self._combination(codes, kind)]
        if TAIL_KIND in self.blocks:
            each = self.blocks[TAIL_KIND][0, width, self._combination(codes, TAIL_KIND)]
            total += self.tails[depth, tail] * each
        if before is not None:
            by = self.gather(codes, "by")
            for number, kind in enumerate(self.stage.by):
                each = self.moves[kind][before, width, self._combination(codes, kind)]
                total += np.where(by == number, each, 0.0)
        return total

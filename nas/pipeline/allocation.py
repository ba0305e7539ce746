"""Completing candidates: genes fix the outline, and inner numbers are allocated within the budgets.

A candidate's widths, depths and kinds are genes; how wide each block is inside (hidden widths, key
and value channels, heads) is not. Each part of each block gets the option that the whole network
loses least by, within the latency level and all other budgets: a knapsack over the parts'
options (`nas.search.allocate`), with what options cost in loss from a LossTable and what they cost
in time from latency tables.

What is recorded is always the table's own price of the completed network.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from nas.block import Block
from nas.errors import ConfigError, InfeasibleBudget
from nas.pipeline.inner import Shape, Spot, fit_parts, option_losses, part_options
from nas.pipeline.part_costs import PartCosts, Terms
from nas.search.allocate import MAX_BUDGETS
from nas.space import Architecture, SearchSpace
from nas.space.architecture import TRANSITIONS
from nas.space.loss_table import LossTable
from nas.space.search_space import all_genes
from nas.space.spec import ROWS, TAIL_KIND, inner_options, inner_values, make_block
from nas.supernet.taylor import allocated

Choice: TypeAlias = Mapping[str, Any]  # Any: options of genes
Costs: TypeAlias = npt.NDArray[np.float64]

ALLOCATED = frozenset({"expand", "heads", "key", "value", "expand_in", "expand_out"})


class Completion(Protocol):
    """How a choice of genes becomes a network with a price."""

    @property
    def genes(self) -> Mapping[str, tuple[Any, ...]]:
        """What is searched: {gene: options}."""
        ...

    def canonical(self, choice: Choice) -> dict[str, Any]:
        """Return a choice with inactive genes at their first options."""
        ...

    def architecture(self, choice: Choice) -> Architecture:
        """Return the whole network of a choice."""
        ...

    def price(self, choices: Sequence[Choice]) -> dict[str, Costs]:
        """Return {metric: shape (n,)}: what the whole networks cost."""
        ...

    def bounds(self, choices: Sequence[Choice]) -> tuple[dict[str, Costs], dict[str, Costs]]:
        """Return what networks cost at least and at most, before anything is allocated."""
        ...


class GenesAlone:
    """Inner numbers are genes as well, one for all blocks of a kind in a stage."""

    def __init__(self, space: SearchSpace, prices: Mapping[str, Callable[[Any], Costs]]) -> None:
        self._space, self._prices = space, prices
        self.genes: Mapping[str, tuple[Any, ...]] = space.genes()

    def canonical(self, choice: Choice) -> dict[str, Any]:
        """Return a choice with inactive genes at their first options."""
        return self._space.choice(self._space.architecture(choice))

    def architecture(self, choice: Choice) -> Architecture:
        """Return the network of a choice."""
        return self._space.architecture(choice)

    def price(self, choices: Sequence[Choice]) -> dict[str, Costs]:
        """Return {metric: shape (n,)}."""
        codes = self._space.encode(choices)
        return {metric: pricer(codes) for metric, pricer in self._prices.items()}

    def bounds(self, choices: Sequence[Choice]) -> tuple[dict[str, Costs], dict[str, Costs]]:
        """Return the price twice: it is known."""
        costs = self.price(choices)
        return costs, costs


@dataclass(frozen=True, slots=True, eq=False)
class Completed:
    """A whole network: its costs by metric, and the increase of the loss in nats over its widest
    that is predicted."""

    architecture: Architecture
    costs: dict[str, float]
    loss: float


class Allocator:
    """Completes outlines; the same outline gives the same network.

    Args:
        space: The space.
        losses: What its supernet loses by each number.
        costs: What parts cost.
        limits: {metric: limit} to allocate within, 1 to 3 of them.

    Raises:
        ConfigError: not 1 to 3 limits, or the losses are of another space.
    """

    def __init__(
        self,
        space: SearchSpace,
        losses: LossTable,
        costs: PartCosts,
        limits: Mapping[str, float],
    ) -> None:
        if not 1 <= len(limits) <= MAX_BUDGETS:
            raise ConfigError(
                f"inner numbers are allocated within 1 to {MAX_BUDGETS} budgets, but there are "
                f"{len(limits)}. Drop a budget, or search with --importance none."
            )
        self.space, self._losses = space, losses
        self._costs, self._limits = costs, dict(limits)
        every = space.genes()
        self.genes: Mapping[str, tuple[Any, ...]] = {
            gene: options
            for gene, options in every.items()
            if gene.rpartition(".")[2] not in ALLOCATED
        }
        self._inner = {gene: every[gene][0] for gene in every.keys() - self.genes.keys()}
        self._only = {
            gene: options[0] for gene, options in all_genes(space).items() if gene not in self.genes
        }
        self._by_stage = [
            [
                (gene, *_owner(gene.removeprefix(f"s{number}.")))
                for gene in self.genes
                if gene.startswith(f"s{number}.")
            ]
            for number in range(1, len(space.stages) + 1)
        ]
        self._shapes: dict[tuple[Any, ...], Shape] = {}
        self._outer: dict[tuple[int, str], tuple[str, ...]] = {}  # genes inside kinds of a stage
        self._part_losses: dict[tuple[str, int], list[list[float]]] = {}
        self._ends: dict[tuple[int, int], Terms] = {}  # of stem and head, by their widths
        self._done: dict[tuple[Any, ...], Completed | None] = {}
        self._bounds: _Bounds | None = None

    # ------------------------------------------------------------ as a Completion
    def canonical(self, choice: Choice) -> dict[str, Any]:
        """Return a choice with inactive genes at their first options."""
        found = {gene: choice.get(gene, options[0]) for gene, options in self.genes.items()}
        known = self._only | found
        for number, stage in enumerate(self.space.stages, 1):
            prefix = f"s{number}."
            depth = known[f"{prefix}depth"]
            tail = stage.fit_tail(known[f"{prefix}tail"], depth)
            kinds = {known[f"{prefix}b{place}.kind"] for place in range(depth - tail)}
            kinds |= {TAIL_KIND} if tail else set()
            kinds |= {known[f"{prefix}by"]} if number > 1 else set()
            for gene, place, kind in self._by_stage[number - 1]:
                if place >= depth - tail or (kind and kind not in kinds):
                    found[gene] = self.genes[gene][0]
            if f"{prefix}tail" in self.genes:
                found[f"{prefix}tail"] = tail
        return found

    def architecture(self, choice: Choice) -> Architecture:
        """Return the completed network of a choice.

        Raises:
            InfeasibleBudget: nothing with this outline meets the budgets.
        """
        return self.complete(choice).architecture

    def price(self, choices: Sequence[Choice]) -> dict[str, Costs]:
        """Return what completed networks cost, {metric: (n,)}; infinity where none is possible."""
        rows = []
        for choice in choices:
            try:
                rows.append(self.complete(choice).costs)
            except InfeasibleBudget:
                rows.append(dict.fromkeys(self._costs.metrics, np.inf))
        return {metric: np.array([row[metric] for row in rows]) for metric in self._costs.metrics}

    def bounds(self, choices: Sequence[Choice]) -> tuple[dict[str, Costs], dict[str, Costs]]:
        """Return costs at the cheapest and at the dearest inner numbers, {metric: (n,)}."""
        if self._bounds is None:
            self._bounds = _Bounds(self.space, self._costs, self._every_shape())
        codes = self.space.encode([{**self._inner, **choice} for choice in choices])
        least, most = self._bounds(codes)
        return self._costs.totals(least), self._costs.totals(most)

    def complete(self, choice: Choice) -> Completed:
        """Return the network of a choice with the inner numbers of least predicted loss.

        Raises:
            InfeasibleBudget: nothing with this outline meets the budgets.
        """
        outline = self.canonical(choice)
        name = tuple(outline.values())
        if name not in self._done:
            try:
                self._done[name] = self._complete(outline)
            except InfeasibleBudget:
                self._done[name] = None
        found = self._done[name]
        if found is None:
            metric, limit = next(iter(self._limits.items()))
            raise InfeasibleBudget(
                f"no inner numbers of the outline {outline} meet the budgets {self._limits}.",
                metric=metric,
                budget=limit,
                smallest=limit,
            )
        return found

    # ------------------------------------------------------------ allocating
    def _complete(self, outline: Choice) -> Completed:
        base = self.space.architecture({**self._inner, **outline})
        slots = self.space.slots(base)
        shapes = [self._shapes_at(slot, base, outline) for slot in slots[1:-1]]
        widths = base.stages[0].width, base.stages[-1].width
        if widths not in self._ends:
            stem, *_, head = self.space.blocks(base)
            self._ends[widths] = self._costs.terms(stem) + self._costs.terms(head)
        fixed: Terms = np.sum([shape.fixed for shape in shapes], axis=0) + self._ends[widths]
        spots = [
            Spot(slot, part, losses)
            for slot, shape in zip(slots[1:-1], shapes, strict=True)
            for part, losses in zip(shape.parts, self._losses_at(slot, shape), strict=True)
        ]
        picked, terms = fit_parts(spots, fixed, self._costs, self._limits)
        numbers = {
            f"{spot.slot}.{field}": number
            for spot, option in zip(spots, picked, strict=True)
            for field, number in spot.part.options[option]
        }
        costs = {name: float(cost) for name, cost in self._costs.totals(terms).items()}
        loss = sum(spot.losses[option] for spot, option in zip(spots, picked, strict=True))
        return Completed(allocated(self.space, base, numbers), costs, loss)

    def _shapes_at(self, slot: str, base: Architecture, outline: Choice) -> Shape:
        number, _, rest = slot.partition(".")
        index, kind = int(number[1:]) - 1, rest.rpartition(".")[2]
        width = base.stages[index].width
        before = base.stages[index - 1].width if rest.startswith("by.") else width
        if (index, kind) not in self._outer:
            names = inner_options(self.space.stages[index], kind)
            own = tuple(f"{number}.{kind}.{name}" for name in names if name not in ALLOCATED)
            self._outer[index, kind] = own
        fixed = tuple(
            outline[name] if name in outline else self._only[name]
            for name in self._outer[index, kind]
        )
        return self._shape(index, kind, before, width, fixed)

    def _shape(
        self, index: int, kind: str, before: int, width: int, fixed: tuple[Any, ...]
    ) -> Shape:
        """Return the shape of one kind in one stage; `fixed` are its options that are genes."""
        key = (index, kind, before, width, fixed)
        if key not in self._shapes:
            stage, sides = self.space.stages[index], self.space.sides()
            versions: dict[Block, None] = {}
            for values in inner_values(stage, kind):
                if tuple(v for name, v in values.items() if name not in ALLOCATED) == fixed:
                    numbers = ROWS[kind](values, stage, before, width)
                    side = sides[index - 1] if kind in TRANSITIONS else sides[index]
                    block = make_block(
                        kind, numbers, side=side, before=before, width=width, act=self.space.act
                    )
                    versions[block] = None
            self._shapes[key] = part_options(tuple(versions), self._costs)
        return self._shapes[key]

    def _every_shape(self) -> list[Shape]:
        """Return the shape of every kind at every width of every stage."""
        found = []
        for index, stage in enumerate(self.space.stages):
            befores = self.space.stages[index - 1].width if index else ()
            for kind in (*stage.used_kinds, *(stage.by if index else ())):
                outer = {
                    tuple(v for name, v in values.items() if name not in ALLOCATED)
                    for values in inner_values(stage, kind)
                }
                for width in stage.width:
                    for before in befores if kind in TRANSITIONS else (width,):
                        found += [
                            self._shape(index, kind, before, width, fixed)
                            for fixed in sorted(outer, key=repr)
                        ]
        return found

    def _losses_at(self, slot: str, shape: Shape) -> list[list[float]]:
        """Return the losses in nats of every option of every part of a shape at a place."""
        key = (slot, id(shape))  # shapes are kept, so ids stay theirs
        if key not in self._part_losses:
            heads = int(getattr(shape.blocks[0], "heads", 0))
            self._part_losses[key] = [
                option_losses(self._losses, slot, part, heads=heads) for part in shape.parts
            ]
        return self._part_losses[key]


def _owner(gene: str) -> tuple[int, str]:
    """Return the place whose kind a gene of a stage decides, -1 for none, and the kind that it is
    an inner number of, "" for none."""
    first, dot, last = gene.partition(".")
    if not dot:
        return -1, ""
    return (int(first[1:]), "") if last == "kind" else (-1, first)


class _Bounds:
    """Codes (n, genes) -> terms (n, terms) at the cheapest and at the dearest options."""

    def __init__(self, space: SearchSpace, costs: PartCosts, shapes: Sequence[Shape]) -> None:
        self._count = costs.count
        ends: dict[Block, tuple[Terms, Terms]] = {}
        for shape in shapes:
            low = shape.fixed + sum((p.terms.min(axis=0) for p in shape.parts), np.zeros(1))
            high = shape.fixed + sum((p.terms.max(axis=0) for p in shape.parts), np.zeros(1))
            for block in shape.blocks:
                old = ends.get(block, (low, high))
                ends[block] = np.minimum(old[0], low), np.maximum(old[1], high)
        for slot, blocks in space.variants():
            if slot in ("stem", "head"):
                ends |= {block: (costs.terms(block), costs.terms(block)) for block in blocks}

        def pricer(end: int, column: int) -> Callable[[Any], Costs]:
            return space.pricer(lambda block: float(ends[block][end][column]))

        used = [n for n in range(costs.count) if any(high[n] for _, high in ends.values())]
        self._least = {column: pricer(0, column) for column in used}
        self._most = {column: pricer(1, column) for column in used}

    def __call__(self, codes: Any) -> tuple[Terms, Terms]:  # Any: an array of option numbers
        """Return terms at both ends, each (n, terms)."""
        ends = []
        for pricers in (self._least, self._most):
            terms = np.zeros((len(codes), self._count))
            for column, pricer in pricers.items():
                terms[:, column] = pricer(codes)
            ends.append(terms)
        return ends[0], ends[1]

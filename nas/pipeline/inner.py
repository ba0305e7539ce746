"""Inner numbers of one network: an option for each part, of least loss within the budgets.

Prices of whole networks are no sums over parts where a calibration counts memory, so a round
allocates by the rates at one network (`nas.latency.part_prices`), and the next one by those at the
network that came out.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from nas.block import Block
from nas.errors import InfeasibleBudget
from nas.pipeline.part_costs import PartCosts, Terms
from nas.search.allocate import choose
from nas.search.knapsack import Options
from nas.space.loss_table import LossTable
from nas.supernet.gates import dims

Indices: TypeAlias = npt.NDArray[np.intp]
Numbers: TypeAlias = tuple[tuple[str, int], ...]  # (field of the block, number)

ROUNDS = 4
CLOSE = 0.003  # of a budget: what rates at one network may be wrong by at the next
PASSES = 3
PRICES = np.geomspace(0.25, 1024, 13)  # of what options use, by the span of losses: first pass
FINER = np.linspace(0, 1, 10)[1:-1]  # between two of them: the passes behind it
NEAR = 0.005  # of a budget: near enough to it for rates


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """A part with a choice: its options' numbers and terms, shape (options, terms)."""

    options: tuple[Numbers, ...]
    terms: Terms


@dataclass(frozen=True, slots=True, eq=False)
class Shape:
    """A block with all the inner numbers it may have: parts with a choice, terms of the rest."""

    parts: tuple[Part, ...]
    fixed: Terms
    blocks: tuple[Block, ...]


def part_options(versions: Sequence[Block], costs: PartCosts) -> Shape:
    """Return the versions of one block as options of its parts.

    Parts are chosen apart, so that any two options of two parts may meet. Where a table prices
    such blocks as a whole they stay whole.
    """
    first, own = versions[0], dims(versions[0])
    whole = any(costs.prices_whole(version) for version in versions)
    places = [range(len(first.parts()))] if whole else [[n] for n in range(len(first.parts()))]
    fixed, found = np.zeros(costs.count), []
    for place in places:
        fields = [dim for dim in own if dim.part in place]
        options: dict[Numbers, Block] = {}
        for version in versions:
            numbers = tuple((dim.field, dim.size(version)) for dim in fields)
            options.setdefault(numbers, version if whole else version.parts()[place[0]])
        terms = np.array([costs.terms(block) for block in options.values()])
        if len(options) > 1:
            found.append(Part(tuple(options), terms))
        else:
            fixed += terms[0]
    return Shape(tuple(found), fixed, tuple(versions))


def option_losses(losses: LossTable, slot: str, part: Part, *, heads: int) -> list[float]:
    """Return the predicted increase of the loss in nats of every option of a part."""
    most = {name: max(dict(o)[name] for o in part.options) for name, _ in part.options[0]}
    return [
        sum(
            losses.lost(
                f"{slot}.{name}", number, most=most[name], heads=dict(option).get("heads", heads)
            )
            for name, number in option
        )
        for option in part.options
    ]


# ---------------------------------------------------------------- one network
@dataclass(frozen=True, slots=True, eq=False)
class Spot:
    """A part of a network that has a choice, and the loss in nats of each option there."""

    slot: str
    part: Part
    losses: list[float]


def fit_parts(
    spots: Sequence[Spot], fixed: Terms, costs: PartCosts, limits: Mapping[str, float]
) -> tuple[list[int], Terms]:
    """Return an option for each part, and the network's terms: least loss within the limits.

    Args:
        spots: The parts with a choice.
        fixed: Terms of everything else, shape (terms,).
        costs: What terms cost.
        limits: {metric: limit} on whole networks.

    Raises:
        InfeasibleBudget: the cheapest options are over a limit.
    """
    if not spots:
        _check(fixed, costs, limits)
        return [], fixed
    options = _Spots.of(spots)
    _check(fixed + np.minimum.reduceat(options.terms, options.starts).sum(axis=0), costs, limits)
    freest = options.least(options.losses)
    terms = options.added(freest, fixed)
    if _use(costs, terms, limits) <= 1:
        return freest.tolist(), terms
    point = terms if costs.are_sums else _near(options, terms, fixed, costs, limits)
    reserve = 0.0 if costs.are_sums else CLOSE / 3
    aims = {metric: limit * (1 - reserve) for metric, limit in limits.items()}
    for _ in range(1 if costs.are_sums else ROUNDS):
        picked = _round(options, point, fixed, costs, aims)
        if picked is None:
            break
        terms = options.added(picked, fixed)
        use = _use(costs, terms, limits)
        if use <= 1:
            return picked.tolist(), terms
        point = terms
        aims = {name: aim / (use * (1 + CLOSE)) for name, aim in aims.items()}
    return _cheapest(options, fixed, costs, limits)


def _check(least: Terms, costs: PartCosts, limits: Mapping[str, float]) -> None:
    """Raise InfeasibleBudget if the least a network may have is over a limit."""
    if _use(costs, least, limits) > 1:
        metric = max(limits, key=lambda name: costs.totals(least)[name] / limits[name])
        raise InfeasibleBudget(
            f"even the cheapest inner numbers are over the budget of {metric}.",
            metric=metric,
            budget=limits[metric],
            smallest=float(costs.totals(least)[metric]),
        )


@dataclass(frozen=True, slots=True, eq=False)
class _Spots:
    """All options of all parts below each other.

    Attributes:
        terms: Of each option, (options, terms).
        losses: Of each option, (options,).
        sizes: How many options each part has, (parts,).
        starts: Where each part's begin, (parts,).
        places: The same as a table, (parts, most); beyond a part's own its first one again.
    """

    terms: Terms
    losses: Terms
    sizes: Indices
    starts: Indices
    places: Indices

    @classmethod
    def of(cls, spots: Sequence["Spot"]) -> "_Spots":
        sizes = np.array([len(spot.losses) for spot in spots])
        starts = np.cumsum(sizes) - sizes
        numbers = np.arange(int(sizes.max()))
        return cls(
            terms=np.concatenate([spot.part.terms for spot in spots]),
            losses=np.array([loss for spot in spots for loss in spot.losses]),
            sizes=sizes,
            starts=starts,
            places=starts[:, None] + np.where(numbers < sizes[:, None], numbers, 0),
        )

    def least(self, priced: Terms) -> Indices:
        """Return which option of each part is least of `priced` (..., options): (..., parts)."""
        picked: Indices = priced[..., self.places].argmin(axis=-1)
        return picked

    def added(self, picked: Indices, fixed: Terms) -> Terms:
        """Return the terms of networks, (..., terms), by the options picked, (..., parts)."""
        total: Terms = fixed + self.terms[self.starts + picked].sum(axis=-2)
        return total

    def shares(self, costs: PartCosts, point: Terms, limits: Mapping[str, float]) -> Terms:
        """Return what options use of all limits together by the rates at a network, (options,)."""
        slopes = [costs.slopes(metric, point) / limit for metric, limit in limits.items()]
        shares: Terms = self.terms @ np.sum(slopes, axis=0)
        return shares


def _near(
    options: _Spots,
    point: Terms,
    fixed: Terms,
    costs: PartCosts,
    limits: Mapping[str, float],
) -> Terms:
    """Return the terms of a network at the limits, not far from the best, to take rates at.

    One multiplier for what options use of all limits, at the rates at `point` first, then at those
    of the network found last; a grid of multipliers is tried at once, then a finer one between the
    two that have the limits between them.
    """
    grid = (float(np.ptp(options.losses)) or 1.0) * PRICES
    for _ in range(PASSES):
        shares = options.shares(costs, point, limits)
        picked = options.least(options.losses + grid[:, None] * shares)
        terms = options.added(picked, fixed)
        use = _uses(costs, terms, limits)
        fits = np.flatnonzero(use <= 1)
        at = int(fits[0]) if len(fits) else len(grid) - 1  # the lowest price that is enough
        point = terms[at]
        if 1 - NEAR <= use[at] <= 1:
            break
        if use[at] > 1:  # the rates at this network are lower
            low, high = grid[at], 2 * grid[at]
        else:
            low, high = grid[at - 1] if at else 0.0, grid[at]
        grid = low + (high - low) * FINER
    return point


def _round(
    options: _Spots, point: Terms, fixed: Terms, costs: PartCosts, aims: Mapping[str, float]
) -> Indices | None:
    """Return the allocation by the rates at one network; None if none meets the aims by them."""
    prices, budgets, totals = {}, {}, costs.totals(point)
    for metric, aim in aims.items():
        slopes = costs.slopes(metric, point)
        prices[metric] = options.terms @ slopes
        budgets[metric] = aim - float(totals[metric] - slopes @ point) - float(slopes @ fixed)
    if any(budget <= 0 for budget in budgets.values()):
        return None
    try:
        return choose(Options(losses=options.losses, costs=prices, sizes=options.sizes), budgets)[0]
    except InfeasibleBudget:
        return None


def _use(costs: PartCosts, terms: Terms, limits: Mapping[str, float]) -> float:
    """Return how much of the tightest limit a network uses."""
    return float(_uses(costs, terms, limits))


def _uses(costs: PartCosts, terms: Terms, limits: Mapping[str, float]) -> Terms:
    """Return how much of their tightest limits networks use, (...), by terms (..., terms)."""
    totals = costs.totals(terms)
    uses: Terms = np.max([totals[metric] / limit for metric, limit in limits.items()], axis=0)
    return uses


def _cheapest(
    options: _Spots, fixed: Terms, costs: PartCosts, limits: Mapping[str, float]
) -> tuple[list[int], Terms]:
    """Return the cheapest options by their share of the limits; raise if they do not fit."""
    picked = options.least(options.shares(costs, fixed, limits))
    terms = options.added(picked, fixed)
    if _use(costs, terms, limits) > 1:
        metric, limit = next(iter(limits.items()))
        raise InfeasibleBudget(
            f"no inner numbers were found that meet {' and '.join(limits)} together.",
            metric=metric,
            budget=limit,
            smallest=float(costs.totals(terms)[metric]),
        )
    return picked.tolist(), terms

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
from nas.search import Group, allocate
from nas.space.loss_table import LossTable
from nas.supernet.gates import dims

Numbers: TypeAlias = tuple[tuple[str, int], ...]  # (field of the block, number)

ROUNDS = 4
CLOSE = 0.003  # of a budget: what rates at one network may be wrong by at the next
HALVINGS = 11


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
    least = fixed + sum((spot.part.terms.min(axis=0) for spot in spots), np.zeros(len(fixed)))
    if _use(costs, least, limits) > 1:
        metric = max(limits, key=lambda name: costs.totals(least)[name] / limits[name])
        raise InfeasibleBudget(
            f"even the cheapest inner numbers are over the budget of {metric}.",
            metric=metric,
            budget=limits[metric],
            smallest=float(costs.totals(least)[metric]),
        )
    freest = [int(np.argmin(spot.losses)) for spot in spots]
    terms = _terms(spots, freest, fixed)
    if _use(costs, terms, limits) <= 1:
        return freest, terms
    options = _Options.of(spots)
    point = _near(spots, options, fixed, costs, limits)
    reserve = 0.0 if costs.are_sums else CLOSE / 3
    aims = {metric: limit * (1 - reserve) for metric, limit in limits.items()}
    for _ in range(1 if costs.are_sums else ROUNDS):
        picked = _round(spots, options, point, fixed, costs, aims)
        if picked is None:
            break
        terms = _terms(spots, picked, fixed)
        use = _use(costs, terms, limits)
        if use <= 1:
            return picked, terms
        point = terms
        aims = {name: aim / (use * (1 + CLOSE)) for name, aim in aims.items()}
    return _cheapest(spots, fixed, costs, limits)


@dataclass(frozen=True, slots=True, eq=False)
class _Options:
    """All options of all parts below each other, and where each part's begin."""

    terms: Terms
    losses: npt.NDArray[np.float64]
    starts: npt.NDArray[np.intp]

    @classmethod
    def of(cls, spots: Sequence["Spot"]) -> "_Options":
        sizes = [len(spot.losses) for spot in spots]
        losses = np.concatenate([np.asarray(spot.losses) for spot in spots])
        starts = np.concatenate([[0], np.cumsum(sizes)[:-1]])
        return cls(np.concatenate([spot.part.terms for spot in spots]), losses, starts)

    def least(self, rates: npt.NDArray[np.float64], price: float) -> Terms:
        """Return the terms of the options of least loss + price x rates, added up."""
        priced = self.losses + price * rates
        lowest = np.minimum.reduceat(priced, self.starts)
        is_lowest = priced == np.repeat(lowest, np.diff([*self.starts, len(priced)]))
        first = np.flatnonzero(is_lowest)
        places = np.searchsorted(first, self.starts)
        total: Terms = self.terms[first[places]].sum(axis=0)
        return total


def _near(
    spots: Sequence["Spot"],
    options: _Options,
    fixed: Terms,
    costs: PartCosts,
    limits: Mapping[str, float],
) -> Terms:
    """Return the terms of a network at the limits, not far from the best, to take rates at.

    One multiplier for what options use of all limits, at the rates of the network itself as it
    changes; it is doubled until the limits hold, then halved in between.
    """
    if costs.are_sums:
        return fixed
    point = _terms(spots, [int(np.argmin(spot.losses)) for spot in spots], fixed)
    low, high = 0.0, 0.0
    price = float(np.ptp(options.losses)) or 1.0
    for _ in range(HALVINGS):
        rates = sum(
            (options.terms @ costs.slopes(metric, point)) / limit
            for metric, limit in limits.items()
        )
        assert isinstance(rates, np.ndarray)
        point = fixed + options.least(rates, price)
        is_over = _use(costs, point, limits) > 1
        low, high = (price, high) if is_over else (low, price)
        price = 2 * low if high == 0 else (low + high) / 2
    return point


def _round(
    spots: Sequence[Spot],
    options: _Options,
    point: Terms,
    fixed: Terms,
    costs: PartCosts,
    aims: Mapping[str, float],
) -> list[int] | None:
    """Return the allocation by the rates at one network; None if none meets the aims by them."""
    prices, budgets, totals = {}, {}, costs.totals(point)
    for metric, aim in aims.items():
        slopes = costs.slopes(metric, point)
        prices[metric] = [
            own.tolist() for own in np.split(options.terms @ slopes, options.starts[1:])
        ]
        budgets[metric] = aim - float(totals[metric] - slopes @ point) - float(slopes @ fixed)
    if any(budget <= 0 for budget in budgets.values()):
        return None
    groups = [
        Group(loss=spot.losses, costs={metric: prices[metric][place] for metric in aims})
        for place, spot in enumerate(spots)
    ]
    try:
        return list(allocate(groups, budgets).choice)
    except InfeasibleBudget:
        return None


def _terms(spots: Sequence[Spot], picked: Sequence[int], fixed: Terms) -> Terms:
    chosen = [spot.part.terms[option] for spot, option in zip(spots, picked, strict=True)]
    total: Terms = fixed + np.sum(chosen, axis=0) if chosen else fixed
    return total


def _use(costs: PartCosts, terms: Terms, limits: Mapping[str, float]) -> float:
    """Return how much of the tightest limit a network uses."""
    totals = costs.totals(terms)
    return max(float(totals[metric]) / limit for metric, limit in limits.items())


def _cheapest(
    spots: Sequence[Spot], fixed: Terms, costs: PartCosts, limits: Mapping[str, float]
) -> tuple[list[int], Terms]:
    """Return the cheapest options by their share of the limits; raise if they do not fit."""
    picked = []
    for spot in spots:
        shares = sum(
            spot.part.terms @ costs.slopes(metric, fixed) / limit
            for metric, limit in limits.items()
        )
        picked.append(int(np.argmin(shares)))
    terms = _terms(spots, picked, fixed)
    if _use(costs, terms, limits) > 1:
        metric, limit = next(iter(limits.items()))
        raise InfeasibleBudget(
            f"no inner numbers were found that meet {' and '.join(limits)} together.",
            metric=metric,
            budget=limit,
            smallest=float(costs.totals(terms)[metric]),
        )
    return picked, terms

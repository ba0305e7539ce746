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
CLOSE = 0.003  # of a budget left over: near enough
HALVINGS = 24


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
    most = fixed + sum((spot.part.terms.max(axis=0) for spot in spots), np.zeros(len(fixed)))
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
    table = np.concatenate([spot.part.terms for spot in spots])
    ends = np.cumsum([len(spot.losses) for spot in spots])[:-1]
    point, aims = _between(costs, least, most, limits), dict(limits)
    best: tuple[float, list[int], Terms] | None = None
    for _ in range(1 if costs.are_sums else ROUNDS):
        picked = _round(spots, (table, ends), point, fixed, costs, aims)
        if picked is None:
            aims, point = dict(limits), least
            continue
        terms = _terms(spots, picked, fixed)
        use = _use(costs, terms, limits)
        loss = sum(spot.losses[option] for spot, option in zip(spots, picked, strict=True))
        if use <= 1 and (best is None or loss < best[0]):
            best = loss, picked, terms
        if 1 - CLOSE <= use <= 1:
            break
        point = terms
        if use > 1:
            aims = {name: aim / (use + CLOSE / 4) for name, aim in aims.items()}
    if best is None:
        return _cheapest(spots, fixed, costs, limits)
    return best[1], best[2]


def _round(
    spots: Sequence[Spot],
    options: tuple[Terms, npt.NDArray[np.intp]],
    point: Terms,
    fixed: Terms,
    costs: PartCosts,
    aims: Mapping[str, float],
) -> list[int] | None:
    """Return the allocation by the rates at one network; None if none meets the aims by them."""
    table, ends = options
    prices, budgets, totals = {}, {}, costs.totals(point)
    for metric, aim in aims.items():
        slopes = costs.slopes(metric, point)
        prices[metric] = [own.tolist() for own in np.split(table @ slopes, ends)]
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


def _between(costs: PartCosts, least: Terms, most: Terms, limits: Mapping[str, float]) -> Terms:
    """Return the terms on the line from the cheapest to the dearest network that meet a limit."""
    low, high = 0.0, 1.0
    for _ in range(0 if costs.are_sums else HALVINGS):
        middle = (low + high) / 2
        is_over = _use(costs, least + middle * (most - least), limits) > 1
        low, high = (low, middle) if is_over else (middle, high)
    point: Terms = least + low * (most - least)
    return point


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

"""Inner dimensions within budgets: one option for each part of a network, least loss in all.

This is the multiple-choice knapsack problem with several budgets. A multiplier for each budget
turns it into independent choices (Everett, Operations Research 11(3), 1963); the best multipliers
bound what any allocation can reach. Groups whose choice they leave open, the core (Pisinger,
European Journal of Operational Research 83(2), 1995), are then chosen together to fill the budgets.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nas.errors import ConfigError, InfeasibleBudget
from nas.search.budgets import resolve_budgets
from nas.study import describe_cost

MAX_BUDGETS = 3
CORE = 16  # groups chosen together in one round
POOL = 28  # groups that cores are drawn from: those whose choice is least clear
STATES = 192  # partial allocations kept of each half of a core
NOISE = 0.6  # how far from the best of them others are kept, as a share of what may be gained
CLOSE = 5e-4  # near enough to the bound, as a share of what is gained over the worst allocation
WIDE = 5e-3  # so far from it that more rounds are worth their time
ROUNDS = 3
WIDE_ROUNDS = 16
OVER_ROUNDS = 64  # while nothing within the budgets is known

_COARSE = (0.0, 1 / 16, 1 / 4, 1.0, 4.0, 16.0)
_FINE = {1: 17, 2: 5, 3: 3}  # points a multiplier in each sweep, by the number of budgets
_SWEEPS = 16
_PUSHES = (1.0, 1.3, 3.0, 1e6)
_ROUNDING = 1e-12  # of a budget; sums are checked exactly at the end

Array = npt.NDArray[np.float64]
Indices = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A part of a network whose size is to be chosen.

    `loss` is the predicted loss increase of each option (any unit, lower is better; minus the
    importance it keeps will do), `costs` what each option adds to each metric, at least 0.
    """

    loss: Sequence[float]
    costs: Mapping[str, Sequence[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """One option a group. No allocation within the budgets has less loss than `least_loss`."""

    choice: tuple[int, ...]
    loss: float
    least_loss: float
    costs: Mapping[str, float]


def allocate(groups: Sequence[Group], budgets: Mapping[str, float]) -> Allocation:
    """Choose one option a group: the least total loss found within every budget.

    Deterministic, and not always optimal: on networks of 10 to 60 groups it keeps at least 99.9 %
    of the importance an optimal allocation keeps (benchmarks/allocation.py).

    Args:
        groups: Every group with the same metrics; costs add up over groups.
        budgets: 1 to 3 limits by metric, in the metric's unit; what is fixed in the network is
            to be taken off them. A lone `latency_ms` is the only latency.

    Raises:
        ConfigError: no groups, numbers that are not finite, lists of different lengths, or not 1
            to 3 budgets on known metrics, each above zero.
        InfeasibleBudget: even the least is over a budget (the message has both), or no allocation
            was found that meets all budgets together.
    """
    metrics = _check(groups)
    limits = resolve_budgets(budgets, metrics)
    if not 1 <= len(limits) <= MAX_BUDGETS:
        raise ConfigError(f"an allocation has 1 to {MAX_BUDGETS} budgets, but {len(limits)} here.")
    table = _Table.of(groups, limits)
    for metric, limit in limits.items():
        least = math.fsum(min(group.costs[metric]) for group in groups)
        if least > limit:
            raise _infeasible(metric, limit, least, "the least any allocation has is")
    multipliers, least_loss = _sweep(table)
    for rounding in (_ROUNDING, -_ROUNDING):
        choice = _search(table, multipliers, least_loss, limit=1 + rounding)
        found = _sum_up(groups, metrics, choice, least_loss)
        use = max(found.costs[metric] / limit for metric, limit in limits.items())
        if all(found.costs[metric] <= limit for metric, limit in limits.items()):
            return found
        if use > 1 + 2 * _ROUNDING:  # more than the rounding of a sum
            break
    worst = max(limits, key=lambda metric: found.costs[metric] / limits[metric])
    least = found.costs[worst]
    raise _infeasible(worst, limits[worst], least, "with the other budgets the least found is")


def _check(groups: Sequence[Group]) -> tuple[str, ...]:
    """Return the metrics that every group has."""
    if not groups:
        raise ConfigError("an allocation needs at least one group, but there is none.")
    metrics = tuple(groups[0].costs)
    for index, group in enumerate(groups):
        if group.costs.keys() != set(metrics):
            raise ConfigError(
                f"every group has the costs {', '.join(metrics)}, but group {index} has "
                f"{', '.join(group.costs) or 'none'}."
            )
        lengths = {len(group.loss), *map(len, group.costs.values())}
        if len(lengths) > 1 or 0 in lengths:
            raise ConfigError(
                f"a group has one loss and one cost of each metric an option, but group {index} "
                f"has lists of {sorted(lengths)}."
            )
    return metrics


def _infeasible(metric: str, limit: float, least: float, words: str) -> InfeasibleBudget:
    return InfeasibleBudget(
        f"no allocation meets {metric} <= {describe_cost(metric, limit)}: {words} "
        f"{describe_cost(metric, least)}. Raise the budget, or take a smaller network.",
        metric=metric,
        budget=limit,
        smallest=least,
    )


def _sum_up(
    groups: Sequence[Group], metrics: Sequence[str], choice: Indices, least_loss: float
) -> Allocation:
    pairs = list(zip(groups, choice.tolist(), strict=True))
    return Allocation(
        choice=tuple(option for _, option in pairs),
        loss=math.fsum(group.loss[option] for group, option in pairs),
        least_loss=least_loss,
        costs={
            metric: math.fsum(group.costs[metric][option] for group, option in pairs)
            for metric in metrics
        },
    )


@dataclass(frozen=True, slots=True)
class _Table:
    """All options as numbers.

    Attributes:
        rows: Costs as shares of their budgets, then the loss: (groups, options, budgets + 1).
            Beyond a group's own options the loss is infinite and the costs are those of option 0.
        sizes: How many options a group has, (groups,).
        span: The loss of the worst allocation less that of the best.
        worst: The loss of the worst allocation.
    """

    rows: Array
    sizes: npt.NDArray[np.intp]
    span: float
    worst: float

    @classmethod
    def of(cls, groups: Sequence[Group], limits: Mapping[str, float]) -> "_Table":
        sizes = np.array([len(group.loss) for group in groups])
        rows = np.empty((len(groups), int(sizes.max()), len(limits) + 1))
        for place, size, group in zip(rows, sizes, groups, strict=True):
            own = [*(group.costs[metric] for metric in limits), group.loss]
            place[:size] = np.array(own, dtype=np.float64).T
            place[size:] = place[0]
        is_own = np.arange(rows.shape[1]) < sizes[:, None]
        if not np.isfinite(rows).all() or rows[:, :, :-1].min() < 0:
            raise ConfigError("losses are finite and costs at least 0, but some here are not.")
        losses = rows[:, :, -1]
        worst, least = float(losses.max(axis=1).sum()), float(losses.min(axis=1).sum())
        losses[~is_own] = math.inf
        rows[:, :, :-1] /= list(limits.values())
        return cls(rows, sizes, worst - least, worst)

    def priced(self, multipliers: Array) -> Array:
        """Return loss + multipliers x costs of every option, (groups, options)."""
        priced: Array = self.rows @ np.append(multipliers, 1.0)
        return priced

    def totals(self, choice: Indices) -> Array:
        """Return the costs and the loss of an allocation, (budgets + 1,)."""
        sums: Array = self.rows[np.arange(len(choice)), choice].sum(axis=0)
        return sums


# ---------------------------------------------------------------- multipliers
def _sweep(table: _Table) -> tuple[Array, float]:
    """Return the multipliers of the highest lower bound, (budgets,), and that bound.

    The bound, sum over groups of min(loss + multipliers x costs) - sum of multipliers, is concave
    in the multipliers: a grid of them is evaluated at once, then finer ones around the best.
    """
    count = table.rows.shape[2] - 1
    costs, loss = table.rows[:, :, :-1], table.rows[:, :, -1]
    flat = costs.transpose(2, 1, 0).reshape(count, -1)
    shape = (-1, loss.shape[1], loss.shape[0])
    losses = loss.T.ravel()

    def bounds(grid: Array) -> Array:
        priced = grid @ flat
        priced += losses
        least: Array = priced.reshape(shape).min(axis=1).sum(axis=1)
        least -= grid.sum(axis=1)
        return least

    spans = (costs.max(axis=1) - costs.min(axis=1)).sum(axis=0)
    scale = np.where(spans > 0, table.span / np.where(spans > 0, spans, 1.0), 0.0)
    grid = _product(np.array(_COARSE), count) * scale
    found = bounds(grid)
    at = int(found.argmax())
    best, highest, width = grid[at], float(found[at]), np.maximum(grid[at], scale / 32) * 0.75
    offsets = _product(np.linspace(-1.0, 1.0, _FINE[count]), count)
    for _ in range(_SWEEPS):
        grid = np.maximum(best + offsets * width, 0.0)
        found = bounds(grid)
        at = int(found.argmax())
        if found[at] > highest:
            best, highest = grid[at], float(found[at])
            width = np.where(np.abs(offsets[at]) < 1.0, width / 2, width * 1.2)
        else:
            width = width / 2
    return best, highest


def _product(values: Array, count: int) -> Array:
    """Return every combination of `count` values, (len(values) ** count, count)."""
    return np.stack(np.meshgrid(*[values] * count, indexing="ij"), axis=-1).reshape(-1, count)


# ---------------------------------------------------------------- choices
def _search(table: _Table, multipliers: Array, least_loss: float, *, limit: float) -> Indices:
    """Return the best allocation found, (groups,); over budget only if none within was found."""
    weights = np.append(multipliers, 1.0)
    priced = table.priced(multipliers)
    regret = np.full(len(priced), math.inf)
    if priced.shape[1] > 1:
        ordered = np.partition(priced, 1, axis=1)
        regret = ordered[:, 1] - ordered[:, 0]
    has_choice = np.flatnonzero(np.isfinite(regret))
    pool = np.argsort(regret)[: min(POOL, len(has_choice))]
    best, lowest = _start(table, multipliers, limit)
    base, core, noise = priced.argmin(axis=1), pool[:CORE], 0.0
    rng = np.random.default_rng(0)
    for number in range(OVER_ROUNDS if len(core) else 0):
        if _is_enough(table, lowest, least_loss, rounds=number):
            break
        core = core[np.argsort(-regret[core])]  # what is least clear comes last and fits best
        halves = [
            (half, *_combine(table, half, weights, noise=noise, rng=rng))
            for half in (core[0::2], core[1::2])
        ]
        found = _join(table, base, halves, limit)
        score = _score(table, found, limit)
        if score < lowest:
            best, lowest = found, score
        base, core = best, rng.permutation(pool)[:CORE]
        noise = NOISE * min(lowest[1] - least_loss, table.span)
        weights = np.append(multipliers, 1.0)
        if lowest[0] > 0:  # first of all into the budgets, from any side
            core, noise = rng.permutation(has_choice)[:CORE], 0.0
            weights = np.append(rng.dirichlet(np.ones(len(multipliers))), 0.0)
    return _fill(table, best, limit)


def _is_enough(
    table: _Table, lowest: tuple[float, float], least_loss: float, *, rounds: int
) -> bool:
    """Return whether another round is not worth its time, given the best score so far."""
    excess, loss = lowest
    gap = (loss - least_loss) / max(table.worst - loss, 1e-300)
    if excess > 0:
        return False
    return gap <= CLOSE or rounds >= (WIDE_ROUNDS if gap > WIDE else ROUNDS)


def _score(table: _Table, choice: Indices, limit: float) -> tuple[float, float]:
    """Return how far an allocation is over the budgets, as shares of them, and its loss."""
    totals = table.totals(choice)
    return float(np.maximum(totals[:-1] - limit, 0.0).sum()), float(totals[-1])


def _start(table: _Table, multipliers: Array, limit: float) -> tuple[Indices, tuple[float, float]]:
    """Return the best of the choices that growing multipliers make, and its score."""
    costs = table.rows[:, :, :-1]
    spans = (costs.max(axis=1) - costs.min(axis=1)).sum(axis=0)
    slope = 1e-3 * (table.span or 1.0) / np.maximum(spans, 1e-300)  # for multipliers that are 0
    starts = [
        table.priced(push * multipliers + (push - 1) * slope).argmin(axis=1) for push in _PUSHES
    ]
    scored = [(_score(table, start, limit), number) for number, start in enumerate(starts)]
    score, number = min(scored)
    return starts[number], score


def _combine(
    table: _Table, groups: Indices, weights: Array, *, noise: float, rng: np.random.Generator
) -> tuple[Array, Indices]:
    """Return partial allocations of some groups: those of least loss + multipliers x costs.

    Args:
        table: All options.
        groups: Which groups.
        weights: The multipliers, then 1.
        noise: Up to how much, drawn at random, is added to that before the least are taken.
        rng: What it is drawn with.

    Returns:
        Their sums, (n, budgets + 1), and their options, (n, groups).
    """
    sums = np.zeros((1, len(weights)))
    picks = np.zeros((1, 0), dtype=np.intp)
    for group in groups:
        size = int(table.sizes[group])
        sums = (sums[:, None, :] + table.rows[group, :size]).reshape(-1, len(weights))
        kept = np.arange(len(sums))
        if len(sums) > STATES:
            keys = sums @ weights + noise * rng.random(len(sums))
            kept = np.argpartition(keys, STATES)[:STATES]
            sums = sums[kept]
        picks = np.column_stack([picks[kept // size], kept % size])
    return sums, picks


def _join(
    table: _Table, base: Indices, halves: Sequence[tuple[Indices, Array, Indices]], limit: float
) -> Indices:
    """Return `base` with two halves of a core chosen anew: the pair of least loss that fits.

    Where no pair fits, it is the one that is least over the budgets.
    """
    (left_groups, left, left_picks), (right_groups, right, right_picks) = halves
    rest = np.ones(len(base), dtype=bool)
    rest[left_groups] = rest[right_groups] = False
    fixed = table.rows[rest, base[rest]].sum(axis=0)
    total = left[:, -1, None] + right[:, -1]
    room = limit - fixed[:-1] - right[:, :-1]
    fits = np.ones(total.shape, dtype=bool)
    for column in range(room.shape[1]):
        fits &= left[:, column, None] <= room[:, column]
    if fits.any():
        total[~fits] = math.inf
    else:
        total = np.maximum(left[:, None, :-1] - room, 0.0).sum(axis=2)
    at_left, at_right = divmod(int(total.argmin()), len(right))
    choice = base.copy()
    choice[left_groups] = left_picks[at_left]
    choice[right_groups] = right_picks[at_right]
    return choice


def _fill(table: _Table, choice: Indices, limit: float) -> Indices:
    """Return an allocation after the best single changes that still fit, until there is none."""
    choice = choice.copy()
    place = np.arange(len(choice))
    while True:
        change = table.rows - table.rows[place, choice][:, None, :]
        room = limit - table.totals(choice)[:-1]
        gain = np.where((change[:, :, :-1] <= room).all(axis=2), change[:, :, -1], 0.0)
        group, option = np.unravel_index(int(gain.argmin()), gain.shape)
        if gain[group, option] >= 0 or np.any(room < 0):
            return choice
        choice[group] = option

"""The multiple-choice knapsack problem with several budgets, nearly solved in milliseconds.

A multiplier for each budget turns it into independent choices (Everett, Operations Research 11(3),
1963); the best multipliers bound what any allocation can reach. Groups whose choice they leave
open, the core (Pisinger, European Journal of Operational Research 83(2), 1995), are then chosen
together to fill the budgets.
"""

import functools
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from nas.errors import ConfigError

CORE = 16  # groups chosen together in one round
POOL = 28  # groups that cores are drawn from: those whose choice is least clear
STATES = 160  # partial allocations kept of each half of a core
NOISE = 0.6  # how far from the best of them others are kept, as a share of what may be gained
CLOSE = 5e-4  # near enough to the bound, as a share of what is gained over the worst allocation
WIDE = 5e-3  # so far from it that more rounds are worth their time
ROUNDS = 2  # at most; one for one budget
WIDE_ROUNDS = 16
OVER_ROUNDS = 64  # while nothing within the budgets is known

_COARSE = (0.0, 1 / 16, 1 / 4, 1.0, 4.0, 16.0)
# By the number of budgets: points a multiplier in each sweep, and what a sweep narrows them by.
_FINE = {1: (33, 1 / 12), 2: (7, 0.4), 3: (4, 0.5)}
_SWEEPS = 16
_FLAT = 1e-5  # of the span: a bound that rises by less, twice, is high enough
_PUSHES = (1.0, 1.3, 3.0, 1e6)

Array: TypeAlias = npt.NDArray[np.float64]
Indices: TypeAlias = npt.NDArray[np.intp]


@dataclass(frozen=True, slots=True, eq=False)
class Options:
    """The options of all groups below each other: what many allocations make at little cost.

    Attributes:
        losses: Predicted loss increases, (options,).
        costs: What each option adds to each metric, {metric: (options,)}, at least 0.
        sizes: How many options each group has, (groups,), at least 1.
    """

    losses: Array
    costs: Mapping[str, Array]
    sizes: Indices

    @property
    def starts(self) -> Indices:
        """Where each group's options begin, (groups,)."""
        starts: Indices = np.cumsum(self.sizes) - self.sizes
        return starts


@dataclass(frozen=True, slots=True, eq=False)
class Table:
    """All options as numbers.

    Attributes:
        rows: Costs as shares of their budgets, then the loss: (groups + 1, options, budgets + 1).
            Beyond a group's own options stands option 0 again; the last group has zeros alone.
        is_own: Which of them are a group's own, (groups + 1, options).
        sizes: How many options a group has, (groups + 1,).
        span: The loss of the worst allocation less that of the best.
        worst: The loss of the worst allocation.
    """

    rows: Array
    is_own: npt.NDArray[np.bool_]
    sizes: Indices
    span: float
    worst: float

    @classmethod
    def of(cls, options: Options, limits: Mapping[str, float]) -> "Table":
        """Return the table of options within limits, {metric: limit}.

        Raises:
            ConfigError: a loss or a cost is not finite, or a cost is below 0.
        """
        flat = np.stack([*(options.costs[metric] for metric in limits), options.losses], axis=1)
        if not np.isfinite(flat).all() or flat[:, :-1].min() < 0:
            raise ConfigError("losses are finite and costs at least 0, but some here are not.")
        starts, sizes = options.starts, np.append(options.sizes, 1)
        losses = options.losses
        worst = float(np.maximum.reduceat(losses, starts).sum())
        least = float(np.minimum.reduceat(losses, starts).sum())
        flat[:, :-1] /= list(limits.values())
        flat = np.concatenate([flat, np.zeros((1, flat.shape[1]))])
        places = np.arange(int(sizes.max()))
        is_own = places < sizes[:, None]
        first = np.append(starts, len(losses))[:, None]
        rows = flat[np.where(is_own, first + places, first)]
        return cls(rows, is_own, sizes, worst - least, worst)

    def priced(self, weights: Array) -> Array:
        """Return weights x (costs, loss) of every option; infinity for none, (groups + 1, ...)."""
        priced: Array = np.where(self.is_own, self.rows @ weights, math.inf)
        return priced

    def totals(self, choice: Indices) -> Array:
        """Return the costs and the loss of an allocation, (budgets + 1,)."""
        sums: Array = self.rows[np.arange(len(choice)), choice].sum(axis=0)
        return sums


# ---------------------------------------------------------------- multipliers
def sweep(table: Table) -> tuple[Array, float]:
    """Return the multipliers of the highest lower bound, (budgets,), and that bound.

    The bound, sum over groups of min(loss + multipliers x costs) - sum of multipliers, is concave
    in the multipliers: a grid of them is evaluated at once, then finer ones around the best.
    """
    count = table.rows.shape[2] - 1
    rows = table.rows[:-1]
    costs = rows[:, :, :-1]
    flat = costs.transpose(2, 1, 0).reshape(count, -1)
    shape = (-1, rows.shape[1], rows.shape[0])
    losses = rows[:, :, -1].T.ravel()

    def bounds(grid: Array) -> Array:
        priced = grid @ flat
        priced += losses
        least: Array = priced.reshape(shape).min(axis=1).sum(axis=1)
        least -= grid.sum(axis=1)
        return least

    spans = (costs.max(axis=1) - costs.min(axis=1)).sum(axis=0)
    scale = np.where(spans > 0, table.span / np.where(spans > 0, spans, 1.0), 0.0)
    grid = _product(_COARSE, count) * scale
    found = bounds(grid)
    at = int(found.argmax())
    best, highest, width = grid[at], float(found[at]), np.maximum(grid[at], scale / 32) * 0.75
    points, narrower = _FINE[count]
    offsets = _product(tuple(np.linspace(-1.0, 1.0, points)), count)
    num_flat = 0
    for _ in range(_SWEEPS):
        grid = np.maximum(best + offsets * width, 0.0)
        found = bounds(grid)
        at = int(found.argmax())
        rise = float(found[at]) - highest
        if rise > 0:
            best, highest = grid[at], float(found[at])
            width = np.where(np.abs(offsets[at]) < 1.0, width * narrower, width * 1.2)
        else:
            width = width * narrower
        num_flat = num_flat + 1 if rise <= _FLAT * table.span else 0
        if num_flat == 2:
            break
    return best, highest


@functools.cache
def _product(values: tuple[float, ...], count: int) -> Array:
    """Return every combination of `count` values, (len(values) ** count, count)."""
    return np.stack(np.meshgrid(*[values] * count, indexing="ij"), axis=-1).reshape(-1, count)


# ---------------------------------------------------------------- choices
def search(table: Table, multipliers: Array, least_loss: float, *, limit: float) -> Indices:
    """Return the best allocation found, (groups,); over budget only if none within was found."""
    priced = table.priced(np.append(multipliers, 1.0))
    ordered = np.partition(priced[:-1], min(1, priced.shape[1] - 1), axis=1)
    has_choice = np.flatnonzero(table.sizes[:-1] > 1)
    regret = ordered[:, -1] if not len(has_choice) else ordered[:, 1] - ordered[:, 0]
    pool = has_choice[np.argsort(regret[has_choice])[:POOL]]
    best, lowest = _start(table, multipliers, limit)
    base, core, noise = priced[:-1].argmin(axis=1), pool[:CORE], 0.0
    rng = np.random.default_rng(0)
    for number in range(OVER_ROUNDS if len(core) else 0):
        if _is_enough(table, lowest, least_loss, rounds=number, budgets=len(multipliers)):
            break
        core = core[np.argsort(-regret[core])]  # what is least clear comes last and fits best
        found = _chosen_anew(table, base, core, priced, limit, noise=noise, rng=rng)
        score = _score(table, found, limit)
        if score < lowest:
            best, lowest = found, score
        base, core = best, rng.permutation(pool)[:CORE]
        noise = NOISE * min(lowest[1] - least_loss, table.span)
        if lowest[0] > 0:  # first of all into the budgets, from any side
            core, noise = rng.permutation(has_choice)[:CORE], 0.0
            priced = table.priced(np.append(rng.dirichlet(np.ones(len(multipliers))), 0.0))
    return _fill(table, best, limit)


def _is_enough(
    table: Table, lowest: tuple[float, float], least_loss: float, *, rounds: int, budgets: int
) -> bool:
    """Return whether another round is not worth its time, given the best score so far."""
    excess, loss = lowest
    gap = (loss - least_loss) / max(table.worst - loss, 1e-300)
    if excess > 0:
        return False
    return gap <= CLOSE or rounds >= (WIDE_ROUNDS if gap > WIDE else min(budgets, ROUNDS))


def _score(table: Table, choice: Indices, limit: float) -> tuple[float, float]:
    """Return how far an allocation is over the budgets, as shares of them, and its loss."""
    totals = table.totals(choice)
    return float(np.maximum(totals[:-1] - limit, 0.0).sum()), float(totals[-1])


def _start(table: Table, multipliers: Array, limit: float) -> tuple[Indices, tuple[float, float]]:
    """Return the best of the choices that growing multipliers make, and its score."""
    rows = table.rows[:-1]
    costs = rows[:, :, :-1]
    spans = (costs.max(axis=1) - costs.min(axis=1)).sum(axis=0)
    slope = 1e-3 * (table.span or 1.0) / np.maximum(spans, 1e-300)  # for multipliers that are 0
    pushes = np.array(_PUSHES)[:, None]
    weights = np.append(pushes * multipliers + (pushes - 1) * slope, np.ones_like(pushes), axis=1)
    starts = (rows @ weights.T).argmin(axis=1).T
    totals = rows[np.arange(len(rows)), starts].sum(axis=1)
    excess = np.maximum(totals[:, :-1] - limit, 0.0).sum(axis=1)
    scored = [
        (over, loss) for over, loss in zip(excess.tolist(), totals[:, -1].tolist(), strict=True)
    ]
    score = min(scored)
    return starts[scored.index(score)], score


def _chosen_anew(
    table: Table,
    base: Indices,
    core: Indices,
    priced: Array,
    limit: float,
    *,
    noise: float,
    rng: np.random.Generator,
) -> Indices:
    """Return `base` with the groups of a core chosen anew: the least loss found that fits.

    Every other group of the core makes one half of it. Of each half the partial allocations of
    least `priced` are kept, both halves at once, and all pairs of them are looked at.
    """
    steps = -(-len(core) // 2)
    groups = np.full(2 * steps, len(base))  # the last group of the table is none
    groups[: len(core)] = core
    halves = groups.reshape(steps, 2)
    sums, kept = _combine(table, halves, priced, noise=noise, rng=rng)
    fixed = table.totals(base)[:-1] - table.rows[core, base[core], :-1].sum(axis=0)
    choice = np.append(base, 0)
    for half, at in enumerate(_join(sums[0], sums[1], limit - fixed)):
        for group, (options, indices) in zip(halves[::-1, half], kept[::-1], strict=True):
            at, option = divmod(at if indices is None else int(indices[half, at]), options)
            choice[group] = option if option < table.sizes[group] else 0
    return choice[:-1]


def _combine(
    table: Table, halves: Indices, priced: Array, *, noise: float, rng: np.random.Generator
) -> tuple[Array, list[tuple[int, Indices | None]]]:
    """Return partial allocations of the groups of two halves: those of the least sums of `priced`.

    Args:
        table: All options.
        halves: The groups, (steps, 2).
        priced: What each option counts, (groups + 1, options).
        noise: Up to how much, drawn at random, is added to that before the least are taken.
        rng: What it is drawn with.

    Returns:
        Their sums, (2, n, budgets + 1), and of each step how many options it had and which
        states were kept, (2, n), None for all.
    """
    sums, keys = np.zeros((2, 1, table.rows.shape[2])), np.zeros((2, 1))
    kept: list[tuple[int, Indices | None]] = []
    both = np.arange(2)[:, None]
    for groups in halves:
        options = int(table.sizes[groups].max())
        keys = (keys[:, :, None] + priced[groups, None, :options]).reshape(2, -1)
        if keys.shape[1] <= STATES:
            sums = (sums[:, :, None] + table.rows[groups, None, :options]).reshape(
                2, -1, sums.shape[2]
            )
            kept.append((options, None))
            continue
        noisy = keys + noise * rng.random(keys.shape) if noise else keys
        indices = noisy.argpartition(STATES, axis=1)[:, :STATES]
        keys = keys[both, indices]
        sums = sums[both, indices // options] + table.rows[groups[:, None], indices % options]
        kept.append((options, indices))
    return sums, kept


def _join(left: Array, right: Array, room: Array) -> tuple[int, int]:
    """Return the pair of states of least loss whose costs fit into the room, as two indices.

    Where no pair fits, it is the one that is least over.

    Args:
        left: States of one half, (n, budgets + 1).
        right: Those of the other, (n, budgets + 1).
        room: What the budgets leave, (budgets,).
    """
    left_room = room - left[:, :-1]
    over = right[:, 0] > left_room[:, :1]
    for column in range(1, len(room)):
        over |= right[:, column] > left_room[:, column, None]
    total = left[:, -1, None] + right[:, -1]
    if over.all():
        total = np.maximum(right[:, :-1] - left_room[:, None], 0.0).sum(axis=2)
    else:
        np.putmask(total, over, math.inf)
    return divmod(int(total.argmin()), len(right))


def _fill(table: Table, choice: Indices, limit: float) -> Indices:
    """Return an allocation after the best single changes that still fit, until there is none."""
    choice, rows = choice.copy(), table.rows[:-1]
    place = np.arange(len(choice))
    while True:
        change = rows - rows[place, choice][:, None]
        room = limit - table.totals(choice)[:-1]
        gain = np.where((change[:, :, :-1] <= room).all(axis=2), change[:, :, -1], 0.0)
        group, option = divmod(int(gain.argmin()), gain.shape[1])
        if gain[group, option] >= 0 or np.any(room < 0):
            return choice
        choice[group] = option

"""Many candidates at once: is the budget reachable, where to start, what nobody has seen yet.

Candidates are rows of option indices, shape (n, genes); only prices are looked at here, so ten
thousand of them cost less than one evaluation. Small spaces are enumerated, large ones sampled.
"""

import logging
from collections.abc import Callable, Mapping, Sequence
from operator import itemgetter
from typing import TypeVar

import numpy as np

from nas.errors import InfeasibleBudget, NasError
from nas.search.budgets import excess, feasible
from nas.search.rows import Array, Costs, Price, Rows
from nas.seeds import stage_seed
from nas.study import Choice, Genes, describe_cost, full_metric

T = TypeVar("T")
logger = logging.getLogger(__name__)

DRAWS = 4096  # also the largest space that is enumerated
POOL = 256  # feasible candidates wanted before the start is picked
ROUNDS = 4  # of draws, when something unseen is looked for
FEW = 64  # feasible ones among the draws; below, known feasible ones are changed as well
DESCENTS = 4  # starting points of a descent
DESCENT_STEPS = 200


class Pricer:
    """The price function with its answers checked and its metrics under their full names."""

    def __init__(self, price: Price, *, targets: Sequence[str]) -> None:
        self._price = price
        self._targets = targets

    def __call__(self, choices: list[Choice]) -> Costs:
        """Return {metric: costs of shape (n,)}.

        Raises:
            NasError: no metric, a wrong number of costs, or one that is NaN.
        """
        answer = self._price(choices)
        costs = {
            full_metric(metric, self._targets): np.asarray(values, dtype=np.float64)
            for metric, values in answer.items()
        }
        if not costs:
            raise NasError("price returned no metric; a search needs at least one cost.")
        for metric, values in costs.items():
            if values.shape != (len(choices),):
                raise NasError(
                    f"price must return {len(choices)} costs a metric, but {metric} has "
                    f"shape {values.shape}."
                )
            if np.isnan(values).any():
                choice = choices[int(np.flatnonzero(np.isnan(values))[0])]
                raise NasError(f"price returned NaN as {metric} of {dict(choice)!r}.")
        return costs


class Screen:
    """Looks at prices of many candidates; its draws depend on the seed only."""

    def __init__(
        self,
        genes: Genes,
        pricer: Pricer,
        budgets: Mapping[str, float],
        *,
        objective: str,
        seed: int,
    ) -> None:
        self._rows = Rows(genes, pricer, budgets, seed=stage_seed(seed, "search/screen"))
        self._budgets = budgets
        self._objective = objective
        self.is_exhaustive = self._rows.count <= DRAWS
        self._pool = self._fill()
        self._pool_left = self._pool  # of an enumerated space, what was not offered yet
        self._spare: list[Array] = []
        self._draws_help = True  # until a whole round of them finds nothing feasible

    # ------------------------------------------------------------ what the engine asks
    def starts(self, count: int, *, near_budget: bool) -> list[Choice]:
        """Return up to `count` feasible candidates at spread levels of the first cost.

        Args:
            count: How many.
            near_budget: Most of them close below the budget, or evenly over the (log) cost.
        """
        levels = self._rows.price(self._pool)[self._objective]
        low, high = float(levels.min()), float(levels.max())
        if self._objective in self._budgets:
            high = self._budgets[self._objective]
        steps = (np.arange(count) + 0.5) / max(count, 1)
        if near_budget:
            wanted = high - (high - low) * steps**2
        else:
            wanted = np.geomspace(high, low, count) if low > 0 else high - (high - low) * steps
        free = np.ones(len(levels), dtype=bool)
        picked = []
        for level in wanted[: len(levels)]:
            nearest = int(np.where(free, np.abs(levels - level), np.inf).argmin())
            free[nearest] = False
            picked.append(self._rows.choice(self._pool[nearest]))
        return picked

    def unseen(self, accept: Callable[[Choice], T | None]) -> T | None:
        """Return what `accept` makes of the first candidate it takes; None if it takes none.

        In an enumerated space None means that there is no other; otherwise, that none was among
        many draws and changes of known feasible candidates.
        """
        for _ in range(1 if self.is_exhaustive else ROUNDS):
            if not self._spare:
                self._spare = self._more()
            while self._spare:
                taken = accept(self._rows.choice(self._spare.pop()))
                if taken is not None:
                    return taken
        return None

    def _more(self) -> list[Array]:
        """Return feasible candidates in random order: those left in the space, or fresh draws."""
        if self.is_exhaustive:
            left, self._pool_left = self._pool_left, self._pool[:0]
            return list(self._rows.rng.permutation(left, axis=0))
        drawn = list(self._rows.feasible(self._rows.draw(DRAWS))) if self._draws_help else []
        self._draws_help = bool(drawn)
        if len(drawn) < FEW:  # taken from the end: the draws come first
            drawn = [*self._rows.feasible(self._rows.change(self._pool, DRAWS // 4)), *drawn]
        return drawn

    # ------------------------------------------------------------ finding feasible ones
    def _fill(self) -> Array:
        """Return feasible candidates, shape (n, genes): all of them, or a good number."""
        codes = self._rows.all() if self.is_exhaustive else self._rows.draw(DRAWS)
        costs = self._rows.price(codes)
        pool: Array = codes[feasible(costs, self._budgets)]
        if self.is_exhaustive:
            if len(pool) == 0:
                raise self._infeasible(
                    {name: float(values.min()) for name, values in costs.items()}
                )
            return pool
        if len(pool) == 0:
            pool = self._descend_to_feasible(codes, costs)
        for _ in range(ROUNDS):
            if len(pool) >= POOL:
                break
            changed = self._rows.feasible(self._rows.change(pool, DRAWS // 4))
            pool = np.unique(np.concatenate([pool, changed]), axis=0)
        return pool

    def _descend_to_feasible(self, codes: Array, costs: Mapping[str, Array]) -> Array:
        """Return feasible candidates found by changing the nearest ones, one gene at a time."""
        over = excess(costs, self._budgets)
        ends = [
            self._descend(codes[row], lambda costs: excess(costs, self._budgets))
            for row in np.argsort(over, kind="stable")[:DESCENTS]
        ]
        pool = self._rows.feasible(np.stack(ends))
        if len(pool):
            return np.unique(pool, axis=0)
        smallest = {}
        for metric in self._budgets:
            least = self._descend(codes[int(costs[metric].argmin())], itemgetter(metric))
            smallest[metric] = float(self._rows.price(least[None])[metric][0])
        raise self._infeasible(smallest)

    def _descend(self, row: Array, score: Callable[[Mapping[str, Array]], Array]) -> Array:
        """Return where single-gene steps to the lowest score end, shape (genes,)."""
        best = float(score(self._rows.price(row[None]))[0])
        for _ in range(DESCENT_STEPS):
            around = self._rows.neighbours(row)
            scores = score(self._rows.price(around))
            step = int(scores.argmin())
            if scores[step] >= best:
                break
            row, best = around[step], float(scores[step])
        return row

    def _infeasible(self, smallest: Mapping[str, float]) -> InfeasibleBudget:
        """Return the error for a budget nothing meets; names the metric furthest away."""
        metric = max(self._budgets, key=lambda name: smallest[name] / self._budgets[name])
        limit, least = self._budgets[metric], smallest[metric]
        how = "of all" if self.is_exhaustive else "found among"
        looked = f"{how} {self._rows.looked_at:,} candidates"
        if least <= limit:
            names = " and ".join(self._budgets)
            text = f"no candidate meets the budgets on {names} together, though each can be met"
        else:
            text = (
                f"no candidate meets {metric} <= {describe_cost(metric, limit)}: the smallest "
                f"{looked} is {describe_cost(metric, least)}"
            )
        return InfeasibleBudget(
            f"{text}. Raise the budget or widen the space.",
            metric=metric,
            budget=limit,
            smallest=least,
        )

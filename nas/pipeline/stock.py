"""Candidates that plain timm can build: their genes, and prices for no others."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from nas.errors import InfeasibleBudget
from nas.pipeline.allocation import Choice, Costs
from nas.pipeline.budget import Budget
from nas.search.rows import Rows
from nas.seeds import stage_seed
from nas.space import Architecture, SearchSpace
from nas.space.stock import StockGenes
from nas.study import describe_cost

DRAWS = 4096  # of which the cheapest is gone down from
STEPS = 200


class StockAlone:
    """A completion (see `nas.pipeline.allocation`) for what timm's own classes can be.

    Inner numbers are genes; those that timm has once for a network are one gene. A choice whose
    network is no class of timm's costs infinity, so that no search evaluates it.

    Args:
        space: The space.
        prices: {metric: pricer of codes of the space}.
    """

    def __init__(self, space: SearchSpace, prices: Mapping[str, Callable[[Any], Costs]]) -> None:
        self._space, self._prices = space, prices
        self._stock = StockGenes(space)
        self.genes: Mapping[str, tuple[Any, ...]] = self._stock.genes

    def canonical(self, choice: Choice) -> dict[str, Any]:
        """Return a choice with inactive genes at their first options."""
        return self._stock.canonical(choice)

    def architecture(self, choice: Choice) -> Architecture:
        """Return the network of a choice."""
        return self._space.architecture(self._stock.full(choice))

    def price(self, choices: Sequence[Choice]) -> dict[str, Costs]:
        """Return {metric: shape (n,)}; infinity where timm cannot build the network."""
        codes = self._space.encode([self._stock.full(choice) for choice in choices])
        is_stock = self._stock.is_stock(codes)
        return {
            metric: np.where(is_stock, pricer(codes), np.inf)
            for metric, pricer in self._prices.items()
        }

    def bounds(self, choices: Sequence[Choice]) -> tuple[dict[str, Costs], dict[str, Costs]]:
        """Return the price twice: it is known."""
        costs = self.price(choices)
        return costs, costs

    def check_reachable(self, budget: Budget) -> None:
        """Raise InfeasibleBudget if no stock network is known, or the cheapest is over a budget."""
        for metric, limit in budget.limits.items():
            lowest = np.inf if self._stock.is_empty else self._cheapest(metric)
            if lowest <= limit:
                continue
            if np.isinf(lowest):
                text = (
                    f"no network of {self._space.name} was found that plain timm can build: its "
                    "classes are EfficientFormer (attention with 8 heads, keys of 32 and values of "
                    "128 at a side of 7, two classifiers) and EfficientViT. Search efficientformer "
                    "or efficientvit, or leave --stock out."
                )
            else:
                text = (
                    f"no network of {self._space.name} that plain timm can build meets {metric} <= "
                    f"{describe_cost(metric, limit)}: the lowest found is "
                    f"{describe_cost(metric, lowest)}. Raise the budget, or leave --stock out."
                )
            raise InfeasibleBudget(text, metric=metric, budget=limit, smallest=lowest)

    def _cheapest(self, metric: str) -> float:
        """Return the lowest cost found: the lowest of many draws, one gene changed at a time."""

        def price(choices: Sequence[Choice]) -> dict[str, Costs]:
            return {metric: self.price(choices)[metric]}

        if not self.genes:
            return float(price([{}])[metric][0])
        rows = Rows(self.genes, price, {}, seed=stage_seed(0, "stock"))
        codes = rows.all() if rows.count <= DRAWS else rows.draw(DRAWS)
        costs = rows.price(codes)[metric]
        row, lowest = codes[int(costs.argmin())], float(costs.min())
        for _ in range(STEPS if np.isfinite(lowest) else 0):
            around = rows.neighbours(row)
            costs = rows.price(around)[metric]
            if float(costs.min()) >= lowest:
                break
            row, lowest = around[int(costs.argmin())], float(costs.min())
        return lowest

"""How the choices of a run become networks, and the level of latency that is searched."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from nas.pipeline.allocation import Allocator, Completion, GenesAlone
from nas.pipeline.budget import Budget, Pricer
from nas.pipeline.config import RunConfig
from nas.pipeline.importance import loss_table
from nas.pipeline.materials import Materials
from nas.pipeline.part_costs import PartCosts
from nas.pipeline.run import Run
from nas.pipeline.stock import StockAlone
from nas.study import latency_metric


def completion_of(
    run: Run, materials: Materials, prices: Mapping[str, Pricer], budget: Budget
) -> Completion:
    """Return how choices become networks: inner numbers as genes, timm's own, or allocated.

    Allocation fills the latency budgets less the margin, which is for the tables' errors, and
    keeps to all others as they are.

    Raises:
        InfeasibleBudget: the run asks for what plain timm can build, and none of that meets them.
    """
    space, config = materials.space, run.config
    if config.stock:
        stock = StockAlone(space, prices)
        stock.check_reachable(budget)
        return stock
    if config.importance == "none":
        return GenesAlone(space, prices)
    tables = {latency_metric(name): table for name, table in materials.search_tables.items()}
    limits = {
        metric: limit * (1 - config.margin) if metric in budget.latencies_ms else limit
        for metric, limit in budget.limits.items()
    }
    losses = loss_table(run, materials)
    return Allocator(space, losses, PartCosts(tables, space), limits)


@dataclass(frozen=True, slots=True, kw_only=True)
class Level:
    """The level that is searched: from `least_use` to 1 - `margin` of the tightest latency budget.

    Attributes:
        limits: Latency metric -> budget in ms.
        middle: Of the level, as a share of the budget.
        half: Its half width.
    """

    limits: Mapping[str, float]
    middle: float
    half: float

    @classmethod
    def of(cls, config: RunConfig, budget: Budget) -> "Level":
        """Return the level of a run's settings; a front has no lower end."""
        high = 1 - config.margin
        low = config.least_use if config.mode == "best" else 0.0
        return cls(limits=budget.latencies_ms, middle=(high + low) / 2, half=(high - low) / 2)

    def off(self, least: Mapping[str, Any], most: Mapping[str, Any]) -> Any:  # Any: arrays (n,)
        """Return how far from the middle, as a share of the budget, networks are at least, (n,).

        Args:
            least: What they cost at least, by metric.
            most: What they cost at most; the same where the cost is known.
        """
        low = np.max([least[metric] / limit for metric, limit in self.limits.items()], axis=0)
        high = np.max([most[metric] / limit for metric, limit in self.limits.items()], axis=0)
        return np.maximum(np.maximum(low - self.middle, self.middle - high), 0.0)

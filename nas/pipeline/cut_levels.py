"""To which level one network is cut: the budgets by the table, and what was measured whole."""

from collections.abc import Mapping, Sequence

import numpy as np

from nas.block import Block
from nas.errors import ConfigError, InfeasibleBudget
from nas.latency import Timing
from nas.pipeline.budget import parse_share
from nas.pipeline.cuts import Cuts
from nas.pipeline.materials import Timed
from nas.pipeline.part_costs import PartCosts
from nas.search import parse_budgets, parse_latency
from nas.search.budgets import resolve_budgets
from nas.study import describe_cost, latency_metric

TRIES = 5  # levels tried where a network is slower than its table says
TIGHTER = 0.995  # of the level that would just do


class Levels:
    """The budgets of one network, and networks held against them.

    Args:
        cuts: What may be cut.
        costs: Prices in every metric.
        target_id: Of the target whose latency is budgeted.
        timed: Times whole networks there; None where nobody can.
    """

    def __init__(self, cuts: Cuts, costs: PartCosts, target_id: str, timed: Timed | None) -> None:
        self.cuts, self.target_id = cuts, target_id
        self.metric = latency_metric(target_id)
        self._costs, self._timed = costs, timed
        self._timings: dict[tuple[Block, ...], Timing] = {}

    def limits(self, latency_budget: str, budgets: Sequence[str]) -> dict[str, float]:
        """Return {metric: limit}; a share is of the latency of the network as it is.

        That is the one measured, or the predicted one where nobody can measure.

        Raises:
            ConfigError: not a time with its unit, nor a share of 0 to 100 %; or an unknown metric.
        """
        share = parse_share(latency_budget)
        if share is not None:
            timing = self.timing(self.cuts.blocks)
            whole_ms = self.predicted(self.cuts.blocks)[self.metric]
            limit_ms = share * (whole_ms if timing is None else timing.median_ms)
        else:
            limit_ms = parse_latency(latency_budget)
        others = resolve_budgets(parse_budgets(budgets), self._costs.metrics)
        if self.metric in others:
            raise ConfigError(
                f"one budget a metric: that of {self.metric} is --latency-budget, but --budget "
                "gives it as well. Leave that out."
            )
        return {self.metric: limit_ms, **others}

    def predicted(self, blocks: Sequence[Block]) -> dict[str, float]:
        """Return what a network costs by the table and its formulas, by metric."""
        terms = np.sum([self._costs.terms(block) for block in blocks], axis=0)
        return {name: float(cost) for name, cost in self._costs.totals(terms).items()}

    def timing(self, blocks: tuple[Block, ...]) -> Timing | None:
        """Return a network's measured latency, each network timed once; None: nobody can."""
        if self._timed is None:
            return None
        if blocks not in self._timings:
            self._timings[blocks] = self._timed({"network": blocks})["network"]
        return self._timings[blocks]

    def timings(self, blocks: tuple[Block, ...]) -> dict[str, Timing]:
        """Return what was measured of the network as it was ("before") and as it is ("after")."""
        pairs = {"before": self.cuts.blocks, "after": blocks}
        return {name: self._timings[own] for name, own in pairs.items() if own in self._timings}

    def meet(self, blocks: tuple[Block, ...], limits: Mapping[str, float]) -> bool:
        """Return whether a network is within all limits, by the table and, if it can be, timed."""
        costs = self.predicted(blocks)
        if any(costs[metric] > limit for metric, limit in limits.items()):
            return False
        timing = self.timing(blocks)
        return timing is None or timing.ci_high_ms <= limits[self.metric]

    def lowered(
        self, losses: Sequence[list[float]], limits: Mapping[str, float]
    ) -> tuple[Block, ...]:
        """Return the blocks that lose least within the limits, timed within them too.

        A network that is slower than its price is tried again at a level that is as much lower.

        Args:
            losses: In nats, of every option of every spot.
            limits: {metric: limit}.

        Raises:
            InfeasibleBudget: none does; the message names the least.
        """
        aims, limit_ms = dict(limits), limits[self.metric]
        nearest_ms = np.inf
        for turn in range(TRIES):
            try:
                blocks = self.cuts.applied(self.cuts.fit(losses, self._costs, aims))
            except InfeasibleBudget as error:
                if turn == 0:
                    raise
                raise self._too_slow(nearest_ms, limit_ms) from error
            timing = self.timing(blocks)
            if timing is None or timing.ci_high_ms <= limit_ms:
                return blocks
            nearest_ms = min(nearest_ms, timing.ci_high_ms)
            price_ms = min(self.predicted(blocks)[self.metric], aims[self.metric])
            aims[self.metric] = TIGHTER * price_ms * limit_ms / timing.ci_high_ms
        raise self._too_slow(nearest_ms, limit_ms)

    def _too_slow(self, nearest_ms: float, limit_ms: float) -> InfeasibleBudget:
        return InfeasibleBudget(
            f"no cut of this network meets {describe_cost(self.metric, limit_ms)} when measured "
            f"whole; the nearest takes {describe_cost(self.metric, nearest_ms)}. Raise the budget, "
            "measure on a quiet machine, or prune a smaller network.",
            metric=self.metric,
            budget=limit_ms,
            smallest=float(nearest_ms),
        )

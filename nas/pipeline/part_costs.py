"""Costs of networks in every metric a budget may name, as sums over their parts."""

from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from nas.block import Block
from nas.latency import LatencyTable
from nas.latency.part_prices import NUM_TERMS, PartPrices
from nas.latency.table import Fitted

Terms: TypeAlias = npt.NDArray[np.float64]
SIZES = ("params", "macs", "bytes")
BYTES_A_PARAMETER = 4


class PartCosts:
    """Terms of blocks and parts that add up over a network, and costs of such sums.

    The terms are those of each latency table (`PartPrices`), then parameters and MACs.

    Args:
        tables: Latency metric -> the table of its target.
        space: The space whose calibrations are used, or a calibration.
    """

    def __init__(self, tables: Mapping[str, LatencyTable], space: Fitted) -> None:
        self._prices = {metric: PartPrices(table, space) for metric, table in tables.items()}
        self._known: dict[Block, Terms] = {}
        self.metrics = (*tables, *SIZES)
        self.count = NUM_TERMS * len(tables) + 2

    def terms(self, block: Block) -> Terms:
        """Return the terms of a block or a part, shape (count,).

        Raises:
            ConfigError: a table lacks an entry.
        """
        found = self._known.get(block)
        if found is None:
            own: list[float] = []
            for prices in self._prices.values():
                own += prices.terms(block)
            found = np.array([*own, float(block.params), float(block.macs)])
            self._known[block] = found
        return found

    def totals(self, terms: Terms) -> dict[str, Any]:  # Any: floats, or arrays of them
        """Return {metric: cost, shape (...)} of sums of terms, shape (..., count)."""
        found: dict[str, Any] = {}
        for place, (metric, prices) in enumerate(self._prices.items()):
            first = NUM_TERMS * place
            found[metric] = prices.total_ms(terms[..., first : first + NUM_TERMS])
        params = terms[..., -2]
        costs = (params, terms[..., -1], BYTES_A_PARAMETER * params)
        return {**found, **dict(zip(SIZES, costs, strict=True))}

    def slopes(self, metric: str, terms: Terms) -> Terms:
        """Return how a metric grows with each term, shape (count,), at a network's terms."""
        found = np.zeros(self.count)
        if metric in SIZES:
            found[-1 if metric == "macs" else -2] = 1 if metric != "bytes" else BYTES_A_PARAMETER
            return found
        first = NUM_TERMS * list(self._prices).index(metric)
        found[first : first + NUM_TERMS] = self._prices[metric].slopes(
            terms[first : first + NUM_TERMS]
        )
        return found

    @property
    def are_sums(self) -> bool:
        """Whether every metric is a sum over parts, with the same slopes everywhere."""
        return all(prices.is_sum for prices in self._prices.values())

    def prices_whole(self, block: Block) -> bool:
        """Return whether some table has a price for the block as a whole, not its parts."""
        return any(prices.prices_whole(block) for prices in self._prices.values())

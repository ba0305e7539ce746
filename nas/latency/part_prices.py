"""A table's prices as sums over parts, for choosing the parts: what adds up, and at which rate."""

from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from nas.block import Block
from nas.errors import ConfigError
from nas.latency.calibration import footprint_mb
from nas.latency.table import Fitted, LatencyTable

# Along the last axis: ms, ms more where nothing of it is cached, megabytes of the caches.
Terms: TypeAlias = npt.NDArray[np.float64]
NUM_TERMS = 3


class PartPrices:
    """What blocks and parts of blocks add to the latency of a network of one space.

    A calibrated latency is no sum over parts: what does not stay in the caches costs more, and how
    much of it does not stay depends on the whole network (`Calibration`). But it is a function
    t(a, e, f) = constant + a + e x share(f) + far(f) of three sums over parts, the terms. Near a
    network with the sums (a, e, f) a part with terms (da, de, df) adds

        da + share(f) x de + (e x share'(f) + far'(f)) x df

    to first order: its own time, its weights and cold start at the network's share, and what its
    megabytes push out of the caches of all others. Without a memory term that is da, and exact.

    Args:
        table: Prices of the target.
        space: The space whose calibration is used, if the table has one, or a calibration.
    """

    def __init__(self, table: LatencyTable, space: Fitted) -> None:
        self.table = table
        self._fit = table.calibration(space)

    def terms(self, block: Block) -> tuple[float, float, float]:
        """Return the terms of a block or of a part; they add up over the parts of a network.

        Raises:
            ConfigError: the table lacks an entry, or what it costs with cold caches where its
                calibration counts that.
        """
        own_ms = self.table.block_ms(block, self._fit)
        if self._fit is None or not self._fit.counts_memory:
            return own_ms, 0.0, 0.0
        cold_ms = self.table.cold_ms(block, self._fit) if self._fit.counts_cold else 0.0
        if cold_ms is None:
            raise ConfigError(
                f"the latency table {self.table.path or self.table.target.id} does not say what "
                f"{block} costs with cold caches, which its calibration counts. Delete it and run "
                "`nas profile` again."
            )
        extra_ms = self._fit.extra_ms(np.array(cold_ms), np.array(block.bytes / 1e6))
        return own_ms, float(extra_ms), footprint_mb(block)

    def total_ms(self, terms: Terms) -> npt.NDArray[np.float64]:
        """Return latencies in ms, shape (...), of sums of terms, shape (..., 3)."""
        terms = np.asarray(terms, dtype=np.float64)
        if self._fit is None:
            return terms[..., 0]
        return self._fit.total(terms[..., 0], terms[..., 1], terms[..., 2])

    def slopes(self, terms: Terms) -> Terms:
        """Return how the latency grows with each sum, shape (3,), at a network's terms (3,)."""
        if self._fit is None:
            return np.array([1.0, 0.0, 0.0])
        return np.array(self._fit.slopes(float(terms[1]), float(terms[2])))

    def prices_whole(self, block: Block) -> bool:
        """Return whether a block of several parts has a price of its own, which they do not add to.

        Raises:
            ConfigError: the table lacks an entry.
        """
        names = [name for name, _ in self.table.entries_of(block, self._fit)]
        return names == [str(block)] != list(map(str, block.parts()))

    @property
    def is_sum(self) -> bool:
        """Whether the latency is a sum over parts, and slopes are the same everywhere."""
        return self._fit is None or not self._fit.counts_memory

"""Which samples count: those taken while nobody else had the processor or the shared cache."""

import math
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from nas.latency.bench import Times

MAX_WALL_PER_CPU = 1.05
MAX_REFERENCE = 1.10  # of its floor: the lowest 2nd percentile known on this machine
REFERENCE_FLOOR = 0.02
GUARD_KNOWN = "guard_19mb_by_reference"  # by which name tables note it: of this guard, no other
MAX_GUARD = 1.15  # of its floor, by the reference's
SAME_SPEED = 0.03  # by how much the reference must differ for the speed to be another one
MAX_SLOWER = 1.3  # of the reference known: slower than that, the core is shared


@dataclass(frozen=True, slots=True, kw_only=True)
class Known:
    """A machine at its best, None where that is not known yet: what a session is held to.

    The ms of the reference kernel, and what the guard takes by what the reference takes then. A
    session in which the reference is slower than MAX_SLOWER times that, or the guard than MAX_GUARD
    times, is waited for, then accepted as grade C.

    `begun_ms` is what the reference took when the table was begun, whose speed its prices are of.

    `patience_s` is how long a session that is slower at all is waited for, before that is taken for
    its clock. Times that are held only against others of the same session need none.
    """

    reference_ms: float | None = None
    guard_by_reference: float | None = None
    begun_ms: float | None = None
    patience_s: float = 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """Says which samples are clean: of a target's threads, by what is known of this machine.

    Clocks that rise and fall slow all networks alike, which anchors put right. A neighbour on the
    same core does not, and keeps the reference above `max_slower` of what is known; one in the
    shared cache keeps the guard above MAX_GUARD of it, by the reference.
    """

    threads: int
    known_ms: float
    guard_known: float
    patience_s: float = 0.0
    max_slower: float = MAX_SLOWER

    @classmethod
    def by(cls, known: Known, threads: int) -> "Judge":
        """Return who judges a session by what is known."""
        given = (known.reference_ms, known.guard_by_reference)
        known_ms, guard_known = (math.inf if value is None else value for value in given)
        return cls(
            threads=threads,
            known_ms=known_ms,
            guard_known=guard_known,
            patience_s=known.patience_s,
        )

    def after(self, seconds: float) -> "Judge":
        """Return who judges a session that is so old: while there is patience, no clock is taken
        for a slow one, and the speed that is known is waited for."""
        return replace(self, max_slower=MAX_REFERENCE) if seconds < self.patience_s else self

    def is_clean(self, record: Times, *, by_session: bool = False) -> npt.NDArray[np.bool_]:
        """Return which rows had a processor all the time, at a moment when reference and guard were
        fast: as fast as is known, or as they were in this session."""
        has_core, has_cache = self._undisturbed(record, by_session=by_session)
        return has_core & has_cache

    def disturbance(self, record: Times) -> str:
        """Return why most rows of the last round are not clean, in words; "" if they are."""
        rows = record[:, 1] == record[-1, 1]
        has_core, has_cache = (mask[rows] for mask in self._undisturbed(record, by_session=False))
        if np.mean(has_core & has_cache) >= 0.5:
            return ""
        whose = "the processor" if has_core.sum() <= has_cache.sum() else "the shared cache"
        return f"waiting for others to leave {whose}"

    def _undisturbed(
        self, record: Times, *, by_session: bool
    ) -> tuple[npt.NDArray[np.bool_], npt.NDArray[np.bool_]]:
        """Return which rows had the processor to themselves, and which the shared cache."""
        ratio = record[:, 2] / record[:, 3]
        if self.threads > 1:
            for index in np.unique(record[:, 0]):
                rows = record[:, 0] == index
                ratio[rows] /= np.quantile(ratio[rows], 0.1)
        floor_ms = floor(record) if by_session else self._level(record)
        guard_ms = guard_floor(record) if by_session else self._guard_level(record)
        has_core = (ratio <= MAX_WALL_PER_CPU) & (record[:, 4] <= MAX_REFERENCE * floor_ms)
        return has_core, record[:, 5] <= MAX_GUARD * guard_ms

    def slower(self, record: Times) -> str | None:
        """Return in which way the machine was slower all the time than it is known to be."""
        floor_ms, guard_ms = floor(record), guard_floor(record)
        if floor_ms > self._level(record):
            by = 100 * (floor_ms / self.known_ms - 1)
            return f"this machine is {by:.0f} % slower than it was when its latency table was begun"
        if guard_ms > MAX_GUARD * self._guard_level(record):
            by = 100 * (guard_ms / self._guard_level(record) - 1)
            return (
                f"the cache that cores share is in use by others: a layer of many weights takes "
                f"{by:.0f} % longer than when the latency table was begun"
            )
        return None

    def _level(self, record: Times) -> float:
        """Return what the reference must take: its floor here, or that known if this is too
        slow."""
        floor_ms = floor(record)
        return floor_ms if floor_ms <= self.max_slower * self.known_ms else self.known_ms

    def _guard_level(self, record: Times) -> float:
        return min(guard_floor(record), self.guard_known * floor(record))


def floor(record: Times) -> float:
    """Return what the reference takes in this session when nothing interferes, in ms."""
    return float(np.quantile(record[:, 4], REFERENCE_FLOOR))


def guard_floor(record: Times) -> float:
    """Return what the guard takes in this session at its best, in ms; 0 without one."""
    return float(np.quantile(record[:, 5], REFERENCE_FLOOR))

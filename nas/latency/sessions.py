"""A session: chains exported, joined and timed together, and set against what a table knows.

Machines change their mood between sessions. What is subtracted from each other is timed in one
session; what is only added up (entries of other batches, whole networks to fit on) is made
comparable in two ways. While the reference says that a core is shared, which slows small networks
more than large ones, a session waits. That clocks rise and fall, which slows all alike, is put
right by anchors: a few entries of the table are timed again, alone, and the median of new by old
divides the rest.
"""

import logging
import tempfile
import time
from collections.abc import Callable, Collection, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace
from pathlib import Path

import numpy as np

from nas.block import Block, parse
from nas.latency.bench import Bench
from nas.latency.compose import Workshop
from nas.latency.guard import GUARD, with_guard
from nas.latency.judge import GUARD_KNOWN, MAX_REFERENCE
from nas.latency.measure import Progress, by_bytes, loadable_bytes
from nas.latency.plan import session_seconds
from nas.latency.profile_config import ProfileConfig
from nas.latency.recipes import Chain, parts_of
from nas.latency.rounds import Unsure, measure, sure, with_reason
from nas.latency.table import BEGUN, LatencyTable
from nas.latency.timing import MIN_CLEAN, Series
from nas.target import Target

logger = logging.getLogger(__name__)

Benches = Callable[[Target, ProfileConfig], AbstractContextManager[Bench]]

ANCHORS = 16
EXPORTED, LOADED = 0.35, 0.45  # shares of a session's time by then


class Teller:
    """Turns the shares of sessions into progress with the time that is left.

    Args:
        progress: Told (things timed, things to time in all, text).
        total: Entries and whole networks in all.
        seconds: What all sessions together should take.
        done: Things timed before.
    """

    def __init__(self, progress: Progress, total: int, seconds: float, *, done: int = 0) -> None:
        self._progress, self._total, self._planned_s = progress, total, seconds
        self._began_s = time.monotonic()
        self._before_s = self._session_s = 0.0
        self._done, self._count = done, 0

    def begin(self, count: int, seconds: float) -> None:
        """Start a session for `count` entries or networks that should take so long."""
        self._done, self._before_s = self._done + self._count, self._before_s + self._session_s
        self._count, self._session_s = count, seconds

    def tell(self, share: float, text: str) -> None:
        """Say which share of the session is done."""
        planned_s = self._before_s + share * self._session_s
        left_s = self._planned_s - planned_s
        if planned_s > 0.1 * self._planned_s:
            left_s *= (time.monotonic() - self._began_s) / planned_s
        done = self._done + int(max(0.0, share - LOADED) / (1 - LOADED) * self._count)
        self._progress(done, self._total, f"{text}, about {max(left_s, 1):.0f} s left")


class Sessions:
    """Times chains for one table, a session at a time.

    Args:
        target: What to time on.
        config: How carefully.
        workshop: Makes the files.
        benches: Makes the place where they run.
        teller: Told how far it is.
    """

    def __init__(
        self,
        target: Target,
        config: ProfileConfig,
        workshop: Workshop,
        benches: Benches,
        teller: Teller,
    ) -> None:
        self._target, self._config = target, config
        self._workshop, self._benches, self._teller = workshop, benches, teller

    def time(
        self,
        table: LatencyTable,
        chains: Mapping[str, Chain],
        what: str,
        *,
        cold: Collection[str] = (),
        is_guarded: bool = False,
        unsure: Unsure = sure,
    ) -> tuple[LatencyTable, dict[str, Series]]:
        """Return the samples of chains, as if taken when the table was begun; of some cold too.

        `unsure` names those that want more samples than `measure` takes of each (see there).
        With `is_guarded` they are timed while nobody else fills the shared cache, or are grade C,
        unless all are too small to need it.
        The table comes back knowing this session: `reference_ms`, the lowest seen,
        GUARD_KNOWN, the same of the guard, and `drift`, what this session's times were
        divided by.
        """
        anchors = anchors_of(table)
        every = {**anchors, **(with_guard(chains, self._target) if is_guarded else chains)}
        self._teller.tell(0.0, f"exporting {what}")
        self._workshop.export(list(every.values()))
        with tempfile.TemporaryDirectory() as folder:
            self._teller.tell(EXPORTED, f"loading {what}")
            paths = self._workshop.join(every, Path(folder))
            with self._benches(self._target, self._config) as bench:
                series = measure(
                    bench,
                    paths,
                    self._config,
                    threads=self._target.threads,
                    known=table.known,
                    cold=cold,
                    unsure=unsure,
                    tick=lambda share, why: self._teller.tell(
                        LOADED + (1 - LOADED) * share, with_reason(f"timing {what}", why)
                    ),
                )
        drift = drift_of(table, {name: series[name] for name in anchors})
        logger.info("this session ran at %.3f of the table's times", drift)
        seen_ms = min(item.reference_ms for item in series.values())
        guards = series.pop(GUARD, None)
        if guards is not None:
            best = guards.guard_ms / guards.reference_ms
            usual = guards.median_ms / guards.reference_ms
            logger.info("the guard took %.3g of the reference, %.3g at its best", usual, best)
            if table.known.guard_by_reference is not None:
                best = min(best, table.known.guard_by_reference)
            provenance = {**table.provenance, GUARD_KNOWN: round(best, 4)}
            table = replace(table, provenance=provenance)
        scaled = {
            name: replace(item, all_ms=item.all_ms / drift)
            for name, item in series.items()
            if name not in anchors or name in chains
        }
        return _noted(table, seen_ms, drift), scaled

    def networks(
        self,
        table: LatencyTable,
        networks: Mapping[str, Sequence[Block]],
        *,
        keep: Callable[[LatencyTable, Mapping[str, Series]], None] = lambda table, series: None,
    ) -> tuple[LatencyTable, dict[str, Series]]:
        """Return the samples of whole networks of random weights, as `time` does.

        `keep` is given those of each group that is loaded together, as soon as it is done.

        See `time_networks` for how they are made.

        Raises:
            UnreliableTiming: a network has too few clean samples; or, if strict, is grade C.
        """
        chains = {name: tuple(blocks) for name, blocks in networks.items()}
        held = self._config.held
        sizes = {name: held * sum(block.bytes for block in own) for name, own in chains.items()}
        series: dict[str, Series] = {}
        for group in by_bytes(sizes, loadable_bytes(self._target)):
            of_group = [parts_of(chains[name]) for name in group]
            seconds = session_seconds(self._config, self._target, networks=of_group)
            self._teller.begin(len(group), seconds)
            table, found = self.time(
                table, {name: chains[name] for name in group}, "whole networks", is_guarded=True
            )
            for name, item in found.items():
                item.require(f"network {name}", strict=self._config.strict)
            keep(table, found)
            series |= found
        return table, series


def anchors_of(table: LatencyTable) -> dict[str, Chain]:
    """Return up to ANCHORS measured entries of a table's dearer half, evenly over their prices."""
    measured = [name for name in table.entries if table.entries[name].interpolated is None]
    names = sorted(measured, key=lambda name: (table.entries[name].isolated_ms, name))
    dearer = names[len(names) // 2 :]
    if not dearer:
        return {}
    places = np.linspace(0, len(dearer) - 1, min(ANCHORS, len(dearer))).astype(int)
    return {dearer[place]: parse(dearer[place]).parts() for place in places}


def drift_of(table: LatencyTable, anchors: Mapping[str, Series]) -> float:
    """Return how much slower a session was than the table's times: 1 is neither."""
    ratios = [
        series.median_ms / table.entries[name].isolated_ms
        for name, series in anchors.items()
        if series.is_clean.sum() >= MIN_CLEAN
    ]
    return float(np.median(ratios)) if ratios else 1.0


def _noted(table: LatencyTable, seen_ms: float, drift: float) -> LatencyTable:
    known_ms = table.known.reference_ms or seen_ms
    if seen_ms * MAX_REFERENCE < known_ms:
        logger.warning(
            "this machine is %.0f %% faster now than when the table %s was begun: its entries "
            "are too high by about as much. Delete it to have it measured anew",
            100 * (known_ms / seen_ms - 1),
            table.path,
        )
    provenance = {
        BEGUN: round(known_ms, 6),
        **table.provenance,
        "reference_ms": round(min(seen_ms, known_ms), 6),
        "drift": [*table.provenance.get("drift", []), round(drift, 4)],
    }
    return replace(table, provenance=provenance)

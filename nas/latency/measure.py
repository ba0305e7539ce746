"""Timing whole networks: as many loaded at once as memory holds, each with its Timing."""

import logging
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import replace
from functools import partial
from pathlib import Path

from nas.environment import memory_bytes
from nas.latency.bench import Bench
from nas.latency.compose import weight_bytes
from nas.latency.guard import GUARD
from nas.latency.judge import SAME_SPEED, Known
from nas.latency.profile_config import ProfileConfig
from nas.latency.rounds import measure, with_reason
from nas.latency.several import bench_here
from nas.latency.timing import Series, Timing, summarise
from nas.target import Target

MIN_LOADED_BYTES = 1024 * 1024 * 1024  # of weights in files; a runtime holds about twice that
LOADED_SHARE = 0.2  # of this machine's memory, where that is more
# How long full speed is waited for. A budget is in ms: on a shared machine whole minutes pass in
# which everything takes 1.3 times as long, which looks like a lower clock (LOG.md, 2026-11-30).
PATIENCE_S = 60.0

Progress = Callable[[int, int, str], None]
logger = logging.getLogger(__name__)


def measure_networks(
    networks: Mapping[str, Path],
    target: Target,
    config: ProfileConfig,
    *,
    progress: Progress = lambda done, total, text: None,
    known: Known | None = None,
    guard: Path | None = None,
    bench: Bench | None = None,
) -> dict[str, Timing]:
    """Return the Timing of whole networks, interleaved with each other and with the reference.

    Args:
        networks: Name to a file of the kind the runtime takes: ONNX; or a timm folder, or JSON of
            parts.
        target: What to measure on; must be this machine's.
        config: How carefully.
        progress: Told (done, total, text) as samples come in.
        known: `known` of the table that the result will be compared with, so that both are of the
            machine at its best.
        guard: The file that tells whether others fill the shared cache (`guard_file`); networks
            are timed while they do not, or are grade C.
        bench: Where to run them instead of a child process of this one.

    Raises:
        UnreliableTiming: a network got fewer than three clean samples, or is grade C and strict.
        DeviceError: a network crashed or hung; the message names it.
    """
    if bench is None:
        with child_bench(target, config) as child:
            return measure_networks(
                networks, target, config, progress=progress, known=known, guard=guard, bench=child
            )
    guards = {} if guard is None else {GUARD: guard}
    found: dict[str, Series] = {}
    sizes = {name: config.held * weight_bytes(path) for name, path in networks.items()}
    for group in by_bytes(sizes, loadable_bytes(target)):
        found |= measure(
            bench,
            {name: networks[name] for name in group} | guards,
            config,
            threads=target.threads,
            known=replace(known or Known(), patience_s=min(PATIENCE_S, config.time_limit_s)),
            tick=partial(_tell, progress, len(found), len(group), len(networks)),
        )
    found.pop(GUARD, None)
    for name, series in found.items():
        series.require(name, strict=config.strict)
    progress(len(networks), len(networks), "whole networks timed")
    return {name: summarise(series, seed=config.seed) for name, series in found.items()}


def at_begun_speed(timings: Mapping[str, Timing], known: Known) -> dict[str, Timing]:
    """Return timings at the speed a table was begun at, where the machine is faster now."""
    scaled = {name: timing.at_speed(known.begun_ms) for name, timing in timings.items()}
    ratios = (timing.median_ms / timings[name].median_ms for name, timing in scaled.items())
    faster = max(ratios, default=1.0)
    if faster > 1 + SAME_SPEED:
        logger.warning(
            "this machine is %.0f %% faster now than when its latency table was begun: times are "
            "told as at that speed, so that budgets are kept when it slows down again",
            100 * (faster - 1),
        )
    return scaled


def child_bench(target: Target, config: ProfileConfig) -> AbstractContextManager[Bench]:
    """Return a bench in child processes of this one, as many as the config says."""
    return bench_here(
        target, processes=config.processes, loads=config.loads, timeout_s=config.timeout_s
    )


def _tell(progress: Progress, before: int, count: int, total: int, share: float, why: str) -> None:
    progress(before + int(share * count), total, with_reason("timing whole networks", why))


def loadable_bytes(target: Target) -> int:
    """Return how many bytes of weights may be loaded at once, where the target's machine is."""
    here = int(LOADED_SHARE * memory_bytes()) if target.is_here() else 0
    return max(MIN_LOADED_BYTES, here)


def by_bytes(sizes: Mapping[str, int], limit: int, *, at_most: int = 1_000_000) -> list[list[str]]:
    """Return the names in groups, in order, small enough to be loaded at once.

    Args:
        sizes: Bytes of weights behind each name.
        limit: Bytes of weights in a group; a larger network has a group of its own.
        at_most: Names in a group.
    """
    groups: list[list[str]] = []
    total = 0
    for name, size in sizes.items():
        if not groups or total + size > limit or len(groups[-1]) >= at_most:
            groups.append([])
            total = 0
        groups[-1].append(name)
        total += size
    return groups

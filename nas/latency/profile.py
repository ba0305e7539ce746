"""Making a latency table: what is missing is exported, timed in batches and written down."""

import logging
import tempfile
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import asdict, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from nas.block import Block
from nas.errors import UnreliableTiming
from nas.files import lock
from nas.latency.bench import Bench, ChildBench
from nas.latency.calibrate import draw, fit
from nas.latency.compose import Export, Workshop
from nas.latency.measure import (
    MAX_REFERENCE,
    MAX_WALL_PER_CPU,
    PRIME_MS,
    SAMPLES_A_VISIT,
    ProfileConfig,
    Progress,
    by_bytes,
    measure,
)
from nas.latency.plan import Plan, batches_of, chains_of, plan_from, standing
from nas.latency.recipes import Chain, Recipe, chain_name, parts_of
from nas.latency.table import Entry, LatencyTable
from nas.latency.timing import Series, grade
from nas.space import SearchSpace
from nas.target import Target

logger = logging.getLogger(__name__)

Benches = Callable[[Target, ProfileConfig], AbstractContextManager[Bench]]

STANDARD_ERROR = 1.2533 / 1.349  # of a median: times interquartile range by root of samples
MAX_ERROR_A, MAX_ERROR_B = 0.02, 0.05  # standard error by price


def silent(done: int, total: int, text: str) -> None:
    """Ignore progress."""


def child_bench(target: Target, config: ProfileConfig) -> AbstractContextManager[Bench]:
    """Return a bench in a child process of its own."""
    return ChildBench(target, timeout_s=config.timeout_s)


def profile(
    needed: SearchSpace | Iterable[Block],
    target: Target,
    path: Path | str,
    config: ProfileConfig | None = None,
    progress: Progress = silent,
    *,
    benches: Benches = child_bench,
    export: Export | None = None,
) -> LatencyTable:
    """Measure what a space (or blocks) needs and the table at `path` lacks; return the table.

    The file is the record: it is written after every batch, so that a run that was ended at any
    moment goes on from there, and no entry is measured twice.

    Args:
        needed: A space, or the blocks to price.
        target: What to measure on.
        path: The table's file; made if it is not there.
        config: How carefully.
        progress: Told (entries done, entries missing at the start, text with the time left).
        benches: Makes the place where networks run; a child process for each batch by default.
        export: Writes ONNX files of parts; `nas.network.onnx.parts_to_onnx` by default.

    Raises:
        TryAgain: another process is writing this table.
        UnreliableTiming: an entry got too few clean samples; the others are kept.
        DeviceError: the runtime cannot run a part; the message names it.
        CorruptFile: the table that stands at `path` is damaged.
        ConfigError: it is of another target.
    """
    path = Path(path)
    config = config or ProfileConfig()
    with lock(path.with_name(path.name + ".lock")), tempfile.TemporaryDirectory() as scratch:
        table = standing(path, target)
        todo = plan_from(needed, table, config)
        if not table.protocol:
            table = replace(table, protocol=_protocol(config), provenance=_provenance(target))
        workshop = Workshop(Path(scratch), export, batch=target.batch)
        profiler = _Profiler(target, config, workshop, benches, _Teller(progress, todo))
        for batch in batches_of(todo.missing, config):
            table, unclear = profiler.add(table, batch)
            table = table.save(path)
            if unclear is not None:
                raise unclear
        if todo.networks:
            assert isinstance(needed, SearchSpace)
            table = profiler.calibrate(table, needed, todo.networks).save(path)
    progress(len(todo.missing), len(todo.missing), "the latency table is complete")
    return table


def _protocol(config: ProfileConfig) -> dict[str, float | int]:
    return {
        **asdict(config),
        "max_wall_per_cpu": MAX_WALL_PER_CPU,
        "max_reference": MAX_REFERENCE,
        "prime_ms": PRIME_MS,
        "samples_a_visit": SAMPLES_A_VISIT,
    }


def _provenance(target: Target) -> dict[str, str]:
    packages = ("hybrid-nas", "torch", "onnx", "onnxscript", target.runtime)
    versions = ", ".join(f"{name} {version(name)}" for name in packages)
    return {"exporter": f"{target.exporter}, opset {target.opset}", "versions": versions}


class _Profiler:
    """Times chains of parts for one table."""

    def __init__(
        self,
        target: Target,
        config: ProfileConfig,
        workshop: Workshop,
        benches: Benches,
        teller: "_Teller",
    ) -> None:
        self._target, self._config = target, config
        self._workshop, self._benches, self._teller = workshop, benches, teller

    def add(
        self, table: LatencyTable, batch: Sequence[Recipe]
    ) -> tuple[LatencyTable, UnreliableTiming | None]:
        """Return the table with what could be measured, and an error for what could not."""
        table, series = self._time(table, chains_of(batch), "parts", count=len(batch))
        entries = dict(table.entries)
        unclear: UnreliableTiming | None = None
        for item in batch:
            try:
                entries[item.entry] = entry(item, series, strict=self._config.strict)
            except UnreliableTiming as error:
                unclear = unclear or error
        self._teller.finished(len(batch))
        return replace(table, entries=entries), unclear

    def calibrate(self, table: LatencyTable, space: SearchSpace, count: int) -> LatencyTable:
        """Return the table with a fit on whole networks, drawn by level of price."""
        drawn = draw(space, count, seed=self._config.seed)
        blocks = {architecture.id: space.blocks(architecture) for architecture in drawn}
        chains = {name: parts_of(chain) for name, chain in blocks.items()}
        sizes = {name: sum(part.bytes for part in chain) for name, chain in chains.items()}
        series: dict[str, Series] = {}
        for group in by_bytes(sizes):
            some = {name: chains[name] for name in group}
            table, found = self._time(table, some, "whole networks", count=0)
            series |= found
        for name, item in series.items():
            item.require(f"network {name}", strict=self._config.strict)
        measured = np.array([np.median(series[name].clean_ms) for name in blocks])
        sums = np.array([table.estimate(chain) for chain in blocks.values()])
        fits = {**table.calibrations, space.name: fit(sums, measured, list(blocks))}
        return replace(table, calibrations=fits)

    def _time(
        self, table: LatencyTable, chains: Mapping[str, Chain], what: str, *, count: int
    ) -> tuple[LatencyTable, dict[str, Series]]:
        """Return the samples of chains, and the table knowing how fast this machine can be."""
        self._teller.say(f"exporting {what}")
        self._workshop.export(list(chains.values()))
        with tempfile.TemporaryDirectory() as folder:
            paths = self._workshop.join(chains, Path(folder))
            self._teller.say(f"loading {what}")
            with self._benches(self._target, self._config) as bench:
                series = measure(
                    bench,
                    paths,
                    self._config,
                    threads=self._target.threads,
                    reference_ms=table.reference_ms,
                    tick=lambda share: self._teller.tick(share, count, f"timing {what}"),
                )
        seen_ms = min(item.reference_ms for item in series.values())
        known_ms = table.reference_ms or seen_ms
        if seen_ms * MAX_REFERENCE < known_ms and table.entries:
            logger.warning(
                "this machine is %.0f %% faster now than when the table %s was begun: its entries "
                "are too high by about as much. Delete it to have it measured anew",
                100 * (known_ms / seen_ms - 1),
                table.path,
            )
        provenance = {**table.provenance, "reference_ms": round(min(seen_ms, known_ms), 6)}
        return replace(table, provenance=provenance), series


def entry(recipe: Recipe, series: Mapping[str, Series], *, strict: bool) -> Entry:
    """Return what a recipe's chains say of its entry.

    The price is a sum of medians. Its samples, for p10 and p90, are the same sum over the clean
    samples of the chains, taken together in order of time. A price that is not told from zero
    (below its standard error) is never 0: it is set to that error, with grade C, and `by` says so.

    Raises:
        UnreliableTiming: a chain has too few clean samples; or, if strict, the grade is C.
    """
    used = {chain_name(chain): weight for chain, weight in recipe.terms}
    for name in (*used, chain_name(recipe.alone)):
        series[name].require(f"{recipe.entry} ({name})", strict=False)
    count = min(len(series[name].clean_ms) for name in used)
    samples = sum((w * series[name].clean_ms[:count] for name, w in used.items()), np.zeros(count))
    ms = sum(weight * float(np.median(series[name].clean_ms)) for name, weight in used.items())
    p10, low, high, p90 = (float(value) for value in np.quantile(samples, [0.1, 0.25, 0.75, 0.9]))
    error_ms = STANDARD_ERROR * (high - low) / count**0.5
    letter = _grade([series[name] for name in used], error_ms / ms if ms > 0 else np.inf)
    by = recipe.by
    if ms <= error_ms or ms <= 0:
        ms, letter, by = max(error_ms, 1e-6), "C", by + "; not told from zero"
    if strict and letter == "C":
        raise UnreliableTiming(
            f"{recipe.entry}: its price of {ms:.4g} ms is only known to {error_ms:.2g} ms. Stop "
            "other programs on this machine, ask for more samples, or leave strict out."
        )
    return Entry(
        ms=round(ms, 7),
        isolated_ms=round(float(np.median(series[chain_name(recipe.alone)].clean_ms)), 7),
        p10=round(p10, 7),
        p90=round(p90, 7),
        clean=min(int(series[name].is_clean.sum()) for name in used),
        taken=max(len(series[name].all_ms) for name in used),
        grade=letter,
        by=by,
    )


def _grade(used: Sequence[Series], error: float) -> str:
    """Return the worst grade of the chains, and none better than the price's error allows."""
    letters = [grade(item.clean_ms, item) for item in used]
    letters.append("A" if error < MAX_ERROR_A else "B" if error < MAX_ERROR_B else "C")
    return max(letters)


class _Teller:
    """Turns shares of batches into progress with the time that is left."""

    def __init__(self, progress: Progress, todo: Plan) -> None:
        self._progress, self._todo = progress, todo
        self._total, self._done = len(todo.missing), 0
        self._began_s = time.monotonic()

    def say(self, text: str) -> None:
        """Tell what begins."""
        self.tick(0.0, 0, text)

    def tick(self, share: float, count: int, text: str) -> None:
        """Tell that this share of a batch of `count` entries is done."""
        done = self._done + share * count
        left_s = self._todo.seconds * (1 - done / max(self._total, 1))
        if done > 0.2 * self._total:
            left_s = (time.monotonic() - self._began_s) * (self._total - done) / done
        self._progress(int(done), self._total, f"{text}, about {max(left_s, 1):.0f} s left")

    def finished(self, count: int) -> None:
        """Note that a batch is written down."""
        self._done += count

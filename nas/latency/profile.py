"""Making a latency table: what is missing is exported, timed in batches and written down."""

import math
import tempfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from functools import partial
from importlib.metadata import version
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nas.block import Block, parse
from nas.errors import UnreliableTiming
from nas.files import lock
from nas.latency.by_block import by_part_or_block
from nas.latency.calibrate import to_fit_on
from nas.latency.compose import Export, Workshop
from nas.latency.guard import has_caches
from nas.latency.interpolate import filled
from nas.latency.judge import MAX_REFERENCE, MAX_WALL_PER_CPU
from nas.latency.measure import Progress, child_bench
from nas.latency.plan import (
    batch_seconds,
    batches_of,
    chains_of,
    networks_seconds,
    plan_from,
    standing,
)
from nas.latency.profile_config import ProfileConfig
from nas.latency.recipes import Recipe, chain_name, recipe
from nas.latency.rounds import PRIME_MS, PRIME_RUNS, cold_name
from nas.latency.sessions import Benches, Sessions, Teller
from nas.latency.table import Entry, LatencyTable
from nas.latency.timed_networks import TimedNetworks
from nas.latency.timing import (
    MAX_ERROR_A,
    SAMPLES_A_VISIT,
    STANDARD_ERROR,
    Series,
    grade,
    grade_of_error,
)
from nas.space import SearchSpace
from nas.target import ONNX, Target


def silent(done: int, total: int, text: str) -> None:
    """Ignore progress."""


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
        progress: Told (entries and networks done, those to do, text with the time left).
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
        planned = plan_from(needed, table, config)
        if not table.protocol:
            table = replace(table, protocol=_protocol(config), provenance=_provenance(target))
        workshop = Workshop(Path(scratch), export, batch=target.batch, takes=target.takes)
        work = _Work(target, path, config, workshop, benches, progress)
        networks = planned.networks
        while planned.missing:
            work.expect(len(planned.missing) + networks, planned.seconds)
            table = work.measure(table, planned.missing)
            planned = plan_from(needed, table, config)  # more, where sizes between are off
        if config.every > 1:
            table = work.save(filled(table, [parse(name) for name in planned.needed]))
        if networks:
            assert isinstance(needed, SearchSpace)
            table = work.calibrate(table, needed)
    progress(work.total, work.total, "the latency table is complete")
    return table


class _Work:
    """What is measured into one table, a batch at a time, each saved when it is done."""

    def __init__(
        self,
        target: Target,
        path: Path,
        config: ProfileConfig,
        workshop: Workshop,
        benches: Benches,
        progress: Progress,
    ) -> None:
        self._target, self._path, self._config = target, path, config
        self._workshop, self._benches, self._progress = workshop, benches, progress
        self._done = self.total = 0
        self.expect(0, 0.0)

    def expect(self, count: int, seconds: float) -> None:
        """Count so many entries and networks as still to be done, in so many seconds."""
        self.total = self._done + count
        self._teller = Teller(self._progress, self.total, seconds, done=self._done)
        self._sessions = Sessions(
            self._target, self._config, self._workshop, self._benches, self._teller
        )

    def save(self, table: LatencyTable) -> LatencyTable:
        """Write the table, if it says something new."""
        is_known = self._path.is_file() and LatencyTable.load(self._path).digest == table.digest
        return table if is_known else table.save(self._path)

    def measure(self, table: LatencyTable, missing: Sequence[Recipe]) -> LatencyTable:
        """Return the table with these entries, written after each batch.

        Raises:
            UnreliableTiming: an entry got too few clean samples; the others are kept.
        """
        for batch in batches_of(missing, self._config, self._target):
            self._teller.begin(len(batch), batch_seconds(batch, self._config, self._target))
            table, unclear = _add(table, batch, self._sessions, strict=self._config.strict)
            table = table.save(self._path)
            self._done += len(batch)
            if unclear is not None:
                raise unclear
        return table

    def calibrate(self, table: LatencyTable, space: SearchSpace) -> LatencyTable:
        """Return the table with a fit on whole networks: the largest, others by level of cost."""
        drawn = to_fit_on(space, self._config.calibrate_on, seed=self._config.seed)
        if self._done == self.total:
            self.expect(len(drawn), networks_seconds(space, self._config, self._target))
        blocks = {architecture.id: space.blocks(architecture) for architecture in drawn}
        timed = TimedNetworks.beside(table, space, self._config)
        left = {name: blocks[name] for name in blocks if name not in timed.measured_ms}
        self._done += len(blocks) - len(left)
        table, _ = self._sessions.networks(table, left, keep=timed.keep)
        self._done = self.total
        fitted = by_part_or_block(
            table,
            space,
            blocks,
            {name: timed.measured_ms[name] for name in blocks},
            most_error=self._config.block_error,
            measure=self._measure_blocks,
        )
        fitted = fitted.save(self._path)
        timed.forget()
        return fitted

    def _measure_blocks(self, table: LatencyTable, blocks: Sequence[Block]) -> LatencyTable:
        """Return the table with an entry for each of these whole blocks."""
        wanted = [recipe(block, copies=self._config.copies) for block in blocks]
        missing = [item for item in wanted if item.entry not in table.entries]
        seconds = sum(
            batch_seconds(batch, self._config, self._target)
            for batch in batches_of(missing, self._config, self._target)
        )
        self.expect(len(missing), seconds)
        return self.measure(table, missing)


def _protocol(config: ProfileConfig) -> dict[str, float | int]:
    return {
        **asdict(config),
        "max_wall_per_cpu": MAX_WALL_PER_CPU,
        "max_reference": MAX_REFERENCE,
        "prime_ms": PRIME_MS,
        "min_prime": PRIME_RUNS,
        "samples_a_visit": SAMPLES_A_VISIT,
    }


def _provenance(target: Target) -> dict[str, str]:
    packages = ["hybrid-nas", "torch"]
    packages += ["onnx", "onnxscript"] if target.takes == ONNX else []
    versions = [f"{name} {version(name)}" for name in packages]
    versions.append(f"{target.runtime} {target.version}")  # which need not be installed here
    exporter = f"{target.exporter}, opset {target.opset}"
    return {"exporter": exporter, "versions": ", ".join(versions)}


def _add(
    table: LatencyTable, batch: Sequence[Recipe], sessions: Sessions, *, strict: bool
) -> tuple[LatencyTable, UnreliableTiming | None]:
    """Return the table with what could be measured, and an error for what could not."""
    is_cold_timed = has_caches(table.target)
    cold = {chain_name(chain) for item in batch for chain, _ in item.terms if is_cold_timed}
    table, series = sessions.time(
        table, chains_of(batch), "parts", cold=sorted(cold), unsure=partial(_unsure, batch)
    )
    entries = dict(table.entries)
    unclear: UnreliableTiming | None = None
    for item in batch:
        try:
            entries[item.entry] = entry(item, series, strict=strict)
        except UnreliableTiming as error:
            unclear = unclear or error
    return replace(table, entries=entries), unclear


def entry(made: Recipe, series: Mapping[str, Series], *, strict: bool) -> Entry:
    """Return what a recipe's chains say of its entry.

    The price is a sum of medians, as is the price with cold caches, which is never lower. Its
    samples, for p10 and p90, are the same sum over the clean samples of the chains, taken together
    in order of time. A price that is not told from zero (below its standard error) is never 0: it
    is set to that error, with grade C, and `by` says so.

    Raises:
        UnreliableTiming: a chain has too few clean samples; or, if strict, the grade is C.
    """
    used = {chain_name(chain): weight for chain, weight in made.terms}
    cold = {cold_name(name): weight for name, weight in used.items() if cold_name(name) in series}
    for name in (*used, *cold, chain_name(made.alone)):
        series[name].require(f"{made.entry} ({name})", strict=False)
    ms, error_ms, samples = _price(used, series)
    cold_ms = sum(weight * series[name].median_ms for name, weight in cold.items())
    p10, p90 = (float(value) for value in np.quantile(samples, [0.1, 0.9]))
    letter = _grade([series[name] for name in used], error_ms / ms if ms > 0 else np.inf)
    by = made.by
    if ms <= error_ms or ms <= 0:
        ms, letter, by = max(error_ms, 1e-6), "C", by + "; not told from zero"
    if strict and letter == "C":
        raise UnreliableTiming(
            f"{made.entry}: its price of {ms:.4g} ms is only known to {error_ms:.2g} ms. Stop "
            "other programs on this machine, ask for more samples, or leave strict out."
        )
    return Entry(
        ms=round(ms, 7),
        cold_ms=round(max(cold_ms, ms), 7) if cold else None,
        isolated_ms=round(series[chain_name(made.alone)].median_ms, 7),
        p10=round(p10, 7),
        p90=round(p90, 7),
        clean=min(int(series[name].is_clean.sum()) for name in used),
        taken=max(len(series[name].all_ms) for name in used),
        grade=letter,
        by=by,
    )


def _price(
    used: Mapping[str, float], series: Mapping[str, Series]
) -> tuple[float, float, npt.NDArray[np.float64]]:
    """Return the price of chains by weight, its standard error, and its samples, all in ms."""
    count = min(len(series[name].clean_ms) for name in used)
    samples = sum((w * series[name].clean_ms[:count] for name, w in used.items()), np.zeros(count))
    ms = sum(weight * series[name].median_ms for name, weight in used.items())
    low, high = (float(value) for value in np.quantile(samples, [0.25, 0.75]))
    of_samples = STANDARD_ERROR * (high - low) / math.sqrt(count)
    places = (weight * series[name].error_of_places for name, weight in used.items())
    return ms, max(of_samples, math.hypot(*places)), samples


def _unsure(batch: Sequence[Recipe], series: Mapping[str, Series]) -> set[str]:
    """Return the names of the chains whose entries would not be of grade A for their error."""
    names: set[str] = set()
    for item in batch:
        used = {chain_name(chain): weight for chain, weight in item.terms}
        if all(series[name].is_clean.any() for name in used):
            ms, error_ms, _ = _price(used, series)
            names |= set(used) if error_ms > MAX_ERROR_A * max(ms, 0.0) else set()
    return names


def _grade(used: Sequence[Series], error: float) -> str:
    """Return the worst grade of the chains, and none better than the price's error allows."""
    letters = [grade(item.clean_ms, item) for item in used]
    letters.append(grade_of_error(error))
    return max(letters)

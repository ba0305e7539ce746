"""How a time is taken: interleaved rounds, a reference beside each sample, unclean ones rejected.

Shared machines make a plain timing loop worthless (spreads of 30 % and more were seen), yet the
samples taken while nothing interfered agree within about 1 %. So networks take turns in rounds of
random order; a sample counts only if its process had a processor all the time (wall time at most
1.05 of processor time) and the reference kernel before and behind it ran at its usual speed. That
kernel lives in the innermost caches; neighbours who fill the cache that cores share slow down large
networks only, for seconds or minutes. A guard, a network of many weights, has its turn between
whole networks every GUARD_EVERY_MS: what was timed beside a slow one does not count.
"""

import itertools
import logging
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt

from nas.latency.bench import Bench, Times, Visit
from nas.latency.guard import GUARD
from nas.latency.judge import Judge, Known, floor, guard_floor
from nas.latency.profile_config import ProfileConfig
from nas.latency.timing import MIN_CLEAN, SAMPLES_A_VISIT, Series

logger = logging.getLogger(__name__)

# Untimed runs at the start of a visit. The second run of a network is not yet the hundredth: after
# others had the caches, one of 5 MB took 12 to 20 runs until its times no longer fell (LOG.md). A
# slow one does more than fetch weights, or has more than the caches hold: from 4 ms on, the third
# run is within 1 % of the twentieth.
PRIME_MS, PRIME_RUNS, ENOUGH_MS, MIN_RUNS = 4.0, 20, 60.0, 4
COLD_LOOPS = 4  # at most, a cold sample: each run is timed by itself, behind an untimed emptying
MIN_ROUNDS = 3
WARM_WINDOW_S, WARM_MIN_S, WARM_MAX_S, WARM_AGREE = 0.25, 0.5, 10.0, 0.02
GUARD_EVERY_MS = 750.0  # what neighbours do to the shared cache changes within 2 to 3 s
MAX_MORE = 4  # times as many samples as asked for, where they do not say enough

Indices = npt.NDArray[np.int64]
Unsure = Callable[[Mapping[str, Series]], Collection[str]]
Tick = Callable[[float, str], None]


def sure(series: Mapping[str, Series]) -> Collection[str]:
    """Want no more samples than asked for."""
    return ()


def measure(
    bench: Bench,
    paths: Mapping[str, Path],
    config: ProfileConfig,
    *,
    threads: int = 1,
    known: Known | None = None,
    cold: Collection[str] = (),
    unsure: Unsure = sure,
    tick: Tick = lambda share, why: None,
) -> dict[str, Series]:
    """Sample every network until each has enough clean samples, or the time limit is reached.

    Args:
        bench: Where to run them; what it held before is unloaded.
        paths: Name to file; all are interleaved with each other. The GUARD, if it is among
            them, has a turn between them every GUARD_EVERY_MS.
        config: How many samples, how far apart, for how long.
        threads: The target's; with more than one, a sample is compared with the best wall time
            by processor time seen for its network, not with 1.
        known: The machine at its best.
        cold: Names of networks to sample a second time, under `cold_name(name)`, with the caches
            emptied before each run.
        unsure: Names the networks whose samples do not say enough yet, once all have as many as
            asked for; they get up to MAX_MORE times as many.
        tick: Told after each round which share of the wanted samples is there, and its disturbance.
    """
    bench.unload()
    loaded_ms = bench.load_all(paths)
    tasks = [*map(_Task, paths), *(_Task(name, cold=True) for name in cold)]
    labels, count = [task.label for task in tasks], len(tasks)
    run_ms = _warm_up(bench, tasks, np.array([loaded_ms[task.name] for task in tasks]), config)
    generator = np.random.default_rng(config.seed)
    patient = Judge.by(known or Known(), threads)
    guards = np.flatnonzero([label == GUARD for label in labels])
    began_s, turn, record = bench.seconds(), 0, np.empty((0, 7))
    unfinished = np.setdiff1d(np.arange(count), guards)
    while len(unfinished) and bench.seconds() - began_s < 2 * config.time_limit_s:
        visits = [task.visit(ms, config) for task, ms in zip(tasks, run_ms, strict=True)]
        lasts_ms = run_ms * [visit.prime + visit.loops * visit.samples for visit in visits]
        order = _between_guards(generator.permutation(unfinished), lasts_ms, guards)
        found = bench.run([visits[index] for index in order], turn=turn)
        guard_ms = _guard_beside(np.isin(order, guards), found)
        of_round = (bench.seconds(), turn % bench.places)
        record = np.concatenate([record, *_rows(order, found, guard_ms, of_round)])
        turn += 1
        judge = patient.after(bench.seconds() - began_s)
        is_clean = judge.is_clean(record)
        unfinished = _unfinished(record[is_clean], count, config)
        if bench.seconds() - began_s >= config.time_limit_s:
            by_session = judge.is_clean(record, by_session=True)
            unfinished = np.flatnonzero(_counts(record[by_session], count) < MIN_CLEAN)
        unfinished = np.setdiff1d(unfinished, guards)
        counts = _counts(record[is_clean], count)
        if not len(unfinished) and bench.seconds() - began_s < config.time_limit_s:
            names = unsure(_series(labels, record, judge, config))
            wants = np.array([label in names for label in labels])
            unfinished = np.flatnonzero(wants & (counts < MAX_MORE * config.samples))
        tick(float(np.minimum(counts / config.samples, 1.0).mean()), judge.disturbance(record))
    return _series(labels, record, patient, config)


def with_reason(text: str, why: str) -> str:
    """Return what is done as progress shows it, with what a `tick` was told of why it takes."""
    return f"{text}, {why}" if why else text


def _series(
    names: Sequence[str], record: Times, judge: Judge, config: ProfileConfig
) -> dict[str, Series]:
    """Return what the rows say; a network short of clean samples is judged by this session."""
    strict, lenient = judge.is_clean(record), judge.is_clean(record, by_session=True)
    slower = judge.slower(record)
    short = set(_unfinished(record[strict], len(names), config)) if slower is not None else set()
    if short:
        logger.warning("%s; what is timed now is grade C", slower)
    found = {}
    for index, name in enumerate(names):
        rows = record[:, 0] == index
        found[name] = Series(
            all_ms=record[rows, 2],
            is_clean=(lenient if index in short else strict)[rows],
            wanted=config.samples,
            reference_ms=floor(record),
            guard_ms=guard_floor(record),
            is_slow=index in short,
            place=record[rows, 6].astype(np.int64),
        )
    return found


# ---------------------------------------------------------------- visits and rows
@dataclass(frozen=True, slots=True)
class _Task:
    """One thing to sample: a loaded network, warm or cold."""

    name: str
    cold: bool = False

    @property
    def label(self) -> str:
        return cold_name(self.name) if self.cold else self.name

    def visit(self, run_ms: float, config: ProfileConfig) -> Visit:
        """Return its turn: long enough to be warm, each sample long enough for the clock."""
        loops = max(1, math.ceil(config.sample_ms / run_ms))
        if self.cold:
            loops = min(loops, COLD_LOOPS)
            return Visit(name=self.name, prime=1, loops=loops, samples=SAMPLES_A_VISIT, cold=True)
        prime = prime_runs(run_ms)
        return Visit(name=self.name, prime=prime, loops=loops, samples=SAMPLES_A_VISIT)


def prime_runs(run_ms: float) -> int:
    """Return how often a network is run at the start of a visit before it is timed."""
    enough = max(MIN_RUNS, math.ceil(ENOUGH_MS / run_ms))
    return max(math.ceil(PRIME_MS / run_ms), min(PRIME_RUNS, enough))


def cold_name(name: str) -> str:
    """Return what the cold samples of a network go by."""
    return f"{name} (cold)"


def _between_guards(order: Indices, lasts_ms: Times, guards: Indices) -> Indices:
    """Return the order with the guard, if there is one, at its ends and every GUARD_EVERY_MS."""
    if not len(guards):
        return order
    turns, since_ms = [*guards], 0.0
    for place, index in enumerate(order):
        turns.append(index)
        since_ms += float(lasts_ms[index])
        if since_ms >= GUARD_EVERY_MS or place == len(order) - 1:
            turns.extend(guards)
            since_ms = 0.0
    return np.array(turns, dtype=np.int64)


def _guard_beside(is_guard: npt.NDArray[np.bool_], found: Sequence[Times]) -> Times:
    """Return for each visit the ms of the slower guard of the last and the next one; 0: none."""
    medians = [float(np.median(samples[:, 0])) for samples in found]
    own = np.where(is_guard, medians, 0.0)
    last = np.maximum.accumulate(np.where(is_guard, np.arange(len(own)), 0))
    ahead = np.where(is_guard, np.arange(len(own)), len(own) - 1)
    following = np.minimum.accumulate(ahead[::-1])[::-1]
    beside: Times = np.maximum(own[last], own[following])
    return beside


def _rows(
    order: Indices, found: Sequence[Times], guard_ms: Times, of_round: tuple[float, int]
) -> list[Times]:
    """Return rows (index, time, wall ms, processor ms, ms of the reference beside it, ms of the
    guard beside the visit, place in memory); `of_round` are time and place of all of them."""
    rows = []
    at_s, place = of_round
    for index, samples, beside_ms in zip(order, found, guard_ms, strict=True):
        ends = [np.full(len(samples), value) for value in (index, at_s, beside_ms, place)]
        rows.append(np.column_stack([*ends[:2], samples, *ends[2:]]))
    return rows


def _counts(rows: Times, count: int) -> Indices:
    return np.bincount(rows[:, 0].astype(np.int64), minlength=count)


def _unfinished(clean: Times, count: int, config: ProfileConfig) -> Indices:
    """Return the indices that still want clean samples, from more rounds or further apart."""
    left = []
    for index in range(count):
        times_s = clean[clean[:, 0] == index, 1]
        rounds = np.unique(times_s)
        enough = len(times_s) >= config.samples and len(rounds) >= MIN_ROUNDS
        if not enough or rounds[-1] - rounds[0] < config.spread_s:
            left.append(index)
    return np.array(left, dtype=np.int64)


def _warm_up(bench: Bench, tasks: Sequence[_Task], run_ms: Times, config: ProfileConfig) -> Times:
    """Run everything until two windows agree; return the ms of one run of each."""
    began_s = bench.seconds()
    turns = itertools.count()
    while True:
        visits = [
            replace(task.visit(ms, config), samples=1)
            for task, ms in zip(tasks, run_ms, strict=True)
        ]
        window_s = bench.seconds()
        rounds: list[list[float]] = []
        while not rounds or bench.seconds() - window_s < WARM_WINDOW_S:
            found = bench.run(visits, turn=next(turns))
            rounds.append([samples[:, 0].min() for samples in found])
        now = np.min(rounds, axis=0)
        spent_s = bench.seconds() - began_s
        agrees = abs(float(np.median(now / run_ms)) - 1) < WARM_AGREE
        run_ms = now
        if (agrees and spent_s >= WARM_MIN_S) or spent_s >= WARM_MAX_S:
            return run_ms

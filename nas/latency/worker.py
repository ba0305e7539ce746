"""The child process that runs networks: JSON lines in, JSON lines out, nothing else on stdout.

    {"do": "start", "target": {...}, "cores": [0, 1], "trace": PATH, "loads": 3, "cache": PATH}
                                                                       -> {"ok": {"version": ...}}
    {"do": "load", "name": NAME, "path": PATH}                         -> {"ok": {"run_ns": ...}}
    {"do": "run", "visits": [[NAME, prime, loops, samples, cold], ...], "turn": 0}
                                          -> {"ok": [[[wall_ns, cpu_ns, reference_ns], ...], ...]}
    {"do": "unload"}                                                   -> {"ok": {}}

A network is loaded `loads` times, and rounds ("turn") take turns with them. A failure is
{"error": TEXT} and the child goes on. Before each run its name is written to the trace file, so
that the parent can say which network a dead or silent child was busy with.
"""

import gc
import json
import os
import re
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from nas.errors import DeviceError, NasError
from nas.latency.runtimes import Runtime, create
from nas.target import Target, runtime_facts

TRACE_WIDTH = 512
WARM_UP_RUNS = 3
REFERENCE_RUNS = 2  # the faster counts: the first finds other things in the innermost cache
MIN_EVICTOR_BYTES, MAX_EVICTOR_BYTES = 4 * 1024 * 1024, 64 * 1024 * 1024


def reference_kernel() -> Callable[[], None]:
    """Return a fixed piece of work, below 0.1 ms: small products and the calls around them.

    It stays in the innermost caches, so that it takes the same time in every process (within
    about 1 %), whatever memory it got, and is slow only when the processor is: shared with a
    neighbour on the same core, throttled, or taken away by the host.
    """
    generator = np.random.default_rng(0)
    left, right = generator.standard_normal((2, 64, 64), dtype=np.float32)
    product = np.empty_like(left)

    def run() -> None:
        for _ in range(16):
            np.matmul(left, right, out=product)

    return run


def evictor_bytes(size: Path = Path("/sys/devices/system/cpu/cpu0/cache/index2/size")) -> int:
    """Return how much memory to touch to empty a core's own caches: twice its second level."""
    try:
        match = re.fullmatch(r"([0-9]+)K", size.read_text().strip())
    except OSError:
        match = None  # not Linux, or a machine that does not tell
    return max(MIN_EVICTOR_BYTES, min(2048 * int(match[1]), MAX_EVICTOR_BYTES) if match else 0)


class Worker:
    """What the child holds: one runtime and the networks loaded into it."""

    def __init__(self) -> None:
        self._runtime: Runtime | None = None
        self._is_elsewhere = False  # whether networks run on a GPU
        self._trace = -1
        self._runs: dict[str, list[Callable[[], None]]] = {}  # of each load
        self._loads = 1
        self._reference = reference_kernel()
        self._evictor = np.ones(evictor_bytes() // 4, dtype=np.float32)

    def start(
        self, target: dict[str, Any], cores: list[int], trace: str, loads: int, cache: str = ""
    ) -> dict[str, Any]:
        """Set the process up for a target; must come first."""
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, cores)
        self._loads = loads
        self._trace = os.open(trace, os.O_WRONLY | os.O_CREAT, 0o600)
        parsed = Target.from_json(target)
        self._runtime = create(parsed, Path(cache) if cache else None)
        self._is_elsewhere = runtime_facts(parsed.runtime).accelerator != ""
        self.unload()
        return {"version": parsed.version}

    def load(self, name: str, path: str) -> dict[str, Any]:
        """Load one file and return the nanoseconds of its fastest warm-up run."""
        if self._runtime is None:
            raise DeviceError("the child was not started.")
        self._note(name)
        runs = [runner.run for runner in self._runtime.load(Path(path), self._loads)]
        self._runs[name] = runs
        return {"run_ns": min(self._time(run, 1)[0] for run in runs for _ in range(WARM_UP_RUNS))}

    def unload(self) -> dict[str, Any]:
        """Forget every network."""
        self._runs.clear()
        gc.collect()
        return {}

    def run(
        self, visits: list[tuple[str, int, int, int, bool]], turn: int = 0
    ) -> list[list[list[int]]]:
        """Return for each visit its samples: wall, processor and reference nanoseconds.

        The first two are of `loops` runs together, the third is the slower of one run each of the
        reference kernel just before and just after: neighbours come and go within milliseconds.
        The `prime` runs before them are not timed: after another network ran, caches, page tables
        and branch predictors need several runs to be as in a process that runs only this one.
        What runs on a GPU needs no processor meanwhile: its processor time is given as its wall
        time, which is to say that nobody took the processor away from it.
        """
        answers = []
        for name, prime, loops, samples, cold in visits:
            self._note(name)
            runs = self._runs[name]
            run = runs[turn % len(runs)]
            take = self._time_cold if cold else self._time
            take(run, prime)
            before_ns = self._reference_ns()
            rows = []
            for _ in range(samples):
                wall_ns, cpu_ns = take(run, loops)
                after_ns = self._reference_ns()
                cpu_ns = wall_ns if self._is_elsewhere else cpu_ns
                rows.append([wall_ns, cpu_ns, max(before_ns, after_ns)])
                before_ns = after_ns
            answers.append(rows)
        return answers

    def _reference_ns(self) -> int:
        return min(self._time(self._reference, 1)[0] for _ in range(REFERENCE_RUNS))

    @staticmethod
    def _time(run: Callable[[], None], loops: int) -> tuple[int, int]:
        turns = range(loops)
        cpu_ns = time.process_time_ns()
        wall_ns = time.perf_counter_ns()
        for _ in turns:
            run()
        wall_ns = time.perf_counter_ns() - wall_ns
        return wall_ns, time.process_time_ns() - cpu_ns

    def _time_cold(self, run: Callable[[], None], loops: int) -> tuple[int, int]:
        """Return the time of `loops` runs, each behind an untimed emptying of the core's caches."""
        wall_ns = cpu_ns = 0
        for _ in range(loops):
            np.dot(self._evictor, self._evictor)  # reads all of it, writes none
            once = self._time(run, 1)
            wall_ns, cpu_ns = wall_ns + once[0], cpu_ns + once[1]
        return wall_ns, cpu_ns

    def _note(self, name: str) -> None:
        os.pwrite(self._trace, name.encode()[:TRACE_WIDTH].ljust(TRACE_WIDTH), 0)


def main() -> None:
    """Serve requests until stdin ends; a parent that is gone ends it too."""
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not look like an answer
    gc.disable()
    worker = Worker()
    verbs: dict[str, Callable[..., Any]] = {
        "start": worker.start,
        "load": worker.load,
        "run": worker.run,
        "unload": worker.unload,
    }
    for line in sys.stdin:
        try:
            request = json.loads(line)
            answer = {"ok": verbs[request.pop("do")](**request)}
        except NasError as error:
            answer = {"error": str(error)}
        except Exception as error:  # the top of a worker: the parent is told, and decides
            answer = {"error": f"{type(error).__name__}: {error}"}
        answers.write(json.dumps(answer) + "\n")
        answers.flush()


if __name__ == "__main__":
    main()

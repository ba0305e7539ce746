"""The child process that runs networks: JSON lines in, JSON lines out, nothing else on stdout.

    {"do": "start", "target": {...}, "cores": [0, 1], "trace": PATH}    -> {"ok": {"version": ...}}
    {"do": "load", "name": NAME, "path": PATH}                         -> {"ok": {"run_ns": ...}}
    {"do": "run", "visits": [[NAME, prime, loops, samples], ...]}
                                                       -> {"ok": [[[wall_ns, cpu_ns], ...], ...]}
    {"do": "unload"}                                                   -> {"ok": {}}

A failure is {"error": TEXT} and the child goes on. Before each run its name is written to the
trace file, so that the parent can say which network a dead or silent child was busy with.
"""

import gc
import json
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from nas.errors import DeviceError, NasError
from nas.latency.bench import REFERENCE
from nas.latency.runtimes import Runtime, create
from nas.target import Target, runtime_facts

TRACE_WIDTH = 512
WARM_UP_RUNS = 3


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


class Worker:
    """What the child holds: one runtime and the networks loaded into it."""

    def __init__(self) -> None:
        self._runtime: Runtime | None = None
        self._is_elsewhere = False  # whether networks run on a GPU
        self._trace = -1
        self._runs: dict[str, Callable[[], None]] = {}

    def start(self, target: dict[str, Any], cores: list[int], trace: str) -> dict[str, Any]:
        """Set the process up for a target; must come first."""
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(0, cores)
        self._trace = os.open(trace, os.O_WRONLY | os.O_CREAT, 0o600)
        parsed = Target.from_json(target)
        self._runtime = create(parsed)
        self._is_elsewhere = runtime_facts(parsed.runtime).accelerator != ""
        self.unload()
        return {"version": parsed.version}

    def load(self, name: str, path: str) -> dict[str, Any]:
        """Load one file and return the nanoseconds of its fastest warm-up run."""
        if self._runtime is None:
            raise DeviceError("the child was not started.")
        self._note(name)
        run = self._runtime.load(Path(path)).run
        self._runs[name] = run
        return {"run_ns": min(self._time(run, 1)[0] for _ in range(WARM_UP_RUNS))}

    def unload(self) -> dict[str, Any]:
        """Forget every network; the reference kernel stays."""
        self._runs = {REFERENCE: reference_kernel()}
        gc.collect()
        return {}

    def run(self, visits: list[tuple[str, int, int, int]]) -> list[list[tuple[int, int]]]:
        """Return for each visit its samples, (wall, processor) nanoseconds of `loops` runs each.

        The `prime` runs before them are not timed: after another network ran, caches, page tables
        and branch predictors need several runs to be as in a process that runs only this one.
        What runs on a GPU needs no processor meanwhile: its processor time is given as its wall
        time, which is to say that nobody took the processor away from it.
        """
        answers = []
        for name, prime, loops, samples in visits:
            self._note(name)
            run = self._runs[name]
            self._time(run, prime)
            times = [self._time(run, loops) for _ in range(samples)]
            if self._is_elsewhere and name != REFERENCE:
                times = [(wall_ns, wall_ns) for wall_ns, _ in times]
            answers.append(times)
        return answers

    @staticmethod
    def _time(run: Callable[[], None], loops: int) -> tuple[int, int]:
        turns = range(loops)
        cpu_ns = time.process_time_ns()
        wall_ns = time.perf_counter_ns()
        for _ in turns:
            run()
        wall_ns = time.perf_counter_ns() - wall_ns
        return wall_ns, time.process_time_ns() - cpu_ns

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

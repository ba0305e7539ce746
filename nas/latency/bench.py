"""Bench: where loaded networks are run. The real one is a child process that may die or hang."""

import json
import logging
import math
import os
import select
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol, Self

import numpy as np
import numpy.typing as npt

from nas.errors import DeviceError
from nas.target import Target

logger = logging.getLogger(__name__)

Times = npt.NDArray[np.float64]
MAX_RUN_MS = 1e6
QUANTIZE_S = 120.0  # more than loading takes, at most
# Not `-m nas.latency.worker`, which takes any folder called nas where the command is run.
WORKER = (
    f"import sys; sys.path.append({str(Path(__file__).parents[2])!r}); "
    "from nas.latency.worker import main; main()"
)
THREAD_VARIABLES = ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS")


@dataclass(frozen=True, slots=True, kw_only=True)
class Visit:
    """A network's turn: `prime` untimed runs, then `samples` timed ones of `loops` runs each.

    Where it is `cold`, the caches are emptied before every run; that is not timed.
    """

    name: str
    prime: int
    loops: int
    samples: int
    cold: bool = False


class Bench(Protocol):
    """A place that runs networks one at a time and says how long each took.

    Beside each sample it runs the reference, a fixed kernel that tells a slow network from a slow
    moment. A network may be in memory at several places, because where it happens to lie changes
    its latency by some per cent.
    """

    @property
    def places(self) -> int:
        """At how many places each network is in memory; round n runs at n modulo that."""

    def load(self, name: str, path: Path) -> float:
        """Load a file under a name and return the milliseconds of one warm run."""

    def load_all(self, paths: Mapping[str, Path]) -> dict[str, float]:
        """Load files by name, one after another where nothing better is known; see load."""
        return {name: self.load(name, path) for name, path in paths.items()}

    def unload(self) -> None:
        """Forget every network."""

    def run(self, visits: Sequence[Visit], *, turn: int = 0) -> list[Times]:
        """Make the visits of round `turn` in order; each gives an array of shape (samples, 3).

        Its columns are the wall and processor ms of one run, and the ms of the reference beside it.

        Raises:
            DeviceError: a network crashed, hung or answered nonsense; the message names it.
        """

    def seconds(self) -> float:
        """Return the time on the clock that limits and spreads refer to."""


class ChildBench(Bench):
    """A Bench in a child process of its own, with the target's threads; use it as a context.

    Args:
        target: What to measure; must be this machine's.
        timeout_s: How long the child may say nothing beyond the time its work should take.
        loads: How often it loads each network; rounds take turns with them.
        command: What to start, for tests; the default is this package's worker.

    Attributes:
        cache: A folder where benches of the same files keep what takes long to make of them.
    """

    def __init__(
        self,
        target: Target,
        *,
        timeout_s: float = 60.0,
        loads: int = 1,
        command: Sequence[str] = (),
    ) -> None:
        if not target.is_here():
            raise DeviceError(
                f"{target} cannot be measured here: it is another machine, or another version of "
                f"the runtime. Ask for `{target.runtime},{target.precision},b{target.batch},"
                f"t{target.threads}` to get this machine's, or time it there: with --device "
                "(an agent on it) or with --plan (files to time)."
            )
        self._target = target
        self._timeout_s, self._loads = timeout_s, loads
        self.cache: Path | None = None
        self._command = list(command) or [sys.executable, "-P", "-c", WORKER]
        self._buffer = b""
        self._expected_ms: dict[str, float] = {}

    def __enter__(self) -> Self:
        self._folder = tempfile.TemporaryDirectory(prefix="nas-bench-")
        self._trace = Path(self._folder.name) / "trace"
        self._messages = Path(self._folder.name) / "stderr"
        threads = dict.fromkeys(THREAD_VARIABLES, str(self._target.threads))
        with open(self._messages, "wb") as stderr:
            self._child = subprocess.Popen(
                self._command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=stderr,
                env={**os.environ, **threads},
                start_new_session=True,  # Ctrl-C is for the parent, which ends the child
            )
        cores = sorted(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else []
        try:
            self._ask(
                {"do": "start", "target": self._target.to_json(), "cores": cores}
                | {"trace": str(self._trace), "loads": self._loads}
                | {"cache": str(self.cache or "")},
                about=str(self._target),
            )
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def load(self, name: str, path: Path) -> float:
        """Load a file under a name and return the milliseconds of one warm run."""
        extra_s = QUANTIZE_S if self._target.precision == "int8" else 0.0
        request = {"do": "load", "name": name, "path": str(path)}
        answer = self._ask(request, about=name, extra_s=extra_s)
        run_ms = self._checked(answer.get("run_ns") if isinstance(answer, dict) else None, name)
        self._expected_ms[name] = run_ms
        return run_ms

    @property
    def places(self) -> int:
        """How often each network is loaded."""
        return self._loads

    def kill(self) -> None:
        """End the process at once, from any thread; whoever waits for it gets a DeviceError."""
        self._child.kill()

    def unload(self) -> None:
        """Forget every network."""
        self._ask({"do": "unload"}, about="unload")

    def run(self, visits: Sequence[Visit], *, turn: int = 0) -> list[Times]:
        """Make the visits in order; see Bench."""
        expected_ms = sum(
            (visit.prime + visit.loops * visit.samples) * self._expected_ms.get(visit.name, 1.0)
            for visit in visits
        )
        rows = [[v.name, v.prime, v.loops, v.samples, v.cold] for v in visits]
        answer = self._ask({"do": "run", "visits": rows, "turn": turn}, extra_s=expected_ms / 50)
        if not isinstance(answer, list) or len(answer) != len(visits):
            raise self._dead("answered something that is not a list of visits")
        return [self._samples(visit, rows) for visit, rows in zip(visits, answer, strict=True)]

    def _samples(self, visit: Visit, rows: Any) -> Times:
        if not isinstance(rows, list) or len(rows) != visit.samples:
            raise self._dead("answered too few samples", about=visit.name)
        triples = [row if isinstance(row, list) and len(row) == 3 else [None] * 3 for row in rows]
        checked = [
            [
                self._checked(wall, visit.name) / visit.loops,
                self._processor_ms(cpu, visit.name) / visit.loops,
                self._checked(reference, visit.name),
            ]
            for wall, cpu, reference in triples
        ]
        return np.array(checked)

    def seconds(self) -> float:
        """Return the monotonic clock."""
        return time.monotonic()

    # ------------------------------------------------------------ the child
    def _checked(self, nanoseconds: Any, name: str) -> float:
        """Return nanoseconds from the child as milliseconds, or raise: nonsense is not stored."""
        is_number = isinstance(nanoseconds, int | float) and not isinstance(nanoseconds, bool)
        if not is_number or not math.isfinite(nanoseconds):
            raise self._dead("answered no number", about=name)
        if not 0 < nanoseconds <= MAX_RUN_MS * 1e6:
            raise self._dead(f"answered {nanoseconds} ns, which no run takes", about=name)
        return float(nanoseconds) / 1e6

    def _processor_ms(self, nanoseconds: Any, name: str) -> float:
        """Return processor time as `_checked` does, but outlive a clock that stood still.

        Virtual machines now and then account no time to a sample. Nothing is known then: it gets so
        little that it does not count as clean.
        """
        return self._checked(1 if nanoseconds == 0 else nanoseconds, name)

    def _ask(self, request: dict[str, Any], *, about: str = "", extra_s: float = 0.0) -> Any:
        assert self._child.stdin is not None
        try:
            self._child.stdin.write(json.dumps(request).encode() + b"\n")
            self._child.stdin.flush()
        except OSError as error:
            raise self._dead("ended", about=about) from error
        line = self._read_line(time.monotonic() + self._timeout_s + extra_s, about=about)
        try:
            answer = json.loads(line)
        except ValueError as error:
            raise self._dead(f"answered garbage ({line[:40]!r})", about=about) from error
        if isinstance(answer, dict) and "ok" in answer:
            return answer["ok"]
        text = answer.get("error") if isinstance(answer, dict) else None
        where = about or self._traced()
        raise DeviceError(f"{where}: {text or 'the measuring process answered garbage'}")

    def _read_line(self, deadline: float, *, about: str) -> bytes:
        assert self._child.stdout is not None
        descriptor = self._child.stdout.fileno()
        while b"\n" not in self._buffer:
            left_s = deadline - time.monotonic()
            if left_s <= 0 or not select.select([descriptor], [], [], left_s)[0]:
                raise self._dead(f"said nothing for {self._timeout_s:.0f} s", about=about)
            chunk = os.read(descriptor, 1 << 16)
            if not chunk:
                raise self._dead("ended", about=about)
            self._buffer += chunk
        line, _, self._buffer = self._buffer.partition(b"\n")
        return line

    def _dead(self, what: str, *, about: str = "") -> DeviceError:
        """End the child and return the error that names the network it was busy with."""
        about = about or self._traced()
        if what == "ended":  # it closed its end: it is gone, or hangs on its way out
            with suppress(subprocess.TimeoutExpired):
                self._child.wait(timeout=2)
        self._child.kill()
        code = self._child.wait()
        reason = ""
        if what == "ended":
            reason = f" with signal {-code}" if code < 0 else f" with code {code}"
            reason += " (often too little memory)" if code == -9 else ""
        messages = self._messages.read_bytes()[-2000:].decode(errors="replace").splitlines()
        last = f" Its last words: {messages[-1]}" if messages else ""
        return DeviceError(f"{about}: the process that measures {what}{reason}.{last}")

    def _traced(self) -> str:
        try:
            return self._trace.read_bytes().decode(errors="replace").strip() or "start"
        except OSError:
            return "start"

    def _stop(self) -> None:
        if self._child.stdin is not None and not self._child.stdin.closed:
            try:
                self._child.stdin.close()
            except OSError:
                logger.debug("the measuring process was already gone")
        try:
            self._child.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._child.kill()
            self._child.wait()
        if self._child.stdout is not None:
            self._child.stdout.close()
        self._folder.cleanup()

"""The agent on a device: one client at a time has networks of its own timed in a child process.

It runs nothing but the runtimes it knows by name, on files it has by their hash; `agent_http`
is the door to it.
"""

import logging
import re
import secrets
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field
from typing import Any

from nas.errors import ConfigError, DeviceError, TryAgain
from nas.files import into
from nas.latency.bench import Bench, Visit
from nas.latency.file_store import FileStore
from nas.latency.measure import child_bench
from nas.latency.profile_config import ProfileConfig
from nas.latency.protocol import (
    MAX_LOADS,
    MAX_LOOPS,
    MAX_NAME,
    MAX_PROCESSES,
    MAX_RUN_S,
    MAX_SAMPLES,
    MAX_TIMEOUT_S,
    MAX_TURN,
    MAX_VISITS,
    PROTOCOL,
    Refusal,
    release,
)
from nas.latency.sessions import Benches
from nas.target import RUNTIMES, Target, runtime_facts

logger = logging.getLogger(__name__)

IDLE_S = 120.0  # a client that says nothing for so long is taken for dead
PROCESSES = 8  # a session may take, as many as winners are timed in
WAIT_S = 10.0  # for a request of the same session that is still being worked on


def target_here(words: str) -> Target:
    """Return this machine's target for `RUNTIME,PRECISION,bBATCH,tTHREADS`, or for its full id.

    Raises:
        ConfigError, DeviceError: as `Target.parse`; or the id is of another machine.
    """
    target = Target.parse(words)
    if not target.is_here():
        raise DeviceError(
            f"this device cannot time {target}: it is another machine, or has another version of "
            "the runtime. Leave the id out to get what there is here."
        )
    return target


@dataclass(slots=True)
class _Session:
    """A client's child process, the networks loaded into it, and when it was last heard of."""

    id: str
    client: str
    context: AbstractContextManager[Bench]
    bench: Bench
    heard_s: float
    run_ms: dict[str, float] = field(default_factory=dict)
    lock: threading.Lock = field(default_factory=threading.Lock)


class Agent:
    """What a device does for others; every public method may be called from any thread.

    Args:
        store: Its files.
        benches: Makes the place where networks run; a child process by default.
        parse: Turns words into a target of this device.
        idle_s: How long a silent client keeps the device.
        max_processes: The most a session may take, each with the runtime and all its networks.
        clock: Seconds on a clock that never goes back.
    """

    def __init__(
        self,
        store: FileStore,
        *,
        benches: Benches = child_bench,
        parse: Callable[[str], Target] = target_here,
        idle_s: float = IDLE_S,
        max_processes: int = PROCESSES,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.store = store
        self._benches, self._parse = benches, parse
        self._idle_s, self._clock = idle_s, clock
        self._max_processes = min(max_processes, MAX_PROCESSES)
        self._session: _Session | None = None
        self._lock = threading.Lock()

    def describe(self, words: str | None = None) -> dict[str, Any]:
        """Return what this device is; with words, the target they mean here."""
        target = self._parse(words) if words is not None else None
        return {
            "protocol": PROTOCOL,
            "version": release(),
            "runtimes": sorted(RUNTIMES),
            "max_file_bytes": self.store.max_file_bytes,
            "max_processes": self._max_processes,
            "idle_s": self._idle_s,
            "target": target.to_json() if target is not None else None,
        }

    def begin(
        self, client: str, target: Any, timeout_s: Any, loads: Any, processes: Any
    ) -> dict[str, Any]:
        """Start a session; a client that has one already gets a new one in its place.

        Raises:
            TryAgain: another client has the device.
            DeviceError: the target is not this device's, or its runtime does not start.
        """
        if not isinstance(client, str) or not re.fullmatch("[0-9a-f]{32}", client):
            raise ConfigError("client must be 32 hex digits.")
        _whole(loads, 1, MAX_LOADS, "loads")
        _whole(processes, 1, self._max_processes, "processes")
        limit_s = _number(timeout_s, "timeout_s", MAX_TIMEOUT_S)
        wanted = into(Target, target, source="target")
        if wanted.precision not in runtime_facts(wanted.runtime).precisions:
            raise DeviceError(f"{wanted.runtime} is not timed in {wanted.precision} here.")
        with self._lock:
            self._make_way(client)
            context = self._benches(
                wanted, ProfileConfig(timeout_s=limit_s, loads=loads, processes=processes)
            )
            bench = context.__enter__()
            self._session = _Session(
                secrets.token_hex(16), client, context, bench, heard_s=self._clock()
            )
            logger.info("session of client %s on %s", client[:8], wanted)
            return {"session": self._session.id}

    def load(self, session: str, name: Any, sha256: Any) -> dict[str, Any]:
        """Load a file into a session under a name; return the milliseconds of one warm run."""
        if not isinstance(name, str) or not re.fullmatch(f"[ -~]{{1,{MAX_NAME}}}", name):
            raise ConfigError(f"a name is 1 to {MAX_NAME} characters of ASCII.")
        if not isinstance(sha256, str):
            raise ConfigError("sha256 must be a text.")
        with self._held(session) as held:
            held.run_ms[name] = held.bench.load(name, self.store.get(sha256))
            return {"run_ms": held.run_ms[name]}

    def unload(self, session: str) -> dict[str, Any]:
        """Forget every network of a session."""
        with self._held(session) as held:
            held.bench.unload()
            held.run_ms.clear()
            return {}

    def run(self, session: str, visits: Any, turn: Any) -> dict[str, Any]:
        """Make visits of one round; return for each its wall, processor and reference ms."""
        _whole(turn, 0, MAX_TURN, "turn")
        with self._held(session) as held:
            wanted = _visits(visits, held.run_ms)
            times = held.bench.run(wanted, turn=turn)
            return {"times": [item.tolist() for item in times]}

    def end(self, session: str) -> dict[str, Any]:
        """End a session; one that is gone is no error."""
        with self._lock:
            if self._session is not None and self._session.id == session:
                self._close()
        return {}

    def sweep(self) -> None:
        """End the session of a client that was silent for too long; called now and then."""
        if self._lock.acquire(blocking=False):
            try:
                held = self._session
                if held is None or not self._is_silent(held):
                    return
                logger.warning("client %s is silent: its session ends", held.client[:8])
                self._close()
            finally:
                self._lock.release()

    def close(self) -> None:
        """End what is running."""
        with self._lock:
            self._close()

    # ------------------------------------------------------------ the one session
    def _make_way(self, client: str) -> None:
        held = self._session
        if held is None:
            return
        if held.client != client and not self._is_silent(held):
            raise TryAgain(
                f"the device is busy with another client. Wait for it to end; if it is dead, the "
                f"device is free after {self._idle_s:.0f} s of silence."
            )
        self._wait_for(held)
        try:
            self._close()
        finally:
            held.lock.release()

    @staticmethod
    def _wait_for(held: _Session) -> None:
        """Take a session's lock, or raise TryAgain: its client was cut off in a long request."""
        if not held.lock.acquire(timeout=WAIT_S):
            raise TryAgain("an earlier request of this session is still being worked on.")

    def _is_silent(self, held: _Session) -> bool:
        return not held.lock.locked() and self._clock() - held.heard_s > self._idle_s

    def _close(self) -> None:
        held, self._session = self._session, None
        if held is not None:
            held.context.__exit__(None, None, None)

    @contextmanager
    def _held(self, session: str) -> Iterator[_Session]:
        """Give the session to one request at a time."""
        held = self._session
        if held is None or held.id != session:
            raise _gone()
        self._wait_for(held)
        try:
            if self._session is not held:
                raise _gone()
            yield held
        except Exception as error:
            if self._session is not held:  # it was ended meanwhile, and its child with it
                raise _gone() from error
            raise
        finally:
            held.heard_s = self._clock()
            held.lock.release()


def _gone() -> Refusal:
    return Refusal("NoSession", "there is no such session (any more); begin a new one.")


def _visits(rows: Any, run_ms: dict[str, float]) -> Sequence[Visit]:
    """Return what a client asks for, if it is within the limits."""
    if not isinstance(rows, list) or not 1 <= len(rows) <= MAX_VISITS:
        raise ConfigError(f"visits must be a list of 1 to {MAX_VISITS}.")
    visits, expected_ms = [], 0.0
    for row in rows:
        if not isinstance(row, list) or len(row) != 5 or not isinstance(row[0], str):
            raise ConfigError("a visit is [name, prime, loops, samples, cold].")
        name, prime, loops, samples, cold = row
        for value, low, high in ((prime, 0, MAX_LOOPS), (loops, 1, MAX_LOOPS)):
            _whole(value, low, high, "prime and loops")
        _whole(samples, 1, MAX_SAMPLES, "samples")
        if not isinstance(cold, bool):
            raise ConfigError("cold must be true or false.")
        if name not in run_ms:
            raise Refusal("NotThere", f"no network {name[:80]!r} is loaded in this session.")
        expected_ms += (prime + loops * samples) * run_ms[name]
        visits.append(Visit(name=name, prime=prime, loops=loops, samples=samples, cold=cold))
    if expected_ms > MAX_RUN_S * 1e3:
        raise ConfigError(
            f"one request may ask for {MAX_RUN_S:.0f} s of runs, but this one would take "
            f"{expected_ms / 1e3:.0f} s; ask for fewer at once."
        )
    return visits


def _whole(value: Any, low: int, high: int, name: str) -> None:
    if not isinstance(value, int) or isinstance(value, bool) or not low <= value <= high:
        raise ConfigError(f"{name} must be {low} to {high}, but is {value!r:.40}.")


def _number(value: Any, name: str, high: float) -> float:
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if not is_number or not 0 < value <= high:
        raise ConfigError(f"{name} must be above 0 and at most {high}, but is {value!r:.40}.")
    return float(value)

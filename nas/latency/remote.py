"""A Bench on another device, behind an agent: files go there once, samples come back checked.

An agent that is away for a while, or was started again, is waited for: the session is begun anew
with the same networks and the work goes on. What it answers is trusted no more than a child.
"""

import json
import logging
import math
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, suppress
from http.client import HTTPConnection, HTTPException, IncompleteRead
from pathlib import Path
from types import TracebackType
from typing import Any, Self, TypeVar
from urllib.parse import quote, urlsplit

import numpy as np

from nas.errors import ConfigError, CorruptFile, DeviceError, NasError, TryAgain
from nas.files import digest_file
from nas.latency.bench import MAX_RUN_MS, Bench, Times, Visit
from nas.latency.profile_config import ProfileConfig
from nas.latency.protocol import (
    MAX_ANSWER_BYTES,
    MAX_LOADS,
    MAX_VISITS,
    PROTOCOL,
    PROTOCOL_HEADER,
    RAISED,
    VERSION_HEADER,
    Refusal,
    release,
    skew,
)
from nas.target import Target

logger = logging.getLogger(__name__)

T = TypeVar("T")

PATIENCE_S = 180.0
CONNECT_S = 10.0
FIRST_WAIT_S, MAX_WAIT_S = 0.2, 5.0
CHUNK_MS = 10_000.0  # of expected runs in one request
SLOWER = 25  # an answer may take so many times as long as its runs should


class _Away(Exception):
    """The agent cannot be reached, or stopped in the middle of an answer."""


class RemoteAgent:
    """The agent at `http://HOST:PORT`.

    Args:
        url: Where it listens.
        token: What it accepts.
        patience_s: How long it may be away, or busy with another client.
    """

    def __init__(self, url: str, token: str, *, patience_s: float = PATIENCE_S) -> None:
        self.url, self._token, self.patience_s = url, token, patience_s
        self._host, self._port = _address(url)
        self.client = uuid.uuid4().hex
        self.max_file_bytes = 0
        self.max_processes = 1  # until it says more

    def target(self, words: str) -> Target:
        """Return the target that these words, or a full id, mean on the device.

        Raises:
            DeviceError: nothing answers, or no agent, or one of another version; or the device
                has no such target.
            ConfigError: the token is wrong, or the words mean nothing.
        """
        try:
            answer = self.ask("GET", f"/v1/target?words={quote(words)}")
        except _Away as error:
            raise DeviceError(
                f"no agent answers at {self.url} ({error}). Start one on the device with "
                "`nas agent`, and check address, port and tunnel."
            ) from error
        problem = skew(answer.get("protocol"), answer.get("version"), who="the agent")
        if problem is not None:
            raise DeviceError(problem)
        limits = (answer.get(name) for name in ("max_file_bytes", "max_processes"))
        file_bytes, processes = (value if isinstance(value, int) else 0 for value in limits)
        self.max_file_bytes, self.max_processes = file_bytes, max(processes, 1)
        try:
            return Target.from_json(answer.get("target"), source=f"{self.url}: target")
        except CorruptFile as error:
            raise self.nonsense(str(error)) from error

    def bench(self, target: Target, config: ProfileConfig) -> AbstractContextManager[Bench]:
        """Return a Bench there; this is what `profile(benches=...)` takes.

        Where the agent allows fewer processes, each loads networks more often.
        """
        processes = min(config.processes, self.max_processes)
        loads = min(math.ceil(config.held / processes), MAX_LOADS)
        return RemoteBench(
            self, target, timeout_s=config.timeout_s, loads=loads, processes=processes
        )

    def ask(
        self, method: str, path: str, body: dict[str, Any] | bytes = b"", *, wait_s: float = 30.0
    ) -> dict[str, Any]:
        """Return the answer to one request, tried once.

        Raises:
            _Away: no answer came.
            Refusal: the session or the file is not there.
            NasError: what else the agent refused, as its own error.
        """
        raw = body if isinstance(body, bytes) else json.dumps(body).encode()
        headers = {
            "Authorization": f"Bearer {self._token}",
            PROTOCOL_HEADER: str(PROTOCOL),
            VERSION_HEADER: release(),
            "Content-Length": str(len(raw)),
            "Connection": "close",
        }
        connection = HTTPConnection(self._host, self._port, timeout=CONNECT_S)
        try:
            connection.connect()
            connection.sock.settimeout(wait_s)
            # it may refuse before it has read all: then its reason is there to read
            with suppress(BrokenPipeError, ConnectionResetError):
                connection.request(method, path, body=raw, headers=headers)
            response = connection.getresponse()
            text = response.read(MAX_ANSWER_BYTES + 1)
        except (OSError, IncompleteRead) as error:
            raise _Away(str(error) or type(error).__name__) from error
        except HTTPException as error:
            raise self.nonsense(type(error).__name__) from error
        finally:
            connection.close()
        return self._read(response.status, text)

    def _read(self, status: int, text: bytes) -> dict[str, Any]:
        try:
            answer = json.loads(text)
        except (ValueError, RecursionError) as error:
            raise self.nonsense(f"{text[:40]!r}") from error
        if not isinstance(answer, dict) or len(text) > MAX_ANSWER_BYTES:
            raise self.nonsense(f"{text[:40]!r}")
        if status == 200 and "error" not in answer:
            return answer
        problem = answer.get("error")
        kind = problem.get("type") if isinstance(problem, dict) else None
        if not isinstance(problem, dict) or kind not in RAISED:
            raise self.nonsense(f"status {status}, {text[:40]!r}")
        message = f"the agent at {self.url}: {str(problem.get('message'))[:2000]}"
        if kind in ("NoSession", "NoFile"):
            raise Refusal(str(kind), message)
        raise RAISED[str(kind)](message)

    def nonsense(self, what: str) -> DeviceError:
        """Return the error for an answer that no agent of this version gives."""
        return DeviceError(f"{self.url} answered what no agent answers: {what[:300]}")


class RemoteBench(Bench):
    """A Bench whose networks run on an agent's device; use it as a context.

    Args:
        agent: The agent.
        target: One of its targets.
        timeout_s: How long its child may say nothing beyond what its work should take.
        loads: How often each process loads each network.
        processes: How many; rounds take turns with them.
    """

    def __init__(
        self,
        agent: RemoteAgent,
        target: Target,
        *,
        timeout_s: float = 60.0,
        loads: int = 1,
        processes: int = 1,
    ) -> None:
        self._agent, self._target = agent, target
        self._timeout_s, self._loads, self._processes = timeout_s, loads, processes
        self._session = ""
        self._paths: dict[str, Path] = {}
        self._run_ms: dict[str, float] = {}
        self._away_s = 0.0

    def __enter__(self) -> Self:
        self._again(lambda: None, begin=True)
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        try:
            self._agent.ask("DELETE", f"/v1/sessions/{self._session}", wait_s=CONNECT_S)
        except (_Away, NasError) as problem:
            logger.debug("the session was not ended: %s", problem)

    def load(self, name: str, path: Path) -> float:
        """Load a file under a name and return the milliseconds of one warm run."""
        self._again(lambda: self._load(name, path))
        self._paths[name] = path
        return self._run_ms[name]

    def unload(self) -> None:
        """Forget every network."""
        self._paths.clear()
        self._again(lambda: self._post("unload", {}))
        self._run_ms.clear()

    @property
    def places(self) -> int:
        """How often each network is loaded, by all processes together."""
        return self._loads * self._processes

    def run(self, visits: Sequence[Visit], *, turn: int = 0) -> list[Times]:
        """Make the visits in order; see Bench."""
        found: list[Times] = []
        for chunk in self._chunks(visits):
            found += self._again(lambda chunk=chunk: self._run(chunk, turn))  # type: ignore[misc]
        return found

    def seconds(self) -> float:
        """Return the monotonic clock, without the time the agent was away."""
        return time.monotonic() - self._away_s

    # ------------------------------------------------------------ requests
    def _begin(self) -> None:
        about = {
            "client": self._agent.client,
            "target": self._target.to_json(),
            "timeout_s": self._timeout_s,
            "loads": self._loads,
            "processes": self._processes,
        }
        answer = self._agent.ask("POST", "/v1/sessions", about, wait_s=self._timeout_s + 30)
        session = answer.get("session")
        if not isinstance(session, str) or not session.isalnum():
            raise self._agent.nonsense(f"a session called {session!r:.60}")
        self._session = session

    def _post(self, verb: str, body: dict[str, Any], *, expected_ms: float = 0.0) -> dict[str, Any]:
        wait_s = self._timeout_s + 30 + SLOWER * expected_ms / 1e3
        return self._agent.ask("POST", f"/v1/sessions/{self._session}/{verb}", body, wait_s=wait_s)

    def _load(self, name: str, path: Path) -> None:
        sha256 = digest_file(path)
        body = {"name": name, "sha256": sha256}
        try:
            answer = self._post("load", body)
        except Refusal as error:
            if error.kind != "NoFile":
                raise
            self._upload(sha256, path)
            answer = self._post("load", body)
        self._run_ms[name] = self._checked(answer.get("run_ms"), name)

    def _upload(self, sha256: str, path: Path) -> None:
        raw, limit_bytes = path.read_bytes(), self._agent.max_file_bytes
        if limit_bytes and len(raw) > limit_bytes:
            raise ConfigError(
                f"{path.name} has {len(raw):,} bytes, but the agent at {self._agent.url} takes "
                f"files of up to {limit_bytes:,}. Start it with a larger --max-file-mb."
            )
        wait_s = 60.0 + len(raw) / 1e5
        self._agent.ask("PUT", f"/v1/files/{sha256}", raw, wait_s=wait_s)

    def _chunks(self, visits: Sequence[Visit]) -> Iterator[list[Visit]]:
        """Give the visits in order, in requests of some seconds each."""
        chunk: list[Visit] = []
        total_ms = 0.0
        for visit in visits:
            visit_ms = self._expected_ms([visit])
            if chunk and (total_ms + visit_ms > CHUNK_MS or len(chunk) == MAX_VISITS):
                yield chunk
                chunk, total_ms = [], 0.0
            chunk.append(visit)
            total_ms += visit_ms
        if chunk:
            yield chunk

    def _expected_ms(self, visits: Sequence[Visit]) -> float:
        return sum(
            (visit.prime + visit.loops * visit.samples) * self._run_ms.get(visit.name, 1.0)
            for visit in visits
        )

    def _run(self, visits: Sequence[Visit], turn: int) -> list[Times]:
        rows = [[v.name, v.prime, v.loops, v.samples, v.cold] for v in visits]
        expected_ms = self._expected_ms(visits)
        body = {"visits": rows, "turn": turn}
        times = self._post("run", body, expected_ms=expected_ms).get("times")
        if not isinstance(times, list) or len(times) != len(visits):
            raise self._agent.nonsense("not one list of samples a visit")
        return [self._samples(visit, item) for visit, item in zip(visits, times, strict=True)]

    # ------------------------------------------------------------ what comes back
    def _samples(self, visit: Visit, rows: Any) -> Times:
        if not isinstance(rows, list) or len(rows) != visit.samples:
            raise self._agent.nonsense(f"not {visit.samples} samples of {visit.name}")
        rows = [row if isinstance(row, list) and len(row) == 3 else [None] for row in rows]
        return np.array([[self._checked(value, visit.name) for value in row] for row in rows])

    def _checked(self, ms: Any, name: str) -> float:
        is_number = isinstance(ms, int | float) and not isinstance(ms, bool)
        if not is_number or not math.isfinite(ms) or not 0 < ms <= MAX_RUN_MS:
            raise DeviceError(
                f"{name}: the agent at {self._agent.url} answered {ms!r:.40} ms, which no run "
                "takes. Nothing of it is kept."
            )
        return float(ms)

    # ------------------------------------------------------------ an agent that is away
    def _again(self, work: Callable[[], T], *, begin: bool = False) -> T:
        """Return what `work` returns, however often the session has to be begun anew.

        Args:
            work: What to do in the session; may be done again.
            begin: Whether to begin a session first.

        Raises:
            DeviceError: the agent was away for too long.
            TryAgain: it was busy with another client for too long.
        """
        away_since_s: float | None = None
        wait_s = FIRST_WAIT_S
        while True:
            try:
                if begin:
                    self._renew()
                    begin = False
                answer = work()
            except (_Away, Refusal, TryAgain) as error:
                if isinstance(error, Refusal) and error.kind != "NoSession":
                    raise DeviceError(str(error)) from error
                if away_since_s is None:
                    away_since_s = time.monotonic()
                    logger.warning("%s: trying again for %.0f s", error, self._agent.patience_s)
                if time.monotonic() - away_since_s > self._agent.patience_s:
                    raise self._given_up(error) from error
                begin = True
                time.sleep(wait_s)
                wait_s = min(2 * wait_s, MAX_WAIT_S)
                continue
            if away_since_s is not None:
                self._away_s += time.monotonic() - away_since_s
            return answer

    def _renew(self) -> None:
        """Begin a session with what the last one had loaded."""
        self._begin()
        for name, path in self._paths.items():
            self._load(name, path)

    def _given_up(self, error: Exception) -> NasError:
        if isinstance(error, TryAgain):
            return error
        return DeviceError(
            f"the agent at {self._agent.url} has not answered for {self._agent.patience_s:.0f} s "
            f"({error}). What is measured is kept; start it again and go on with the same command."
        )


def _address(url: str) -> tuple[str, int]:
    """Return host and port of `http://HOST:PORT`."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError:
        parts, host, port = urlsplit(""), None, None
    bare = parts.path in ("", "/") and not (parts.query or parts.fragment or parts.username)
    if parts.scheme != "http" or not host or not port or not bare:
        raise ConfigError(f"a device is http://HOST:PORT, but {url!r:.100} is not.")
    if host not in ("127.0.0.1", "::1", "localhost"):
        logger.warning(
            "%s is spoken to without encryption: come through `ssh -L` where others listen", host
        )
    return host, port

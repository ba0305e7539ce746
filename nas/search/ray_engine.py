"""Ray as the place where candidates are evaluated: actors that hold what evaluates them."""

import logging
import os
import queue
import signal
import socket
import threading
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future
from dataclasses import dataclass
from typing import Any, TypeVar

import ray
from ray.exceptions import GetTimeoutError, RayError, RayTaskError

from nas.errors import ConfigError, DeviceError
from nas.search.evaluate import Outcome, silence

T = TypeVar("T")
logger = logging.getLogger(__name__)

ATTEMPTS = 3  # at a candidate whose actor dies; after that it is the candidate's fault
STARTS = 3  # actors in a row that do not start: what they have to hold cannot be loaded there
POLL_S = 0.2
JOIN_S = 20.0
KNOCK_S = 10.0


@dataclass(slots=True, eq=False)
class Task:
    """One call that waits for an actor or is run by one."""

    future: "Future[Any]"  # Any: whatever the function returns
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    attempts: int = 0


class Evaluator:
    """What an actor is: it holds the evaluation (a supernet and its data) as long as it lives."""

    def __init__(self, evaluate: Callable[..., Any]) -> None:
        self._evaluate = evaluate

    def is_ready(self) -> bool:
        """Return True, when the evaluation has been loaded."""
        return True

    def run(self, function: Callable[..., T], arguments: tuple[Any, ...]) -> T:
        """Return function(evaluate, *arguments)."""
        return function(self._evaluate, *arguments)


class RayExecutor(Executor):
    """An executor for `SearchOptions` whose workers are Ray actors, here or on a cluster.

    The search stays in this process: it proposes and records, actors only evaluate, so that
    nothing is recorded twice. `evaluate` goes into the object store once and each actor loads it
    once. An actor that dies is replaced and its candidate is evaluated again, up to three times;
    actors that find no free CPU wait for one, so that nodes that join the cluster are used.
    """

    def __init__(
        self, workers: int = 8, *, address: str | None = None, timeout_s: float | None = None
    ) -> None:
        """Start Ray on this machine, or join the cluster at an address; `ray` if it runs, stays.

        Args:
            workers: Actors at most, each with a CPU of its own.
            address: "auto" or "HOST:PORT" of a running cluster, with the same hybrid-nas there.
            timeout_s: An evaluation that takes longer has failed, and its actor is replaced.

        Raises:
            ConfigError: no workers.
            DeviceError: there is no cluster at the address.
        """
        if workers < 1:
            raise ConfigError(f"workers must be at least 1, but is {workers}.")
        self._owns_ray = join(address)
        self._count = workers
        self._timeout_s = timeout_s
        self._tasks: queue.SimpleQueue[Task] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._actors: set[Any] = set()  # Any: Ray's handles
        self._threads: list[threading.Thread] = []
        self._closing = threading.Event()
        self._failed_starts = 0
        self._broken: str | None = None
        self._evaluate: Any = None
        self._stored: Any = None

    # ------------------------------------------------------------ what the engine calls
    def submit(
        self, function: Callable[..., T], /, *arguments: Any, **named: Any
    ) -> "Future[T]":  # Any: as Executor has it
        """Run function(evaluate, *rest) in an actor that holds `evaluate`, the first argument.

        Raises:
            BrokenExecutor: actors do not start.
            ConfigError: another `evaluate` than the first one, or named arguments.
        """
        evaluate, *rest = arguments
        if named or (self._threads and evaluate is not self._evaluate):
            raise ConfigError("a RayExecutor holds one evaluate: make another one for another.")
        task = Task(Future(), function, tuple(rest))
        why = self._queue(task)
        if why is not None:
            raise BrokenExecutor(why)
        if not self._threads:
            self._evaluate, self._stored = evaluate, ray.put(evaluate)
            self._threads = [
                threading.Thread(target=self._serve, daemon=True, name=f"ray-{number}")
                for number in range(self._count)
            ]
            for thread in self._threads:
                thread.start()
        return task.future

    def _queue(self, task: Task) -> str | None:
        """Queue a task; return why not where nobody would take it out any more."""
        with self._lock:
            why = self._broken or ("it was shut down." if self._closing.is_set() else None)
            if why is None:
                self._tasks.put(task)
            return why

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the actors, and Ray if it was started here; what is unfinished is given up."""
        with self._lock:
            self._closing.set()
            for actor in self._actors:
                ray.kill(actor)
        for thread in self._threads if wait else ():
            thread.join(JOIN_S)
        self._give_up("it was shut down.")
        self._stored = None
        if self._owns_ray:
            ray.shutdown()

    # ------------------------------------------------------------ one thread an actor
    def _serve(self) -> None:
        """Keep one actor alive and give it one task after another."""
        actor = None
        while not self._closing.is_set() and self._broken is None:
            if actor is None:
                actor = self._start()
                continue
            try:
                task = self._tasks.get(timeout=POLL_S)
            except queue.Empty:
                continue
            if task.attempts or task.future.set_running_or_notify_cancel():
                actor = self._run(actor, task)
        if actor is not None:
            self._end(actor)

    def _start(self) -> Any:  # Any: Ray's handle
        """Return an actor that is ready; None if it failed, or the pool is closing."""
        kind: Any = ray.remote(Evaluator)  # Any: Ray makes its methods as it goes
        actor = kind.options(num_cpus=1, max_restarts=0).remote(self._stored)
        with self._lock:
            self._actors.add(actor)
        ready = actor.is_ready.remote()
        while not self._closing.is_set():
            if not ray.wait([ready], timeout=POLL_S)[0]:
                continue  # no free CPU yet, or loading
            try:
                ray.get(ready)
            except RayError as error:
                self._end(actor)
                self._count_failed_start(error)
                return None
            self._failed_starts = 0
            return actor
        self._end(actor)
        return None

    def _count_failed_start(self, error: RayError) -> None:
        """Give up after several actors in a row that did not start."""
        self._failed_starts += 1
        logger.warning("an actor did not start: %s", first_line(error))
        if self._failed_starts >= STARTS and not self._closing.is_set():
            why = f"{STARTS} actors in a row did not start: {first_line(error)}"
            with self._lock:
                self._broken = why
            self._give_up(why)

    def _run(self, actor: Any, task: Task) -> Any:  # Any: Ray's handle
        """Run a task; return the actor, None if it is no more."""
        task.attempts += 1
        try:
            call = actor.run.remote(task.function, task.arguments)
            answer = ray.get(call, timeout=self._timeout_s)
        except GetTimeoutError:
            task.future.set_result(silence(self._timeout_s or 0.0))
        except RayTaskError as error:  # the actor lives; the answer could not be made or carried
            task.future.set_exception(RuntimeError(first_line(error)))
            return actor
        except RayError as error:
            self._again(task, error)
        else:
            task.future.set_result(answer)
            return actor
        self._end(actor)
        return None

    def _again(self, task: Task, error: RayError) -> None:
        """Put back a task whose actor died, or call it a failure."""
        if task.attempts < ATTEMPTS:
            why = self._queue(task)
            if why is not None:
                task.future.set_exception(BrokenExecutor(why))
            else:
                logger.warning("an actor died and is replaced: %s", first_line(error))
        else:
            died = f"its worker died {ATTEMPTS} times: {first_line(error)}"
            task.future.set_result(Outcome(reason=died))

    def _end(self, actor: Any) -> None:  # Any: Ray's handle
        with self._lock:
            self._actors.discard(actor)
        ray.kill(actor)

    def _give_up(self, why: str) -> None:
        """Fail all tasks that wait."""
        while True:
            try:
                task = self._tasks.get_nowait()
            except queue.Empty:
                return
            if task.attempts or task.future.set_running_or_notify_cancel():
                task.future.set_exception(BrokenExecutor(why))


def join(address: str | None) -> bool:
    """Be connected to Ray; return whether this call did it."""
    if ray.is_initialized():
        return False
    os.environ.setdefault("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    settings: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    if address is None:
        settings["include_dashboard"] = False
    on_terminate = signal.getsignal(signal.SIGTERM)
    try:
        _knock(address)
        ray.init(address=address or "local", **settings)
    except (OSError, ValueError, RuntimeError, RayError) as error:
        raise DeviceError(
            f"no Ray at {address or 'this machine'} ({first_line(error)}). Start a cluster with "
            "`ray start --head` and give its HOST:PORT, or leave the address out to use this "
            "machine."
        ) from error
    finally:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, on_terminate)  # Ray puts its own: exit code 15
    return True


def _knock(address: str | None) -> None:
    """Raise OSError if nobody listens at HOST:PORT; Ray itself would try for minutes."""
    host, _, port = (address or "").rpartition(":")
    if host and port.isdigit():
        socket.create_connection((host, int(port)), timeout=KNOCK_S).close()


def first_line(error: BaseException) -> str:
    """Return the first line of an error that says something."""
    return next((line.strip() for line in str(error).splitlines() if line.strip()), repr(error))

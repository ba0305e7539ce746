"""An executor whose tasks are rows of a study's queue: any process may be a worker."""

import logging
import threading
import time
from collections.abc import Callable
from concurrent.futures import BrokenExecutor, Executor, Future
from typing import Any, ParamSpec, TypeVar

from nas.errors import NasError, TryAgain
from nas.search.crew import Crew
from nas.search.evaluate import call
from nas.search.worker import outcome_of_result
from nas.study import Queue, Study

P = ParamSpec("P")
T = TypeVar("T")
logger = logging.getLogger(__name__)

POLL_S = 0.05
LONGEST_POLL_S = 0.5
REAP_S = 1.0


class QueueExecutor(Executor):
    """Hands the engine's candidates to workers through the database, for `SearchOptions.executor`.

    A candidate that was queued before - by an owner that was killed - keeps its row and, if it has
    one, its result. Workers are those of `crew`, and whoever else calls `nas.search.work`.
    """

    def __init__(
        self,
        study: Study,
        *,
        timeout_s: float | None = None,
        crew: Crew | None = None,
        queue: Queue | None = None,
    ) -> None:
        """Begin nothing yet: the first candidate does.

        Args:
            study: One in a database.
            timeout_s: An evaluation without an answer this long after a worker began it has failed.
            crew: Processes to keep running meanwhile.
            queue: The study's queue; made if not given.

        Raises:
            ConfigError: the study is in memory.
        """
        self._study = study
        self._queue = queue or Queue(study.place)
        self._timeout_s = timeout_s
        self._crew = crew
        self._waiting: dict[str, Future[Any]] = {}
        self._guard = threading.Lock()
        self._stop = threading.Event()
        self._thread: threading.Thread | None = None
        self._broken: BaseException | None = None

    def submit(self, fn: Callable[P, T], /, *args: P.args, **kwargs: P.kwargs) -> "Future[T]":
        """Queue one candidate, as the engine gives it: `submit(call, evaluate, choice, rank_by)`.

        Workers have an `evaluate` of their own; the one given here is not sent.

        Raises:
            BrokenExecutor: the workers cannot go on.
            TryAgain: the database stays locked or away.
        """
        assert fn is call, "this executor evaluates candidates of the engine and nothing else"
        if self._broken is not None:
            raise self._broken
        _, choice, rank_by = args
        payload = {"rank_by": rank_by, "timeout_s": self._timeout_s}
        future: Future[Any] = Future()
        key = self._queue.put(choice, payload)  # type: ignore[arg-type]
        with self._guard:
            if self._broken is not None:  # meanwhile: nobody would answer any more
                raise self._broken
            self._waiting[key] = future
        if self._thread is None:
            self._thread = threading.Thread(target=self._watch, daemon=True, name="nas-queue")
            self._thread.start()
        return future

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Stop the crew and wait for nothing else; rows stay, for whoever goes on."""
        self._stop.set()
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        if self._crew is not None:
            self._crew.stop()

    # ------------------------------------------------------------ in a thread of its own
    def _watch(self) -> None:
        pause_s, reaped_s = POLL_S, -REAP_S
        while not self._stop.wait(pause_s):
            try:
                if time.monotonic() - reaped_s >= REAP_S:
                    reaped_s = time.monotonic()
                    self._keep()
                is_new = self._collect()
            except BaseException as error:  # whatever it is, somebody waits for an answer
                self._break(error)
                return
            pause_s = POLL_S if is_new else min(1.5 * pause_s, LONGEST_POLL_S)

    def _keep(self) -> None:
        """See to what is not in order: a lost lease, workers that are gone."""
        lease = self._study.lease
        if lease is not None and lease.is_lost:
            raise TryAgain(
                f"the study {self._study.name!r} was taken over by another process. What was "
                "recorded is safe; go on with --resume when that one has ended."
            )
        if self._crew is not None and self._waiting:
            self._crew.keep()
        for words in self._queue.reap():
            logger.warning("%s", words)

    def _collect(self) -> bool:
        """Give every waiting future the result that is there; return whether there was one."""
        if not self._waiting:
            return False
        found = self._queue.results()
        with self._guard:
            answered = {key: self._waiting.pop(key) for key in found if key in self._waiting}
        for key, future in answered.items():
            if self._crew is not None:
                self._crew.praise()
            if future.set_running_or_notify_cancel():
                future.set_result(outcome_of_result(found[key]))
        return bool(answered)

    def _break(self, error: BaseException) -> None:
        """Let everybody who waits, now or later, know that there will be no answer."""
        if not isinstance(error, TryAgain | BrokenExecutor):
            words = (
                str(error) if isinstance(error, NasError) else f"{type(error).__name__}: {error}"
            )
            error = BrokenExecutor(words)
        with self._guard:
            self._broken = error
            waiting, self._waiting = self._waiting, {}
        for future in waiting.values():
            if future.set_running_or_notify_cancel():
                future.set_exception(error)

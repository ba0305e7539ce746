"""Calling `evaluate` so that whatever it does is a result: an error, NaN and silence too."""

import logging
import math
import queue
import threading
import time
import traceback
from collections.abc import Callable, Generator, Mapping, Sequence
from concurrent.futures import BrokenExecutor, Future
from dataclasses import dataclass, field
from typing import Any, TypeAlias

from nas.errors import NasError, TryAgain
from nas.search.options import RankBy, SearchOptions
from nas.study import Choice

Evaluate: TypeAlias = Callable[[Choice], float | Mapping[str, Any]]
logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """What came of one evaluation: an accuracy, or the reason why there is none."""

    accuracy: float | None = None
    loss: float | None = None
    reason: str | None = None
    evaluation_s: float | None = None
    attrs: Mapping[str, Any] = field(default_factory=dict)

    def score(self, rank_by: RankBy) -> float | None:
        """Return what a mind maximises: the accuracy or the negative loss; None if it failed."""
        if self.accuracy is None or rank_by == "accuracy":
            return self.accuracy
        return None if self.loss is None else -self.loss


def outcomes(
    evaluate: Evaluate, choices: Sequence[Choice], options: SearchOptions
) -> Generator[Outcome]:
    """Yield the outcome of every choice, in their order, as soon as those before it are known."""
    timeout_s = options.timeout_s
    if options.executor is None:
        for choice in choices:
            if timeout_s is None:
                yield call(evaluate, choice, options.rank_by)
            else:
                yield _in_thread(evaluate, choice, options.rank_by, timeout_s)
        return
    futures: list[Future[Outcome]] = []
    try:
        for choice in choices:
            futures.append(options.executor.submit(call, evaluate, choice, options.rank_by))
        for future in futures:
            yield _result(future, timeout_s)
    except BrokenExecutor as error:  # whose fault it was is not known: no candidate gets it
        raise NasError(
            f"the executor broke: {error} Give the search a new one and go on with --resume; "
            "everything recorded is safe."
        ) from error
    finally:
        for future in futures:
            future.cancel()


def call(evaluate: Evaluate, choice: Choice, rank_by: RankBy) -> Outcome:
    """Evaluate one choice and return what came of it, whatever that is."""
    started_s = time.perf_counter()
    try:
        outcome = understand(evaluate(choice), rank_by)
    except Exception as error:  # the top of a worker: whatever went wrong is recorded
        logger.debug("evaluate raised:\n%s", traceback.format_exc())
        outcome = Outcome(reason=f"{type(error).__name__}: {error}")
    elapsed_s = time.perf_counter() - started_s
    return Outcome(
        accuracy=outcome.accuracy,
        loss=outcome.loss,
        reason=outcome.reason,
        evaluation_s=elapsed_s,
        attrs=outcome.attrs,
    )


def understand(answer: float | Mapping[str, Any], rank_by: RankBy) -> Outcome:
    """Return an answer of `evaluate` as an outcome; what is not finite is a failure."""
    rest = dict(answer) if isinstance(answer, Mapping) else {"accuracy": answer}
    accuracy, loss = rest.pop("accuracy", None), rest.pop("loss", None)
    if accuracy is None:
        return Outcome(reason="evaluate returned no accuracy")
    if loss is None and rank_by == "loss":
        return Outcome(reason="evaluate returned no loss to rank by")
    for name, value in (("accuracy", accuracy), ("loss", loss)):
        if value is not None and not math.isfinite(float(value)):
            return Outcome(reason=f"{name} is {float(value)}")
    return Outcome(accuracy=float(accuracy), loss=None if loss is None else float(loss), attrs=rest)


def _result(future: "Future[Outcome]", timeout_s: float | None) -> Outcome:
    try:
        return future.result(timeout=timeout_s)
    except TimeoutError:
        return silence(timeout_s or 0.0)
    except (BrokenExecutor, TryAgain):  # the executor's: `call` lets none of evaluate's out
        raise
    except Exception as error:  # the answer could not be carried here
        return Outcome(reason=f"{type(error).__name__}: {error}")


def _in_thread(evaluate: Evaluate, choice: Choice, rank_by: RankBy, timeout_s: float) -> Outcome:
    """Evaluate in a thread that is left alone when it does not answer in time."""
    answers: queue.SimpleQueue[Outcome] = queue.SimpleQueue()
    worker = threading.Thread(
        target=lambda: answers.put(call(evaluate, choice, rank_by)), daemon=True
    )
    worker.start()
    try:
        return answers.get(timeout=timeout_s)
    except queue.Empty:
        return silence(timeout_s)


def silence(timeout_s: float) -> Outcome:
    """Return the outcome of an evaluation that did not answer in time."""
    return Outcome(reason=f"no answer within {timeout_s:g} s", evaluation_s=timeout_s)

"""A worker: takes candidates from a study's queue, evaluates them, writes their results."""

import json
import logging
import queue as queues
import threading
import time
from collections.abc import Mapping
from typing import Any

from nas.errors import NasError
from nas.search.evaluate import Evaluate, Outcome, call
from nas.search.options import RankBy
from nas.study import Choice, Claim, Queue, Study, owner_of

logger = logging.getLogger(__name__)

IDLE_S = 300.0
LOOK_S = 0.05  # between two looks at an empty queue, at first
LONGEST_LOOK_S = 0.5
OWNER_LOOK_S = 1.0  # between two looks for who owns the study


def work(
    study: Study,
    evaluate: Evaluate,
    *,
    idle_s: float = IDLE_S,
    stop: threading.Event | None = None,
    queue: Queue | None = None,
) -> int:
    """Evaluate what the owner of a study queues, until nobody has owned it for `idle_s`.

    Args:
        study: One in a database.
        evaluate: What the owner would have called: it must return the same for the same choice.
        idle_s: How long to wait for an owner, before the first one too.
        stop: Ends the work when set; the candidate at hand is given back.
        queue: The study's queue; made if not given.

    Returns:
        How many results were taken from this worker.

    Raises:
        NasError: an evaluation did not answer in its time. It cannot be stopped, so this worker
            ends; the result says so, and another worker can go on.
        ConfigError: the study is in memory.
        TryAgain: the database stays locked or away.
    """
    queue = queue or Queue(study.place)
    stop = stop or threading.Event()
    hand = _Hand(evaluate)
    taken, pause_s = 0, LOOK_S
    seen_s = looked_s = time.monotonic()
    while not stop.is_set():
        claim = queue.claim()
        if claim is not None:
            taken += _evaluate(queue, claim, hand, stop)
            pause_s, seen_s = LOOK_S, time.monotonic()
            continue
        if time.monotonic() - looked_s >= OWNER_LOOK_S:
            looked_s = time.monotonic()
            seen_s = looked_s if _is_owned(study) else seen_s
        if time.monotonic() - seen_s >= idle_s:
            logger.info("nobody has searched %s for %.0f s", study.name, idle_s)
            break
        stop.wait(pause_s)
        pause_s = min(2 * pause_s, LONGEST_LOOK_S)
    return taken


def _is_owned(study: Study) -> bool:
    assert study.place is not None, "a queue was found in its database"
    owner = owner_of(study.place)
    return owner is not None and not owner.is_gone


class _Hand:
    """The thread that evaluates, so that the worker can go on saying that it is alive."""

    def __init__(self, evaluate: Evaluate) -> None:
        self._evaluate = evaluate
        self._asked: queues.SimpleQueue[tuple[Choice, RankBy]] = queues.SimpleQueue()
        self._answers: queues.SimpleQueue[Outcome] = queues.SimpleQueue()
        threading.Thread(target=self._run, daemon=True, name="nas-evaluate").start()

    def _run(self) -> None:
        while True:
            choice, rank_by = self._asked.get()
            self._answers.put(call(self._evaluate, choice, rank_by))

    def ask(self, choice: Choice, rank_by: RankBy) -> None:
        self._asked.put((choice, rank_by))

    def answer(self, wait_s: float) -> Outcome | None:
        try:
            return self._answers.get(timeout=wait_s)
        except queues.Empty:
            return None


def _evaluate(queue: Queue, claim: Claim, hand: _Hand, stop: threading.Event) -> bool:
    """Evaluate one candidate, saying meanwhile that we are alive; return if the result counts."""
    payload = claim.payload
    timeout_s: float | None = payload["timeout_s"]
    begun_s = beaten_s = time.monotonic()
    try:
        hand.ask(choice_of(payload), payload["rank_by"])
        while (outcome := hand.answer(LONGEST_LOOK_S)) is None:
            now_s = time.monotonic()
            if stop.is_set():
                queue.give_back(claim)
                return False
            if timeout_s is not None and now_s - begun_s >= timeout_s:
                reason = f"no answer within {timeout_s:g} s"
                queue.finish(claim, {"reason": reason, "evaluation_s": timeout_s})
                raise NasError(f"an evaluation gave {reason}; it cannot be stopped, so I end.")
            if now_s - beaten_s >= queue.beat_s:
                beaten_s = now_s
                if not queue.beat(claim):
                    logger.warning("somebody else evaluates our candidate: we were thought dead")
    except Exception:
        raise
    except BaseException:  # we are told to end: somebody else can begin at once
        queue.give_back(claim)
        raise
    is_taken = queue.finish(claim, result_of(outcome))
    if not is_taken:
        logger.warning("a result came too late: its candidate was given to another worker")
    return is_taken


# ---------------------------------------------------------------- as rows have it
def choice_of(payload: Mapping[str, Any]) -> Choice:
    """Return the choice of a queued candidate; JSON has lists for tuples."""
    return {
        gene: tuple(option) if isinstance(option, list) else option
        for gene, option in payload["choice"].items()
    }


def result_of(outcome: Outcome) -> dict[str, Any]:
    """Return an outcome as plain values; what JSON has no word for makes it a failed one."""
    result = {
        "accuracy": outcome.accuracy, "loss": outcome.loss, "reason": outcome.reason,
        "evaluation_s": outcome.evaluation_s,
        "attrs": {
            name: value.item() if hasattr(value, "item") else value
            for name, value in outcome.attrs.items()
        },
    }  # fmt: skip
    try:
        json.dumps(result)
    except (TypeError, ValueError) as error:
        return {"reason": f"what evaluate returned cannot be recorded: {error}"}
    return result


def outcome_of_result(result: Mapping[str, Any]) -> Outcome:
    """Return the outcome that a row's result stands for."""
    return Outcome(
        accuracy=result.get("accuracy"), loss=result.get("loss"), reason=result.get("reason"),
        evaluation_s=result.get("evaluation_s"), attrs=result.get("attrs") or {},
    )  # fmt: skip

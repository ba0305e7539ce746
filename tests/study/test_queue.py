"""The queue: each candidate claimed once, given back when its worker is gone, done once."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable
from typing import Any

import pytest

from nas.errors import ConfigError
from nas.study import Queue, Study, hold
from nas.study.holder import Holder
from nas.study.place import Place
from nas.study.queue import ATTEMPTS, candidate_key

Open = Callable[[], Study]

CLAIM = """
import os, sys
from nas.study import Queue, Study
assert Queue(Study.load(sys.argv[2], storage=sys.argv[1]).place).claim() is not None
os._exit(137)
"""


def queue_of(study: Study, **settings: Any) -> Queue:
    return Queue(study.place, **settings)


def fill(study: Study, count: int) -> list[str]:
    queue = queue_of(study)
    return [queue.put({"a": option}, {"rank_by": "loss"}) for option in range(count)]


def test_each_candidate_is_claimed_by_one_of_many_workers(opened: Open) -> None:
    study = opened()
    fill(study, 20)
    got: list[int] = []
    studies = [opened() for _ in range(6)]
    start = threading.Barrier(len(studies))

    def claim(queue: Queue) -> None:
        start.wait()
        while (claim := queue.claim()) is not None:
            got.append(claim.payload["choice"]["a"])
            assert queue.finish(claim, {"accuracy": 0.5})

    threads = [threading.Thread(target=claim, args=(queue_of(one),)) for one in studies]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert sorted(got) == list(range(20))
    assert len(queue_of(study).results()) == 20


def test_a_candidate_in_the_row_of_one_that_is_recorded_is_not_taken_for_it(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    """SQLite gives the number of a row that is deleted to the next one."""
    study = opened()
    fill(study, 1)
    slow, fast = queue_of(study), queue_of(study)
    real = Place.transact
    looked: list[str] = []

    def transact(self: Place, action: Any, **settings: Any) -> Any:
        found = real(self, action, **settings)
        if not looked:  # the slow one has seen the row; now others do it, record it, queue the next
            looked.append("once")
            claim = fast.claim()
            assert claim is not None and fast.finish(claim, {"accuracy": 0.5})
            with hold(study):
                study.add({"a": 0}, {"latency_ms": 1.0}, accuracy=0.5)
            fast.put({"a": 1}, {"rank_by": "loss"})
        return found

    monkeypatch.setattr(Place, "transact", transact)
    claim = slow.claim() or slow.claim()
    assert claim is not None and claim.payload["choice"] == {"a": 1}
    assert slow.finish(claim, {"accuracy": 0.7})
    assert slow.results() == {candidate_key({"a": 1}): {"accuracy": 0.7}}


def test_the_result_of_a_worker_that_was_thought_dead_is_refused(opened: Open) -> None:
    study = opened()
    (key,) = fill(study, 1)
    slow, fast = queue_of(study, lease_s=0.2), queue_of(study)
    late = slow.claim()
    assert late is not None and fast.claim() is None
    time.sleep(0.3)
    assert len(queue_of(study).reap()) == 1
    assert not slow.finish(late, {"accuracy": 0.1})  # nobody has it, nor has this worker
    claim = fast.claim()
    assert claim is not None and claim.attempt == late.attempt + 1
    assert not slow.beat(late) and not slow.finish(late, {"accuracy": 0.1})
    assert not slow.give_back(late)
    assert fast.finish(claim, {"accuracy": 0.9})
    assert not fast.finish(claim, {"accuracy": 0.8})
    assert queue_of(study).results() == {key: {"accuracy": 0.9}}


def test_a_worker_that_beats_keeps_its_candidate(opened: Open) -> None:
    study = opened()
    fill(study, 1)
    queue = queue_of(study, lease_s=0.5)
    claim = queue.claim()
    assert claim is not None
    for _ in range(3):
        time.sleep(0.25)
        assert queue.beat(claim)
        assert queue.reap() == []
    assert queue.finish(claim, {"accuracy": 0.5})


@pytest.mark.slow
def test_the_candidate_of_workers_that_die_is_given_back_and_fails_at_last(
    opened: Open, either: str
) -> None:
    study = opened()
    (key,) = fill(study, 1)
    queue = queue_of(study)
    for attempt in range(1, ATTEMPTS + 1):
        done = subprocess.run(
            [sys.executable, "-c", CLAIM, either, study.name], capture_output=True, timeout=60
        )
        assert done.returncode == 137, done.stderr
        (told,) = queue.reap()  # at once: the process is not there any more
        assert ("given back" in told) == (attempt < ATTEMPTS)
    reason = queue.results()[key]["reason"]
    assert reason.startswith(f"{ATTEMPTS} workers ended") and "out of memory?" in reason
    assert queue.claim() is None and queue.reap() == []


def test_what_a_worker_gives_back_itself_is_not_held_against_the_candidate(opened: Open) -> None:
    study = opened()
    fill(study, 1)
    queue = queue_of(study)
    for _ in range(2 * ATTEMPTS):
        claim = queue.claim()
        assert claim is not None and queue.give_back(claim)
    assert queue.results() == {}


def test_a_worker_elsewhere_is_given_the_time_of_its_lease(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = opened()
    fill(study, 1)
    with monkeypatch.context() as patch:
        other = Holder(host="other", machine="another boot", pid=1)
        patch.setattr(Holder, "here", classmethod(lambda cls: other))
        assert queue_of(study, lease_s=0.5).claim() is not None
    assert queue_of(study).reap() == []
    time.sleep(0.6)
    assert "pid 1 on other does not answer" in queue_of(study).reap()[0]


def test_a_claim_whose_answer_was_lost_is_found_again(opened: Open) -> None:
    study = opened()
    fill(study, 2)
    queue = queue_of(study)
    lost, again = queue.claim(), queue.claim()
    assert lost is not None and again is not None
    assert (again.id, again.attempt) == (lost.id, lost.attempt + 1)


def test_a_trial_is_recorded_if_and_only_if_it_leaves_the_queue(
    opened: Open, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = opened()
    keys = fill(study, 2)
    queue = queue_of(study)
    for _ in keys:
        claim = queue.claim()
        assert claim is not None and queue.finish(claim, {"accuracy": 0.5})
    with hold(study):
        study.add({"a": 0}, {"latency_ms": 1.0}, accuracy=0.5)
        assert queue.results().keys() == {keys[1]}
        monkeypatch.setattr(study._recorder, "_rows", lambda trial: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            study.add({"a": 1}, {"latency_ms": 1.0}, accuracy=0.5)
    assert queue.results().keys() == {keys[1]}
    assert [row.choice["a"] for row in opened().trials] == [0]


def test_a_candidate_is_queued_once_and_keeps_its_result(opened: Open) -> None:
    study = opened()
    (key,) = fill(study, 1)
    queue = queue_of(study)
    claim = queue.claim()
    assert claim is not None and queue.finish(claim, {"accuracy": 0.25})
    assert fill(study, 1) == [key]
    assert queue.claim() is None and queue.results()[key] == {"accuracy": 0.25}


def test_a_key_does_not_depend_on_lists_or_tuples_nor_on_the_order_of_genes() -> None:
    assert candidate_key({"a": (7, 5), "b": 1}) == candidate_key({"b": 1, "a": [7, 5]})
    assert candidate_key({"a": 1}) != candidate_key({"a": 2})


def test_a_study_in_memory_has_no_queue() -> None:
    with pytest.raises(ConfigError, match=r"in memory.*Study\.resume"):
        Queue(Study.in_memory().place)

"""Evaluating in other processes: the same study, whatever happens to the workers."""

import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import BrokenExecutor
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from nas.errors import ConfigError, NasError, TryAgain
from nas.search import Crew, QueueExecutor, SearchOptions, run, work
from nas.search.evaluate import call
from nas.study import Queue, Study, hold

Choice = Mapping[str, Any]
GENES: dict[str, tuple[Any, ...]] = {f"g{i}": (0, 1, 2) for i in range(4)}
GENES |= {"kernels": ((7, 5), (5, 3))}


def accuracy(choice: Choice) -> float:
    assert choice["kernels"] in GENES["kernels"]  # a tuple again, though JSON has lists
    total = sum((i + 1) * choice[f"g{i}"] for i in range(4)) + 3 * (choice["kernels"] == (5, 3))
    return float(total / 21)


def evaluate(choice: Choice) -> dict[str, float]:
    found = accuracy(choice)
    return {"accuracy": found, "loss": 1 / (1 + found), "images": 7}


def price(choices: list[Choice]) -> dict[str, list[float]]:
    return {"latency_ms": [1.0 + sum(choice[f"g{i}"] for i in range(4)) for choice in choices]}


@pytest.fixture
def url(tmp_path: Path) -> str:
    return f"sqlite:///{tmp_path}/nas.db"


def search(study: Study, executor: Any = None, evaluations: int = 24, **settings: Any) -> Study:
    return run(
        GENES,
        settings.pop("evaluate", never if executor else evaluate),
        price,
        {"latency_ms": 7.0},
        evaluations=evaluations,
        options=SearchOptions(batch=4, rank_by="loss", executor=executor, **settings),
        study=study,
    )


def never(choice: Choice) -> float:
    raise AssertionError("the owner evaluated by itself")


def rows(study: Study) -> list[tuple[Any, ...]]:
    return [
        (row.number, dict(row.choice), row.accuracy, row.loss, row.reason, dict(row.extra))
        for row in study.trials
    ]


@contextmanager
def workers(
    name: str, url: str, evaluates: list[Callable[[Choice], Any]], lease_s: float = 30.0
) -> Iterator[list[int | BaseException]]:
    """Run workers in threads, each with a study of its own; collect how they end."""
    stop, ends = threading.Event(), list[int | BaseException]()

    def one(evaluate: Callable[[Choice], Any]) -> None:
        study = Study.load(name, storage=url)
        queue = Queue(study.place, lease_s=lease_s)
        try:
            ends.append(work(study, evaluate, stop=stop, queue=queue))
        except NasError as error:
            ends.append(error)

    threads = [threading.Thread(target=one, args=(each,)) for each in evaluates]
    for thread in threads:
        thread.start()
    try:
        yield ends
    finally:
        stop.set()
        for thread in threads:
            thread.join()


# ---------------------------------------------------------------- the same study
def test_workers_find_what_the_search_finds_by_itself(url: str) -> None:
    alone = search(Study.in_memory())
    study = Study.create("s", storage=url)
    with workers("s", url, [evaluate] * 3) as ends, QueueExecutor(study) as executor:
        search(study, executor)
    assert rows(study) == rows(alone)
    assert study.trials[0].extra == {"images": 7}
    assert sum(end for end in ends if isinstance(end, int)) == 24
    assert Queue(study.place).results() == {}


def test_failures_of_an_evaluation_are_the_same_with_workers(url: str) -> None:
    def sometimes(choice: Choice) -> Any:
        if choice["g0"] == 1 and choice["g1"] == 1:
            return float("nan")
        if choice["g0"] == 2 and choice["g1"] == 2:
            raise MemoryError("no room")
        return evaluate(choice)

    alone = search(Study.in_memory(), evaluate=sometimes)
    study = Study.create("s", storage=url)
    with workers("s", url, [sometimes] * 2), QueueExecutor(study) as executor:
        search(study, executor)
    assert rows(study) == rows(alone)
    assert any(row.reason for row in study.trials)


def test_what_cannot_be_written_down_is_a_failure_and_not_the_end_of_a_worker(url: str) -> None:
    def is_odd(choice: Choice) -> bool:
        return bool(choice["g0"] == choice["g1"] == 1)

    def odd(choice: Choice) -> Any:
        return {"accuracy": 0.5, "loss": 1.0, "model": object() if is_odd(choice) else 1}

    study = Study.create("s", storage=url)
    with workers("s", url, [odd]), QueueExecutor(study) as executor:
        search(study, executor)
    failed = [row for row in study.trials if is_odd(row.choice)]
    assert failed and all("cannot be recorded" in str(row.reason) for row in failed)


def test_an_owner_that_comes_back_uses_the_results_that_came_meanwhile(url: str) -> None:
    alone = search(Study.in_memory())
    study = Study.create("s", storage=url)
    calls = list[str]()

    def counted(choice: Choice) -> Any:
        calls.append(str(sorted(choice.items())))
        return evaluate(choice)

    class Killed(BaseException):
        pass

    real = Study.add

    def add(self: Study, *arguments: Any, **named: Any) -> None:
        if len(self.trials) == 6:
            raise Killed
        real(self, *arguments, **named)

    with workers("s", url, [counted] * 2):
        with pytest.MonkeyPatch.context() as patch, QueueExecutor(study) as executor:
            patch.setattr(Study, "add", add)
            with pytest.raises(Killed):
                search(study, executor)
        again = Study.resume("s", storage=url)
        with QueueExecutor(again) as executor:
            search(again, executor)
    assert rows(again) == rows(alone)
    assert sorted(calls) == sorted(set(calls)) and len(calls) == 24


# ---------------------------------------------------------------- what goes wrong
def test_an_evaluation_that_hangs_is_a_failure_and_the_end_of_its_worker_only(url: str) -> None:
    release = threading.Event()

    def hangs(choice: Choice) -> Any:
        if choice["g0"] == choice["g1"] == 1:
            release.wait(60)
        return evaluate(choice)

    study = Study.create("s", storage=url)
    with workers("s", url, [hangs] * 12) as ends, QueueExecutor(study, timeout_s=0.6) as executor:
        search(study, executor)
    release.set()
    hung = [row for row in study.trials if row.choice["g0"] == row.choice["g1"] == 1]
    assert hung and {row.reason for row in hung} == {"no answer within 0.6 s"}
    assert sum("cannot be stopped" in str(end) for end in ends) == len(hung)
    assert len(study.trials) == 24


def test_a_search_that_was_taken_over_stops_and_says_to_try_again(url: str) -> None:
    study = Study.create("s", storage=url)
    with QueueExecutor(study) as executor:

        def take_over() -> None:
            while study.lease is None:
                time.sleep(0.01)
            study.lease._lost.set()

        thief = threading.Thread(target=take_over)
        thief.start()
        with pytest.raises(TryAgain, match="taken over"):
            search(study, executor)  # there is no worker: it would wait for ever
        thief.join()
    assert study.trials == ()


def test_a_candidate_that_is_queued_while_the_workers_give_up_is_not_waited_for(
    url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = Study.create("s", storage=url)
    queue = Queue(study.place)
    executor = QueueExecutor(study, queue=queue)
    real, may_end = queue.put, threading.Event()

    def keep() -> None:
        assert may_end.wait(30)
        raise NasError("no worker begins")

    def put(choice: Choice, payload: Mapping[str, Any]) -> str:
        key = real(choice, payload)
        if choice["g0"] == 2:  # written, and then everybody gives up
            may_end.set()
            thread = executor._thread
            assert thread is not None
            thread.join(30)
        return key

    monkeypatch.setattr(executor, "_keep", keep)
    monkeypatch.setattr(queue, "put", put)
    with executor:
        first = executor.submit(call, evaluate, {"g0": 1}, "loss")
        with pytest.raises(BrokenExecutor, match="no worker begins"):
            executor.submit(call, evaluate, {"g0": 2}, "loss")
        with pytest.raises(BrokenExecutor, match="no worker begins"):
            first.result(5)


def test_a_worker_waits_for_an_owner_and_ends_when_none_comes(url: str) -> None:
    study = Study.create("s", storage=url)
    begun_s = time.monotonic()
    assert work(study, evaluate, idle_s=0.3) == 0
    assert time.monotonic() - begun_s >= 0.3
    with hold(study):
        stop = threading.Event()
        threading.Timer(1.5, stop.set).start()
        begun_s = time.monotonic()
        assert work(Study.load("s", storage=url), evaluate, idle_s=1.2, stop=stop) == 0
        assert time.monotonic() - begun_s >= 1.4  # owned: it does not end


def test_workers_need_a_database() -> None:
    with pytest.raises(ConfigError, match="in memory"):
        QueueExecutor(Study.in_memory())
    with pytest.raises(ConfigError, match="in memory"):
        work(Study.in_memory(), evaluate)


# ---------------------------------------------------------------- processes
def crew_of(code: str, log: Path, count: int = 1) -> Crew:
    def start() -> "subprocess.Popen[bytes]":
        with open(log, "ab") as stream:
            return subprocess.Popen(
                [sys.executable, "-S", "-c", code], stdin=subprocess.PIPE, stderr=stream
            )

    return Crew(count, start, log=log)


def keep_until(crew: Crew, is_true: Callable[[], bool]) -> None:
    end_s = time.monotonic() + 30
    while not is_true():
        assert time.monotonic() < end_s
        crew.keep()
        time.sleep(0.05)


WAIT = "import sys; sys.stdin.buffer.read()"


def test_a_worker_that_is_killed_is_replaced_and_none_is_left_at_the_end(tmp_path: Path) -> None:
    crew = crew_of(WAIT, tmp_path / "log", count=2)
    crew.keep()
    first = crew.pids
    assert len(first) == 2
    subprocess.run(["kill", "-9", str(first[0])], check=True)
    keep_until(crew, lambda: len(crew.pids) == 2 and first[0] not in crew.pids)
    crew.stop()
    assert crew.pids == ()


def test_a_worker_that_cannot_begin_stops_the_search_with_its_last_words(tmp_path: Path) -> None:
    code = "import sys; print('error: no such space', file=sys.stderr); sys.exit(2)"
    crew = crew_of(code, tmp_path / "log")
    with pytest.raises(NasError, match=r"exit code 2: error: no such space \(.*log\)"):
        keep_until(crew, lambda: False)
    crew.stop()


@pytest.mark.slow
def test_workers_that_keep_dying_stop_the_search(
    tmp_path: Path, url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nas.search.crew.PAUSE_S", 0.0)
    monkeypatch.setattr("nas.search.queued.REAP_S", 0.1)
    crew = crew_of("import os; os._exit(137)", tmp_path / "log")
    study = Study.create("s", storage=url)
    with (
        QueueExecutor(study, crew=crew) as executor,
        pytest.raises(
            NasError, match=r"executor broke: a worker ended with exit code 137.*--resume"
        ),
    ):
        search(study, executor)
    assert study.trials == ()
    with hold(study), pytest.raises(BrokenExecutor):  # later candidates are told so too
        executor.submit(call, evaluate, {}, "loss")


def test_a_crew_has_at_least_one_worker(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="workers must be at least 1"):
        crew_of(WAIT, tmp_path / "log", count=0)

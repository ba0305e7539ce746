"""Eight workers and their owner, killed at random: every result is recorded exactly once."""

import os
import random
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from pathlib import Path
from typing import Any

import psutil
import pytest

from nas.study import Study

EVALUATIONS = 64
WORKERS = 8

WORKER = """
import sys, threading, time
from nas.study import Study
from nas.search import work

def evaluate(choice):
    with open(sys.argv[3], "a") as log:
        log.write(str(sorted(choice.items())) + "\\n")
    if choice["g0"] == choice["g1"] == 3:
        import os, signal
        os.kill(os.getpid(), signal.SIGKILL)  # what the system does when memory is full
    time.sleep(0.2)
    return {"accuracy": sum((i + 1) * choice[f"g{i}"] for i in range(6)) / 63}

stop = threading.Event()
threading.Thread(target=lambda: (sys.stdin.buffer.read(), stop.set()), daemon=True).start()
work(Study.load("s", storage=sys.argv[1]), evaluate, idle_s=60, stop=stop)
"""

OWNER = """
import subprocess, sys
from pathlib import Path
from nas.search import Crew, QueueExecutor, SearchOptions, run
from nas.study import Study

storage, folder, count, evaluations = sys.argv[1], Path(sys.argv[2]), *map(int, sys.argv[3:])
genes = {f"g{i}": (0, 1, 2, 3) for i in range(6)}

def price(choices):
    return {"latency_ms": [1.0 + sum(c.values()) for c in choices]}

def alone(choice):
    if choice["g0"] == choice["g1"] == 3:
        raise MemoryError
    return sum((i + 1) * choice[f"g{i}"] for i in range(6)) / 63

def start():
    words = [storage, "s", str(folder / "evaluated")]
    with open(folder / "workers.log", "ab") as log:
        return subprocess.Popen(
            [sys.executable, str(folder / "worker.py"), *words],
            stdin=subprocess.PIPE, stderr=log, start_new_session=True)

study = Study.resume("s", storage=storage)
crew = Crew(count, start, log=folder / "workers.log") if count else None
executor = QueueExecutor(study, crew=crew) if crew else None
try:
    run(genes, alone, price, {"latency_ms": 14.0}, evaluations=evaluations, seed=3,
        options=SearchOptions(sampler="random", batch=16, executor=executor), study=study)
finally:
    if executor:
        executor.shutdown()
"""


class Search:
    """An owner with its workers, as processes that can be killed."""

    def __init__(self, storage: str, folder: Path, workers: int = WORKERS) -> None:
        folder.mkdir(exist_ok=True)
        (folder / "worker.py").write_text(WORKER)
        self.log = folder / "owner.log"
        words = [storage, str(folder), str(workers), str(EVALUATIONS)]
        self.words = [sys.executable, "-c", OWNER, *words]

    def start(self) -> "subprocess.Popen[bytes]":
        with open(self.log, "ab") as log:
            return subprocess.Popen(self.words, stderr=log)

    def finish(self) -> None:
        owner = self.start()
        code = owner.wait(timeout=240)
        assert code == 0, self.log.read_text()


def kill_workers(owner: "subprocess.Popen[bytes]", rng: random.Random, every_s: float) -> None:
    """Kill one of its workers now and then until the owner ends."""
    while owner.poll() is None:
        time.sleep(rng.uniform(0.5, 1.5) * every_s)
        try:
            children = psutil.Process(owner.pid).children()
        except psutil.NoSuchProcess:
            return
        if children:
            os.kill(rng.choice(children).pid, signal.SIGKILL)


def rows(study: Study) -> list[tuple[Any, ...]]:
    return [(row.number, dict(row.choice), row.accuracy, dict(row.costs)) for row in study.trials]


def assert_all_recorded_once(storage: str, folder: Path) -> None:
    """Compare with the same search without workers, and look for what was done twice."""
    whole = f"sqlite:///{folder}/whole.db"
    Search(whole, folder / "alone", workers=0).finish()
    study = Study.load("s", storage=storage)
    assert rows(study) == rows(Study.load("s", storage=whole))
    names = Counter(str(sorted(row.choice.items())) for row in study.trials)
    assert len(names) == EVALUATIONS and set(names.values()) == {1}
    evaluated = set((folder / "evaluated").read_text().splitlines())
    assert evaluated == set(names)
    failed = [row for row in study.trials if not row.is_complete]
    assert failed and all("out of memory?" in str(row.reason) for row in failed)
    states = {trial.state.name for trial in study.optuna_study.trials}
    assert states == {"COMPLETE", "FAIL"}


@pytest.mark.slow
def test_killed_workers_and_a_killed_owner_lose_and_repeat_nothing(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/nas.db"
    search, rng = Search(storage, tmp_path), random.Random(0)
    owner = search.start()
    killer = threading.Thread(target=kill_workers, args=(owner, rng, 2.0))
    killer.start()
    wait_for(tmp_path / "evaluated", 20, owner)
    owner.kill()
    owner.wait()
    killer.join()
    search.finish()  # at once: the dead owner's lease does not keep it
    assert_all_recorded_once(storage, tmp_path)


@pytest.mark.slow
def test_a_server_that_restarts_and_killed_workers_lose_and_repeat_nothing(
    tmp_path: Path, postgresql: Any
) -> None:
    search, rng = Search(postgresql.url, tmp_path), random.Random(1)
    owner = search.start()
    killer = threading.Thread(target=kill_workers, args=(owner, rng, 2.0))
    killer.start()
    wait_for(tmp_path / "evaluated", 20, owner)
    postgresql.restart(down_s=5)
    code = owner.wait(timeout=240)
    killer.join()
    assert code == 0, search.log.read_text()
    assert_all_recorded_once(postgresql.url, tmp_path)


def wait_for(log: Path, lines: int, owner: "subprocess.Popen[bytes]") -> None:
    """Wait until that many evaluations were begun."""
    while not log.is_file() or len(log.read_text().splitlines()) < lines:
        assert owner.poll() is None, "the owner ended early"
        time.sleep(0.05)

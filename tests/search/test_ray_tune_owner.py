"""A searcher of Ray Tune owns its study: one at a time, freed in every way it can end."""

import gc
import json
import os
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nas.errors import TryAgain
from nas.search import tune_searcher
from nas.study import Study, owner_of

EVALUATIONS = 12
FINISHED = "FINISHED"

# Suggests one candidate and is then killed, as a Tuner's process may be.
KILLED = """
import sys
from nas.search import tune_searcher
from nas.study import Study

genes = {f"g{i:02}": (0, 1, 2, 3) for i in range(3)}
price = lambda choices: {"latency_ms": [1.0 + sum(c.values()) for c in choices]}
study = Study.resume("tuned", storage=sys.argv[1])
searcher = tune_searcher(genes, price, {"latency_ms": 6.0}, evaluations=12, seed=3, study=study)
searcher.suggest("a")
print("held", flush=True)
if sys.argv[2] == "kill":
    sys.stdin.read()
"""


def price(choices: Any) -> dict[str, Any]:
    return {"latency_ms": [1.0 + sum(choice.values()) for choice in choices]}


GENES = {f"g{number:02}": (0, 1, 2, 3) for number in range(3)}


@pytest.fixture
def storage(tmp_path: Path) -> str:
    url = f"sqlite:///{tmp_path}/nas.db"
    Study.create("tuned", storage=url)
    return url


@pytest.fixture
def searcher_of(storage: str) -> Callable[..., Any]:
    """Return what makes a searcher of the one study, as a process of its own would."""

    def make(**settings: Any) -> Any:
        study = Study.resume("tuned", storage=storage)
        known = {"evaluations": EVALUATIONS, "seed": 3, "study": study, **settings}
        return tune_searcher(GENES, price, {"latency_ms": 6.0}, **known)

    return make


def is_free(storage: str) -> bool:
    place = Study.load("tuned", storage=storage).place
    assert place is not None
    return owner_of(place) is None


def report(config: dict[str, Any]) -> dict[str, Any]:
    return {"accuracy": sum(config.values()) / 20, "config": config}


def drive(searcher: Any, trials: int, first: int = 0) -> int:
    """Run trials one after another; return how many there were."""
    for number in range(first, first + trials):
        config = searcher.suggest(f"t{number}")
        if config == FINISHED:
            return number - first
        searcher.on_trial_complete(f"t{number}", report(config))
    return trials


def choices_in(storage: str) -> list[str]:
    return [json.dumps(row.choice) for row in Study.load("tuned", storage=storage).trials]


# ---------------------------------------------------------------- one at a time
def test_a_second_searcher_is_refused_by_name_and_proposes_nothing(
    storage: str, searcher_of: Callable[..., Any]
) -> None:
    first, second = searcher_of(), searcher_of()
    assert is_free(storage)  # making one is not searching
    first.suggest("a")
    with pytest.raises(TryAgain, match=rf"'tuned' .* searched by pid {os.getpid()} on") as caught:
        second.suggest("b")
    assert caught.value.exit_code == 75
    assert drive(first, 3) == 3


def test_a_search_without_a_tuner_is_kept_out_too(
    storage: str, searcher_of: Callable[..., Any]
) -> None:
    from nas.search import run

    first = searcher_of()
    first.suggest("a")
    study = Study.resume("tuned", storage=storage)
    with pytest.raises(TryAgain, match="is being searched by"):
        run(GENES, lambda c: 0.5, price, {"latency_ms": 6.0}, evaluations=3, study=study)


def test_it_is_free_when_every_trial_is_recorded_and_not_before(
    storage: str, searcher_of: Callable[..., Any]
) -> None:
    searcher = searcher_of()
    configs = {f"t{number}": searcher.suggest(f"t{number}") for number in range(EVALUATIONS)}
    assert searcher.suggest("more") == FINISHED
    for name, config in configs.items():
        assert not is_free(storage)
        searcher.on_trial_complete(name, report(config))
    assert is_free(storage)
    assert searcher.suggest("more") == FINISHED and is_free(storage)


def test_it_is_free_when_there_are_no_more_candidates_or_too_many_fail(
    storage: str, searcher_of: Callable[..., Any]
) -> None:
    searcher = searcher_of()
    for name in "abc":
        searcher.suggest(name)
        searcher.on_trial_complete(name, error=True)
    assert not is_free(storage)
    assert searcher.suggest("d") == FINISHED and is_free(storage)


def test_one_that_is_closed_or_forgotten_lets_the_next_one_in_which_knows_what_it_found(
    storage: str, searcher_of: Callable[..., Any]
) -> None:
    first, second, third = searcher_of(), searcher_of(), searcher_of()
    drive(first, 4)
    first.close()
    first.close()
    assert is_free(storage)
    drive(second, 4)  # made when the study was empty
    del second
    gc.collect()
    assert is_free(storage)
    assert drive(third, 99) == EVALUATIONS - 8
    known = choices_in(storage)
    assert len(known) == len(set(known)) == EVALUATIONS


def test_one_that_lost_its_study_to_another_records_nothing_more(
    storage: str, searcher_of: Callable[..., Any]
) -> None:
    late, other = searcher_of(), searcher_of()
    config = late.suggest("a")
    late.study.lease._stop.set()  # as if its process was suspended
    late.study.lease._thread.join()
    import sqlite3

    with sqlite3.connect(storage.removeprefix("sqlite:///")) as database:
        database.execute("UPDATE nas_leases SET expires_at = 0")
    other.suggest("b")
    with pytest.raises(TryAgain, match="taken over by another process"):
        late.on_trial_complete("a", report(config))
    assert choices_in(storage) == []


# ---------------------------------------------------------------- processes
@pytest.mark.parametrize("end", ["kill", pytest.param("exit", marks=pytest.mark.slow)])
def test_a_process_that_is_killed_or_ends_leaves_the_study_to_the_next(
    storage: str, searcher_of: Callable[..., Any], end: str
) -> None:
    command = [sys.executable, "-c", KILLED, storage, end]
    with subprocess.Popen(
        command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as child:
        assert child.stdout is not None and child.stdout.readline() == "held\n"
        if end == "kill":
            with pytest.raises(TryAgain, match=f"pid {child.pid} on"):
                searcher_of().suggest("a")
            child.send_signal(signal.SIGKILL)
    assert is_free(storage) == (end == "exit")
    assert drive(searcher_of(), 99) == EVALUATIONS


# ---------------------------------------------------------------- what Ray does to a searcher
def test_a_pickled_searcher_leaves_the_lease_behind_and_takes_one_where_it_runs(
    storage: str, searcher_of: Callable[..., Any]
) -> None:
    from ray import cloudpickle

    dumps: Any = cloudpickle.dumps
    fresh = pickle.loads(dumps(searcher_of()))
    assert is_free(storage)
    drive(fresh, 2)
    copied = pickle.loads(dumps(fresh))  # as a Tuner's state has it, while the Tuner runs
    with pytest.raises(TryAgain):
        copied.suggest("x")
    fresh.close()
    assert drive(copied, 99, first=2) == EVALUATIONS - 2
    known = choices_in(storage)
    assert len(known) == len(set(known)) == EVALUATIONS


def test_a_restored_searcher_owns_the_study_from_what_it_does_next(
    storage: str, searcher_of: Callable[..., Any], tmp_path: Path
) -> None:
    begun = searcher_of()
    drive(begun, 3)
    pending = begun.suggest("pending")
    begun.save(str(tmp_path / "state.json"))
    assert "lease" not in (tmp_path / "state.json").read_text()
    restored = searcher_of()
    restored.restore(str(tmp_path / "state.json"))
    with pytest.raises(TryAgain):
        restored.on_trial_complete("pending", report(pending))
    assert len(choices_in(storage)) == 3
    begun.close()
    restored.on_trial_complete("pending", report(pending))
    assert not is_free(storage)
    assert drive(restored, 99, first=3) == EVALUATIONS - 4
    assert is_free(storage)


def test_results_that_the_study_lost_are_not_written_while_another_owns_it(
    storage: str, searcher_of: Callable[..., Any]
) -> None:
    begun = searcher_of()
    drive(begun, 3)
    state = begun.get_state()
    begun.close()
    Study.delete("tuned", storage=storage)
    Study.create("tuned", storage=storage)
    owner, restored = searcher_of(), searcher_of()
    owner.suggest("a")
    with pytest.raises(TryAgain):
        restored.set_state(state)
    assert choices_in(storage) == []
    owner.close()
    restored.set_state(state)
    assert len(choices_in(storage)) == 3

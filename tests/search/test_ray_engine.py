"""Actors on a cluster of two nodes: the same search as alone, whatever dies."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from concurrent.futures import BrokenExecutor, Future
from pathlib import Path
from typing import Any

import pytest
from ray.exceptions import RayError

from nas.errors import ConfigError, DeviceError, NasError
from nas.search import RayExecutor, SearchOptions, run
from nas.search.ray_engine import Task, join
from nas.study import Study

pytestmark = pytest.mark.slow


def rows(study: Study) -> list[tuple[Any, ...]]:
    return [(row.state, dict(row.choice), row.accuracy, row.reason) for row in study.trials]


def scorer(table: Any, folder: Path) -> Any:
    """Return an evaluation that leaves a file a call, named for its worker, before it answers.

    It is made of closures: they are pickled whole, so that a worker needs none of these tests.
    """
    genes, gain = dict(table.genes), table.gain

    def evaluate(choice: Any) -> dict[str, Any]:
        import ray

        codes = [options.index(choice[gene]) for gene, options in genes.items()]
        node = ray.get_runtime_context().get_node_id()
        (folder / f"{'-'.join(map(str, codes))}.{os.getpid()}.{time.time_ns()}").write_text(node)
        time.sleep(0.1)
        return {"accuracy": float(sum(gain[gene, code] for gene, code in enumerate(codes)))}

    return evaluate


def alone(table: Any) -> Any:
    """Return the same evaluation for this process."""

    def evaluate(choice: Any) -> float:
        return float(sum(table.gain[gene, code] for gene, code in enumerate(table.codes(choice))))

    return evaluate


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO", "0")
        from ray.cluster_utils import Cluster

        made: Any = Cluster(
            initialize_head=True, head_node_args={"num_cpus": 1, "include_dashboard": False}
        )
        made.add_node(num_cpus=1)
        yield made
        made.shutdown()


def search(table: Any, evaluate: Any, executor: Any, **others: Any) -> Study:
    settings = {"batch": 4, "executor": executor, **others}
    study = settings.pop("study", None)
    return run(
        table.genes,
        evaluate,
        table.price,
        {"latency_ms": table.quantile(0.5)},
        evaluations=24,
        options=SearchOptions(**settings),
        study=study,
    )


def test_actors_are_killed_and_nodes_join_and_the_study_is_that_of_one_process(
    make_table: Callable[..., Any], cluster: Any, tmp_path: Path
) -> None:
    table = make_table(6, 3)
    joined = []
    killed = set()

    def disturb(done: int, total: int, text: str) -> None:
        newest = max(tmp_path.iterdir(), key=lambda path: path.stat().st_mtime_ns)
        if done in (5, 13):
            killed.add(newest.name.split(".")[1])
            os.kill(int(newest.name.split(".")[1]), signal.SIGKILL)
        if done == 9:
            joined.append(cluster.add_node(num_cpus=1).node_id)

    evaluate = scorer(table, tmp_path)
    with RayExecutor(3, address=cluster.address) as executor:
        study = search(table, evaluate, executor, progress=disturb)
    assert rows(study) == rows(search(table, alone(table), None))
    workers = {path.name.split(".")[1] for path in tmp_path.iterdir()}
    assert killed < workers  # others took the place of the killed
    assert len({path.read_text() for path in tmp_path.iterdir()}) >= 2
    assert all(row.attempt == 1 for row in study.trials)


def test_a_candidate_that_kills_its_workers_or_hangs_is_a_failed_row(cluster: Any) -> None:
    genes = {"a": (0, 1, 2), "b": (0, 1, 2), "c": (0, 1)}

    def evaluate(choice: Any) -> float:
        total = sum(choice.values())
        if total == 4:
            os._exit(1)
        if total == 5:
            time.sleep(60)
        return float(total)

    with RayExecutor(2, address=cluster.address, timeout_s=2.0) as executor:
        study = run(
            genes,
            evaluate,
            lambda choices: {"latency_ms": [1.0 + sum(c.values()) for c in choices]},
            {},
            evaluations=18,
            options=SearchOptions(batch=2, executor=executor, sampler="random"),
        )
    assert len(study.trials) == 18
    for row in study.trials:
        total = sum(row.choice.values())
        if total == 4:
            assert "its worker died 3 times" in str(row.reason)
        elif total == 5:
            assert row.reason == "no answer within 2 s"
        else:
            assert row.accuracy == total


class Unloadable:
    """What cannot be read where the actors are."""

    def __reduce__(self) -> Any:
        return eval, ("1 / 0",)


def test_actors_that_cannot_load_the_evaluation_end_the_search_with_the_reason(
    make_table: Callable[..., Any], cluster: Any
) -> None:
    table = make_table(6, 3)
    unloadable = Unloadable()

    def evaluate(choice: Any) -> float:
        return float(bool(unloadable))

    with (
        RayExecutor(2, address=cluster.address) as executor,
        pytest.raises(NasError, match="the executor broke: 3 actors in a row did not start"),
    ):
        search(table, evaluate, executor)


def test_what_is_asked_wrongly_is_refused(cluster: Any) -> None:
    with pytest.raises(ConfigError, match="workers must be at least 1"):
        RayExecutor(0)
    with RayExecutor(1, address=cluster.address) as executor:
        assert executor.submit(lambda evaluate, n: evaluate(n), abs, -3).result(60) == 3
        with pytest.raises(ConfigError, match="holds one evaluate"):
            executor.submit(lambda evaluate, n: evaluate(n), round, 3)
        executor._broken = "no actor starts"
        late = Task(Future(), abs, (3,), attempts=1)
        executor._again(late, RayError("its actor died"))  # no thread would take it up again
        with pytest.raises(BrokenExecutor, match="no actor starts"):
            late.future.result(0)
        with pytest.raises(BrokenExecutor, match="no actor starts"):
            executor.submit(lambda evaluate, n: evaluate(n), abs, -3)


def test_ray_is_told_to_report_nothing_of_its_use(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("RAY_USAGE_STATS_ENABLED")
    with pytest.raises(DeviceError):
        join("127.0.0.1:1")
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "0"
    monkeypatch.setenv("RAY_USAGE_STATS_ENABLED", "1")  # who wants it to has said so
    with pytest.raises(DeviceError):
        join("127.0.0.1:1")
    assert os.environ["RAY_USAGE_STATS_ENABLED"] == "1"


def test_a_cluster_that_is_not_there_is_said() -> None:
    with pytest.raises(DeviceError, match="no Ray at 127.0.0.1:1"):
        RayExecutor(1, address="127.0.0.1:1")


SCRIPT = """
import os, signal, sys, time
from nas.search import RayExecutor, SearchOptions, run
from nas.study import Study

genes = {f"g{i}": (0, 1, 2, 3) for i in range(5)}

def evaluate(choice):
    time.sleep(0.2)
    return sum((i + 1) * choice[f"g{i}"] for i in range(5)) / 45

def price(choices):
    return {"latency_ms": [1.0 + 0.37 * sum(c.values()) for c in choices]}

def progress(done, total, text):
    if done == int(sys.argv[2]):
        os.kill(os.getpid(), signal.SIGKILL)

study = Study.resume("killed", storage=sys.argv[1])
with RayExecutor(2) as executor:
    run(genes, evaluate, price, {"latency_ms": 4.5}, evaluations=16, study=study,
        options=SearchOptions(batch=4, executor=executor, progress=progress))
print(len(study.trials))
"""


def test_a_killed_driver_goes_on_with_nothing_lost_or_repeated(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/nas.db"
    for kill_at, code in ((6, -signal.SIGKILL), (0, 0)):
        done = subprocess.run(
            [sys.executable, "-c", SCRIPT, storage, str(kill_at)],
            capture_output=True,
            text=True,
            timeout=240,
        )
        assert done.returncode == code, done.stderr
    study = Study.load("killed", storage=storage)
    known = [tuple(row.choice.values()) for row in study.trials]
    assert len(known) == len(set(known)) == 16

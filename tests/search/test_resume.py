"""A search that was interrupted ends as if it had not been."""

import signal
import subprocess
import sys
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest

from nas.errors import ConfigError
from nas.search import SAMPLERS, SearchOptions, run
from nas.study import Study

GENERAL = [name for name in SAMPLERS if name != "slimming"]  # that one needs a table
EVERY = [  # Optuna's Gaussian processes take seconds a proposal in mode front
    (name, mode)
    for name in GENERAL
    for mode in ("best", "front")
    if (name, mode) != ("gp", "front")
]

EVALUATIONS = 24


def rows(study: Study) -> list[tuple[Any, ...]]:
    return [
        (
            *(row.number, row.state, dict(row.choice), row.accuracy, row.loss, dict(row.costs)),
            *(row.attempt, row.reason, row.architecture_id),
        )
        for row in study.trials
    ]


class Interrupt(BaseException):
    """What Ctrl-C is: nothing that a search may swallow."""


class Interrupted:
    """An evaluation that is interrupted at some of its calls, and fails at some others."""

    def __init__(self, table: Any, at: set[int]) -> None:
        self.table, self.at, self.calls = table, at, 0

    def __call__(self, choice: Any) -> float:
        self.calls += 1
        if self.calls in self.at:
            raise Interrupt
        if sum(choice.values()) % 7 == 0:
            raise RuntimeError("out of memory")
        return float(self.table.accuracy(choice))


@pytest.mark.parametrize("batch", [1, 3])
@pytest.mark.parametrize(("name", "mode"), EVERY)
def test_an_interrupted_search_goes_on_to_the_same_study(
    make_table: Callable[..., Any], name: str, mode: Any, batch: int
) -> None:
    table = make_table(7, 3)
    budgets = {"latency_ms": table.quantile(0.4)}
    options = SearchOptions(sampler=name, mode=mode, batch=batch)

    def search(evaluate: Any, study: Study, evaluations: int = EVALUATIONS) -> Study:
        return run(
            table.genes,
            evaluate,
            table.price,
            budgets,
            evaluations=evaluations,
            seed=5,
            options=options,
            study=study,
        )

    whole = search(Interrupted(table, set()), Study.in_memory())
    study = Study.in_memory()
    evaluate = Interrupted(table, {1, 6, 17})
    for _ in range(3):
        with pytest.raises(Interrupt):
            search(evaluate, study)
    search(evaluate, study)
    assert rows(study) == rows(whole)
    assert evaluate.calls == EVALUATIONS + 3  # none was evaluated twice
    # More evaluations go on from there; none are lost or repeated.
    more = search(evaluate, study, EVALUATIONS + 4)
    longer = search(Interrupted(table, set()), Study.in_memory(), EVALUATIONS + 4)
    assert rows(more) == rows(longer)
    assert evaluate.calls == EVALUATIONS + 3 + 4


def test_a_pool_that_is_interrupted_goes_on_to_the_same_study(
    make_table: Callable[..., Any],
) -> None:
    table = make_table(7, 3)

    def search(evaluate: Any, study: Study) -> Study:
        with ThreadPoolExecutor(3) as executor:
            options = SearchOptions(batch=3, executor=executor)
            return run(
                table.genes,
                evaluate,
                table.price,
                {},
                evaluations=20,
                options=options,
                study=study,
            )

    whole = search(Interrupted(table, set()), Study.in_memory())
    study = Study.in_memory()
    with pytest.raises(Interrupt):
        search(Interrupted(table, {8}), study)
    assert 6 <= len(study.trials) <= 8
    assert rows(search(Interrupted(table, set()), study)) == rows(whole)


SCRIPT = """
import os, signal, sys
from nas.search import SearchOptions, run
from nas.study import Study

storage, sampler, kill_at = sys.argv[1], sys.argv[2], int(sys.argv[3])
genes = {f"g{i}": (0, 1, 2, 3) for i in range(6)} | {"kernels": ((7, 5), (5, 3))}
calls = 0

def codes(choice):
    return [choice[f"g{i}"] for i in range(6)]

def evaluate(choice):
    global calls
    calls += 1
    if calls == kill_at:
        os.kill(os.getpid(), signal.SIGKILL)
    score = sum((i + 1) * code for i, code in enumerate(codes(choice))) / 63
    return {"accuracy": score * 0.9 + 0.1 * (choice["kernels"] == (7, 5)), "loss": 1 / (1 + score)}

def price(choices):
    return {"latency_ms": [1.0 + 0.37 * sum(codes(c)) for c in choices]}

study = Study.resume("killed", storage=storage, attrs={"space_digest": "abc"})
run(genes, evaluate, price, {"latency_ms": 4.5}, evaluations=26, seed=1,
    options=SearchOptions(sampler=sampler), study=study)
"""


def killed_and_resumed(storage: str, sampler: str, kills: list[int]) -> list[Any]:
    """Run the script, killing it at the given evaluations of its runs; return the rows at last."""
    for kill_at in kills:
        command = [sys.executable, "-c", SCRIPT, storage, sampler, str(kill_at)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=120)
        assert done.returncode == -signal.SIGKILL, done.stderr
    with pytest.MonkeyPatch.context() as patch:  # the last run is here, in another process
        patch.setattr(sys, "argv", ["", storage, sampler, "0"])
        names: dict[str, Any] = {}
        exec(SCRIPT, names)
    return rows(names["study"])


def test_a_killed_search_goes_on_to_the_same_study(tmp_path: Path) -> None:
    whole = killed_and_resumed(f"sqlite:///{tmp_path}/whole/nas.db", "tpe", [])
    assert len(whole) == 26
    storage = f"sqlite:///{tmp_path}/killed/nas.db"
    assert killed_and_resumed(storage, "tpe", [9]) == whole
    assert rows(Study.load("killed", storage=storage)) == whole


@pytest.mark.slow
@pytest.mark.parametrize("sampler", GENERAL)
def test_a_search_killed_again_and_again_goes_on_to_the_same_study(
    tmp_path: Path, sampler: str
) -> None:
    whole = killed_and_resumed(f"sqlite:///{tmp_path}/whole.db", sampler, [])
    storage = f"sqlite:///{tmp_path}/killed.db"
    assert killed_and_resumed(storage, sampler, [1, 9, 7]) == whole


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"seed": 1}, "seed was 0 and is now 1"),
        ({"budgets": {"latency_ms": 3.0}}, "budgets was {'latency_ms': 2.5} and is now"),
        ({"options": SearchOptions(sampler="tpe")}, "sampler was 'predictor' and is now 'tpe'"),
        ({"options": SearchOptions(mode="front")}, "mode was 'best' and is now 'front'"),
        ({"options": SearchOptions(batch=2)}, "batch was 1 and is now 2"),
        ({"genes": {"a": (0, 1, 2), "b": (0, 2)}}, r"genes was {'b': \[0, 1\]} and is now"),
    ],
)
def test_a_search_does_not_go_on_with_other_settings(change: dict[str, Any], message: str) -> None:
    study = Study.in_memory()
    settings: dict[str, Any] = {
        "genes": {"a": (0, 1, 2), "b": (0, 1)},
        "budgets": {"latency_ms": 2.5},
        "seed": 0,
        "options": SearchOptions(),
    }

    def search(genes: Any, budgets: Any, seed: int, options: SearchOptions) -> None:
        run(
            genes,
            lambda choice: 0.1 * choice["a"],
            lambda choices: {"latency_ms": [1.0 + c["a"] for c in choices]},
            budgets,
            evaluations=3,
            seed=seed,
            options=options,
            study=study,
        )

    search(**settings)
    with pytest.raises(ConfigError, match=message):
        search(**(settings | change))
    assert len(study.trials) == 3


def test_a_search_does_not_go_on_with_other_prices(table: Any) -> None:
    study = run(table.genes, table.evaluate, table.price, {}, evaluations=4)

    def dearer(choices: Any) -> Any:
        return {metric: 2 * values for metric, values in table.price(choices).items()}

    with pytest.raises(ConfigError, match="trial 0 was priced latency_ms = .*prices have changed"):
        run(table.genes, table.evaluate, dearer, {}, evaluations=8, study=study)


def test_rows_the_seed_would_not_propose_are_used_and_not_repeated(
    table: Any, caplog: pytest.LogCaptureFixture
) -> None:
    whole = run(table.genes, table.evaluate, table.price, {}, evaluations=20)
    odd = Study.in_memory(attrs={**whole.attrs})
    for row in whole.trials[10:]:
        odd.add(row.choice, row.costs, accuracy=row.accuracy)
    calls = table.calls
    run(table.genes, table.evaluate, table.price, {}, evaluations=30, study=odd)
    assert table.calls == calls + 20
    assert len({str(row.choice) for row in odd.trials}) == 30
    assert "not what this seed proposes" in caplog.text

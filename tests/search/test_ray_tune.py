"""The engine inside Ray Tune: the same candidates, budgets and rows, and nothing lost."""

import json
import math
import pickle
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nas.errors import ConfigError, CorruptFile, InfeasibleBudget
from nas.search import SearchOptions, run, tune_searcher
from nas.study import Study

EVALUATIONS = 30
FINISHED = "FINISHED"


def rows(study: Study) -> list[tuple[Any, ...]]:
    return [
        (row.state, dict(row.choice), row.accuracy, row.loss, dict(row.costs), row.reason)
        for row in study.trials
    ]


def reports(table: Any, choice: Any) -> dict[str, Any]:
    """Return what Tune hands on of a trial."""
    return {"accuracy": table.accuracy(choice), "config": dict(choice), "time_total_s": 0.5}


def drive(searcher: Any, table: Any, trials: int, first: int = 0) -> list[dict[str, Any]]:
    """Run trials one after another, as Tune would; return their configs."""
    configs = []
    for number in range(first, first + trials):
        config = searcher.suggest(f"trial{number}")
        if config == FINISHED:
            break
        configs.append(config)
        searcher.on_trial_complete(f"trial{number}", reports(table, config))
    return configs


@pytest.fixture
def table(make_table: Callable[..., Any]) -> Any:
    """16,384 candidates."""
    return make_table(7, 4)


def searcher_of(table: Any, **settings: Any) -> Any:
    known = {"evaluations": EVALUATIONS, "seed": 3, **settings}
    return tune_searcher(table.genes, table.price, {"latency_ms": table.quantile(0.3)}, **known)


# ---------------------------------------------------------------- the same engine
@pytest.mark.parametrize("sampler", ["predictor", "tpe"])
def test_one_trial_at_a_time_it_is_the_search_of_the_engine(table: Any, sampler: str) -> None:
    options = SearchOptions(sampler=sampler)
    searcher = searcher_of(table, options=options)
    configs = drive(searcher, table, 99)
    assert len(configs) == EVALUATIONS
    budgets = {"latency_ms": table.quantile(0.3)}
    alone = run(
        table.genes,
        table.evaluate,
        table.price,
        budgets,
        evaluations=EVALUATIONS,
        seed=3,
        options=options,
    )
    assert rows(searcher.study) == rows(alone)
    assert searcher.study.trials[0].evaluation_s == 0.5


def test_many_trials_at_once_are_feasible_and_all_different(table: Any) -> None:
    searcher = searcher_of(table)
    waiting: list[tuple[str, dict[str, Any]]] = []
    for number in range(EVALUATIONS):
        waiting.append((f"t{number}", searcher.suggest(f"t{number}")))
        if len(waiting) == 6:  # answers come in another order
            for name, config in waiting[::-2]:
                searcher.on_trial_complete(name, reports(table, config))
            waiting = waiting[-2::-2]
    for name, config in waiting:
        searcher.on_trial_complete(name, reports(table, config))
    assert searcher.suggest("more") == FINISHED
    budget_ms = table.quantile(0.3)
    assert len({json.dumps(row.choice) for row in searcher.study.trials}) == EVALUATIONS
    assert all(row.costs["latency_ms"] <= budget_ms for row in searcher.study.trials)


def test_it_completes_candidates_and_ends_when_there_are_no_more() -> None:
    genes = {"depth": (1, 2), "a": ((7, 5), 3), "b": (0, 1)}

    def complete(choice: Any, level: float | None) -> Any:
        return choice if choice["depth"] == 2 else {**choice, "b": 0}

    searcher = tune_searcher(
        genes,
        lambda choices: {"params": [1.0 + c["depth"] for c in choices]},
        {},
        evaluations=50,
        options=SearchOptions(complete=complete),
    )
    configs: list[Any] = []
    while (config := searcher.suggest(f"t{len(configs)}")) != FINISHED:
        searcher.on_trial_complete(f"t{len(configs)}", {"accuracy": 0.5})
        configs.append(config)
    assert len(configs) == 6
    assert all(config["b"] == 0 for config in configs if config["depth"] == 1)
    assert searcher.study.ended == "all 6 feasible candidates were evaluated"


# ---------------------------------------------------------------- what goes wrong
@pytest.mark.parametrize(
    ("result", "error", "reason"),
    [
        ({"accuracy": math.nan}, False, "accuracy is nan"),
        ({"accuracy": 0.5, "loss": math.inf}, False, "loss is inf"),
        ({"accuracy": "high"}, False, "accuracy is 'high', not a number"),
        ({"other": 1.0}, False, "the trial reported no accuracy"),
        (None, False, "the trial reported no accuracy"),
        (None, True, "the trial failed; Tune's error file of the trial says how"),
    ],
)
def test_a_trial_without_a_finite_result_is_a_failed_row(
    table: Any, result: Any, error: bool, reason: str
) -> None:
    searcher = searcher_of(table)
    searcher.suggest("a")
    searcher.on_trial_complete("a", result, error)
    (row,) = searcher.study.trials
    assert (row.state, row.reason) == ("FAIL", reason)
    assert len(drive(searcher, table, 5)) == 5


def test_a_trial_that_a_scheduler_ends_early_counts_as_what_it_reported_last(table: Any) -> None:
    searcher = searcher_of(table)
    searcher.suggest("a")
    searcher.on_trial_result("a", {"accuracy": 0.1})
    searcher.on_trial_result("a", {"accuracy": 0.3})
    searcher.on_trial_complete("a")
    assert searcher.study.trials[0].accuracy == 0.3


def test_three_failures_in_a_row_end_it(table: Any) -> None:
    searcher = searcher_of(table)
    for name in "abc":
        searcher.suggest(name)
        searcher.on_trial_complete(name, error=True)
    assert searcher.suggest("d") == FINISHED
    assert searcher.study.ended == "3 trials in a row failed"


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"evaluations": 0}, ConfigError, "at least 1"),
        ({"options": SearchOptions(timeout_s=3.0)}, ConfigError, "Tune decides where trials run"),
    ],
)
def test_settings_that_are_not_the_searchers_are_refused(
    table: Any, settings: Any, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        searcher_of(table, **settings)


def test_an_impossible_budget_is_said_at_once(table: Any) -> None:
    with pytest.raises(InfeasibleBudget, match="the smallest"):
        tune_searcher(table.genes, table.price, {"latency_ms": 1e-6}, evaluations=3)


def test_tunes_settings_are_checked_against_the_search(table: Any) -> None:
    searcher = searcher_of(table)
    with pytest.raises(ConfigError, match="param_space may not set genes, but has g00"):
        searcher.set_search_properties("top1", "max", {"g00": 1})
    with pytest.raises(ConfigError, match="mode must be max"):
        searcher.set_search_properties("loss", "min", {})
    searcher.set_search_properties("top1", "max", {"lr": 0.1})
    searcher.suggest("a")
    searcher.on_trial_complete("a", {"top1": 0.7})
    assert searcher.study.trials[0].accuracy == 0.7


# ---------------------------------------------------------------- going on
@pytest.mark.parametrize("sampler", ["predictor", "tpe", "nsga2"])
def test_a_restored_searcher_goes_on_as_if_nothing_had_happened(
    table: Any, tmp_path: Path, sampler: str
) -> None:
    options = SearchOptions(sampler=sampler)
    whole = searcher_of(table, options=options)
    drive(whole, table, 22)
    begun = searcher_of(table, options=options)
    drive(begun, table, 22)
    pending = whole.suggest("pending")
    assert begun.suggest("pending") == pending
    begun.save_to_dir(str(tmp_path))
    assert "journal" in json.loads((tmp_path / "searcher-state-default.json").read_text())
    restored = searcher_of(table, options=options)
    restored.restore_from_dir(str(tmp_path))
    for searcher in (whole, restored):
        searcher.on_trial_complete("pending", reports(table, pending))
    assert drive(whole, table, 99, first=22) == drive(restored, table, 99, first=22)
    assert rows(restored.study) == rows(whole.study)


def test_a_state_older_than_its_study_loses_and_repeats_nothing(table: Any, tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/nas.db"
    study = Study.create("tuned", storage=storage)
    searcher = searcher_of(table, study=study)
    drive(searcher, table, 9)
    pending = searcher.suggest("pending")
    state = json.loads(json.dumps(searcher.get_state()))
    searcher.on_trial_complete("pending", reports(table, pending))
    later = drive(searcher, table, 3, first=9)  # Tune's snapshot knows nothing of these
    searcher.close()

    again = searcher_of(table, study=Study.load("tuned", storage=storage))
    again.set_state(state)
    again.on_trial_complete("pending", reports(table, pending))  # run again after the restore
    again.on_trial_complete("trial9", reports(table, later[0]))
    assert len(again.study.trials) == 13
    drive(again, table, 99, first=20)
    known = [json.dumps(row.choice) for row in again.study.trials]
    assert len(known) == len(set(known)) == EVALUATIONS


def test_a_trial_nobody_knows_is_recorded_if_it_is_a_candidate(
    table: Any, caplog: pytest.LogCaptureFixture
) -> None:
    other = searcher_of(table)
    (config,) = drive(other, table, 1)
    searcher = searcher_of(table, seed=4)
    flat = {f"config/{gene}": option for gene, option in config.items()}
    searcher.on_trial_complete("lost", {"accuracy": 0.25, **flat})  # as Tune hands it on
    searcher.on_trial_complete("lost", reports(table, config))
    slow = dict.fromkeys(table.genes, 3)
    searcher.on_trial_complete("slow", {"accuracy": 0.9, "config": slow})
    searcher.on_trial_complete("odd", {"accuracy": 0.9, "config": {"lr": 1}})
    searcher.on_trial_complete("none", None, True)
    assert [dict(row.choice) for row in searcher.study.trials] == [config]
    assert "trial odd is unknown" in caplog.text
    assert len(drive(searcher, table, 99)) == EVALUATIONS - 1


def test_a_failed_trial_that_tune_runs_again_is_recorded_again(table: Any) -> None:
    searcher = searcher_of(table)
    config = searcher.suggest("a")
    searcher.on_trial_complete("a", error=True)
    searcher.on_trial_complete("a", reports(table, config))
    searcher.on_trial_complete("a", reports(table, config))
    assert [(row.state, row.attempt) for row in searcher.study.trials] == [
        ("FAIL", 1),
        ("COMPLETE", 2),
    ]
    assert len(drive(searcher, table, 99)) == EVALUATIONS - 1


def test_a_state_of_another_kind_is_refused(table: Any, tmp_path: Path) -> None:
    searcher = searcher_of(table)
    with pytest.raises(CorruptFile, match="schema"):
        searcher.set_state({})
    with pytest.raises(CorruptFile, match="event"):
        searcher.set_state({"schema": 1, "metric": "accuracy", "journal": [{"ask": "a"}]})
    (tmp_path / "state.json").write_text('{"journal": [')
    with pytest.raises(CorruptFile, match="not whole JSON"):
        searcher.restore(str(tmp_path / "state.json"))


def test_what_ray_pickles_holds_no_password(
    table: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from ray import cloudpickle

    dumps: Any = cloudpickle.dumps
    searcher = searcher_of(table)
    drive(searcher, table, 12)
    copied = pickle.loads(dumps(searcher))
    assert rows(copied.study) == rows(searcher.study)
    assert drive(copied, table, 9, first=12) == drive(searcher, table, 9, first=12)
    monkeypatch.setattr(Study, "url", "postgresql://me:***@host/db")
    monkeypatch.setattr(searcher.study, "_url", "postgresql://me:canary@host/db")
    assert b"canary" not in dumps(searcher)


# ---------------------------------------------------------------- inside Tune
SCRIPT = """
import os, signal, sys, time
import ray
from ray import tune
from nas.search import tune_searcher
from nas.study import Study

folder = sys.argv[1]
genes = {f"g{i}": (0, 1, 2, 3) for i in range(5)} | {"kernels": ((7, 5), (5, 3))}

def codes(choice):
    return [choice[f"g{i}"] for i in range(5)]

def price(choices):
    return {"latency_ms": [1.0 + 0.37 * sum(codes(c)) for c in choices]}

def trainable(config):
    time.sleep(0.2)
    if sum(codes(config)) == 6 and config["g0"] == 0:
        raise RuntimeError("out of memory")
    nan = sum(codes(config)) == 7 and config["g0"] == 1
    tune.report({"accuracy": float("nan") if nan else sum(codes(config)) / 15, "loss": 0.5})

class Killer(tune.Callback):
    done = 0

    def on_trial_complete(self, iteration, trials, trial, **info):
        self.done += 1
        if self.done == int(sys.argv[2]):  # a restored Tuner has this object of the killed one
            os.kill(os.getpid(), signal.SIGKILL)

ray.init(address="local", num_cpus=2, include_dashboard=False, log_to_driver=False)
path = folder + "/tuned"
if tune.Tuner.can_restore(path):
    tuner = tune.Tuner.restore(path, trainable, resume_unfinished=True)
else:
    study = Study.create("tuned", storage=f"sqlite:///{folder}/nas.db")
    searcher = tune_searcher(genes, price, {"latency_ms": 4.5}, evaluations=10, study=study)
    tuner = tune.Tuner(
        trainable,
        tune_config=tune.TuneConfig(
            search_alg=searcher, metric="accuracy", mode="max", num_samples=-1,
            max_concurrent_trials=2, reuse_actors=True,
        ),
        run_config=tune.RunConfig(
            name="tuned", storage_path=folder, callbacks=[Killer()], verbose=0
        ),
    )
tuner.fit()
"""


@pytest.mark.slow
def test_a_tuner_that_is_killed_and_restored_records_every_candidate_once(tmp_path: Path) -> None:
    (tmp_path / "script.py").write_text(SCRIPT)
    settings = {"TUNE_GLOBAL_CHECKPOINT_S": "0", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    with pytest.MonkeyPatch.context() as patch:
        for name, value in settings.items():
            patch.setenv(name, value)
        for kill_after, code in ((4, -signal.SIGKILL), (0, 0)):
            command = [sys.executable, str(tmp_path / "script.py"), str(tmp_path), str(kill_after)]
            done = subprocess.run(command, capture_output=True, text=True, timeout=240)
            assert done.returncode == code, done.stderr
    study = Study.load("tuned", storage=f"sqlite:///{tmp_path}/nas.db")
    known = [json.dumps(row.choice) for row in study.trials]
    assert len(known) == len(set(known)) == 10
    for row in study.trials:
        codes = [option for gene, option in row.choice.items() if gene != "kernels"]
        is_bad = (sum(codes), codes[0]) in ((6, 0), (7, 1))
        assert row.costs["latency_ms"] <= 4.5
        assert row.state == ("FAIL" if is_bad else "COMPLETE")
        assert row.reason in (None, "accuracy is nan") or "trial failed" in str(row.reason)

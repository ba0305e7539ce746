"""A study: rows in, rows out, and the same database seen by Optuna, SQL and pandas."""

import itertools
import sqlite3
from pathlib import Path
from typing import Any

import optuna
import pandas as pd
import pytest

from nas.errors import ConfigError, InfeasibleBudget, NasError
from nas.study import SCHEMA, Study, check_genes

TARGET = "onnxruntime-1.31.1_fp32_nchw_b1_t1@cpu-x86_64"
LATENCY = f"latency_ms:{TARGET}"
GENES = {
    "depth": (1, 2, 3),
    "kind": ("mb4d", "cga"),
    "kernels": ((7, 5, 3), (5, 3)),
    "se": (0, 0.25),
}
BUDGETS = {LATENCY: 5.0, "params": 3e6}
ATTRS = {"space": "tiny", "space_digest": "a" * 64, "targets": [TARGET]}


@pytest.fixture(params=["database", "memory"])
def study(request: pytest.FixtureRequest, url: str) -> Study:
    memory = request.param == "memory"
    made = (
        Study.in_memory("s", attrs=ATTRS) if memory else Study.create("s", storage=url, attrs=ATTRS)
    )
    made.declare({"genes": GENES, "metrics": [LATENCY, "params"], "budgets": BUDGETS, "seed": 0})
    return made


def choice(index: int) -> dict[str, Any]:
    options = list(itertools.product(*GENES.values()))[index]
    return dict(zip(GENES, options, strict=True))


def fill(study: Study, points: list[tuple[float, float]]) -> None:
    """Add rows of (accuracy, latency)."""
    for index, (accuracy, latency_ms) in enumerate(points):
        study.add(
            choice(index),
            {LATENCY: latency_ms, "params": 1e6 + index},
            accuracy=accuracy,
            loss=1 - accuracy,
            evaluation_s=0.5,
            attrs={"architecture_id": f"{index:012x}", "architecture": {"schema": 1, "n": index}},
        )


# ---------------------------------------------------------------- rows
def test_a_row_comes_back_as_it_was_added(study: Study) -> None:
    study.add(
        choice(5),
        {LATENCY: 4.25, "params": 2_000_000.0},
        accuracy=0.875,
        loss=0.5,
        evaluation_s=1.5,
        attrs={"architecture": {"schema": 1}, "architecture_id": "abc", "top5": 0.99},
    )
    study.add(choice(6), {LATENCY: 3.0, "params": 1e6}, reason="accuracy is nan", attempt=2)
    first, second = study.trials
    assert (first.number, first.state, first.accuracy, first.loss) == (0, "COMPLETE", 0.875, 0.5)
    assert first.choice == choice(5)
    assert list(first.choice) == list(GENES)
    assert isinstance(first.choice["kernels"], tuple)
    assert first.costs == {LATENCY: 4.25, "params": 2_000_000}
    assert (first.architecture, first.architecture_id) == ({"schema": 1}, "abc")
    assert (first.evaluation_s, first.attempt, first.extra) == (1.5, 1, {"top5": 0.99})
    assert first.created_at is not None and first.created_at.utcoffset() is not None
    assert (second.state, second.accuracy, second.reason) == ("FAIL", None, "accuracy is nan")
    assert (second.attempt, second.choice) == (2, choice(6))


def test_a_choice_outside_the_genes_is_refused(study: Study) -> None:
    costs = {LATENCY: 1.0, "params": 1.0}
    with pytest.raises(ConfigError, match=r"kernels must be one of .* but is \(3, 3\)"):
        study.add(choice(0) | {"kernels": (3, 3)}, costs, accuracy=0.5)
    with pytest.raises(ConfigError, match="differs in width"):
        study.add(choice(0) | {"width": 8}, costs, accuracy=0.5)
    assert study.trials == ()


def test_rows_need_declared_genes_and_metrics() -> None:
    study = Study.in_memory()
    assert study.trials == ()
    assert study.front() == ()
    with pytest.raises(ConfigError, match="declare them first"):
        study.add({"a": 1}, {"x": 1.0}, accuracy=0.5)


@pytest.mark.parametrize("genes", [{"a": ("[1, 2]", (1, 2))}, {"a": (1, "1", None)}])
def test_options_of_every_kind_find_their_way_back(genes: Any) -> None:
    if "[1, 2]" in genes["a"]:
        with pytest.raises(ConfigError, match="an option twice"):
            check_genes(genes)
        return
    study = Study.in_memory()
    study.declare({"genes": genes, "metrics": ["x"]})
    for option in genes["a"]:
        study.add({"a": option}, {"x": 1.0}, accuracy=0.5)
    assert [row.choice["a"] for row in study.trials] == list(genes["a"])


# ---------------------------------------------------------------- best and front
POINTS = [(0.90, 4.0), (0.95, 4.8), (0.95, 4.6), (0.97, 5.5), (0.80, 2.0), (0.80, 2.0), (0.70, 3.0)]


def test_best_is_the_most_accurate_within_the_budgets(study: Study) -> None:
    fill(study, POINTS)
    assert study.best().number == 2  # as accurate as row 1, and cheaper
    assert study.best({}).number == 3
    assert study.best({"latency_ms": 3.5}).number == 4
    study.add(choice(8), {LATENCY: 4.9, "params": 1e6}, accuracy=0.95, loss=0.01)
    assert study.best().number == 7  # as accurate, and of lower loss
    with pytest.raises(
        InfeasibleBudget, match="no row .* <= 1 ms; the smallest has 2 ms"
    ) as caught:
        study.best({"latency_ms": 1.0})
    assert (caught.value.metric, caught.value.smallest) == (LATENCY, 2.0)


def test_best_of_nothing_says_so(study: Study) -> None:
    study.add(choice(0), {LATENCY: 1.0, "params": 1.0}, reason="out of memory")
    with pytest.raises(NasError, match="no evaluated candidate"):
        study.best()


def test_the_front_holds_what_no_other_row_beats(study: Study) -> None:
    fill(study, POINTS)
    assert [row.number for row in study.front()] == [4, 5, 0, 2]
    assert [row.number for row in study.front(budgets={})] == [4, 5, 0, 2, 3]
    assert [row.number for row in study.front(metric="params", budgets={})] == [0, 1, 3]


def test_a_front_of_losses_parts_what_accuracy_ties(study: Study) -> None:
    for number, (cost, loss) in enumerate([(2.0, 0.3), (1.0, 0.4), (3.0, 0.35), (1.5, None)]):
        study.add(choice(number), {LATENCY: cost, "params": 1.0}, accuracy=0.5, loss=loss)
    assert [row.number for row in study.front(by="loss")] == [1, 0]
    assert [row.number for row in study.front()] == [1]


def test_the_front_is_optunas_own(study: Study) -> None:
    fill(study, [*POINTS[:3], *POINTS[4:]])
    best = {trial.number for trial in study.optuna_study.best_trials}
    assert {row.number for row in study.front()} == best


# ---------------------------------------------------------------- measurements
def test_a_measurement_stands_beside_the_prediction_and_is_replaced(study: Study) -> None:
    fill(study, POINTS)
    study.record_measurement(1, TARGET, "latency_ms", 4.9, 5.05)
    study.record_measurement(1, TARGET, "latency_ms", 4.7, 4.75)
    study.record_measurement(2, "", "params", 1_000_002, None)
    row = study.trials[1]
    assert row.costs[LATENCY] == 4.8
    assert (row.measured[LATENCY].measured, row.measured[LATENCY].ci_high) == (4.7, 4.75)
    assert study.trials[2].measured["params"].ci_high is None
    assert study.trials[0].measured == {}
    with pytest.raises(ConfigError, match="no trial 99"):
        study.record_measurement(99, TARGET, "latency_ms", 4.9, 5.05)
    with pytest.raises(ConfigError, match="no cost 'latency_ms:other'"):
        study.record_measurement(1, "other", "latency_ms", 4.9, 5.05)


def test_measurements_go_with_their_study(url: str) -> None:
    study = Study.create("s", storage=url, attrs=ATTRS)
    study.declare({"genes": GENES, "metrics": [LATENCY, "params"]})
    fill(study, POINTS)
    study.record_measurement(1, TARGET, "latency_ms", 4.9, 5.05)
    optuna.delete_study(study_name="s", storage=url)
    again = Study.create("s", storage=url, attrs=ATTRS)
    again.declare({"genes": GENES, "metrics": [LATENCY, "params"]})
    fill(again, POINTS)  # SQLite numbers these like the deleted ones
    assert all(row.measured == {} for row in again.trials)


# ---------------------------------------------------------------- names and attributes
def test_a_study_is_found_by_its_name_with_all_it_was_declared_with(url: str) -> None:
    made = Study.create("s", storage=url, attrs=ATTRS)
    made.declare({"genes": GENES, "metrics": [LATENCY, "params"], "budgets": BUDGETS})
    fill(made, POINTS)
    made.end("all 7 feasible candidates were evaluated")
    found = Study.load("s", storage=url)
    assert found.trials == made.trials
    assert found.attrs == made.attrs
    assert found.attrs["schema"] == SCHEMA
    assert found.budgets == BUDGETS
    assert found.ended == "all 7 feasible candidates were evaluated"
    assert found.name == "s"


def test_a_missing_database_is_not_made_by_looking(tmp_path: Path) -> None:
    file = tmp_path / "a folder" / "nas.db"
    for look in (Study.list, lambda url: Study.load("s", storage=url)):
        with pytest.raises(ConfigError, match="there is no database at .*nas.db"):
            look(f"sqlite:///{file}")
    assert not file.parent.exists()
    assert Study.create("s", storage=f"sqlite:///{file}").trials == ()


def test_a_missing_study_names_those_that_are_there(url: str) -> None:
    Study.create("first", storage=url)
    Study.create("second", storage=url)
    with pytest.raises(ConfigError, match="no study 'third' .* there are: 'first', 'second'"):
        Study.load("third", storage=url)


def test_a_name_is_taken_once_and_resumed_any_number_of_times(url: str) -> None:
    Study.create("s", storage=url, attrs=ATTRS)
    with pytest.raises(ConfigError, match="Continue it with --resume"):
        Study.create("s", storage=url)
    assert Study.resume("s", storage=url, attrs=ATTRS).attrs["space"] == "tiny"
    assert Study.resume("other", storage=url).trials == ()


@pytest.mark.parametrize(
    ("attrs", "message"),
    [
        ({"space_digest": "b" * 64}, "space_digest was 'aaaaaaaaaaaa' and is now 'bbbbbbbbbbbb'"),
        ({"targets": ["other"]}, "targets was .* and is now"),
        (
            {"table_digests": {"t1": "x", "t2": "z"}},
            "table_digests was {'t2': 'y'} and is now {'t2': 'z'}",
        ),
    ],
)
def test_a_study_is_not_resumed_as_another_one(url: str, attrs: Any, message: str) -> None:
    Study.create("s", storage=url, attrs=ATTRS | {"table_digests": {"t1": "x", "t2": "y"}})
    with pytest.raises(ConfigError, match=message):
        Study.resume("s", storage=url, attrs=attrs)
    Study.resume("s", storage=url, attrs=ATTRS | {"version": "99.0"})  # a fact, not the question


def test_a_study_killed_while_it_was_made_is_made_again(url: str) -> None:
    Study.create("other", storage=url)
    optuna.create_study(study_name="s", storage=url, directions=["maximize", "minimize"])
    assert Study.resume("s", storage=url, attrs=ATTRS).attrs["schema"] == SCHEMA


def test_a_study_that_is_not_ours_is_refused(url: str) -> None:
    Study.create("ours", storage=url)
    optuna.create_study(study_name="s", storage=url).set_user_attr("mine", 1)
    for opening in (Study.load, Study.resume):
        with pytest.raises(ConfigError, match="not made by nas"):
            opening("s", storage=url)
    assert [summary.name for summary in Study.list(url)] == ["ours"]


def test_a_study_of_a_newer_version_is_refused(url: str) -> None:
    Study.create("s", storage=url).optuna_study.set_user_attr("nas.schema", SCHEMA + 1)
    with pytest.raises(ConfigError, match="install a newer hybrid-nas"):
        Study.load("s", storage=url)


def test_the_list_of_studies_counts_rows(url: str) -> None:
    study = Study.create("s", storage=url, attrs=ATTRS)
    study.declare({"genes": GENES, "metrics": [LATENCY, "params"], "budgets": BUDGETS})
    fill(study, POINTS)
    study.add(choice(9), {LATENCY: 1.0, "params": 1.0}, reason="out of memory")
    Study.create("empty", storage=url)
    empty, filled = Study.list(url)
    assert (empty.name, empty.trials, empty.best_accuracy) == ("empty", 0, None)
    assert (filled.trials, filled.failed, filled.best_accuracy) == (8, 1, 0.97)
    assert filled.budgets == BUDGETS


def test_the_storage_of_the_environment_is_used(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAS_STORAGE", url)
    Study.create("s")
    assert Study.load("s").name == "s"


# ---------------------------------------------------------------- other readers
def test_plain_optuna_opens_it_with_values_parameters_and_constraints(url: str) -> None:
    study = Study.create("s", storage=url, attrs=ATTRS)
    study.declare({"genes": GENES, "metrics": [LATENCY, "params"], "budgets": BUDGETS})
    fill(study, POINTS[:3])
    study.add(choice(9), {LATENCY: 1.0, "params": 1.0}, reason="out of memory")
    plain = optuna.load_study(study_name="s", storage=url)
    assert [direction.name for direction in plain.directions] == ["MAXIMIZE", "MINIMIZE"]
    assert plain.metric_names == ["accuracy", LATENCY]
    assert [trial.state.name for trial in plain.trials] == ["COMPLETE"] * 3 + ["FAIL"]
    first = plain.trials[0]
    assert first.values == [0.9, 4.0]
    assert first.params == {"depth": 1, "kind": "mb4d", "kernels": "[7, 5, 3]", "se": 0}
    assert first.constraints == {LATENCY: -1.0, "params": -2e6}
    assert first.duration is not None and first.duration.total_seconds() == pytest.approx(0.5)
    assert first.user_attrs["architecture"] == {"schema": 1, "n": 0}
    assert len(plain.best_trials) == 2


def test_the_views_are_read_by_plain_sql(url: str) -> None:
    study = Study.create("s", storage=url, attrs=ATTRS)
    study.declare({"genes": GENES, "metrics": [LATENCY, "params", "macs"], "budgets": BUDGETS})
    study.add(
        choice(0),
        {LATENCY: 4.5, "params": 2e6, "macs": 3e8},
        accuracy=0.9,
        loss=0.3,
        attrs={"architecture": {"schema": 1}},
    )
    study.add(choice(1), {LATENCY: 4.0, "params": 1e6, "macs": 2e8}, reason="out of memory")
    study.record_measurement(0, TARGET, "latency_ms", 4.6, 4.7)
    other = optuna.create_study(study_name="not ours", storage=url)
    other.add_trial(optuna.create_trial(value=1.0, user_attrs={"params": "many"}))
    with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
        trials = connection.execute(
            "SELECT study, trial, state, accuracy, loss, params, macs, bytes, architecture "
            "FROM nas_trials ORDER BY trial"
        ).fetchall()
        columns = [row[1] for row in connection.execute("PRAGMA table_info(nas_trials)")]
        costs = connection.execute(
            "SELECT c.target, c.metric, c.predicted, c.measured, c.ci_high FROM nas_costs c "
            "JOIN nas_trials t ON t.trial_id = c.trial_id WHERE t.trial = 0 ORDER BY c.metric"
        ).fetchall()
        created = connection.execute("SELECT created_at FROM nas_trials").fetchone()[0]
    connection.close()
    assert trials == [
        ("s", 0, "COMPLETE", 0.9, 0.3, 2000000, 300000000, None, '{"schema": 1}'),
        ("s", 1, "FAIL", None, None, 1000000, 200000000, None, None),
    ]
    assert columns[-2:] == ["created_at", "trial_id"]
    assert costs == [
        (TARGET, "latency_ms", 4.5, 4.6, 4.7),
        ("", "macs", 3e8, None, None),
        ("", "params", 2e6, None, None),
    ]
    assert pd.Timestamp(created, tz="UTC") == study.trials[0].created_at


def test_a_frame_has_one_typed_column_a_fact_a_cost_and_a_gene(study: Study) -> None:
    fill(study, POINTS)
    study.add(choice(9), {LATENCY: 1.0, "params": 1.0}, reason="out of memory")
    study.record_measurement(1, TARGET, "latency_ms", 4.9, 5.05)
    frame = study.to_frame()
    assert len(frame) == 8
    for column in ("accuracy", "loss", LATENCY, "params", f"measured {LATENCY}", "evaluation_s"):
        assert frame[column].dtype == "float64", column
    assert frame["trial"].dtype == frame["attempt"].dtype == "int64"
    assert str(frame["created_at"].dtype).endswith("UTC]")
    assert frame["reason"].tolist()[-1] == "out of memory"
    assert frame["gene.kernels"][0] == (7, 5, 3)
    assert frame["accuracy"].isna().sum() == 1
    assert list(frame.columns[-4:]) == [f"gene.{gene}" for gene in GENES]
    assert list(Study.in_memory().to_frame()["trial"]) == []


# ---------------------------------------------------------------- several costs, deleting
def test_a_front_of_several_costs_holds_all_that_none_beats_in_every_one(study: Study) -> None:
    points = [(0.9, 4.0, 3e6), (0.9, 4.0, 2e6), (0.8, 4.5, 1e6), (0.8, 4.6, 1e6), (0.95, 4.9, 9e6)]
    points += [(0.9, 4.0, 2e6), (0.7, 3.0, 5e6)]
    for index, (accuracy, latency_ms, params) in enumerate(points):
        study.add(choice(index), {LATENCY: latency_ms, "params": params}, accuracy=accuracy)

    def beaten(mine: tuple[float, ...]) -> bool:
        return any(
            other != mine and other[0] >= mine[0] and other[1] <= mine[1] and other[2] <= mine[2]
            for other in points
        )

    expected = {index for index, point in enumerate(points) if not beaten(point)}
    found = study.front(metric=["latency_ms", "params"], budgets={})
    assert {row.number for row in found} == expected == {1, 2, 4, 5, 6}
    assert [row.number for row in found] == [6, 1, 5, 2, 4]
    with pytest.raises(ConfigError, match="macs is no known metric"):
        study.front(metric=["macs"])


def test_a_front_without_a_metric_has_the_latency_of_every_target() -> None:
    study = Study.in_memory()
    metrics = ["latency_ms:a", "latency_ms:b", "params"]
    study.declare({"genes": {"n": (0, 1, 2)}, "metrics": metrics, "budgets": {}})
    for index, costs in enumerate([(1.0, 2.0, 9.0), (2.0, 1.0, 9.0), (2.0, 2.0, 1.0)]):
        study.add({"n": index}, dict(zip(metrics, costs, strict=True)), accuracy=0.5)
    assert [row.number for row in study.front()] == [0, 1]
    assert [list(study.to_frame(study.front())["trial"])] == [[0, 1]]


def test_a_deleted_study_is_gone_with_its_measurements_and_the_others_stay(url: str) -> None:
    for name in ("s", "other"):
        study = Study.create(name, storage=url, attrs=ATTRS)
        study.declare({"genes": GENES, "metrics": [LATENCY, "params"]})
        fill(study, POINTS)
        study.record_measurement(1, TARGET, "latency_ms", 4.9, 5.05)
    Study.delete("s", storage=url)
    assert [summary.name for summary in Study.list(url)] == ["other"]
    with sqlite3.connect(url.removeprefix("sqlite:///")) as connection:
        counts = [
            connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone()[0]
            for table in ("trials", "nas_trials", "nas_measurements", "trial_user_attributes")
        ]
    connection.close()
    assert counts[:3] == [7, 7, 1] and counts[3] > 0
    with pytest.raises(ConfigError, match="no study 's'"):
        Study.delete("s", storage=url)


def test_a_study_that_is_not_ours_is_not_deleted(url: str) -> None:
    optuna.create_study(study_name="theirs", storage=url)
    with pytest.raises(ConfigError, match="not made by nas"):
        Study.delete("theirs", storage=url)
    assert optuna.get_all_study_names(url) == ["theirs"]


def test_a_search_whose_study_is_deleted_says_so(url: str) -> None:
    study = Study.create("s", storage=url, attrs=ATTRS)
    study.declare({"genes": GENES, "metrics": [LATENCY, "params"]})
    fill(study, POINTS[:2])
    Study.delete("s", storage=url)
    with pytest.raises(NasError, match="deleted while it was searched"):
        fill(study, POINTS[:1])

"""The engine on tables whose truth is known."""

import math
import os
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from multiprocessing import get_context
from typing import Any

import numpy as np
import pytest

from nas.errors import ConfigError, InfeasibleBudget, NasError
from nas.search import SAMPLERS, SearchOptions, run
from nas.study import Study

GENERAL = [name for name in SAMPLERS if name != "slimming"]  # that one needs a table

Choice = Mapping[str, Any]
EVERY = [  # Optuna's Gaussian processes take seconds a proposal in mode front: one test below
    (name, mode)
    for name in GENERAL
    for mode in ("best", "front")
    if (name, mode) != ("gp", "front")
]


def rows(study: Study) -> list[tuple[Any, ...]]:
    """Return all of a study that a repetition must reproduce."""
    return [
        (row.number, row.state, dict(row.choice), row.accuracy, row.loss, dict(row.costs))
        for row in study.trials
    ]


def key(choice: Choice) -> str:
    return str(sorted(choice.items()))


# ---------------------------------------------------------------- what every search keeps
@pytest.mark.parametrize(("name", "mode"), EVERY)
class TestEverySearch:
    """Promises that hold for every sampler in both modes."""

    def test_nothing_infeasible_or_repeated_is_evaluated_or_recorded(
        self, name: str, mode: Any, make_table: Callable[..., Any]
    ) -> None:
        table = make_table(8, 3)
        budget = table.quantile(0.1)
        seen: list[str] = []

        def evaluate(choice: Choice) -> float:
            assert table.latency(choice) <= budget
            seen.append(key(choice))
            return float(table.accuracy(choice))

        options = SearchOptions(sampler=name, mode=mode)
        study = run(
            table.genes,
            evaluate,
            table.price,
            {"latency_ms": budget},
            evaluations=50,
            options=options,
        )
        assert [key(row.choice) for row in study.trials] == seen
        assert len(set(seen)) == len(seen) == 50
        assert study.ended is None

    def test_the_same_seed_gives_the_same_study(
        self, name: str, mode: Any, make_table: Callable[..., Any]
    ) -> None:
        table = make_table(8, 3)
        budgets = {"latency_ms": table.quantile(0.3)}

        def search(seed: int) -> list[Any]:
            options = SearchOptions(sampler=name, mode=mode)
            return rows(
                run(
                    table.genes,
                    table.evaluate,
                    table.price,
                    budgets,
                    evaluations=30,
                    seed=seed,
                    options=options,
                )
            )

        assert search(1) == search(1)
        assert search(1) != search(2)

    def test_an_exhausted_space_ends_the_search_with_a_statement(
        self, name: str, mode: Any, table: Any
    ) -> None:
        budget = table.quantile(0.5)
        truth = table.feasible(budget)
        options = SearchOptions(sampler=name, mode=mode)
        study = run(
            table.genes,
            table.evaluate,
            table.price,
            {"latency_ms": budget},
            evaluations=500,
            options=options,
        )
        assert sorted(key(row.choice) for row in study.trials) == sorted(map(key, truth))
        assert study.ended == f"all {len(truth)} feasible candidates were evaluated"
        best = max(truth, key=table.accuracy)
        assert study.best().choice == best


def test_optunas_gaussian_processes_search_a_front_and_repeat_it(
    make_table: Callable[..., Any],
) -> None:
    table = make_table(8, 3)
    budgets = {"latency_ms": table.quantile(0.3)}
    options = SearchOptions(sampler="gp", mode="front")
    found = [
        rows(
            run(table.genes, table.evaluate, table.price, budgets, evaluations=13, options=options)
        )
        for _ in range(2)
    ]
    assert found[0] == found[1]
    assert len({key(row[2]) for row in found[0]}) == 13
    assert all(row[5]["latency_ms"] <= budgets["latency_ms"] for row in found[0])


# ---------------------------------------------------------------- how good it is
def test_tpe_finds_better_ones_than_random(make_table: Callable[..., Any]) -> None:
    gains = []
    for seed in range(4):
        table = make_table(10, 4, seed=seed)
        budgets = {"latency_ms": table.quantile(0.3)}
        best = {}
        for name in ("tpe", "random"):
            study = run(
                table.genes,
                table.evaluate,
                table.price,
                budgets,
                evaluations=60,
                seed=seed,
                options=SearchOptions(sampler=name),
            )
            best[name] = study.best().accuracy or 0.0
        gains.append(best["tpe"] - best["random"])
    assert np.mean(gains) > 0


def test_the_start_lies_near_below_the_budget(make_table: Callable[..., Any]) -> None:
    table = make_table(10, 4)
    budget = table.quantile(0.5)
    study = run(table.genes, table.evaluate, table.price, {"latency_ms": budget}, evaluations=16)
    near = [row for row in study.trials if row.costs["latency_ms"] > 0.8 * budget]
    assert len(near) >= 8


def test_the_front_of_a_front_search_is_wider_than_the_budget_corner(
    make_table: Callable[..., Any],
) -> None:
    table = make_table(10, 4)
    budgets = {"latency_ms": table.quantile(0.9)}
    study = run(
        table.genes,
        table.evaluate,
        table.price,
        budgets,
        evaluations=80,
        options=SearchOptions(mode="front"),
    )
    front = study.front()
    assert len(front) >= 6
    assert front[0].costs["latency_ms"] < 0.5 * front[-1].costs["latency_ms"]
    assert [row.accuracy for row in front] == sorted(row.accuracy or 0 for row in front)


# ---------------------------------------------------------------- budgets
def test_two_budgets_hold_at_once(make_table: Callable[..., Any]) -> None:
    table = make_table(8, 3)
    budgets = {"latency_ms": table.quantile(0.4), "params": 8000}
    study = run(table.genes, table.evaluate, table.price, budgets, evaluations=40)
    assert len(study.trials) == 40
    for row in study.trials:
        assert all(row.costs[metric] <= limit for metric, limit in budgets.items())


def test_without_a_budget_everything_is_feasible(table: Any) -> None:
    study = run(table.genes, table.evaluate, table.price, {}, evaluations=100)
    assert len(study.trials) == 81


@pytest.mark.parametrize("num_genes", [4, 14])
def test_an_impossible_budget_names_metric_budget_and_smallest(
    make_table: Callable[..., Any], num_genes: int
) -> None:
    table = make_table(num_genes, 3)
    smallest = float(table.cost.min(axis=1).sum())
    study = Study.in_memory()
    with pytest.raises(InfeasibleBudget, match="latency_ms <= .* ms: the smallest") as caught:
        run(
            table.genes,
            table.evaluate,
            table.price,
            {"latency_ms": 0.9 * smallest},
            evaluations=10,
            study=study,
        )
    assert (caught.value.metric, caught.value.exit_code) == ("latency_ms", 3)
    assert caught.value.smallest == pytest.approx(smallest)
    assert table.calls == 0
    # The study is as it was: another budget may be tried under the same name.
    run(
        table.genes,
        table.evaluate,
        table.price,
        {"latency_ms": 2 * smallest},
        evaluations=1,
        study=study,
    )


def test_budgets_that_only_exclude_each_other_are_said_to() -> None:
    genes = {"a": (0, 1)}

    def price(choices: list[Choice]) -> dict[str, list[float]]:
        return {"x": [c["a"] + 1 for c in choices], "y": [2 - c["a"] for c in choices]}

    with pytest.raises(InfeasibleBudget, match="x and y together"):
        run(genes, lambda _: 1.0, price, {"x": 1, "y": 1}, evaluations=2)


@pytest.mark.parametrize("name", GENERAL)
def test_a_budget_that_only_one_candidate_in_millions_meets_is_found(
    make_table: Callable[..., Any], name: str
) -> None:
    table = make_table(14, 3)  # 4.8 million candidates
    smallest = float(table.cost.min(axis=1).sum())
    study = run(
        table.genes,
        table.evaluate,
        table.price,
        {"latency_ms": smallest * (1 + 1e-9)},
        evaluations=5,
        options=SearchOptions(sampler=name),
    )
    assert [set(row.choice.values()) for row in study.trials] == [{0}]
    assert "no feasible candidate besides the 1 evaluated" in str(study.ended)


def test_a_tight_budget_still_gets_its_evaluations(make_table: Callable[..., Any]) -> None:
    table = make_table(14, 3)
    smallest = float(table.cost.min(axis=1).sum())
    study = run(
        table.genes, table.evaluate, table.price, {"latency_ms": 1.1 * smallest}, evaluations=40
    )
    assert len({key(row.choice) for row in study.trials}) == 40


def test_a_space_of_one_candidate_is_evaluated_once() -> None:
    def price(choices: list[Choice]) -> dict[str, list[float]]:
        return {"latency_ms": [1.0] * len(choices)}

    for genes in ({}, {"only": ("this",)}):
        study = run(genes, lambda _: 0.5, price, {"latency_ms": 1.0}, evaluations=9)
        assert [row.choice for row in study.trials] == [dict.fromkeys(genes, "this")]
        assert study.ended == "all 1 feasible candidates were evaluated"


# ---------------------------------------------------------------- one candidate, many choices
@pytest.mark.parametrize("name", GENERAL)
def test_choices_that_complete_to_the_same_candidate_are_one(name: str) -> None:
    genes = {"depth": (0, 1, 2, 3), "a": (0, 1, 2), "b": (0, 1, 2), "c": (0, 1, 2)}

    def complete(choice: Choice, level: float | None) -> dict[str, Any]:
        assert level == 100.0
        active = ["a", "b", "c"][: choice["depth"]]
        return {
            gene: option if gene in ("depth", *active) else 0 for gene, option in choice.items()
        }

    def price(choices: list[Choice]) -> dict[str, list[float]]:
        return {"latency_ms": [1.0 + c["a"] + c["b"] + c["c"] for c in choices]}

    seen = []

    def evaluate(choice: Choice) -> float:
        seen.append(tuple(choice.values()))
        return 0.1 * float(choice["a"])

    study = run(
        genes,
        evaluate,
        price,
        {"latency_ms": 100.0},
        evaluations=300,
        options=SearchOptions(sampler=name, complete=complete),
    )
    assert len(seen) == len(set(seen)) == 1 + 3 + 9 + 27
    assert study.ended == "all 40 feasible candidates were evaluated"
    assert all(row.choice["c"] == 0 for row in study.trials if row.choice["depth"] < 3)


def test_key_says_what_is_the_same_and_describe_is_recorded(table: Any) -> None:
    options = SearchOptions(
        key=lambda choice: choice["g00"],
        describe=lambda choice: {"architecture_id": f"id{choice['g00']}", "architecture": {"s": 1}},
    )
    study = run(table.genes, table.evaluate, table.price, {}, evaluations=81, options=options)
    assert sorted(str(row.architecture_id) for row in study.trials) == ["id0", "id1", "id2"]
    assert study.trials[0].architecture == {"s": 1}


# ---------------------------------------------------------------- evaluations that go wrong
def test_a_dict_is_an_answer_too_and_all_of_it_is_kept(table: Any) -> None:
    def evaluate(choice: Choice) -> dict[str, Any]:
        return {"accuracy": np.float32(0.5), "loss": 0.25, "top5": np.float64(0.75)}

    row = run(table.genes, evaluate, table.price, {}, evaluations=1).trials[0]
    assert (row.accuracy, row.loss, row.extra) == (0.5, 0.25, {"top5": 0.75})
    assert row.evaluation_s is not None


@pytest.mark.parametrize("name", GENERAL)
@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (math.nan, "accuracy is nan"),
        (math.inf, "accuracy is inf"),
        ({"accuracy": 0.5, "loss": math.nan}, "loss is nan"),
        ({"loss": 0.5}, "evaluate returned no accuracy"),
        (RuntimeError("CUDA out of memory"), "RuntimeError: CUDA out of memory"),
    ],
)
def test_a_failed_evaluation_is_recorded_with_its_reason_and_the_search_goes_on(
    table: Any, name: str, answer: Any, reason: str
) -> None:
    calls = 0

    def evaluate(choice: Choice) -> Any:
        nonlocal calls
        calls += 1
        if calls % 3:
            return table.accuracy(choice)
        if isinstance(answer, Exception):
            raise answer
        return answer

    study = run(
        table.genes,
        evaluate,
        table.price,
        {},
        evaluations=30,
        options=SearchOptions(sampler=name),
    )
    failed = [row for row in study.trials if not row.is_complete]
    assert [row.number for row in failed] == list(range(2, 30, 3))
    assert {row.reason for row in failed} == {reason}
    assert all(row.accuracy is None and row.costs["latency_ms"] > 0 for row in failed)
    assert study.best().is_complete


def test_three_failures_in_a_row_end_the_search_and_are_tried_again_when_it_goes_on(
    table: Any,
) -> None:
    study = Study.in_memory()
    broken = True
    calls = 0

    def evaluate(choice: Choice) -> float:
        nonlocal calls
        calls += 1
        if broken and calls > 4:
            raise OSError("no data folder")
        return float(table.accuracy(choice))

    def search() -> Study:
        return run(table.genes, evaluate, table.price, {}, evaluations=20, study=study)

    with pytest.raises(NasError, match="3 evaluations in a row failed.*no data folder"):
        search()
    assert [row.state for row in study.trials] == ["COMPLETE"] * 4 + ["FAIL"] * 3
    broken = False
    search()
    states = [row.state for row in study.trials]
    assert states == ["COMPLETE"] * 4 + ["FAIL"] * 3 + ["COMPLETE"] * 16
    assert study.trials[7].attempt == 2
    assert study.trials[7].choice == study.trials[4].choice


def test_ranking_by_loss_learns_from_the_loss_and_needs_one(make_table: Callable[..., Any]) -> None:
    table = make_table(10, 4)

    def tied(choice: Choice) -> dict[str, float]:
        return {"accuracy": 0.5, "loss": -math.log(table.accuracy(choice))}

    def late_loss(rank_by: Any) -> float:
        options = SearchOptions(rank_by=rank_by)
        budgets = {"latency_ms": table.quantile(0.3)}
        study = run(table.genes, tied, table.price, budgets, evaluations=60, options=options)
        return float(np.mean([row.loss or 0.0 for row in study.trials[30:]]))

    assert late_loss("loss") < 0.9 * late_loss("accuracy")
    with pytest.raises(NasError, match="no loss to rank by"):
        run(
            table.genes,
            table.evaluate,
            table.price,
            {},
            evaluations=9,
            options=SearchOptions(rank_by="loss"),
        )


def test_an_evaluation_that_does_not_answer_is_a_failure(table: Any) -> None:
    calls = 0

    def evaluate(choice: Choice) -> float:
        nonlocal calls
        calls += 1
        if calls == 2:
            time.sleep(0.5)
        return float(table.accuracy(choice))

    for executor in (None, ThreadPoolExecutor(2)):
        calls = 0
        options = SearchOptions(timeout_s=0.1, executor=executor)
        study = run(table.genes, evaluate, table.price, {}, evaluations=4, options=options)
        assert [row.state for row in study.trials] == ["COMPLETE", "FAIL", "COMPLETE", "COMPLETE"]
        assert study.trials[1].reason == "no answer within 0.1 s"


# ---------------------------------------------------------------- batches and executors
@pytest.mark.parametrize("name", GENERAL)
def test_an_executor_changes_nothing_but_the_time(
    make_table: Callable[..., Any], name: str
) -> None:
    table = make_table(8, 3)
    budgets = {"latency_ms": table.quantile(0.3)}

    def evaluate(choice: Choice) -> float:
        time.sleep(0.002 * (choice["g00"] == 0))  # answers come out of order
        return float(table.accuracy(choice))

    with ThreadPoolExecutor(4) as executor:
        parallel = run(
            table.genes,
            evaluate,
            table.price,
            budgets,
            evaluations=30,
            options=SearchOptions(sampler=name, batch=4, executor=executor),
        )
    alone = run(
        table.genes,
        evaluate,
        table.price,
        budgets,
        evaluations=30,
        options=SearchOptions(sampler=name, batch=4),
    )
    assert rows(parallel) == rows(alone)


def dies(choice: Choice) -> float:
    """An evaluation that takes its process with it."""
    os._exit(1)


@pytest.mark.slow
def test_a_pool_whose_workers_die_ends_the_search_and_keeps_the_rows(table: Any) -> None:
    study = Study.in_memory()

    def search(evaluate: Any, evaluations: int) -> None:
        with ProcessPoolExecutor(2, mp_context=get_context("spawn")) as executor:
            options = SearchOptions(batch=2, executor=executor)
            run(
                table.genes,
                evaluate,
                table.price,
                {},
                evaluations=evaluations,
                options=options,
                study=study,
            )

    search(len, 4)  # any function of a choice that can be imported
    with pytest.raises(NasError, match="the executor broke: .* go on with --resume"):
        search(dies, 9)
    assert [row.state for row in study.trials] == ["COMPLETE"] * 4
    search(len, 9)
    assert len(study.trials) == 9


def test_an_executor_that_gets_one_candidate_at_a_time_is_mentioned(
    table: Any, caplog: pytest.LogCaptureFixture
) -> None:
    with ThreadPoolExecutor(2) as executor:
        options = SearchOptions(executor=executor)
        run(table.genes, table.evaluate, table.price, {}, evaluations=1, options=options)
    assert "set batch to its workers" in caplog.text


def test_progress_counts_every_candidate(table: Any) -> None:
    lines: list[tuple[int, int, str]] = []
    options = SearchOptions(progress=lambda *line: lines.append(line))
    study = run(table.genes, table.evaluate, table.price, {}, evaluations=5, options=options)
    assert [line[:2] for line in lines] == [(done, 5) for done in range(1, 6)]
    assert lines[-1][2].startswith(f"best {study.best().accuracy:.4f} at ")


# ---------------------------------------------------------------- what is asked wrongly
@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"sampler": "tpee"},
            "sampler must be one of predictor, tpe, nsga2, gp, slimming, random, but is 'tpee'",
        ),
        ({"mode": "both"}, "mode must be one of best, front"),
        ({"rank_by": "top5"}, "rank_by must be one of accuracy, loss"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"timeout_s": 0}, "timeout_s must be above zero"),
    ],
)
def test_a_setting_that_breaks_a_rule_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SearchOptions(**options)


@pytest.mark.parametrize(
    ("genes", "message"),
    [
        ({"a": ()}, "no options"),
        ({"a": (1, 1)}, "an option twice"),
        ({"a": (True, 1)}, "an option twice"),
        ({"a": ([7, 5], (7, 5))}, "an option twice"),
        ({"a": ({"b": 1}, 2)}, "plain values or tuples"),
        ({"a": (math.nan, 2)}, "plain values or tuples"),
        ({"a": "xyz"}, "a tuple of options"),
    ],
)
def test_genes_that_break_a_rule_are_refused(genes: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        run(genes, lambda _: 1.0, lambda choices: {"x": [1.0] * len(choices)}, {}, evaluations=1)


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({}, "no metric"),
        ({"x": [1.0, 2.0, 3.0]}, "costs a metric"),
        ({"x": [math.nan]}, "NaN as x"),
    ],
)
def test_prices_that_break_a_rule_are_refused(answer: dict[str, Any], message: str) -> None:
    with pytest.raises(NasError, match=message):
        run({"a": (1, 2)}, lambda _: 1.0, lambda _: answer, {}, evaluations=1)


def test_a_search_needs_evaluations_and_known_metrics(table: Any) -> None:
    with pytest.raises(ConfigError, match="at least 1"):
        run(table.genes, table.evaluate, table.price, {}, evaluations=0)
    with pytest.raises(ConfigError, match="choose from latency_ms, params"):
        run(table.genes, table.evaluate, table.price, {"watts": 3.0}, evaluations=1)

"""The mind of our own: what it proposes, what it beats, and the stairs it climbs."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from nas.errors import ConfigError
from nas.search import Problem, SearchOptions, run
from nas.search import pool as pool_module
from nas.search import predictor as module
from nas.search.pool import ENUMERATED, Pool
from nas.search.predictor import Known, PredictorMind, Stairs, stairs
from nas.search.rows import Rows


def problem(table: Any, budget_ms: float, **others: Any) -> Problem:
    settings: dict[str, Any] = {"objective": None, "seed": 0, **others}
    budgets = {"latency_ms": budget_ms}
    return Problem(genes=table.genes, budgets=budgets, price=table.price, **settings)


def think(mind: PredictorMind, table: Any, asks: int) -> list[Any]:
    """Ask and tell; the first few are the pool's own draws."""
    asked = []
    for _ in range(asks):
        proposal = mind.ask()
        asked.append(proposal.choice)
        costs = {"latency_ms": table.latency(proposal.choice)}
        mind.tell(proposal, table.accuracy(proposal.choice), costs)
    return asked


# ---------------------------------------------------------------- how good it is
@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_it_finds_the_best_of_thousands_in_a_hundred_evaluations(
    make_table: Callable[..., Any], share: float
) -> None:
    table = make_table(6, 4, seed=2)  # 4096 candidates
    budget = table.quantile(share)
    best = max(map(table.accuracy, table.feasible(budget)))
    study = run(table.genes, table.evaluate, table.price, {"latency_ms": budget}, evaluations=100)
    assert study.best().accuracy == pytest.approx(best, abs=0.002)


def test_it_finds_better_ones_than_tpe_in_a_space_too_large_to_hold(
    make_table: Callable[..., Any],
) -> None:
    table = make_table(12, 4, seed=1)
    assert ENUMERATED < 4**12
    budgets = {"latency_ms": table.quantile(0.3)}
    best = {}
    for name in ("predictor", "tpe", "random"):
        options = SearchOptions(sampler=name)
        study = run(
            table.genes, table.evaluate, table.price, budgets, evaluations=80, options=options
        )
        best[name] = study.best().accuracy or 0.0
    assert best["predictor"] > best["tpe"] > best["random"]


def hypervolume(points: np.ndarray, reference: list[float]) -> float:
    """Return Optuna's own hypervolume of (cost, -score) points."""
    from optuna._hypervolume import compute_hypervolume

    inside = points[(points < reference).all(axis=1)]
    return float(compute_hypervolume(inside, np.array(reference)))


def test_its_front_covers_more_than_that_of_others(make_table: Callable[..., Any]) -> None:
    table = make_table(8, 3, seed=3)
    budget = table.quantile(0.9)
    covered = {}
    for name in ("predictor", "tpe", "nsga2", "random"):
        study = run(
            table.genes,
            table.evaluate,
            table.price,
            {"latency_ms": budget},
            evaluations=80,
            options=SearchOptions(sampler=name, mode="front"),
        )
        points = np.array([[row.costs["latency_ms"], -(row.accuracy or 0)] for row in study.trials])
        covered[name] = hypervolume(points, [budget, 0.0])
    every = table.feasible(budget)
    truth = np.array([[table.latency(choice), -table.accuracy(choice)] for choice in every])
    assert max(covered, key=lambda name: covered[name]) == "predictor"
    assert covered["predictor"] > 0.97 * hypervolume(truth, [budget, 0.0])


# ---------------------------------------------------------------- what it proposes
@pytest.mark.parametrize("mode", ["best", "front"])
def test_a_budget_that_no_draw_meets_still_has_candidates_to_choose_from(
    make_table: Callable[..., Any], mode: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pool_module, "DRAWS", 64)
    table = make_table(14, 3)
    table.cost[:] = [1.0, 1.05, 3.0]
    cheapest = dict.fromkeys(table.genes, 0)
    budget = 14.16  # three genes at their second option: 470 of 4.8 million
    objective = None if mode == "best" else "latency_ms"
    mind = PredictorMind(problem(table, budget, objective=objective))
    assert len(mind._pool.some(10)) == 0
    for gene in list(table.genes)[:10]:
        proposal = mind.adopt({**cheapest, gene: 1})
        costs = {"latency_ms": table.latency(proposal.choice)}
        mind.tell(proposal, table.accuracy(proposal.choice), costs)
    asked = think(mind, table, 24)
    assert len({str(choice) for choice in asked}) == 24
    assert all(table.latency(choice) <= budget for choice in asked)


def test_every_proposal_is_new_and_within_the_budget(make_table: Callable[..., Any]) -> None:
    for genes in (6, 12):
        table = make_table(genes, 4)
        budget = table.quantile(0.2)
        asked = think(PredictorMind(problem(table, budget)), table, 60)
        assert len({str(choice) for choice in asked}) == 60
        assert all(table.latency(choice) <= budget for choice in asked)


def test_a_batch_is_spread_and_not_one_idea_eight_times(make_table: Callable[..., Any]) -> None:
    table = make_table(8, 4)
    mind = PredictorMind(problem(table, table.quantile(0.5), batch=8))
    think(mind, table, 40)
    waiting = [mind.ask().choice for _ in range(8)]
    differ = [
        sum(one[gene] != other[gene] for gene in table.genes)
        for number, one in enumerate(waiting)
        for other in waiting[:number]
    ]
    assert min(differ) >= 1
    assert np.mean(differ) >= 2


@pytest.mark.slow
def test_choices_are_ranked_as_they_will_be_completed(make_table: Callable[..., Any]) -> None:
    table = make_table(10, 4)

    def complete(choice: Any) -> dict[str, Any]:  # the last five genes follow from the first
        off = choice["g00"] < 2
        return {g: 0 if off and int(g[1:]) > 4 else option for g, option in choice.items()}

    mind = PredictorMind(problem(table, table.quantile(0.5), complete=complete))
    asked = []
    for _ in range(60):
        proposal = mind.ask()
        choice = complete(proposal.choice)
        asked.append(str(choice))
        assert table.latency(choice) <= table.quantile(0.5)
        mind.tell(proposal, table.accuracy(choice), {"latency_ms": table.latency(choice)})
    assert len(set(asked)) >= 59  # the first draws are not looked at closely


def test_completing_to_an_option_that_is_not_there_is_said(make_table: Callable[..., Any]) -> None:
    table = make_table(4, 3)
    with pytest.raises(ConfigError, match=r"g01 must be one of \(0, 1, 2\), but is 7"):
        PredictorMind(problem(table, 1e9, complete=lambda choice: {**choice, "g01": 7}))


def test_it_leaves_what_fails(make_table: Callable[..., Any]) -> None:
    table = make_table(8, 3)
    mind = PredictorMind(problem(table, table.quantile(0.8)))
    failed = []
    for _ in range(70):
        proposal = mind.ask()
        fails = proposal.choice["g03"] == 2  # out of memory, say
        failed.append(fails)
        score = None if fails else table.accuracy(proposal.choice)
        mind.tell(proposal, score, {"latency_ms": table.latency(proposal.choice)})
    assert 0 < sum(failed) < 25
    assert sum(failed[-30:]) <= 6


def test_a_refusal_of_something_seen_is_not_a_failure(make_table: Callable[..., Any]) -> None:
    table = make_table(4, 3)
    mind = PredictorMind(problem(table, 1e9, key=lambda choice: choice["g00"]))
    for _ in range(12):
        proposal = mind.ask()
        mind.tell(proposal, None, {"latency_ms": table.latency(proposal.choice)})
    assert len(mind._known.scores) <= 3  # one a key; the others were known already


# ---------------------------------------------------------------- its parts
def test_large_spaces_are_searched_twenty_thousand_candidates_at_a_time(
    make_table: Callable[..., Any],
) -> None:
    table = make_table(14, 4)
    budgets = {"latency_ms": table.quantile(0.5)}
    rows = Rows(table.genes, lambda choices: table.price(choices), budgets, seed=0)
    pool = Pool(rows, None)
    parents = pool.some(20).codes
    looked_at = 0

    def rank(codes: np.ndarray, costs: Any) -> np.ndarray:
        nonlocal looked_at
        looked_at += len(codes)
        assert (costs["latency_ms"] <= budgets["latency_ms"]).all()
        return np.asarray(-codes.sum(axis=1))

    before = pool.some(10_000).codes.sum(axis=1)
    pool.best(rank, parents)
    looked_at = 0
    short = pool.best(rank, parents)
    assert looked_at > 15_000  # of them 20,000 were priced
    assert short.codes.sum(axis=1).max() < before.mean()
    assert len(np.unique(short.codes, axis=0)) == len(short)


def test_scores_of_ruined_networks_do_not_drown_the_others() -> None:
    known = Known()
    for score in [10.0, 10.0, None, *np.linspace(90, 94, 20)]:
        known.add(np.zeros(1), score, {})
    values = known.values(2.0)
    assert values[0] == values[1] == values[2]
    assert values[-1] - values[3] > values[3] - values[0]
    assert np.mean(values) == pytest.approx(0)


def test_equal_scores_are_learnt_without_a_division_by_zero() -> None:
    known = Known()
    for _ in range(5):
        known.add(np.zeros(1), 0.5, {})
    assert known.values(2.0) == pytest.approx(np.zeros(5))


@pytest.mark.parametrize("seed", range(5))
def test_the_gain_is_the_hypervolume_that_draws_add_on_average(seed: int) -> None:
    rng = np.random.default_rng(seed)
    costs, values = rng.uniform(1, 9, 7), rng.normal(size=7)
    floor = float(values.min()) - 0.5
    found = stairs(costs, values, low=0.5, high=10.0, floor=floor)
    own, mean, deviation = rng.uniform(1, 9, 4), rng.normal(0.5, 1, 4), rng.uniform(0.2, 1, 4)
    gain = found.gain(mean, deviation, own)

    def volume(extra_cost: float, extra_value: float) -> float:
        points = np.stack([np.append(costs, extra_cost), -np.append(values, extra_value)], axis=1)
        return hypervolume(points, [10.0, -floor])

    for number in range(4):
        draws = rng.normal(mean[number], deviation[number], 3000)
        empty = volume(10.0, floor)
        added = [volume(own[number], draw) - empty for draw in draws]
        error = np.std(added) / np.sqrt(len(draws))
        assert gain[number] == pytest.approx(np.mean(added), abs=4 * error + 1e-6)


def test_without_a_second_goal_the_gain_is_expected_improvement() -> None:
    single = Stairs(np.zeros(1), np.ones(1), np.array([0.3]))
    draws = np.random.default_rng(0).normal(0.1, 0.5, 400_000)
    found = single.gain(np.array([0.1]), np.array([0.5]), np.zeros(1))
    assert found[0] == pytest.approx(np.maximum(draws - 0.3, 0).mean(), rel=0.02)


def test_many_rows_are_learnt_from_and_a_part_of_them_sets_the_kernel(
    make_table: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(module, "FIT_ROWS", 20)
    table = make_table(6, 3)
    mind = PredictorMind(problem(table, table.quantile(0.8)))
    think(mind, table, 60)
    assert len(mind._process._solved) > 40


def test_rows_come_back_from_choices_and_have_options_as_they_were_given() -> None:
    genes = {"kernel": ((7, 5), (5, 3)), "width": (16, 24, 32), "kind": ("mb4d", "cga")}
    rows = Rows(genes, lambda choices: {}, {}, seed=0)
    codes = rows.draw(50)
    choices = rows.choices(codes)
    np.testing.assert_array_equal(rows.encode(choices), codes)
    assert (
        choices[0]
        == rows.choice(codes[0])
        == {g: genes[g][c] for g, c in zip(genes, codes[0], strict=True)}
    )
    assert type(choices[0]["width"]) is int
    assert rows.choices(codes[:0]) == []
    nothing = Rows({}, lambda choices: {}, {}, seed=0)
    assert nothing.choices(nothing.draw(2)) == [{}, {}]

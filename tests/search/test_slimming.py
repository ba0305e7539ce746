"""Slimming: the steps of the paper, over budgets, and what it cannot do."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

from nas.errors import ConfigError
from nas.search import SAMPLERS, Problem, SearchOptions, run


def losses(table: Any) -> dict[str, dict[Any, float]]:
    """Return what each option gains less than the best of its gene; pairs stay unknown."""
    return {
        gene: {option: float(gain.max() - gain[option]) for option in options}
        for (gene, options), gain in zip(table.genes.items(), table.gain, strict=True)
    }


def slimmed(table: Any, budget_ms: float) -> dict[str, Any]:
    """Return where the steps of least loss a ms end, written once more and one at a time."""
    lost = losses(table)
    choice = {
        gene: min(options, key=lambda o: lost[gene][o]) for gene, options in table.genes.items()
    }
    while (now_ms := table.latency(choice)) > budget_ms:
        steps = []
        for gene, options in table.genes.items():
            for option in options:
                other = {**choice, gene: option}
                # what is saved below the budget is worth nothing
                saved_ms = now_ms - max(table.latency(other), budget_ms)
                if saved_ms > 1e-12:
                    drop = lost[gene][option] - lost[gene][choice[gene]]
                    steps.append((drop / saved_ms, gene, option))
        _, gene, option = min(steps)
        choice[gene] = option
    while True:  # what the last step overshot
        steps = [
            (lost[gene][option] - lost[gene][choice[gene]], gene, option)
            for gene, options in table.genes.items()
            for option in options
            if table.latency({**choice, gene: option}) <= budget_ms
        ]
        if (least := min(steps))[0] >= 0:
            return choice
        choice[least[1]] = least[2]


@pytest.mark.parametrize("share", [0.1, 0.4, 0.7])
def test_the_first_proposal_is_where_steps_of_least_loss_a_ms_end(
    make_table: Callable[..., Any], share: float
) -> None:
    table = make_table(8, 4, seed=5)
    budget_ms = table.quantile(share)
    mind = SAMPLERS["slimming"](
        Problem(
            genes=table.genes,
            budgets={"latency_ms": budget_ms},
            objective=None,
            seed=0,
            price=table.price,
            lost=losses(table),
        )
    )
    assert mind.ask().choice == slimmed(table, budget_ms)


@pytest.mark.slow
def test_with_a_table_it_beats_random_and_with_feedback_itself(
    make_table: Callable[..., Any],
) -> None:
    found: dict[str, list[float]] = {"slimming": [], "random": [], "first": []}
    for seed in range(6):
        table = make_table(10, 4, seed=seed)
        budgets = {"latency_ms": table.quantile(0.3)}
        for name in ("slimming", "random"):
            options = SearchOptions(sampler=name, lost=losses(table))
            study = run(
                table.genes, table.evaluate, table.price, budgets, evaluations=40, options=options
            )
            found[name].append(study.best().accuracy or 0.0)
            if name == "slimming":
                found["first"].append(study.trials[0].accuracy or 0.0)
    assert np.mean(found["slimming"]) > np.mean(found["first"])
    assert np.mean(found["slimming"]) > np.mean(found["random"])


def test_the_front_has_networks_at_many_levels_of_cost(make_table: Callable[..., Any]) -> None:
    table = make_table(8, 3)
    options = SearchOptions(sampler="slimming", mode="front", lost=losses(table))
    study = run(table.genes, table.evaluate, table.price, {}, evaluations=60, options=options)
    costs = np.array([row.costs["latency_ms"] for row in study.front()])
    assert len(costs) >= 6
    assert costs.max() > 2 * costs.min()


def test_two_budgets_are_met_at_once(make_table: Callable[..., Any]) -> None:
    table = make_table(8, 3)
    budgets = {"latency_ms": table.quantile(0.4), "params": 8000}
    options = SearchOptions(sampler="slimming", lost=losses(table))
    study = run(table.genes, table.evaluate, table.price, budgets, evaluations=20, options=options)
    assert len(study.trials) == 20


def test_a_general_table_without_predicted_losses_is_refused_with_the_way_out(
    table: Any,
) -> None:
    with pytest.raises(ConfigError, match=r"needs predicted losses: give SearchOptions\(lost="):
        SearchOptions(sampler="slimming")
    lost = losses(table)
    del lost["g01"][2]
    options = SearchOptions(sampler="slimming", lost=lost)
    with pytest.raises(ConfigError, match="g01 has none for 2.*use another sampler"):
        run(table.genes, table.evaluate, table.price, {}, evaluations=1, options=options)
    options = SearchOptions(
        sampler="slimming", lost={**losses(table), "g01": dict.fromkeys(range(3), np.nan)}
    )
    with pytest.raises(ConfigError, match="finite"):
        run(table.genes, table.evaluate, table.price, {}, evaluations=1, options=options)

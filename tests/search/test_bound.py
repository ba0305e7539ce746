"""Searches in which only a completed candidate has a price: bounds are looked at before."""

from typing import Any

import numpy as np
import pytest

from nas import search
from nas.errors import InfeasibleBudget
from nas.search import SearchOptions

GENES = {f"g{number}": tuple(range(4)) for number in range(5)}


def price(choices: list[Any]) -> dict[str, Any]:
    """Return what candidates cost: twice the bound for every other one."""
    sums = np.array([sum(choice.values()) for choice in choices], dtype=float)
    return {"latency_ms": (1 + sums) * (1 + sums % 2)}


def bound(choices: list[Any]) -> dict[str, Any]:
    return {"latency_ms": 1 + np.array([sum(choice.values()) for choice in choices], dtype=float)}


@pytest.mark.parametrize("sampler", ["predictor", "tpe", "random"])
def test_candidates_within_the_bound_and_over_the_budget_are_never_evaluated(sampler: str) -> None:
    study = search.run(
        GENES,
        lambda choice: sum(choice.values()) / 20,
        price,
        {"latency_ms": 10.0},
        evaluations=30,
        options=SearchOptions(sampler=sampler, bound=bound, complete=lambda c, level: c),
    )
    assert len(study.trials) == 30
    for row in study.trials:
        assert row.costs["latency_ms"] == price([row.choice])["latency_ms"][0] <= 10.0


def test_a_budget_below_every_bound_is_refused_at_once() -> None:
    with pytest.raises(InfeasibleBudget, match="0.5 ms"):
        search.run(
            GENES, lambda choice: 0.5, price, {"latency_ms": 0.5}, evaluations=3,
            options=SearchOptions(bound=bound),
        )  # fmt: skip

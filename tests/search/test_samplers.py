"""The contract every mind keeps, run through all of them."""

import math
from typing import Any

import numpy as np
import optuna
import pytest

from nas.search.mind import Mind, Problem
from nas.search.optuna_mind import OptunaMind
from nas.search.samplers import SAMPLERS


def problem(seed: int = 0, objective: str | None = None) -> Problem:
    genes = {"a": (0, 1, 2), "b": ("x", "y", "z"), "k": ((7, 5), (5, 3), 3), "d": (0.5, 1, 2)}
    budgets = {"latency_ms": 4.5}
    lost = {
        gene: {option: 0.1 * place for place, option in enumerate(options[::-1])}
        for gene, options in genes.items()
    }
    return Problem(
        genes=genes, budgets=budgets, objective=objective, seed=seed, price=prices, lost=lost
    )


def prices(choices: list[Any]) -> dict[str, np.ndarray]:
    return {"latency_ms": np.array([cost(choice)["latency_ms"] for choice in choices])}


def cost(choice: Any) -> dict[str, float]:
    return {"latency_ms": choice["a"] + 2.0 * "xyz".index(choice["b"]) + choice["d"]}


def accuracy(choice: Any) -> float:
    return math.tanh(choice["a"] + choice["d"] + (choice["k"] == (5, 3)))


def think(mind: Mind, asks: int) -> tuple[list[Any], set[str]]:
    """Ask, refuse what is infeasible or repeated, and return all proposals and the accepted."""
    proposed, accepted = [], set()
    for _ in range(asks):
        proposal = mind.ask()
        proposed.append(dict(proposal.choice))
        costs = cost(proposal.choice)
        known = str(proposal.choice) in accepted
        if known or costs["latency_ms"] > 4.5:
            mind.tell(proposal, None, costs)
        else:
            accepted.add(str(proposal.choice))
            mind.tell(proposal, accuracy(proposal.choice), costs)
    return proposed, accepted


def asks_of(name: str, count: int) -> int:
    """Return how often a sampler is asked; Optuna's Gaussian processes take seconds to think."""
    return min(count, 16) if name == "gp" else count


@pytest.mark.parametrize("objective", [None, "latency_ms"], ids=["best", "front"])
@pytest.mark.parametrize("name", SAMPLERS)
class TestMind:
    """What the engine relies on."""

    def test_proposals_are_whole_choices_of_the_genes_own_options(
        self, name: str, objective: str | None
    ) -> None:
        asked = problem(objective=objective)
        for choice in think(SAMPLERS[name](asked), asks_of(name, 60))[0]:
            assert list(choice) == list(asked.genes)
            assert all(choice[gene] in options for gene, options in asked.genes.items())

    def test_the_same_seed_and_answers_give_the_same_proposals(
        self, name: str, objective: str | None
    ) -> None:
        asks = asks_of(name, 60)
        first = think(SAMPLERS[name](problem(3, objective)), asks)[0]
        assert think(SAMPLERS[name](problem(3, objective)), asks)[0] == first
        assert think(SAMPLERS[name](problem(4, objective)), asks)[0] != first

    def test_refusals_do_not_stall_it(self, name: str, objective: str | None) -> None:
        if name == "slimming":
            pytest.skip("it stops at the budget: others come from the engine's screen")
        asks = asks_of(name, 100)
        accepted = think(SAMPLERS[name](problem(0, objective)), asks)[1]
        assert len(accepted) >= asks // 4  # 51 are feasible

    def test_it_takes_a_candidate_from_elsewhere_as_its_own(
        self, name: str, objective: str | None
    ) -> None:
        mind = SAMPLERS[name](problem(0, objective))
        choice = {"a": 2, "b": "x", "k": (5, 3), "d": 2}
        for _ in range(30):
            proposal = mind.adopt(choice)
            assert proposal.choice == choice
            mind.tell(proposal, 0.9, cost(choice))
        assert len(think(mind, 10)[0]) == 10

    def test_several_proposals_wait_at_once(self, name: str, objective: str | None) -> None:
        mind = SAMPLERS[name](problem(0, objective))
        for _ in range(asks_of(name, 48) // 4):
            waiting = [mind.ask() for _ in range(4)]
            assert len({proposal.ticket for proposal in waiting}) == 4
            for proposal in waiting:
                mind.tell(proposal, accuracy(proposal.choice), cost(proposal.choice))

    def test_failures_are_told_like_refusals(self, name: str, objective: str | None) -> None:
        mind = SAMPLERS[name](problem(0, objective))
        for _ in range(40):
            proposal = mind.ask()
            mind.tell(proposal, None, {"latency_ms": 1.0})
        assert mind.ask().choice


def test_tpe_learns_which_genes_matter() -> None:
    mind = SAMPLERS["tpe"](problem())
    late = think(mind, 80)[0][40:]
    assert sum(choice["k"] == (5, 3) for choice in late) > 0.5 * len(late)


class Listener(optuna.samplers.RandomSampler):
    """A sampler that keeps what it is told."""

    def __init__(self) -> None:
        super().__init__(seed=0)
        self.told: list[tuple[str, dict[str, float]]] = []

    def after_trial(self, study: Any, trial: Any, state: Any, values: Any) -> None:
        self.told.append((state.name, trial.constraints))


def test_optuna_hears_the_constraints_of_every_trial_whatever_became_of_it() -> None:
    listener = Listener()
    mind = OptunaMind(problem(), listener, num_starts=0)
    for score, latency_ms in ((0.5, 4.5), (None, 9.0), (None, 2.25)):
        mind.tell(mind.ask(), score, {"latency_ms": latency_ms})
    assert listener.told == [
        ("COMPLETE", {"latency_ms": 0.0}),
        ("PRUNED", {"latency_ms": 1.0}),
        ("PRUNED", {"latency_ms": -0.5}),
    ]

"""Small honest tables of genes, accuracies and costs, fully known."""

import itertools
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest

Choice = Mapping[str, Any]


@pytest.hookimpl(tryfirst=True)  # before pytest leaves out what is slow
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Call what runs through the sampler `gp` slow: Optuna's process thinks a second at a time."""
    for item in items:
        if "gp" in getattr(getattr(item, "callspec", None), "params", {}).values():
            item.add_marker(pytest.mark.slow)


@dataclass
class Table:
    """A declared problem: accuracy and latency are fixed functions of the choice."""

    genes: dict[str, tuple[Any, ...]]
    gain: np.ndarray  # (genes, options)
    cost: np.ndarray  # (genes, options), ms
    pairs: np.ndarray  # (genes, options, options): neighbours help or disturb each other
    calls: int = 0

    def codes(self, choice: Choice) -> list[int]:
        return [options.index(choice[gene]) for gene, options in self.genes.items()]

    def accuracy(self, choice: Choice) -> float:
        codes = self.codes(choice)
        total = sum(self.gain[gene, code] for gene, code in enumerate(codes))
        for gene in range(len(codes) - 1):
            total += self.pairs[gene, codes[gene], codes[gene + 1]]
        return float(1 / (1 + np.exp(-total / 3)))

    def evaluate(self, choice: Choice) -> float:
        self.calls += 1
        return self.accuracy(choice)

    def price(self, choices: Sequence[Choice]) -> dict[str, np.ndarray]:
        # An option is its own index here, in every table of these tests.
        codes = np.array([[choice[gene] for gene in self.genes] for choice in choices])
        latency = self.cost[np.arange(len(self.genes)), codes].sum(axis=1)
        return {"latency_ms": latency, "params": 1000 * (1 + codes.sum(axis=1))}

    def all(self) -> Iterator[dict[str, Any]]:
        for options in itertools.product(*self.genes.values()):
            yield dict(zip(self.genes, options, strict=True))

    def latency(self, choice: Choice) -> float:
        return float(self.price([choice])["latency_ms"][0])

    def feasible(self, budget_ms: float) -> list[dict[str, Any]]:
        return [choice for choice in self.all() if self.latency(choice) <= budget_ms]

    def quantile(self, share: float) -> float:
        """Return the latency that about `share` of uniform draws meet."""
        rng = np.random.default_rng(0)
        draws = [
            {gene: options[rng.integers(len(options))] for gene, options in self.genes.items()}
            for _ in range(2000)
        ]
        return float(np.quantile(self.price(draws)["latency_ms"], share))


MakeTable = Callable[..., Table]


@pytest.fixture
def make_table() -> MakeTable:
    def make(num_genes: int = 4, num_options: int = 3, seed: int = 0) -> Table:
        rng = np.random.default_rng(seed)
        shape = (num_genes, num_options)
        weight = rng.gamma(1.0, 1.0, (num_genes, 1))
        return Table(
            genes={f"g{gene:02d}": tuple(range(num_options)) for gene in range(num_genes)},
            gain=np.sort(rng.random(shape), axis=1) * weight,
            cost=np.sort(rng.random(shape), axis=1) * rng.gamma(1.0, 1.0, (num_genes, 1)),
            pairs=rng.normal(0, 0.15, (num_genes, num_options, num_options)),
        )

    return make


@pytest.fixture
def table(make_table: MakeTable) -> Table:
    """81 candidates."""
    return make_table()

"""Candidates as rows of option indices, shape (n, genes): drawn, changed, crossed and priced."""

import itertools
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np

from nas.errors import ConfigError
from nas.search.budgets import feasible
from nas.study import Choice, Genes

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]  # Any: option indices (int64) or costs (float64)
Costs: TypeAlias = dict[str, Array]
PriceChoices: TypeAlias = Callable[[list[Choice]], Costs]
Price: TypeAlias = Callable[[list[Choice]], Mapping[str, Sequence[float] | Array]]


class Rows:
    """The rows of some genes, and which of them are within the budgets."""

    def __init__(
        self, genes: Genes, price: PriceChoices, budgets: Mapping[str, float], *, seed: int
    ) -> None:
        self._genes = genes
        self._price = price
        self._budgets = budgets
        self._places = [
            {option: code for code, option in enumerate(options)} for options in genes.values()
        ]
        self.sizes = np.array([len(options) for options in genes.values()], dtype=np.int64)
        self.count = math.prod(len(options) for options in genes.values())
        self.rng = np.random.default_rng(seed)
        self.looked_at = 0

    def choice(self, row: Array) -> Choice:
        """Return a row, shape (genes,), as a choice."""
        return self.choices(row[None])[0]

    def choices(self, rows: Array) -> list[Choice]:
        """Return rows, shape (n, genes), as choices."""
        if not self._genes:
            return [{} for _ in rows]
        columns = zip(self._genes.values(), rows.T.tolist(), strict=True)
        options = [[known[code] for code in codes] for known, codes in columns]
        return [dict(zip(self._genes, own, strict=True)) for own in zip(*options, strict=True)]

    def encode(self, choices: Sequence[Choice]) -> Array:
        """Return choices as rows.

        Raises:
            ConfigError: a gene is missing, or its option is not one of its own.
        """
        rows = np.zeros((len(choices), len(self.sizes)), dtype=np.int64)
        for column, (gene, place) in enumerate(zip(self._genes, self._places, strict=True)):
            for row, choice in enumerate(choices):
                option = choice.get(gene)
                code = place.get(tuple(option) if isinstance(option, list) else option)
                if code is None:
                    known = self._genes[gene]
                    raise ConfigError(f"{gene} must be one of {known}, but is {option!r}.")
                rows[row, column] = code
        return rows

    def price(self, codes: Array) -> Costs:
        """Return {metric: costs of shape (n,)}."""
        self.looked_at += len(codes)
        return self._price(self.choices(codes))

    def feasible(self, codes: Array) -> Array:
        """Return those that meet every budget."""
        kept: Array = codes[self.priced(codes)[1]]
        return kept

    def priced(self, codes: Array) -> tuple[Costs, Array]:
        """Return costs, and which rows meet every budget, booleans of shape (n,)."""
        costs = self.price(codes)
        return costs, feasible(costs, self._budgets)

    # ------------------------------------------------------------ making them
    def all(self) -> Array:
        """Return every row there is."""
        rows = list(itertools.product(*(range(size) for size in self.sizes)))
        return np.array(rows, dtype=np.int64).reshape(len(rows), len(self.sizes))

    def draw(self, count: int) -> Array:
        """Return uniform draws, shape (count, genes)."""
        return self.rng.integers(0, self.sizes, size=(count, len(self.sizes)))

    def change(self, rows: Array, count: int) -> Array:
        """Return random rows with about one and a half genes drawn anew, shape (count, genes)."""
        parents = rows[self.rng.integers(0, len(rows), size=count)]
        touched = self.rng.random(parents.shape) < 1.5 / parents.shape[1]
        return np.where(touched, self.draw(count), parents)

    def cross(self, rows: Array, count: int) -> Array:
        """Return children of two random rows, each gene from either, shape (count, genes)."""
        one, other = (rows[self.rng.integers(0, len(rows), size=count)] for _ in range(2))
        return np.where(self.rng.random(one.shape) < 0.5, one, other)

    def neighbours(self, row: Array) -> Array:
        """Return every row that differs in one gene, shape (sum of options - 1, genes)."""
        around = []
        for gene, size in enumerate(self.sizes):
            for code in range(size):
                if code != row[gene]:
                    other = row.copy()
                    other[gene] = code
                    around.append(other)
        return np.stack(around)

"""A choice as numbers a regression can compare: genes, how often an option occurs, and costs."""

from collections import defaultdict
from collections.abc import Mapping
from typing import Any, TypeAlias

import numpy as np

from nas.study import Genes, Option

Array: TypeAlias = np.ndarray[Any, np.dtype[Any]]  # Any: option indices (int64) or float64

COST_LEVELS = 12


class Features:
    """Turns rows of option indices and their costs into blocks of columns.

    Each row's block has length one, so that the product of two rows' blocks is a similarity: 1 if
    they agree, 0 if they do not, between if the options have an order. The blocks are the genes;
    for genes with the same options (the operations on the edges of a cell, the kinds of a stage's
    blocks), how often each option is taken; and the costs, which are known of every candidate.
    """

    def __init__(self, genes: Genes, costs: Mapping[str, Array]) -> None:
        """Take the genes, and costs of typical candidates, shape (n,) by metric."""
        options = list(genes.values())
        self._genes = [column for column, known in enumerate(options) if len(known) > 1]
        alike: dict[tuple[str, ...], list[int]] = defaultdict(list)
        for column in self._genes:
            alike[tuple(map(repr, options[column]))].append(column)
        self._counted = [
            (columns, code)
            for names, columns in alike.items()
            if len(columns) > 1
            for code in range(len(names))
        ]
        self._levels = {
            metric: np.quantile(values, np.arange(1, COST_LEVELS) / COST_LEVELS)
            for metric, values in costs.items()
            if len(values) and values.min() < values.max()
        }
        self._tables = [
            *(_gene(options[column]) for column in self._genes),
            *(ordered(len(columns) + 1) for columns, _ in self._counted),
            *(ordered(COST_LEVELS) for _ in self._levels),
        ]
        widths = [table.shape[1] for table in self._tables]
        self.blocks = np.repeat(np.arange(len(widths)), widths)

    def __call__(self, codes: Array, costs: Mapping[str, Array]) -> Array:
        """Return features of shape (n, columns), `blocks` saying whose column each is."""
        places = [
            *(codes[:, column] for column in self._genes),
            *((codes[:, columns] == code).sum(axis=1) for columns, code in self._counted),
            *(np.searchsorted(levels, costs[name]) for name, levels in self._levels.items()),
        ]
        blocks = [table[place] for table, place in zip(self._tables, places, strict=True)]
        return np.concatenate(blocks, axis=1)


def named(count: int) -> Array:
    """Return the block of options that are merely different, shape (count, count)."""
    return np.eye(count)


def ordered(count: int) -> Array:
    """Return the block of options in order, shape (count, 2 (count - 1)).

    The similarity of options i and j is 1 - |i - j| / (count - 1).
    """
    above = np.arange(count)[:, None] > np.arange(count - 1)[None, :]
    return np.concatenate([above, ~above], axis=1) / np.sqrt(count - 1)


def _gene(options: tuple[Option, ...]) -> Array:
    """Return a gene's block: of numbers half by their order, for they may be mere labels."""
    if len(options) < 3 or any(type(option) not in (int, float) for option in options):
        return named(len(options))
    rank = np.argsort(np.argsort(options))
    both = np.concatenate([ordered(len(options))[rank], named(len(options))], axis=1)
    half: Array = both / np.sqrt(2)
    return half

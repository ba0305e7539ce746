"""A choice as numbers that a regression can compare."""

import numpy as np

from nas.search.rows import Array
from nas.study import Genes, Option


class Features:
    """Turns rows of option indices into one block of columns a gene with a choice.

    Each row's block has length one, so that the product of two rows' blocks is a similarity: 1 if
    they agree, 0 if they do not, between if the options have an order.
    """

    def __init__(self, genes: Genes) -> None:
        options = list(genes.values())
        self._genes = [column for column, known in enumerate(options) if len(known) > 1]
        self._tables = [_block(options[column]) for column in self._genes]
        self._single = [table.astype(np.float32) for table in self._tables]
        widths = [table.shape[1] for table in self._tables]
        self.blocks = np.repeat(np.arange(len(widths)), widths)

    def __call__(self, codes: Array, *, single: bool = False) -> Array:
        """Return features of shape (n, columns), `blocks` saying whose column each is.

        `single` says in single precision, which takes half as long.
        """
        tables = self._single if single else self._tables
        places = zip(tables, self._genes, strict=True)
        return np.concatenate([table[codes[:, column]] for table, column in places], axis=1)


def _block(options: tuple[Option, ...]) -> Array:
    """Return the columns of a gene's options, shape (options, columns).

    Numbers are compared half by their order and half by being equal, for they may be mere labels;
    by order, the similarity of the i-th and the j-th of n is 1 - |i - j| / (n - 1).
    """
    count = len(options)
    equal = np.eye(count)
    if count < 3 or any(type(option) not in (int, float) for option in options):
        return equal
    above = np.arange(count)[:, None] > np.arange(count - 1)[None, :]
    ordered = np.concatenate([above, ~above], axis=1) / np.sqrt(count - 1)
    rank = np.argsort(np.argsort(options))
    both: Array = np.concatenate([ordered[rank], equal], axis=1) / np.sqrt(2)
    return both

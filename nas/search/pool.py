"""The candidates a predictor chooses from: all there are, or those that evolve under it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TypeAlias

import numpy as np

from nas.search.rows import Array, Costs, Rows
from nas.study import Choice

ENUMERATED = 32_768  # spaces up to this size are held whole
COMPLETED = 4096  # the same where a candidate has to be completed before it can be priced
DRAWS = 16_384  # to begin with, in larger spaces
CHILDREN = 2048  # in a generation
GENERATIONS = 3  # a batch
PARENTS = 256
KEPT = 14_000  # from one batch to the next
SHORT = 1536  # candidates that are looked at closely
SHORT_COMPLETED = 160

Rank: TypeAlias = Callable[[Array, Costs], Array]


@dataclass(frozen=True, slots=True)
class Candidates:
    """Feasible candidates nobody has proposed: rows as proposed, as completed, and their costs."""

    raw: Array
    codes: Array
    costs: Costs

    def __len__(self) -> int:
        return len(self.raw)

    def take(self, which: Array) -> "Candidates":
        """Return those of these indices, or where a mask of shape (n,) holds."""
        costs = {metric: values[which] for metric, values in self.costs.items()}
        return Candidates(self.raw[which], self.codes[which], costs)

    def join(self, others: "Candidates") -> "Candidates":
        """Return these and the others."""
        costs = {
            metric: np.concatenate([values, others.costs[metric]])
            for metric, values in self.costs.items()
        }
        raw, codes = np.concatenate([self.raw, others.raw]), [self.codes, others.codes]
        return Candidates(raw, np.concatenate(codes), costs)


class Pool:
    """Priced, feasible candidates that were not proposed yet."""

    def __init__(self, rows: Rows, complete: Callable[[Choice], Choice] | None) -> None:
        self._rows = rows
        self._complete = complete
        self._seen: set[bytes] = set()
        self._finished: dict[bytes, Array] = {}
        self.is_whole = rows.count <= (ENUMERATED if complete is None else COMPLETED)
        codes = rows.all() if self.is_whole else np.unique(rows.draw(DRAWS), axis=0)
        self._kept = _affordable(rows, codes)
        if self.is_whole and complete is not None:
            self._kept = self._completed(self._kept)

    @property
    def costs(self) -> Costs:
        """What the candidates cost, {metric: shape (n,)}."""
        return self._kept.costs

    def finish(self, choice: Choice) -> Array:
        """Return the row of a choice as it will be evaluated, shape (genes,)."""
        rows = self._rows.encode([self._complete(choice) if self._complete else choice])
        row: Array = rows[0]
        return row

    def see(self, raw: Array, row: Array) -> None:
        """Never offer a candidate again, neither as proposed nor as completed."""
        self._seen |= {raw.tobytes(), row.tobytes()}

    def some(self, count: int) -> Candidates:
        """Return a few at random."""
        left = self._unseen(self._kept)
        return left.take(self._rows.rng.permutation(len(left))[:count])

    def best(self, rank: Rank, parents: Array) -> Candidates:
        """Return the highest ranked candidates, after some generations where not all are held.

        Args:
            rank: Returns what to maximise, shape (n,), of rows and their costs.
            parents: Rows that are good already, to start from.
        """
        pool = self._unseen(self._kept)
        ranks = rank(pool.codes, pool.costs)
        if not self.is_whole:
            known = set(_names(pool.codes))
            for _ in range(GENERATIONS):
                elite = pool.codes[_top(ranks, PARENTS)]
                children = self._children(np.concatenate([parents, elite]), known)
                if children is None:
                    continue
                pool = pool.join(children)
                ranks = np.concatenate([ranks, rank(children.codes, children.costs)])
            order = _top(ranks, KEPT)
            self._kept, ranks = pool.take(order), ranks[order]
            pool = self._kept
        if self.is_whole or self._complete is None:
            return pool.take(_top(ranks, SHORT))
        return self._completed(pool.take(_top(ranks, SHORT_COMPLETED)))

    # ------------------------------------------------------------ inside
    def _children(self, parents: Array, known: set[bytes]) -> Candidates | None:
        """Return feasible children that are not among the known rows, which they join."""
        half = CHILDREN // 2
        crossed = self._rows.cross(parents, half)
        changed = self._rows.change(np.concatenate([parents, crossed]), half)
        children = np.concatenate([crossed, changed])
        fresh = []
        for place, name in enumerate(_names(children)):
            if name not in known and name not in self._seen:
                known.add(name)
                fresh.append(place)
        return _affordable(self._rows, children[fresh]) if fresh else None

    def _unseen(self, candidates: Candidates) -> Candidates:
        unseen = [name not in self._seen for name in _names(candidates.codes)]
        return candidates.take(np.array(unseen, dtype=bool))

    def _completed(self, candidates: Candidates) -> Candidates:
        """Return candidates as they would be evaluated; equal ones become one."""
        if len(candidates) == 0:
            return candidates
        finished = []
        for row in candidates.raw:
            name = row.tobytes()
            if name not in self._finished:
                self._finished[name] = self.finish(self._rows.choice(row))
            finished.append(self._finished[name])
        codes = np.stack(finished)
        first = np.sort(np.unique(codes, axis=0, return_index=True)[1])
        costs, met = self._rows.priced(codes[first])
        return self._unseen(Candidates(candidates.raw[first], codes[first], costs).take(met))


def _names(codes: Array) -> list[bytes]:
    """Return the bytes of each row, by which rows are known."""
    rows = np.ascontiguousarray(codes)
    if rows.shape[1] == 0:  # a space without a gene, of which there is one row
        return [b""] * len(rows)
    names: list[bytes] = rows.view(f"V{rows.itemsize * rows.shape[1]}").ravel().tolist()
    return names


def _affordable(rows: Rows, codes: Array) -> Candidates:
    costs, met = rows.priced(codes)
    return Candidates(codes, codes, costs).take(met)


def _top(ranks: Array, count: int) -> Array:
    """Return the indices of the highest ranks, the first of equal ones first."""
    scale = float(np.abs(ranks).max(initial=0.0)) or 1.0
    rounded = np.round(ranks / scale, 6)  # what differs by less is equal on every machine
    return np.argsort(-rounded, kind="stable")[:count]

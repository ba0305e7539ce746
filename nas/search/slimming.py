"""Slimming: from the best that is predicted down to the budget, losing least a unit of cost."""

from collections.abc import Mapping

import numpy as np

from nas.errors import ConfigError
from nas.search.budgets import excess
from nas.search.mind import Problem, Proposal
from nas.search.rows import Array, Rows
from nas.seeds import stage_seed
from nas.study import Choice, Genes

SPREAD = 0.4  # of the logarithm of each gene's importance, once the table's own word was heard
GROWTH = 1.05  # of the spread with each proposal that was refused
MOST_SPREAD = 2.0
TINY = 1e-300


class SlimmingMind:
    """Latency-driven slimming (EfficientFormer, arXiv 2206.01191, section 3.3) over any genes.

    A table says what each option of each gene is predicted to lose: an importance of positions by
    Taylor, probabilities of a fitted choice, or measured differences. From the options that lose
    least, each step takes the single change - a block less, another kind, a smaller width - with
    the smallest predicted loss for what it saves, until the budgets are met; what the last step
    overshot is filled again. The paper stops at this one network. Here the table is not the last
    word: further descents weigh the genes a little differently, around the weights that led to
    the best score so far. With a cost beside the score they also stop at other levels of it.
    """

    num_starts = 0

    def __init__(self, problem: Problem) -> None:
        """Raise ConfigError if a gene with a choice has no predicted losses."""
        seed = stage_seed(problem.seed, "search/slimming")
        self._problem = problem
        self._rows = Rows(problem.genes, problem.price, problem.budgets, seed=seed)
        self._lost = _table(problem.genes, problem.lost or {})
        self._weights = np.zeros(len(problem.genes))  # logarithms, the best so far
        self._best = -np.inf
        self._spread = 0.0
        self._waiting: dict[int, Array] = {}
        self._asked = 0
        self._levels = (0.0, 0.0)  # logarithms of the objective, from the least to the start's
        if problem.objective is not None:
            high = float(self._rows.price(self._start()[None])[problem.objective][0])
            beyond = {problem.objective: max(high, TINY) * 1e-6}  # as far down as steps lead
            least = self._descend(self._start(), self._weights, beyond)
            low = float(self._rows.price(least[None])[problem.objective][0])
            self._levels = float(np.log(max(low, TINY))), float(np.log(max(high, TINY)))

    # ------------------------------------------------------------ what the engine calls
    def ask(self) -> Proposal:
        """Return where the next descent ends."""
        rng, count = self._rows.rng, len(self._weights)
        weights = self._weights + self._spread * rng.normal(size=count)
        budgets = dict(self._problem.budgets)
        objective = self._problem.objective
        if objective is not None and self._spread:
            level = float(np.exp(rng.uniform(*self._levels)))
            budgets[objective] = min(level, budgets.get(objective, level))
        self._spread = self._spread or SPREAD
        row = self._descend(self._start(), weights, budgets)
        return self._propose(self._rows.choice(row), weights)

    def adopt(self, choice: Choice) -> Proposal:
        """Return a candidate from elsewhere; it says nothing of weights."""
        return self._propose(choice, self._weights)

    def tell(self, proposal: Proposal, score: float | None, costs: Mapping[str, float]) -> None:
        """Keep the weights if they led to the best score; look further after a refusal."""
        weights = self._waiting.pop(proposal.ticket)
        if score is None:
            self._spread = min(self._spread * GROWTH, MOST_SPREAD)
        elif score > self._best:
            self._best, self._weights = score, weights
            self._spread = SPREAD

    def _propose(self, choice: Choice, weights: Array) -> Proposal:
        self._asked += 1
        self._waiting[self._asked] = weights
        return Proposal(self._asked, choice)

    # ------------------------------------------------------------ slimming
    def _start(self) -> Array:
        """Return the row of the options that lose least, the last of equal ones."""
        ends = [len(lost) - 1 - int(lost[::-1].argmin()) for lost in self._lost]
        return np.array(ends, dtype=np.int64)

    def _descend(self, row: Array, weights: Array, budgets: Mapping[str, float]) -> Array:
        """Return where the steps of least loss a saving end: within the budgets, if they can."""
        if not budgets or self._rows.count == 1:
            return row
        scale = np.exp(weights)
        over = float(excess(self._rows.price(row[None]), budgets)[0])
        while over > 0:
            around = self._rows.neighbours(row)
            left = excess(self._rows.price(around), budgets)
            saved = over - left
            dropped = self._loss(around, scale) - self._loss(row[None], scale)
            is_free = (saved > 0) & (dropped <= 0)
            if is_free.any():  # loses nothing: by what it saves
                step = int(np.where(is_free, saved, -np.inf).argmax())
            elif (saved > 0).any():
                step = int(np.where(saved > 0, dropped / np.maximum(saved, TINY), np.inf).argmin())
            else:
                break
            row, over = around[step], float(left[step])
        return self._fill(row, scale, budgets) if over <= 0 else row

    def _fill(self, row: Array, scale: Array, budgets: Mapping[str, float]) -> Array:
        """Return the row after single changes that lose less and still meet the budgets."""
        while True:
            around = self._rows.neighbours(row)
            gained = self._loss(row[None], scale) - self._loss(around, scale)
            fits = excess(self._rows.price(around), budgets) <= 0
            gained = np.where(fits, gained, -np.inf)
            step = int(gained.argmax())
            if gained[step] <= 0:
                return row
            row = around[step]

    def _loss(self, rows: Array, scale: Array) -> Array:
        """Return the predicted loss of rows, shape (n,): a sum over genes."""
        total = np.zeros(len(rows))
        for gene, lost in enumerate(self._lost):
            total += scale[gene] * lost[rows[:, gene]]
        return total


def _table(genes: Genes, lost: Mapping[str, Mapping[object, float]]) -> list[Array]:
    """Return the predicted loss of each gene's options, shape (options,) each, checked."""
    table = []
    for gene, options in genes.items():
        known = lost.get(gene, {})
        missing = [option for option in options if option not in known]
        if len(options) > 1 and missing:
            raise ConfigError(
                f"slimming needs a predicted loss for every option of every gene, but {gene} has "
                f"none for {', '.join(map(repr, missing))}. Give it in SearchOptions(lost=...), or "
                "use another sampler: predictor needs no table."
            )
        values = np.array([float(known.get(option, 0.0)) for option in options])
        if not np.isfinite(values).all():
            raise ConfigError(f"predicted losses are finite, but {gene} has {values.tolist()}.")
        table.append(values)
    return table

"""A mind of our own: thousands of candidates a batch, ranked by what a regression expects."""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field

import numpy as np
from scipy.special import ndtr

from nas.search.budgets import meets
from nas.search.features import Features
from nas.search.mind import Problem, Proposal
from nas.search.pool import Candidates, Pool
from nas.search.rows import Array, Costs, Rows
from nas.search.surrogate import GaussianProcess
from nas.seeds import stage_seed
from nas.study import Choice

STARTS = 20  # random candidates, stratified by cost, before the first batch
BATCH = 8  # candidates planned at once where the engine asks for one at a time
LEAST = 4  # scores before anything is learnt
FIT_ROWS = 200  # rows the regression's settings are fitted on
# Scores that are further below the median than so many times the distance from it to the 90th
# centile count alike.
TAIL = 2.0
TYPICAL = 0.5  # standard deviation assumed where candidates are only ranked


@dataclass(slots=True)
class Known:
    """Candidates with their scores; a failed one has none."""

    codes: list[Array] = field(default_factory=list)
    costs: list[Mapping[str, float]] = field(default_factory=list)
    scores: list[float | None] = field(default_factory=list)

    def add(self, codes: Array, score: float | None, costs: Mapping[str, float]) -> None:
        """Take one more."""
        self.codes.append(codes)
        self.costs.append(dict(costs))
        self.scores.append(score)

    def values(self, tail: float) -> Array:
        """Return scores about zero with deviation one, shape (n,); failures are as the worst.

        Scores far below the others are raised: what has ruined a network says little of those
        that are not ruined, and would otherwise be most of the variance.
        """
        found = [score for score in self.scores if score is not None]
        worst = min(found)
        raw = np.array([worst if score is None else score for score in self.scores])
        middle, high = np.quantile(found, [0.5, 0.9])
        if high > middle:
            raw = np.maximum(raw, middle - tail * (high - middle))
        spread = float(raw.std())
        values: Array = (raw - raw.mean()) / (spread if spread > 0 else 1.0)
        return values


@dataclass(frozen=True, slots=True)
class Stairs:
    """The scores to beat: step i holds from cost `starts[i]` to `ends[i]` at `heights[i]`."""

    starts: Array
    ends: Array
    heights: Array

    def gain(self, mean: Array, deviation: Array | float, cost: Array) -> Array:
        """Return the expected area that candidates add above the stairs, shape (n,).

        A candidate counts at its own cost and at every higher one. Its cost is certain and its
        score normal, so the expected hypervolume improvement is exact: the sum over steps of
        width x expected improvement (Jones, Schonlau and Welch 1998, equation 15).
        """
        widths = np.maximum(self.ends - np.maximum(self.starts, cost[:, None]), 0.0)
        deviation = np.broadcast_to(np.asarray(deviation)[..., None], (len(mean), 1))
        above = (mean[:, None] - self.heights) / deviation
        density = np.exp(-0.5 * above**2) / np.sqrt(2 * np.pi)
        area: Array = (widths * deviation * (above * ndtr(above) + density)).sum(axis=1)
        return area


def stairs(costs: Array, values: Array, *, low: float, high: float, floor: float) -> Stairs:
    """Return the stairs of what is known, between two costs; `floor` holds below the cheapest."""
    order = np.lexsort((-values, costs))
    starts, heights = [low], [floor]
    for cost, value in zip(costs[order], values[order], strict=True):
        if value > heights[-1]:
            starts.append(max(float(cost), low))
            heights.append(float(value))
    return Stairs(np.array(starts), np.array([*starts[1:], max(high, low)]), np.array(heights))


class PredictorMind:
    """Evolves candidates under a Gaussian process and proposes those of the highest gain.

    The gain is the expected improvement or, with a cost to minimise beside the score, the
    expected hypervolume improvement. Each pick of a batch counts as known, with the score that is
    expected of it, before the next is taken (Ginsbourger, Le Riche and Carraro 2010, "kriging
    believer").
    """

    num_starts = STARTS

    def __init__(self, problem: Problem) -> None:
        self._problem = problem
        seed = stage_seed(problem.seed, "search/predictor")
        self._rows = Rows(problem.genes, problem.price, problem.budgets, seed=seed)
        self._pool = Pool(self._rows, problem.complete)
        self._batch = problem.batch if problem.batch > 1 else BATCH
        self._known = Known()
        self._keys: set[Hashable] = set()
        self._waiting: dict[int, tuple[Array, bool]] = {}
        self._planned: list[Array] = []
        self._asked = 0
        self._features = Features(problem.genes)
        self._process = GaussianProcess(self._features.blocks)

    # ------------------------------------------------------------ what the engine calls
    def ask(self) -> Proposal:
        """Return the next candidate of the plan, which is made anew when it is used up."""
        if not self._planned:
            self._planned = self._plan()[::-1]
        return self.adopt(self._rows.choice(self._planned.pop()))

    def adopt(self, choice: Choice) -> Proposal:
        """Return the choice as a proposal."""
        row = self._pool.finish(choice)
        key = self._problem.key(self._rows.choice(row))
        self._asked += 1
        self._waiting[self._asked] = row, key not in self._keys
        self._keys.add(key)
        self._pool.see(self._rows.encode([choice])[0], row)
        return Proposal(self._asked, choice)

    def tell(self, proposal: Proposal, score: float | None, costs: Mapping[str, float]) -> None:
        """Learn a score; a failure counts as the worst of them, a refusal for nothing."""
        row, is_new = self._waiting.pop(proposal.ticket)
        if is_new and meets(costs, self._problem.budgets):
            self._known.add(row, score, costs)

    # ------------------------------------------------------------ thinking
    def _plan(self) -> list[Array]:
        """Return the rows to propose next, at least one."""
        scored = sum(score is not None for score in self._known.scores)
        picked = list(self._pool.some(self._batch).raw) if scored < LEAST else self._think()
        return picked or [self._rows.draw(1)[0]]  # nothing unseen: the engine looks elsewhere

    def _think(self) -> list[Array]:
        known = self._known
        codes = np.stack(known.codes)
        costs = {name: np.array([row[name] for row in known.costs]) for name in known.costs[0]}
        values = known.values(TAIL if self._problem.objective is None else 3 * TAIL)
        features, process = self._features(codes), self._process
        process.fit(features, values, rows=self._fit_rows(values))
        beaten = self._goal(costs, process.mean(features), values)

        def rank(codes: Array, costs: Costs) -> Array:
            expected = process.mean(self._features(codes, single=True))
            if self._problem.objective is None:
                return expected
            return beaten.gain(expected, TYPICAL, self._cost(costs))

        good = codes[np.argsort(-values, kind="stable")[: max(len(codes) // 3, 2 * LEAST)]]
        return self._pick(self._pool.best(rank, good), beaten)

    def _fit_rows(self, values: Array) -> Array:
        """Return the rows that settings are fitted on: of many, the best half and any others."""
        if len(values) <= FIT_ROWS:
            return np.arange(len(values))
        order = np.argsort(-values, kind="stable")
        half = FIT_ROWS // 2
        return np.concatenate(
            [order[:half], self._rows.rng.choice(order[half:], half, replace=False)]
        )

    def _pick(self, short: Candidates, beaten: Stairs) -> list[Array]:
        """Return the rows of a batch: one after another, each as if those before were known."""
        picked: list[Array] = []
        if len(short) == 0:
            return picked
        posterior = self._process.posterior(self._features(short.codes))
        cost = self._cost(short.costs)
        free = np.ones(len(short), dtype=bool)
        for _ in range(min(self._batch, len(short))):
            gain = beaten.gain(posterior.mean, np.sqrt(posterior.variance), cost)
            best = int(np.where(free, gain, -np.inf).argmax())
            free[best] = False
            picked.append(short.raw[best])
            posterior = self._process.knowing(posterior, best)
            beaten = self._raise(beaten, cost[best], posterior.mean[best])
        return picked

    # ------------------------------------------------------------ what is to be beaten
    def _cost(self, costs: Costs) -> Array:
        """Return the cost that is minimised; 0 where none is."""
        if self._problem.objective is None:
            return np.zeros(len(next(iter(costs.values()))))
        return costs[self._problem.objective]

    def _goal(self, costs: Costs, expected: Array, values: Array) -> Stairs:
        """Return the stairs of what is expected of the known: scores are noisy."""
        if self._problem.objective is None:
            return Stairs(np.zeros(1), np.ones(1), np.array([expected.max()]))
        own = costs[self._problem.objective]
        every = np.concatenate([own, self._pool.costs[self._problem.objective]])
        floor = float(min(values.min(), expected.min()))
        low, high = float(every.min()), float(every.max())
        return stairs(own, expected, low=low, high=high, floor=floor)

    def _raise(self, beaten: Stairs, cost: float, height: float) -> Stairs:
        """Return the stairs with one more point."""
        return stairs(
            np.append(beaten.starts, cost),
            np.append(beaten.heights, height),
            low=float(beaten.starts[0]),
            high=float(beaten.ends[-1]),
            floor=float(beaten.heights[0]),
        )

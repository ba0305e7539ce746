"""Tables of architectures for benchmarks of samplers: genes, accuracies, latencies, all synthetic.

Each is drawn from a seed and none knows anything of a sampler. `cell` has the shape of
NAS-Bench-201 (6 edges of a graph, 5 operations, 15,625 architectures, many of them cut off).
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from typing import Any

import numpy as np
import numpy.typing as npt

Codes = npt.NDArray[np.int64]
Values = npt.NDArray[np.float64]
Choice = Mapping[str, Any]

OPERATIONS = ("none", "skip", "conv1", "conv3", "pool")
PATHS = ((3,), (0, 4), (1, 5), (0, 2, 5))  # of edges 0-1, 0-2, 1-2, 0-3, 1-3, 2-3
CHUNK = 200_000
MOST_ENUMERATED = 2_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class Table:
    """One problem. Both functions take codes of shape (n, genes) and return shape (n,).

    Attributes:
        genes: The options of each gene.
        accuracy: In percent.
        latency_ms: The cost that is under budget.
    """

    genes: dict[str, tuple[Any, ...]]
    accuracy: Callable[[Codes], Values]
    latency_ms: Callable[[Codes], Values]

    @property
    def sizes(self) -> Codes:
        """The number of options of each gene, shape (genes,)."""
        return np.array([len(options) for options in self.genes.values()], dtype=np.int64)

    def codes(self, choices: Sequence[Choice]) -> Codes:
        """Return option numbers of shape (choices, genes)."""
        places = [{o: n for n, o in enumerate(options)} for options in self.genes.values()]
        rows = [
            [place[choice[gene]] for gene, place in zip(self.genes, places, strict=True)]
            for choice in choices
        ]
        return np.array(rows, dtype=np.int64).reshape(len(choices), len(self.genes))

    def price(self, choices: Sequence[Choice]) -> dict[str, Values]:
        """Return what the engine asks of a price function."""
        return {"latency_ms": self.latency_ms(self.codes(choices))}

    def evaluate(self, choice: Choice) -> float:
        """Return what the engine asks of an evaluation."""
        return float(self.accuracy(self.codes([choice]))[0])

    def budget(self, share: float) -> float:
        """Return the latency that this share of uniform draws meets."""
        return float(np.quantile(self.latency_ms(self.draw(20_000)), share))

    def draw(self, count: int, seed: int = 0) -> Codes:
        """Return uniform draws, shape (count, genes)."""
        rng = np.random.default_rng([seed, 1])
        return rng.integers(0, self.sizes, size=(count, len(self.sizes)))

    def chunks(self) -> Iterator[Codes]:
        """Yield all codes, some at a time."""
        count = int(self.sizes.prod())
        for start in range(0, count, CHUNK):
            numbers = np.arange(start, min(start + CHUNK, count))
            yield np.stack(np.unravel_index(numbers, self.sizes), axis=1).astype(np.int64)

    def optimum(self, budget: float) -> float:
        """Return the best accuracy within the budget; of a large space, the best climbed to."""
        if int(self.sizes.prod()) > MOST_ENUMERATED:
            return self._climbed(budget)
        return max(self._best(codes, budget) for codes in self.chunks())

    def _best(self, codes: Codes, budget: float) -> float:
        kept = codes[self.latency_ms(codes) <= budget]
        return float(self.accuracy(kept).max()) if len(kept) else -np.inf

    def _climbed(self, budget: float) -> float:
        """Return the best of a long evolution on the truth itself: 300 rounds of 2,000."""
        rng = np.random.default_rng(7)
        rows = self.draw(20_000)
        for _ in range(300):
            rows = np.unique(rows[self.latency_ms(rows) <= budget], axis=0)
            rows = rows[np.argsort(-self.accuracy(rows))[:400]]
            first, second = (rows[rng.integers(0, len(rows), 2_000)] for _ in range(2))
            mixed = np.where(rng.random(first.shape) < 0.5, first, second)
            fresh = rng.integers(0, self.sizes, size=first.shape)
            touched = rng.random(first.shape) < 2 / first.shape[1]
            rows = np.concatenate([rows, np.where(touched, fresh, mixed)])
        return self._best(rows, budget)


def luck(codes: Codes, sizes: Codes, seed: int) -> Values:
    """Return one standard normal number an architecture, the same at every call, shape (n,)."""
    state = np.full(len(codes), 0x9E3779B97F4A7C15 ^ seed, dtype=np.uint64)
    for column in range(len(sizes)):
        state = (state ^ (codes[:, column].astype(np.uint64) + np.uint64(column * 64 + 1))) * (
            np.uint64(0xBF58476D1CE4E5B9)
        )
        state ^= state >> np.uint64(29)
    uniform = (state >> np.uint64(11)).astype(np.float64) / 2.0**53
    second = ((state * np.uint64(0x94D049BB133111EB)) >> np.uint64(11)).astype(np.float64) / 2.0**53
    wave: Values = np.sqrt(-2 * np.log(uniform + 1e-300)) * np.cos(2 * np.pi * second)
    return wave


def pair_sum(codes: Codes, tables: Mapping[tuple[int, int], Values]) -> Values:
    """Return the sum of interactions {(gene, gene): shape (options, options)}, shape (n,)."""
    total = np.zeros(len(codes))
    for (one, other), table in tables.items():
        total += table[codes[:, one], codes[:, other]]
    return total


def pair_tables(
    rng: np.random.Generator, sizes: Sequence[int], scale: float, *, share: float = 1.0
) -> dict[tuple[int, int], Values]:
    """Return normal interactions for a share of all pairs of genes."""
    return {
        (one, other): rng.normal(0, scale, (sizes[one], sizes[other]))
        for one, other in combinations(range(len(sizes)), 2)
        if rng.random() < share
    }


def gene_sum(codes: Codes, effects: Sequence[Values]) -> Values:
    """Return the sum of each gene's own effect, shape (n,)."""
    total = np.zeros(len(codes))
    for gene, effect in enumerate(effects):
        total += effect[codes[:, gene]]
    return total


# ---------------------------------------------------------------- the problems
def cell(seed: int, noise: float = 0.3) -> Table:
    """Return 6 edges x 5 operations: accuracy grows with the strength of the paths through."""
    rng = np.random.default_rng([seed, 10])
    strength = np.array([-np.inf, 0.0, 0.45, 0.9, -0.1]) + rng.normal(0, 0.08, 5)
    edge = rng.uniform(0.7, 1.3, 6)
    pairs = pair_tables(rng, [5] * 6, 0.35)
    cost = np.array([0.0, 0.02, 0.9, 2.1, 0.5]) * rng.uniform(0.8, 1.3, (6, 5))
    together = pair_tables(rng, [5] * 6, 0.06, share=0.4)

    def accuracy(codes: Codes) -> Values:
        gain = strength[codes] * edge
        through = np.stack([gain[:, path].sum(axis=1) for path in PATHS], axis=1)
        total = np.exp(through).sum(axis=1)
        alive = total > 0
        skipped = 1.0 * ((codes[:, 3] == 1) & (total > 3))
        value = 76 - 22 / (0.4 + total) + skipped + pair_sum(codes, pairs)
        value += noise * luck(codes, np.full(6, 5), seed)
        kept: Values = np.where(alive, value, 1.0)
        return kept

    def latency_ms(codes: Codes) -> Values:
        own = cost[np.arange(6), codes].sum(axis=1)
        kept: Values = 4.0 + np.maximum(own + pair_sum(codes, together), 0.0)
        return kept

    genes = {f"edge{number}": OPERATIONS for number in range(6)}
    return Table(genes=genes, accuracy=accuracy, latency_ms=latency_ms)


def additive(seed: int, noise: float = 0.2) -> Table:
    """Return 10 genes x 4 nominal options that hardly interact."""
    return _nominal(seed, [4] * 10, main=1.0, pairs=0.05, noise=noise)


def pairs(seed: int, noise: float = 0.2) -> Table:
    """Return 8 genes x 5 nominal options whose interactions outweigh their own effects."""
    return _nominal(seed, [5] * 8, main=0.8, pairs=0.35, noise=noise)


def noisy(seed: int, noise: float = 1.0) -> Table:
    """Return 6 genes x 5 nominal options half drowned in each architecture's own luck."""
    return _nominal(seed, [5] * 6, main=0.8, pairs=0.2, noise=noise)


def cliff(seed: int, noise: float = 0.2) -> Table:
    """Return 7 genes x 5 options; some pairs, and one option of each gene twice, ruin it."""
    rng = np.random.default_rng([seed, 11])
    base = _nominal(seed, [5] * 7, main=0.9, pairs=0.15, noise=noise)
    falls = [(*rng.choice(7, 2, replace=False), *rng.integers(0, 5, 2)) for _ in range(4)]
    poison = rng.integers(0, 5, 7)

    def accuracy(codes: Codes) -> Values:
        value = base.accuracy(codes)
        for one, other, first, second in falls:
            value -= 15.0 * ((codes[:, one] == first) & (codes[:, other] == second))
        kept: Values = np.where((codes == poison).sum(axis=1) >= 2, 10.0, value)
        return kept

    return Table(genes=base.genes, accuracy=accuracy, latency_ms=base.latency_ms)


def tangled(seed: int, noise: float = 0.3) -> Table:
    """Return 6 genes x 5 numbers that are mere labels; a random network says what they are worth.

    200 hidden units see all genes at once, so that there are interactions of every order.
    """
    rng = np.random.default_rng([seed, 14])
    hidden = rng.normal(0, 1, (6, 5, 200)) * rng.gamma(1.0, 1.0, (6, 1, 1))
    outer = rng.normal(0, 1, 200) / np.sqrt(200)
    base = _nominal(seed, [5] * 6, main=0.8, pairs=0.0, noise=0.0)

    def accuracy(codes: Codes) -> Values:
        inner = np.zeros((len(codes), 200))
        for gene in range(6):
            inner += hidden[gene][codes[:, gene]]
        total: Values = 85 + 3 * np.tanh(inner) @ outer + noise * luck(codes, np.full(6, 5), seed)
        return total

    genes = {f"g{gene}": (0, 1, 2, 3, 4) for gene in range(6)}
    return Table(genes=genes, accuracy=accuracy, latency_ms=base.latency_ms)


def _nominal(seed: int, sizes: list[int], *, main: float, pairs: float, noise: float) -> Table:
    rng = np.random.default_rng([seed, 12, len(sizes)])
    weight = rng.gamma(1.0, 1.0, len(sizes))
    effects = [rng.normal(0, main * weight[gene], size) for gene, size in enumerate(sizes)]
    between = pair_tables(rng, sizes, pairs)
    cost = [
        np.maximum(0.8 + 0.25 * effect + rng.normal(0, 0.4, len(effect)), 0.05)
        for effect in effects
    ]
    together = pair_tables(rng, sizes, 0.03, share=0.3)

    def accuracy(codes: Codes) -> Values:
        value = gene_sum(codes, effects) + pair_sum(codes, between)
        total: Values = 80 + 12 * np.tanh(value / 8) + noise * luck(codes, np.array(sizes), seed)
        return total

    def latency_ms(codes: Codes) -> Values:
        total: Values = np.maximum(gene_sum(codes, cost) + pair_sum(codes, together), 0.05)
        return total

    genes = {f"g{gene}": tuple("abcdefgh"[:size]) for gene, size in enumerate(sizes)}
    return Table(genes=genes, accuracy=accuracy, latency_ms=latency_ms)


WIDTHS, DEPTHS, EXPANDS = (1.0, 1.5, 2.0), (1, 2, 3), (2, 3, 4)


def stages(seed: int, noise: float = 0.1) -> Table:
    """Return width, depth and expansion of 4 stages (ordinal), with saturating returns."""
    return _staged(seed, 4, ("width", "depth", "expand"), noise=noise)


def large(seed: int, noise: float = 0.0) -> Table:
    """Return 8 stages of width, depth, expansion and one of 3 kinds: 32 genes, 10^15."""
    return _staged(seed, 8, ("width", "depth", "expand", "kind"), noise=noise)


def _staged(seed: int, count: int, names: tuple[str, ...], *, noise: float) -> Table:
    rng = np.random.default_rng([seed, 13, count])
    worth, speed = rng.gamma(2.0, 0.8, count), rng.uniform(0.3, 0.8, count)
    kind_worth = rng.normal(0, 0.4, (count, 3))
    kind_cost = rng.uniform(0.6, 1.4, (count, 3))
    fit = [rng.normal(0, 0.15, (3, 3)) for _ in range(count - 1)]
    price = rng.uniform(0.5, 1.5, count)
    kinds = ("mb4d", "cga", "mbconv")
    options = {"width": WIDTHS, "depth": DEPTHS, "expand": EXPANDS, "kind": kinds}
    genes = {f"s{n}.{name}": options[name] for n in range(count) for name in names}
    per = len(names)

    def parts(codes: Codes) -> tuple[Values, Values, Values, Codes]:
        width = np.array(WIDTHS)[codes[:, 0::per]]
        depth = np.array(DEPTHS, dtype=np.float64)[codes[:, 1::per]]
        expand = np.array(EXPANDS, dtype=np.float64)[codes[:, 2::per]]
        kind = codes[:, 3::per] if per == 4 else np.zeros_like(codes[:, 0::per])
        return width, depth, expand, kind

    def accuracy(codes: Codes) -> Values:
        width, depth, expand, kind = parts(codes)
        size = width * (0.6 + 0.4 * expand / 3) * depth**0.7
        lost = (worth * 4 * np.exp(-speed * size)).sum(axis=1)
        total: Values = 82 - lost + noise * luck(codes, np.full(codes.shape[1], 4), seed)
        if per == 4:
            total += kind_worth[np.arange(count), kind].sum(axis=1)
        for n in range(count - 1):
            total += fit[n][codes[:, n * per], codes[:, (n + 1) * per]]
        return total

    def latency_ms(codes: Codes) -> Values:
        width, depth, expand, kind = parts(codes)
        before = np.concatenate([width[:, :1], width[:, :-1]], axis=1)
        work = width * before + depth * width**2 * expand * 0.5
        total: Values = (work * price * kind_cost[np.arange(count), kind]).sum(axis=1)
        return total

    return Table(genes=genes, accuracy=accuracy, latency_ms=latency_ms)


PROBLEMS: dict[str, Callable[[int], Table]] = {
    "cell": cell,
    "additive": additive,
    "pairs": pairs,
    "noisy": noisy,
    "cliff": cliff,
    "tangled": tangled,
    "stages": stages,
    "large": large,
}

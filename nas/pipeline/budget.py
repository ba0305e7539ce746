"""Budgets in numbers: what "50%" means here, whether anything meets it, how hard it is."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nas.errors import ConfigError, InfeasibleBudget
from nas.pipeline.config import RunConfig
from nas.pipeline.materials import Materials
from nas.pipeline.run import Run
from nas.search import parse_budgets, parse_latency
from nas.seeds import stage_seed
from nas.space import Architecture, SearchSpace
from nas.study import describe_cost, full_metric, is_latency, latency_metric, split_metric

RANDOM_DRAWS = 20_000
SWEEPS = 20

Codes = npt.NDArray[np.int64]
Costs = npt.NDArray[np.float64]
Pricer = Callable[[Codes], Costs]


@dataclass(frozen=True, slots=True, kw_only=True)
class Budget:
    """The hard budgets of a search: a latency in ms on the first target, and any further ones."""

    latency_ms: float
    metric: str
    others: Mapping[str, float]

    @property
    def limits(self) -> dict[str, float]:
        """All budgets by metric."""
        return {self.metric: self.latency_ms, **self.others}

    @property
    def latencies_ms(self) -> dict[str, float]:
        """The budgets on latencies by metric, that of the first target first."""
        return {metric: limit for metric, limit in self.limits.items() if is_latency(metric)}


def parse_share(text: str) -> float | None:
    """Return the share that a budget is ("80%" is 0.8), None where it is no share.

    Raises:
        ConfigError: not above 0 % and at most 100 %.
    """
    text = text.strip()
    if not text.endswith("%"):
        return None
    try:
        share = float(text[:-1]) / 100
    except ValueError:
        share = 0.0
    if not 0 < share <= 1:
        raise ConfigError(f"a share must be above 0% and at most 100%, but is {text!r}.")
    return share


def resolve(
    config: RunConfig,
    *,
    target_id: str,
    largest_ms: float,
    other_ids: Mapping[str, str] | None = None,
) -> Budget:
    """Return the budgets of a configuration; a share is of the largest network's measured latency.

    Args:
        config: Its `latency_budget` is that of the first target, unless one of `budgets` is.
        target_id: The first target's.
        largest_ms: Measured there.
        other_ids: Ids of the other targets by the words they are asked for with, either of which
            a budget may name.

    Raises:
        ConfigError: not a time with its unit, nor a share of 0 to 100 %; or a target has none.
    """
    share = parse_share(config.latency_budget)
    latency_ms = parse_latency(config.latency_budget) if share is None else share * largest_ms
    ids = {config.target: target_id, **(other_ids or {})}
    others: dict[str, float] = {}
    for metric, limit in parse_budgets(config.budgets).items():
        _, words = split_metric(metric)
        full = latency_metric(ids[words]) if words in ids else full_metric(metric, [*ids.values()])
        if full in others:
            raise ConfigError(f"one budget a metric, but {full} has {others[full]} and {limit}.")
        others[full] = limit
    own = latency_metric(target_id)
    for words, other in (other_ids or {}).items():
        if latency_metric(other) not in others:
            raise ConfigError(
                f"every target has a budget, but {words} has none. Add --budget "
                f"latency_ms:{words}=5ms, or leave the target out."
            )
    return Budget(latency_ms=others.pop(own, latency_ms), metric=own, others=others)


def pricers(space: SearchSpace, latencies: Mapping[str, Pricer]) -> dict[str, Pricer]:
    """Return the pricer of every metric a budget may name: latencies, params, macs, bytes.

    Args:
        space: Whose codes they price.
        latencies: Target id -> pricer in ms.
    """
    return {
        **{latency_metric(target_id): pricer for target_id, pricer in latencies.items()},
        "params": space.pricer(lambda block: float(block.params)),
        "macs": space.macs_pricer(),
        "bytes": space.pricer(lambda block: float(block.bytes)),
    }


def cheapest(space: SearchSpace, price: Pricer) -> tuple[Architecture, float]:
    """Return the architecture of lowest price and that price.

    Goes down from the smallest network by the best change of one gene at a time; prices are sums
    over blocks, so only genes that act together could hide a cheaper one.
    """
    options = np.array([len(values) for values in space.genes().values()])
    best = space.encode([space.choice(space.smallest())])[0]
    lowest = float(price(best[None, :])[0])
    for _ in range(SWEEPS):
        around = _neighbours(best, options)
        prices = price(around)
        place = int(np.argmin(prices))
        if prices[place] >= lowest:
            break
        best, lowest = around[place], float(prices[place])
    return space.architecture(space.decode(best[None, :])[0]), lowest


def _neighbours(row: Codes, options: Codes) -> Codes:
    """Return every row that differs from `row` in one gene."""
    rows = []
    for gene, count in enumerate(options):
        for code in range(count):
            if code != row[gene]:
                rows.append(row.copy())
                rows[-1][gene] = code
    return np.array(rows).reshape(-1, len(options))


def feasible_share(space: SearchSpace, prices: Mapping[str, Pricer], budget: Budget) -> float:
    """Return the share of 20,000 uniformly drawn architectures that meet every budget."""
    options = [len(values) for values in space.genes().values()]
    rng = np.random.default_rng(stage_seed(0, "feasible-share"))
    codes = rng.integers(0, options, size=(RANDOM_DRAWS, len(options)))
    meets = np.ones(len(codes), dtype=bool)
    for metric, limit in budget.limits.items():
        meets &= prices[metric](codes) <= limit
    return float(meets.mean())


def check_reachable(space: SearchSpace, prices: Mapping[str, Pricer], budget: Budget) -> None:
    """Raise InfeasibleBudget if even the cheapest architecture is over one of the budgets."""
    for metric, limit in budget.limits.items():
        if metric not in prices:
            known = ", ".join(prices)
            raise ConfigError(f"a budget is on one of {known}, but {metric!r} was given.")
        architecture, lowest = cheapest(space, prices[metric])
        if lowest > limit:
            raise InfeasibleBudget(
                f"nothing in {space.name} meets {metric} <= {describe_cost(metric, limit)}: the "
                f"lowest here is {describe_cost(metric, lowest)} "
                f"(architecture {architecture.id}). Raise the budget, or choose a smaller space "
                "or image size.",
                metric=metric,
                budget=limit,
                smallest=lowest,
            )


def priced(run: Run, materials: Materials) -> tuple[dict[str, Pricer], Budget]:
    """Return the pricer of every metric, and the run's budgets, which something can meet.

    Raises:
        InfeasibleBudget: even the cheapest architecture is over one of them.
    """
    profiled = run.result(run.profile_key, make_with="profile")
    space, target_id = materials.space, materials.target.id
    words = run.config.other_targets
    others = dict(zip(words, list(materials.tables)[1:], strict=True))
    budget = resolve(
        run.config, target_id=target_id, largest_ms=profiled["largest_ms"], other_ids=others
    )
    latencies = {name: table.pricer(space) for name, table in materials.search_tables.items()}
    prices = pricers(space, latencies)
    check_reachable(space, prices, budget)
    return prices, budget

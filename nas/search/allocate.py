"""Inner dimensions within budgets: one option for each part of a network, least loss in all.

What is asked and answered, checked; how it is found: `nas.search.knapsack`.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from nas.errors import ConfigError, InfeasibleBudget
from nas.search.budgets import resolve_budgets
from nas.search.knapsack import Indices, Options, Table, search, sweep
from nas.study import describe_cost

MAX_BUDGETS = 3
ROUNDING = 1e-12  # of a budget; sums are checked exactly at the end


@dataclass(frozen=True, slots=True, kw_only=True)
class Group:
    """A part of a network whose size is to be chosen.

    `loss` is the predicted loss increase of each option (any unit, lower is better; minus the
    importance it keeps will do), `costs` what each option adds to each metric, at least 0.
    """

    loss: Sequence[float]
    costs: Mapping[str, Sequence[float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class Allocation:
    """One option a group. No allocation within the budgets has less loss than `least_loss`."""

    choice: tuple[int, ...]
    loss: float
    least_loss: float
    costs: Mapping[str, float]


def allocate(groups: Sequence[Group], budgets: Mapping[str, float]) -> Allocation:
    """Choose one option a group: the least total loss found within every budget.

    Deterministic, and not always optimal: on networks of 10 to 60 groups it keeps at least 99.9 %
    of the importance an optimal allocation keeps (benchmarks/allocation.py).

    Args:
        groups: Every group with the same metrics; costs add up over groups.
        budgets: 1 to 3 limits by metric, in the metric's unit; what is fixed in the network is
            to be taken off them. A lone `latency_ms` is the only latency.

    Raises:
        ConfigError: no groups, numbers that are not finite, lists of different lengths, or not 1
            to 3 budgets on known metrics, each above zero.
        InfeasibleBudget: even the least is over a budget (the message has both), or no allocation
            was found that meets all budgets together.
    """
    metrics = _check(groups)
    options = Options(
        losses=np.array([loss for group in groups for loss in group.loss], dtype=np.float64),
        costs={
            metric: np.array([c for group in groups for c in group.costs[metric]], dtype=np.float64)
            for metric in metrics
        },
        sizes=np.array([len(group.loss) for group in groups]),
    )
    choice, least_loss = choose(options, budgets)
    return _sum_up(groups, metrics, choice, least_loss)


def choose(options: Options, budgets: Mapping[str, float]) -> tuple[Indices, float]:
    """Choose as `allocate` does; return an option of each group, (groups,), and the bound.

    Errors are those of `allocate`; sizes and lengths are not checked.
    """
    limits = resolve_budgets(budgets, tuple(options.costs))
    if not 1 <= len(limits) <= MAX_BUDGETS:
        raise ConfigError(f"an allocation has 1 to {MAX_BUDGETS} budgets, but {len(limits)} here.")
    table = Table.of(options, limits)
    starts = options.starts
    for metric, limit in limits.items():
        least = math.fsum(np.minimum.reduceat(options.costs[metric], starts).tolist())
        if least > limit:
            raise _infeasible(metric, limit, least, "the least any allocation has is")
    multipliers, least_loss = sweep(table)
    for rounding in (ROUNDING, -ROUNDING):
        choice = search(table, multipliers, least_loss, limit=1 + rounding)
        taken = starts + choice
        found = {metric: math.fsum(options.costs[metric][taken].tolist()) for metric in limits}
        use = max(found[metric] / limit for metric, limit in limits.items())
        if all(found[metric] <= limit for metric, limit in limits.items()):
            return choice, least_loss
        if use > 1 + 2 * ROUNDING:  # more than the rounding of a sum
            break
    worst = max(limits, key=lambda metric: found[metric] / limits[metric])
    raise _infeasible(
        worst, limits[worst], found[worst], "with the other budgets the least found is"
    )


def _check(groups: Sequence[Group]) -> tuple[str, ...]:
    """Return the metrics that every group has."""
    if not groups:
        raise ConfigError("an allocation needs at least one group, but there is none.")
    metrics = tuple(groups[0].costs)
    for index, group in enumerate(groups):
        if group.costs.keys() != set(metrics):
            raise ConfigError(
                f"every group has the costs {', '.join(metrics)}, but group {index} has "
                f"{', '.join(group.costs) or 'none'}."
            )
        lengths = {len(group.loss), *map(len, group.costs.values())}
        if len(lengths) > 1 or 0 in lengths:
            raise ConfigError(
                f"a group has one loss and one cost of each metric an option, but group {index} "
                f"has lists of {sorted(lengths)}."
            )
    return metrics


def _infeasible(metric: str, limit: float, least: float, words: str) -> InfeasibleBudget:
    return InfeasibleBudget(
        f"no allocation meets {metric} <= {describe_cost(metric, limit)}: {words} "
        f"{describe_cost(metric, least)}. Raise the budget, or take a smaller network.",
        metric=metric,
        budget=limit,
        smallest=least,
    )


def _sum_up(
    groups: Sequence[Group], metrics: Sequence[str], choice: Indices, least_loss: float
) -> Allocation:
    pairs = list(zip(groups, choice.tolist(), strict=True))
    return Allocation(
        choice=tuple(option for _, option in pairs),
        loss=math.fsum(group.loss[option] for group, option in pairs),
        least_loss=least_loss,
        costs={
            metric: math.fsum(group.costs[metric][option] for group, option in pairs)
            for metric in metrics
        },
    )

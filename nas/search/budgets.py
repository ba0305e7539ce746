"""Budgets: what people write ("latency_ms:<target>=5ms", "params=3M") as metric and limit."""

import math
import re
from collections.abc import Iterable, Mapping

import numpy as np

from nas.errors import ConfigError
from nas.study import find_metric, is_latency

_LATENCY_MS = {"s": 1e3, "ms": 1.0, "us": 1e-3, "µs": 1e-3, "μs": 1e-3}
_COUNT = {"": 1.0, "k": 1e3, "K": 1e3, "M": 1e6, "G": 1e9, "B": 1e9}
_BYTES = {"B": 1.0, "kB": 1e3, "KB": 1e3, "MB": 1e6, "GB": 1e9}
_BYTES |= {"KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30}
_NUMBER = re.compile(r"\s*([0-9]*\.?[0-9]+(?:[eE][+-]?[0-9]+)?)\s*([^\s0-9]*)\s*")


def parse_latency(text: str) -> float:
    """Return a latency in ms: "5ms" is 5.0, "800us" is 0.8, "0.005s" is 5.0.

    Raises:
        ConfigError: not a positive number with its unit.
    """
    return _parse(text, _LATENCY_MS, what="a latency budget", example="5ms, 800us or 0.005s")


def parse_budget(text: str) -> tuple[str, float]:
    """Return (metric, limit) of "latency_ms:<target>=5ms", "params=3M", "macs=300M", "bytes=4MB".

    The limit is in the metric's unit: ms, parameters, multiply-accumulates, bytes. A metric of
    somebody's own table ("energy=3.5") takes a plain number.

    Raises:
        ConfigError: no "=", a number without the unit it needs, or not positive.
    """
    metric, equals, value = (part.strip() for part in text.rpartition("="))
    if not equals or not metric:
        raise ConfigError(
            f"a budget is METRIC=LIMIT, but is {text!r}. Write latency_ms=5ms or params=3M."
        )
    if is_latency(metric):
        return metric, parse_latency(value)
    if metric == "bytes":
        return metric, _parse(value, _BYTES, what="a bytes budget", example="4MB or 512KiB")
    return metric, _parse(value, _COUNT, what=f"a {metric} budget", example="3M or 300000")


def parse_budgets(texts: Iterable[str]) -> dict[str, float]:
    """Return several budgets by metric.

    Raises:
        ConfigError: as `parse_budget`, or a metric given twice.
    """
    budgets: dict[str, float] = {}
    for text in texts:
        metric, limit = parse_budget(text)
        if metric in budgets:
            raise ConfigError(
                f"one budget a metric, but {metric} has {budgets[metric]} and {limit}."
            )
        budgets[metric] = limit
    return budgets


def _parse(text: str, units: Mapping[str, float], *, what: str, example: str) -> float:
    match = _NUMBER.fullmatch(text)
    if match is None:
        raise ConfigError(f"{what} is a positive number, but is {text!r}. Write {example}.")
    number, unit = match.groups()
    if unit not in units:
        problem = f"knows no unit {unit!r}" if unit else "needs a unit"
        known = ", ".join(name for name in units if name)
        raise ConfigError(f"{what} {problem}: {text!r}. Write {example} (units: {known}).")
    value = float(number) * units[unit]
    if not (math.isfinite(value) and value > 0):
        raise ConfigError(f"{what} must be above zero, but is {text!r}. Write {example}.")
    return value


def resolve_budgets(budgets: Mapping[str, float], metrics: Iterable[str]) -> dict[str, float]:
    """Return budgets under the full names of the metrics that are priced.

    Raises:
        ConfigError: a budget on an unknown metric, two on one, or not above zero.
    """
    known = list(metrics)
    resolved: dict[str, float] = {}
    for name, limit in budgets.items():
        metric = find_metric(name, known)
        if metric in resolved:
            raise ConfigError(f"one budget a metric, but {metric} has two.")
        if not (math.isfinite(limit) and limit > 0):
            raise ConfigError(f"a budget is a number above zero, but {name} has {limit!r}.")
        resolved[metric] = float(limit)
    return resolved


def feasible(costs: Mapping[str, np.ndarray], budgets: Mapping[str, float]) -> np.ndarray:
    """Return which candidates meet every budget, booleans of shape (n,)."""
    size = len(next(iter(costs.values())))
    met = np.ones(size, dtype=bool)
    for metric, limit in budgets.items():
        met &= costs[metric] <= limit
    return met


def excess(costs: Mapping[str, np.ndarray], budgets: Mapping[str, float]) -> np.ndarray:
    """Return how far candidates are over budget, shape (n,).

    The sum over metrics of cost / limit - 1 where that is positive, so that milliseconds and
    parameters weigh the same.
    """
    size = len(next(iter(costs.values())))
    over = np.zeros(size)
    for metric, limit in budgets.items():
        over += np.maximum(costs[metric] / limit - 1.0, 0.0)
    return over


def meets(costs: Mapping[str, float], budgets: Mapping[str, float]) -> bool:
    """Return whether one candidate's costs are within every budget."""
    return all(costs[metric] <= limit for metric, limit in budgets.items())

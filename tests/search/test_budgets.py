"""Budgets as people write them."""

import numpy as np
import pytest

from nas.errors import ConfigError
from nas.search.budgets import (
    excess,
    feasible,
    meets,
    parse_budget,
    parse_budgets,
    parse_latency,
    resolve_budgets,
)

TARGET = "onnxruntime-1.31.1_fp32_nchw_b1_t1@amd-epyc-x86_64"


@pytest.mark.parametrize(
    ("text", "ms"),
    [
        ("5ms", 5.0),
        ("800us", 0.8),
        ("0.005s", 5.0),
        (" 2.5 ms ", 2.5),
        (".5ms", 0.5),
        ("9µs", 0.009),
    ],
)
def test_a_latency_is_read_in_milliseconds(text: str, ms: float) -> None:
    assert parse_latency(text) == pytest.approx(ms)


@pytest.mark.parametrize(
    "text", ["5", "", "ms", "5 min", "-5ms", "0ms", "nanms", "infms", "1e999ms", "5ms 6ms", "5,5ms"]
)
def test_a_latency_without_a_unit_or_above_zero_is_refused_with_an_example(text: str) -> None:
    with pytest.raises(ConfigError, match="Write 5ms, 800us or 0.005s") as caught:
        parse_latency(text)
    assert caught.value.exit_code == 2


@pytest.mark.parametrize(
    ("text", "metric", "limit"),
    [
        (f"latency_ms:{TARGET}=5ms", f"latency_ms:{TARGET}", 5.0),
        ("latency_ms=800us", "latency_ms", 0.8),
        ("params=3M", "params", 3e6),
        ("params=3000000", "params", 3e6),
        ("macs=0.3G", "macs", 3e8),
        ("bytes=4MB", "bytes", 4e6),
        ("bytes=4MiB", "bytes", 4 * 2**20),
        ("energy=3.5", "energy", 3.5),
    ],
)
def test_a_budget_is_a_metric_and_a_limit(text: str, metric: str, limit: float) -> None:
    name, value = parse_budget(text)
    assert name == metric
    assert value == pytest.approx(limit)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("latency_ms=5", "needs a unit"),
        ("bytes=4000000", "needs a unit"),
        ("bytes=4M", "knows no unit 'M'"),
        ("params=3ms", "knows no unit 'ms'"),
        ("params=0", "above zero"),
        ("params", "METRIC=LIMIT"),
        ("=5ms", "METRIC=LIMIT"),
    ],
)
def test_a_budget_that_breaks_a_rule_is_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        parse_budget(text)


def test_a_metric_has_one_budget() -> None:
    assert parse_budgets(["params=3M", "macs=5M"]) == {"params": 3e6, "macs": 5e6}
    with pytest.raises(ConfigError, match="one budget a metric"):
        parse_budgets(["params=3M", "params=5M"])


def test_a_lone_latency_is_the_only_target_there_is() -> None:
    assert resolve_budgets({"latency_ms": 5.0}, ["params", "latency_ms:a"]) == {"latency_ms:a": 5.0}
    with pytest.raises(ConfigError, match="several targets"):
        resolve_budgets({"latency_ms": 5.0}, ["latency_ms:a", "latency_ms:b"])
    with pytest.raises(ConfigError, match="no known metric; choose from params"):
        resolve_budgets({"latency_ms": 5.0}, ["params"])
    with pytest.raises(ConfigError, match="has two"):
        resolve_budgets({"latency_ms": 5.0, "latency_ms:a": 4.0}, ["latency_ms:a"])


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan"), float("inf")])
def test_a_limit_is_a_number_above_zero(limit: float) -> None:
    with pytest.raises(ConfigError, match="above zero"):
        resolve_budgets({"params": limit}, ["params"])


def test_excess_weighs_metrics_by_their_limits_and_feasible_is_exact() -> None:
    costs = {"latency_ms": np.array([4.0, 5.0, 10.0]), "params": np.array([1e6, 3e6, 4.5e6])}
    budgets = {"latency_ms": 5.0, "params": 3e6}
    assert excess(costs, budgets) == pytest.approx([0.0, 0.0, 1.5])
    assert feasible(costs, budgets).tolist() == [True, True, False]
    above = np.nextafter(5.0, 6.0)
    assert not feasible({"latency_ms": np.array([above])}, {"latency_ms": 5.0})[0]
    assert meets({"latency_ms": 5.0}, {"latency_ms": 5.0})
    assert not meets({"latency_ms": float(above)}, {"latency_ms": 5.0})

"""Budgets on several targets, and what is said of candidates that were measured on them."""

from pathlib import Path

import pytest

from nas.errors import ConfigError
from nas.latency import Timing
from nas.latency.remote import RemoteAgent
from nas.pipeline.budget import Budget, resolve
from nas.pipeline.by_files import search_by_files
from nas.pipeline.candidates import measured_row
from nas.pipeline.completion import Level
from nas.pipeline.config import RunConfig
from nas.pipeline.remote import RemoteDevice
from nas.pipeline.run import Run
from nas.study import Trial
from nas.target import Target

A, B = "onnxruntime,fp32,b1,t1", "openvino,fp32,b1,t1"


def timing(median_ms: float, *, ci_high_ms: float, p95: float) -> Timing:
    return Timing(
        median_ms=median_ms, p10=median_ms, p90=median_ms, p95=p95, ci_high_ms=ci_high_ms,
        clean=30, taken=30, grade="A", spread=0.01, repeat=0.0,
    )  # fmt: skip


def budget_of(*texts: str, latency_budget: str = "50%") -> Budget:
    config = RunConfig(target=A, other_targets=(B,), latency_budget=latency_budget, budgets=texts)
    return resolve(config, target_id="a@here", largest_ms=4.0, other_ids={B: "b@here"})


def test_every_target_has_a_budget_under_its_full_name() -> None:
    found = budget_of(f"latency_ms:{B}=3ms", "params=2M")
    assert found.limits == {"latency_ms:a@here": 2.0, "latency_ms:b@here": 3.0, "params": 2e6}
    assert list(found.latencies_ms) == ["latency_ms:a@here", "latency_ms:b@here"]
    by_id = budget_of("latency_ms:b@here=3ms", f"latency_ms:{A}=1ms")
    assert by_id.latency_ms == 1.0 and by_id.limits["latency_ms:b@here"] == 3.0


def test_a_target_without_a_budget_and_a_budget_without_a_target_are_refused() -> None:
    with pytest.raises(ConfigError, match="openvino,fp32,b1,t1 has none. Add --budget"):
        budget_of("params=2M")
    with pytest.raises(ConfigError, match="there are several"):
        budget_of("latency_ms=2ms")
    with pytest.raises(ConfigError, match="one budget a metric"):
        budget_of(f"latency_ms:{B}=3ms", "latency_ms:b@here=2ms")
    with pytest.raises(ConfigError, match="each target stands once"):
        RunConfig(target=A, other_targets=(A,))


def test_a_lone_latency_is_that_of_the_only_target() -> None:
    config = RunConfig(target=A, budgets=("latency_ms=2ms",))
    assert resolve(config, target_id="a@here", largest_ms=4.0).limits == {"latency_ms:a@here": 2.0}


def test_a_candidate_meets_the_budgets_on_every_target_or_none() -> None:
    budget = Budget(
        latency_ms=2.0, metric="latency_ms:a", others={"latency_ms:b": 1.0, "params": 1e6}
    )
    trial = Trial(
        number=3, state="COMPLETE", choice={}, accuracy=0.9, architecture_id="x",
        costs={"latency_ms:a": 1.8, "latency_ms:b": 0.9, "params": 5e5},
    )  # fmt: skip
    found = {
        "a": timing(1.7, ci_high_ms=1.8, p95=2.4),
        "b": timing(0.9, ci_high_ms=0.95, p95=0.99),
    }
    row = measured_row(trial, found, budget, "median")
    assert row["meets"] and row["tightest"] == "b" and row["slack"] == pytest.approx(0.05)
    assert row["predicted_ms"] == 1.8 and row["latencies"]["b"]["measured_ms"] == 0.9
    row = measured_row(trial, found, budget, "p95")
    assert not row["meets"] and row["tightest"] == "a" and row["slack"] == pytest.approx(-0.2)
    over = {**found, "b": timing(0.99, ci_high_ms=1.01, p95=1.2)}
    assert not measured_row(trial, over, budget, "median")["meets"]


def test_the_level_is_that_of_the_tightest_budget() -> None:
    budget = Budget(latency_ms=2.0, metric="latency_ms:a", others={"latency_ms:b": 1.0})
    level = Level.of(RunConfig(margin=0.1, least_use=0.7), budget)
    costs = {"latency_ms:a": [1.0, 1.0, 2.0], "latency_ms:b": [0.8, 0.5, 0.1]}
    import numpy as np

    known = {name: np.array(values) for name, values in costs.items()}
    off = level.off(known, known)
    assert (off <= level.half).tolist() == [True, False, False]
    dearest = {name: values + 0.5 for name, values in known.items()}
    assert (level.off(known, dearest) <= level.half).tolist() == [True, True, False]


def test_words_that_are_no_setting_are_refused() -> None:
    with pytest.raises(ConfigError, match="importance must be one of none, taylor, sensitivity"):
        RunConfig(importance="magic")
    with pytest.raises(ConfigError, match="statistic must be one of median, p95"):
        RunConfig(statistic="mean")


def test_times_of_one_device_never_stand_for_several_targets(tmp_path: Path) -> None:
    config = RunConfig(target=A, other_targets=(B,))
    there = RemoteDevice(agent=RemoteAgent("http://127.0.0.1:1", "t" * 43), target=Target.parse(A))
    with pytest.raises(ConfigError, match="--device measures on one target, but there are onnx"):
        there.settings(config)
    with (
        Run.open(tmp_path / "run", config) as run,
        pytest.raises(ConfigError, match=r"--plan measures on one target.*Name one --target"),
    ):
        search_by_files(run, tmp_path / "plan", None)
    assert not (tmp_path / "plan").exists()

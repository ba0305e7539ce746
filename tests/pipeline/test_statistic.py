"""`statistic` of a run reaches what is said of candidates and what a winner promises."""

from types import SimpleNamespace
from typing import Any

import pytest

from nas.latency import Timing
from nas.pipeline.budget import Budget
from nas.pipeline.candidates import _drift_told, _none_met, measured_by_predicted, measured_row
from nas.pipeline.config import RunConfig
from nas.pipeline.winners import Candidate
from nas.space import SearchSpace
from nas.study import Trial

SPACE = SearchSpace.load("tiny").replace(num_classes=10)
RESULTS: dict[str, dict[str, Any]] = {
    "search/s": {
        "study": "s",
        "budgets": {"latency_ms:a": 2.0},
        "measured": [
            {"trial": 3, "latencies": {"a": {"reference_ms": 0.06}}},
            {"trial": 4, "latencies": {"a": {"reference_ms": 0.05}}},
        ],
    },
    "train": {"digest": "ab"},
}


def a_trial() -> Trial:
    smallest = SPACE.smallest()
    return Trial(
        number=3, state="COMPLETE", choice={}, accuracy=0.9, architecture=smallest.to_json(),
        architecture_id=smallest.id, costs={"latency_ms:a": 1.8},
    )  # fmt: skip


def test_the_nearest_candidate_takes_what_the_statistic_says() -> None:
    budget = Budget(latency_ms=2.0, metric="latency_ms:a", others={})
    timing = Timing(
        median_ms=1.7, p10=1.7, p90=1.7, p95=2.4, ci_high_ms=1.8, clean=30, taken=30, grade="A",
        spread=0.01, repeat=0.0,
    )  # fmt: skip
    error = _none_met([measured_row(a_trial(), {"a": timing}, budget, "p95")], budget)
    assert error.smallest == pytest.approx(2.4)
    assert "the nearest takes 2.4 ms" in str(error)


@pytest.mark.parametrize("statistic", ["median", "p95"])
def test_a_winner_promises_by_the_statistic_its_run_chose_it_by(statistic: str) -> None:
    run: Any = SimpleNamespace(
        config=RunConfig(statistic=statistic),
        study="s",
        result=lambda key, make_with: RESULTS[key],
    )
    materials: Any = SimpleNamespace(
        space=SPACE,
        tables={"a": SimpleNamespace(digest="cd")},
        data=SimpleNamespace(name="digits", split=lambda name: range(360)),
    )
    winner = Candidate(run, materials, a_trial())._promise({"accuracy": 0.9, "teacher": "ef"})
    assert (winner.statistic, winner.budgets) == (statistic, {"latency_ms:a": 2.0})
    assert winner.targets[0].reference_promised_ms == 0.06, "the speed it was measured at"


def test_a_table_that_is_off_by_now_is_said_with_the_way_out() -> None:
    def row(**ms: tuple[float, float]) -> dict[str, Any]:
        return {
            "latencies": {
                name: {"predicted_ms": said, "measured_ms": took}
                for name, (said, took) in ms.items()
            }
        }

    found = measured_by_predicted([row(a=(1, 0.7), b=(1, 1.0)), row(a=(2, 1.6)), row(a=(1, 0.9))])
    assert found == pytest.approx({"a": 0.8, "b": 1.0})
    assert _drift_told("b", found["b"]) is None
    told = str(_drift_told("a", found["a"]))
    assert "0.80 x what was predicted on a" in told and "faster now" in told
    assert "search with --table" in told
    assert "slower now" in str(_drift_told("a", 1.2))

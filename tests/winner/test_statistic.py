"""A promise about the 95th percentile is judged by the 95th percentile, wherever it is read."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nas.errors import BrokenPromise, CorruptFile
from nas.manifest import Accuracy, Ancestry, TargetResult, Winner
from nas.report import ReportInput
from nas.report.page import render, verdict
from nas.space import SearchSpace
from nas.winner import card
from nas.winner.promise import Seen, judge

HERE = "onnxruntime-1.31.1_fp32_nchw_b1_t1@a-x86_64"
SPACE = SearchSpace.load("tiny").replace(num_classes=10)
BLOCKS = SPACE.blocks(SPACE.smallest())
# The interval of the median lies within the budget of 0.25 ms, the 95th percentile does not.
TIMED = TargetResult(target=HERE, measured_ms=0.21, ci_high_ms=0.22, p95_ms=0.3, grade="A")


def a_winner(statistic: str, **changes: Any) -> Winner:
    values: dict[str, Any] = {
        "architecture": SPACE.smallest().to_json(),
        "blocks": tuple(str(block) for block in BLOCKS),
        "accuracy": Accuracy(search=0.98, search_images=360),
        "budgets": {f"latency_ms:{HERE}": 0.25},
        "targets": (TargetResult(target=HERE, predicted_ms=0.2),),
        "ancestry": Ancestry(study="s", trial=3),
        "statistic": statistic,
    }
    return Winner(**{**values, **changes})


def seen(latency: TargetResult = TIMED) -> Seen:
    params = sum(block.params for block in BLOCKS)
    return Seen(test=0.98, test_images=360, onnx_error=1e-7, params=params, latency=latency)


def test_a_promise_is_judged_by_the_statistic_it_was_made_with() -> None:
    assert judge(a_winner("median"), seen(), HERE).is_kept
    result = judge(a_winner("p95"), seen(), HERE)
    assert result.is_over_budget
    with pytest.raises(BrokenPromise, match=r"95th percentile 0\.3, .* over by 20\.0 %"):
        result.raise_if_broken()
    # and the other way round: few samples, a wide interval, and no run was slow
    wide = replace(TIMED, ci_high_ms=0.26, p95_ms=0.24)
    assert judge(a_winner("p95"), seen(wide), HERE).is_kept
    assert judge(a_winner("median"), seen(wide), HERE).is_over_budget


def test_a_95th_percentile_that_nobody_took_is_not_made_up() -> None:
    result = judge(a_winner("p95"), seen(replace(TIMED, p95_ms=None)), HERE)
    with pytest.raises(BrokenPromise, match="no 95th percentile was taken"):
        result.raise_if_broken()


def test_the_card_and_the_report_judge_as_verify_does() -> None:
    for statistic, is_met in (("median", True), ("p95", False)):
        winner = a_winner(statistic, targets=(TIMED,))
        assert ("over the budget by" not in card.measured(winner)) is is_met
        content = ReportInput(
            title="t", space="tiny", data="digits", seed=0, target=HERE, device="d",
            budget_ms=0.25, winner=winner,
        )  # fmt: skip
        assert verdict(content).kept is is_met
        page = render(replace(content, winner=None, rejected=(winner,)), {})
        assert ("20.0 %" in page) is not is_met
    assert "for the 95th percentile" in card.measured(a_winner("p95"))


def test_the_statistic_is_kept_in_the_file_and_an_older_file_means_the_median(
    tmp_path: Path,
) -> None:
    path = a_winner("p95").save(tmp_path)
    assert Winner.load(tmp_path) == a_winner("p95")
    plain = json.loads(path.read_text())
    del plain["statistic"]
    path.write_text(json.dumps(plain))
    assert Winner.load(tmp_path) == a_winner("median")
    path.write_text(json.dumps({**plain, "statistic": "mean"}))
    with pytest.raises(CorruptFile, match="statistic must be one of median, p95"):
        Winner.load(tmp_path)

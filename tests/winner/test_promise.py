"""What is promised against what was seen: each promise, and who may break it by how much."""

from dataclasses import replace
from typing import Any

import pytest

from nas.errors import BrokenPromise, ConfigError
from nas.manifest import Accuracy, Ancestry, TargetResult, Winner
from nas.space import SearchSpace
from nas.winner.promise import Seen, VerifyResult, chance, judge

HERE, THERE = "onnxruntime-1.31.1_fp32_nchw_b1_t1@a-x86_64", "onnxruntime-1.32.0@a-x86_64"
SPACE = SearchSpace.load("tiny").replace(num_classes=10)
BLOCKS = SPACE.blocks(SPACE.smallest())
PARAMS = sum(block.params for block in BLOCKS)
MACS = sum(block.macs for block in BLOCKS)


def a_winner(**changes: Any) -> Winner:
    values: dict[str, Any] = {
        "architecture": SPACE.smallest().to_json(),
        "blocks": tuple(str(block) for block in BLOCKS),
        "accuracy": Accuracy(search=0.98, search_images=360),
        "budgets": {f"latency_ms:{HERE}": 0.25},
        "targets": (TargetResult(target=HERE, predicted_ms=0.2),),
        "ancestry": Ancestry(study="s", trial=3),
    }
    return Winner(**{**values, **changes})


def timed(measured_ms: float = 0.21, ci_high_ms: float = 0.22, target: str = HERE) -> TargetResult:
    return TargetResult(
        target=target, measured_ms=measured_ms, ci_high_ms=ci_high_ms, p95_ms=0.3, grade="A"
    )


SEEN = Seen(test=0.975, test_images=360, onnx_error=3e-7, params=PARAMS, latency=timed())


def verdicts(result: VerifyResult) -> dict[str, bool | None]:
    return {row.about: row.is_kept for row in result.statements}


def test_a_kept_promise_says_so_and_raises_nothing() -> None:
    result = judge(a_winner(), SEEN, HERE)
    assert verdicts(result) == dict.fromkeys(("files", "onnx", "accuracy", "latency_ms"), True)
    assert result.is_kept and not result.is_over_budget
    result.raise_if_broken()
    assert "met, 84 % of it used" in result.statements[-1].text


def test_what_was_measured_is_put_into_the_manifest() -> None:
    checked = judge(a_winner(), SEEN, HERE).winner
    assert checked.accuracy == Accuracy(search=0.98, search_images=360, test=0.975, test_images=360)
    assert checked.targets == (replace(timed(), predicted_ms=0.2),)
    assert replace(checked, accuracy=a_winner().accuracy, targets=a_winner().targets) == a_winner()


def test_a_budget_is_broken_by_the_upper_end_of_the_interval() -> None:
    seen = replace(SEEN, latency=timed(0.249, 0.26))
    result = judge(a_winner(), seen, HERE)
    assert result.is_over_budget
    with pytest.raises(BrokenPromise, match=r"over by 4\.0 %") as caught:
        result.raise_if_broken()
    assert caught.value.exit_code == 7
    assert judge(a_winner(), replace(SEEN, latency=timed(0.249, 0.25)), HERE).is_kept


@pytest.mark.parametrize(
    ("beside_ms", "words"),
    [
        (0.06, "; the machine is 20 % slower than where that was promised, at whose speed it "
               "takes 0.225 ms"),
        (0.04, "; the machine is 20 % faster than where that was promised, at whose speed it "
               "takes 0.3375 ms"),
        (0.051, ""),
        (None, ""),
    ],
)  # fmt: skip
def test_a_machine_of_another_speed_than_was_promised_is_told(
    beside_ms: float | None, words: str
) -> None:
    row = TargetResult(target=HERE, predicted_ms=0.2, reference_promised_ms=0.05)
    seen = replace(timed(0.27, 0.28), reference_measured_ms=beside_ms)
    result = judge(a_winner(targets=(row,)), replace(SEEN, latency=seen), HERE)
    assert result.is_over_budget, "what the clock on the wall says counts"
    assert result.broken[0].text.endswith(f"over by 12.0 %{words}")
    (kept,) = result.winner.targets
    assert (kept.reference_promised_ms, kept.reference_measured_ms) == (0.05, beside_ms)


def test_a_budget_missed_by_a_hair_is_missed_and_not_by_zero() -> None:
    result = judge(a_winner(), replace(SEEN, latency=timed(0.24, 0.250001)), HERE)
    assert "over by less than 0.1 %" in result.broken[0].text


def test_a_budget_broken_by_a_timing_of_grade_c_says_that_it_may_not_be() -> None:
    busy = replace(timed(0.249, 0.26), grade="C")
    result = judge(a_winner(), replace(SEEN, latency=busy), HERE)
    assert not result.is_kept
    assert "verify again when the machine is quiet" in result.broken[0].text
    met = judge(a_winner(), replace(SEEN, latency=replace(timed(), grade="C")), HERE)
    assert "verify again" not in met.statements[-1].text


def test_accuracy_may_differ_by_chance_and_not_by_more() -> None:
    lower = chance(0.98, 360, 360)
    assert 0.02 < lower < 0.04
    assert judge(a_winner(), replace(SEEN, test=0.98 - lower + 1e-9), HERE).is_kept
    result = judge(a_winner(), replace(SEEN, test=0.98 - lower - 1e-9), HERE)
    assert verdicts(result)["accuracy"] is False
    assert not result.is_over_budget
    with pytest.raises(BrokenPromise, match="points less allowed"):
        result.raise_if_broken()


def test_chance_shrinks_with_images_and_allows_something_at_100_percent() -> None:
    assert chance(0.8, 10_000, 10_000) == pytest.approx(3 * (0.16 * 2e-4) ** 0.5, rel=1e-3)
    assert chance(0.9, 0, 500) == chance(0.9, 500, 500)
    assert 0.005 < chance(1.0, 360, 360) < 0.02


def test_a_tolerance_of_ones_own_is_obeyed() -> None:
    seen = replace(SEEN, test=0.96)
    assert judge(a_winner(), seen, HERE, tolerance=0.03).is_kept
    assert not judge(a_winner(), seen, HERE, tolerance=0.01).is_kept
    with pytest.raises(ConfigError, match="tolerance"):
        judge(a_winner(), seen, HERE, tolerance=3)


@pytest.mark.parametrize("error", [2e-4, None])
def test_an_onnx_file_that_computes_something_else_breaks_the_promise(error: float | None) -> None:
    result = judge(a_winner(), replace(SEEN, onnx_error=error), HERE)
    assert verdicts(result)["onnx"] is False
    assert not result.is_over_budget


def test_changed_files_break_the_promise_and_nothing_else_is_said() -> None:
    result = judge(a_winner(), Seen(changed_files=("model.onnx",)), HERE)
    assert verdicts(result) == {"files": False}
    assert result.winner == a_winner()
    with pytest.raises(BrokenPromise, match=r"model\.onnx: not the file that was exported"):
        result.raise_if_broken()


def test_another_target_has_no_promise_but_its_measurement_is_kept() -> None:
    winner = a_winner()
    result = judge(winner, replace(SEEN, latency=timed(9.0, 9.1, THERE)), THERE)
    assert verdicts(result)["latency_ms"] is None
    assert result.is_kept
    assert f"promised: latency_ms:{HERE}" in result.statements[-1].text
    assert result.winner.targets == (*winner.targets, timed(9.0, 9.1, THERE))
    again = judge(result.winner, replace(SEEN, latency=timed(8.0, 8.1, THERE)), THERE)
    assert again.winner.targets == (*winner.targets, timed(8.0, 8.1, THERE))


@pytest.mark.parametrize(
    ("budgets", "about"),
    [
        ({"params": PARAMS - 1}, "params"),
        ({"bytes": 4 * PARAMS - 1}, "bytes"),
        ({"macs": MACS - 1}, "macs"),
    ],
)
def test_budgets_of_size_are_checked_too(budgets: dict[str, float], about: str) -> None:
    result = judge(a_winner(budgets=budgets), SEEN, HERE)
    assert verdicts(result)[about] is False
    assert result.is_over_budget
    met = {metric: budget + 1 for metric, budget in budgets.items()}
    assert verdicts(judge(a_winner(budgets=met), SEEN, HERE))[about] is True

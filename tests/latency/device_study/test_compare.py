"""Ratios, intervals and the sentences made of them."""

from typing import Any

import pytest

from nas.latency.device_study.advice import equal_time_advice, pair_advice, profile_advice
from nas.latency.device_study.compare import compare
from nas.latency.device_study.op_groups import group_of, shares_of


def found(
    row: Any, pair: Any, over_ms: float | None, under_ms: float | None, **changes: Any
) -> Any:
    asked = pair("gelu", "relu")
    return asked, compare(asked, row("gelu", over_ms, **changes), row("relu", under_ms))


def test_a_difference_larger_than_the_spread_is_told_with_its_ratio(
    row: Any, compare_pair: Any
) -> None:
    asked, ratio = found(row, compare_pair, 1.31, 1.0)
    assert ratio.ratio == pytest.approx(1.31)
    assert ratio.low < 1.31 < ratio.high and ratio.high / ratio.low < 1.06
    assert ratio.is_told
    text = pair_advice(asked, ratio)
    assert text.startswith("Use relu here: gelu costs 1.31 x as much (between 1.2")


def test_the_faster_one_is_advised_whichever_stands_first(row: Any, compare_pair: Any) -> None:
    asked, ratio = found(row, compare_pair, 1.0, 1.5)
    assert pair_advice(asked, ratio).startswith("Use gelu here: relu costs 1.50 x as much (between")


def test_equal_times_are_not_told_apart_and_nothing_is_advised(row: Any, compare_pair: Any) -> None:
    asked, ratio = found(row, compare_pair, 1.005, 1.0)
    assert not ratio.is_told and ratio.low < 1 < ratio.high
    assert pair_advice(asked, ratio) == (
        "Choose between gelu and relu by accuracy: gelu against relu is not told from 1 "
        f"(1.00 x, between {ratio.low:.2f} and {ratio.high:.2f})."
    )


def test_a_wide_spread_makes_the_same_ratio_untold(row: Any, compare_pair: Any) -> None:
    narrow = found(row, compare_pair, 1.06, 1.0)[1]
    wide = found(row, compare_pair, 1.06, 1.0, spread=0.09, clean=12)[1]
    assert narrow.is_told and not wide.is_told


def test_an_interval_that_is_wide_around_1_is_not_called_equal(row: Any, compare_pair: Any) -> None:
    asked, ratio = found(row, compare_pair, 1.06, 1.0, spread=0.09, clean=12)
    text = pair_advice(asked, ratio)
    assert "not known to be 1" in text and "choose between" not in text.lower()


def test_a_difference_that_is_told_but_tiny_is_said_not_to_matter(
    row: Any, compare_pair: Any
) -> None:
    asked, ratio = found(row, compare_pair, 1.02, 1.0, spread=0.001)
    ratio_text = pair_advice(asked, ratio)
    assert ratio.is_told and "too near 1 to matter" in ratio_text
    assert ratio_text.startswith("Choose between gelu and relu by accuracy")


def test_nothing_is_advised_from_grade_c_however_large_the_ratio(
    row: Any, compare_pair: Any
) -> None:
    asked, ratio = found(row, compare_pair, 9.0, 1.0, grade="C")
    assert ratio.grade == "C"
    text = pair_advice(asked, ratio)
    assert "too noisy" in text and "grade C" in text
    assert "9" not in text and "use relu" not in text.lower()


def test_a_network_that_was_not_timed_gives_its_reason_instead_of_a_ratio(
    row: Any, compare_pair: Any
) -> None:
    asked, ratio = found(row, compare_pair, None, 1.0, problem="unknown operator Gelu")
    assert ratio.ratio is None and not ratio.is_told
    assert "unknown operator Gelu" in pair_advice(asked, ratio)


def test_the_share_of_what_was_left_out_is_one_minus_the_inverse(
    row: Any, compare_pair: Any
) -> None:
    from dataclasses import replace

    asked = replace(compare_pair("block", "bare"), above="the softmax takes {share} of the time")
    text = pair_advice(asked, compare(asked, row("block", 4.0), row("bare", 3.0)))
    assert text.startswith("The softmax takes 25 % of the time (between 2")


@pytest.mark.parametrize(
    ("attention_ms", "said"),
    [(3.0, "of expansion 4.0"), (1.75, "of expansion 2.3"), (0.5, "less time"), (9.0, "longer")],
)
def test_the_ffn_that_takes_as_long_as_attention_is_read_off_the_line_between_widths(
    row: Any, attention_ms: float, said: str
) -> None:
    ffns = [(2.0, row("a", 1.5)), (4.0, row("b", 3.0)), (8.0, row("c", 6.0))]
    (text,) = equal_time_advice(row("mhsa", attention_ms), ffns)
    assert said in text


def test_no_equal_time_is_read_off_noisy_or_missing_rows(row: Any) -> None:
    ffns = [(2.0, row("a", 1.5)), (4.0, row("b", 3.0, grade="C"))]
    assert equal_time_advice(row("mhsa", 2.0), ffns) == ()
    assert equal_time_advice(row("mhsa", None), ffns[:1]) == ()


def test_operations_are_grouped_whatever_a_runtime_calls_them() -> None:
    op_ms = {"MatMul": 4.0, "FusedConv": 2.0, "Transpose": 1.0, "SoftMax": 1.0, "Eltwise": 1.0}
    shares = {item.group: item for item in shares_of(op_ms | {"SomethingNew": 1.0})}
    assert shares["products"].share == pytest.approx(0.6)
    assert not shares["products"].is_memory_bound and not shares["other"].is_memory_bound
    assert group_of("SkipLayerNormalization") == group_of("MVN") == "normalisation"
    (text,) = profile_advice(tuple(shares.values()))
    assert "30 % of this block's time is in memory-bound" in text
    assert shares_of({}) == () and profile_advice(()) == []

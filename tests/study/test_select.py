"""Conditions on rows: as Python would answer them, and nothing but columns can be reached."""

import itertools
import math
from datetime import UTC, datetime
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nas.errors import ConfigError
from nas.study import Study, select

TARGET = "onnxruntime-1.31.1_fp32_nchw_b1_t1@cpu-x86_64"
LATENCY = f"latency_ms:{TARGET}"
MEASURED = f"measured {LATENCY}"


def frame(**columns: Any) -> pd.DataFrame:
    base = {
        "trial": [0, 1, 2, 3],
        "state": ["COMPLETE", "COMPLETE", "FAIL", "COMPLETE"],
        "accuracy": [0.5, 0.75, float("nan"), 0.625],
        LATENCY: [1.0, 4.0, 2.0, 3.0],
        "params": [1e6, 4e6, 2e6, 1e6],
        MEASURED: [1.5, float("nan"), float("nan"), 2.5],
        "reason": pd.Series([None, None, "out of memory", None], dtype="str"),
        "created_at": [datetime(2026, 11, day, tzinfo=UTC) for day in (1, 2, 3, 4)],
        "gene.s1.width": [24, 32, 24, 32],
        "gene.kernels": [(5, 3), (7, 5, 3), (5, 3), (5, 3)],
        "gene.se": [None, 0.25, None, 0.25],
    }
    return pd.DataFrame({**base, **columns})


def chosen(where: str, rows: pd.DataFrame | None = None) -> list[int]:
    found = select(frame() if rows is None else rows, where=where)
    return [int(number) for number in found["trial"]]


# ---------------------------------------------------------------- what conditions mean
@pytest.mark.parametrize(
    ("where", "expected"),
    [
        ("accuracy > 0.5", [1, 3]),
        ("latency_ms < 3 and params < 3e6", [0, 2]),
        (f"`{LATENCY}` >= 3", [1, 3]),
        ("`measured latency_ms` > latency_ms", [0]),
        (f"`{MEASURED}` / `{LATENCY}` - 1 > 0.2", [0]),
        ("1 < latency_ms <= 3", [2, 3]),
        ("not state == 'FAIL'", [0, 1, 3]),
        ('state != "FAIL" and not (params > 1e6 or accuracy > 0.6)', [0]),
        ("accuracy != 0.5", [1, 2, 3]),  # what is missing is unequal to every number
        ("accuracy < 2 or accuracy >= 2", [0, 1, 3]),
        ("reason == ''", [0, 1, 3]),
        ("`gene.s1.width` == 24 and `gene.kernels` == '[5, 3]'", [0, 2]),
        ("`gene.se` == 0.25", [1, 3]),
        ("created_at >= '2026-11-03'", [2, 3]),
        ("-accuracy + 1 < +0.4", [1, 3]),
        ("1 < 2", [0, 1, 2, 3]),
        ("params / (latency_ms - 1) > 1e9", [0]),  # above zero by zero is infinite
        ("accuracy > 0.5\n", [1, 3]),
        ("state == '`'", []),
        ("state > 'D'", [2]),
    ],
)
def test_a_condition_picks_its_rows(where: str, expected: list[int]) -> None:
    assert chosen(where) == expected


NAMES = {"a": "a", "b": "b", "`gene.c`": "gene_c"}
NUMBERS = st.one_of(
    st.sampled_from(list(NAMES)), st.integers(0, 9).map(str), st.floats(0, 9).map(repr)
)
ARITHMETIC = st.recursive(
    NUMBERS,
    lambda inner: st.one_of(
        st.builds("({} {} {})".format, inner, st.sampled_from("+-*"), inner),
        st.builds("(- {})".format, inner),
    ),
    max_leaves=4,
)
ORDER = st.sampled_from(["<", "<=", ">", ">=", "==", "!="])
COMPARED = st.one_of(
    st.builds("{} {} {}".format, ARITHMETIC, ORDER, ARITHMETIC),
    st.builds("{} {} {} {} {}".format, ARITHMETIC, ORDER, ARITHMETIC, ORDER, NUMBERS),
)
CONDITIONS = st.recursive(
    COMPARED,
    lambda inner: st.one_of(
        st.builds("({} {} {})".format, inner, st.sampled_from(["and", "or"]), inner),
        st.builds("(not {})".format, inner),
    ),
    max_leaves=4,
)


@given(CONDITIONS)
def test_conditions_mean_what_python_says_row_by_row(where: str) -> None:
    values = (-1.0, 0.0, 2.5, math.nan)
    points = list(itertools.product(values, values, (0.0, 3.0)))
    rows = pd.DataFrame(points, columns=["a", "b", "gene.c"]).assign(trial=range(len(points)))
    source = where
    for shown, plain in NAMES.items():
        source = source.replace(shown, plain)
    expected = [
        number
        for number, (a, b, c) in enumerate(points)
        if eval(source, {"__builtins__": {}}, {"a": a, "b": b, "gene_c": c})
    ]
    assert chosen(where, rows) == expected


# ---------------------------------------------------------------- nothing else is reached
@pytest.mark.parametrize(
    "where",
    [
        "__import__('os').system('true') == 0",
        "accuracy.__class__ == 1",
        "().__class__.__bases__ == 1",
        "print('x') == 1",
        "(lambda: 1)() == 1",
        "[x for x in (1, 2)] == 1",
        "accuracy[0] > 0",
        "{1: 2} == {1: 2}",
        "{1, 2} == {1}",
        "(1, 2) == (1, 2)",
        "f'{accuracy}' == '1'",
        "b'x' == b'x'",
        "1j == 1",
        "... == ...",
        "None == None",
        "accuracy if 1 < 2 else 2",
        "(x := 3) > 2",
        "10 ** 9 ** 9 > 1",
        "1 << 9999999999 > 1",
        "accuracy // 1 > 0",
        "accuracy % 1 > 0",
        "~trial > 1",
        "accuracy in (1, 2)",
        "accuracy is 0.5",
        "accuracy @ accuracy > 1",
        "await accuracy > 1",
        "(yield) > 1",
        "*accuracy",
        "accuracy > 0.5; accuracy < 1",
        "import os",
        "accuracy = 0.5",
        "latency_ms:x < 5",
        "gene.s1.width == 24",
        "",
        "   ",
        "accuracy >",
        "accuracy > 0.5 and",
        "'open",
        "`accuracy > 0.5",
        "state == 'a\\x41'",
        "accuracy > \x00",
        "accuracy > \ud800",
        "accuracy > 1e999",
        "accuracy > " + "9" * 400,
        "accuracy > -" + "9" * 1900,
        "(" * 90 + "1" + ")" * 90 + " < 2 < (" + "(" * 300,
        "-" * 1900 + "1 < 2",
        "not " * 490 + "1 < 2",
        "1 + " * 490 + "1 < 2",
        "accuracy > 0 or " * 200 + "1 < 2",
    ],
)
def test_what_is_no_condition_on_columns_is_refused(where: str) -> None:
    with pytest.raises(ConfigError) as caught:
        select(frame(), where=where)
    assert len(str(caught.value)) < 700


PIECES = st.sampled_from(
    [*"()[]{}.,:;=<>!+-*/%@~^|&#'\"`\\ \n\t", "accuracy", "trial", "state", "and", "or", "not",
     "in", "is", "if", "else", "lambda", "for", "await", "yield", "==", "<=", ":=", "**", "//",
     "1", "0x1f", "1e3", "1j", "'x'", "`gene.s1.width`", "__import__", "__class__", "None", "True",
     "f'{1}'", "b'x'", "\u00e9", "\uff41"]
)  # fmt: skip


@given(st.one_of(st.text(max_size=80), st.lists(PIECES, max_size=20).map("".join)))
def test_whatever_is_written_gives_rows_or_a_sentence(where: str) -> None:
    rows = frame()
    try:
        found = select(rows, where=where)
    except ConfigError:
        return
    assert set(found["trial"]) <= set(rows["trial"])


# ---------------------------------------------------------------- messages
@pytest.mark.parametrize(
    ("where", "message"),
    [
        ("acuracy > 0.5", "unknown column 'acuracy'; did you mean 'accuracy'"),
        ("`gene.s1.widht` == 24", "did you mean 'gene.s1.width'"),
        ("state > 3", "compares text with a number"),
        ("accuracy == 'high'", "compares a number with text"),
        ("accuracy", "needs a condition, but 'accuracy' is a number"),
        ("accuracy and params > 1", "and, or, not are for conditions, .* has a number"),
        ("state + 1 > 2", r"\+ - \* / are for numbers, .* has text"),
        ("(accuracy > 1) == (params > 1)", "compares a condition with a condition"),
        ("latency_ms:cpu < 5", "names with dots, colons or spaces stand in backticks"),
        ("gene.s1.width == 24", "a dot outside backticks.*`gene.s1.width`"),
        ("accuracy = 0.5", "== compares"),
        ("accuracy > 1 or " * 130 + "1 < 2", "at most 2000 characters, but this has 2085"),
        ("state == 'x", "closes what it opens, .* has ' at 10"),
        ("1 + " * 40 + "1 < 2", "at most 32 levels deep"),
    ],
)
def test_a_mistake_is_named_with_the_way_out(where: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        select(frame(), where=where)


def test_a_lone_latency_of_several_targets_is_refused_with_their_names() -> None:
    rows = frame(**{"latency_ms:other": [1.0] * 4})
    with pytest.raises(ConfigError, match=f"latency_ms names several targets; .*{TARGET}, .*other"):
        select(rows, where="latency_ms < 5")
    assert chosen("`latency_ms:other` < 5 and `measured latency_ms` < 2", rows) == [0]


# ---------------------------------------------------------------- order
def test_rows_are_sorted_by_several_columns_with_what_is_missing_last() -> None:
    def order(*keys: str) -> list[int]:
        return [int(number) for number in select(frame(), sort=keys)["trial"]]

    assert order("-accuracy") == [1, 3, 0, 2]
    assert order("accuracy") == [0, 3, 1, 2]
    assert order("params", "-latency_ms") == [3, 0, 2, 1]
    assert order("-params") == [1, 2, 0, 3]  # ties in the order of the trials
    assert order("-`measured latency_ms`") == [3, 0, 1, 2]
    assert order("reason") == [2, 0, 1, 3]
    assert order("-created_at") == [3, 2, 1, 0]
    assert order("gene.kernels", "-gene.s1.width") == [3, 0, 2, 1]
    with pytest.raises(ConfigError, match="did you mean 'accuracy'"):
        order("-acuracy")


def test_the_limit_is_applied_after_the_order() -> None:
    assert list(select(frame(), where="params < 3e6", sort=["-latency_ms"], limit=1)["trial"]) == [
        3
    ]
    assert len(select(frame(), limit=9)) == 4


def test_a_study_without_rows_can_be_asked_too() -> None:
    study = Study.in_memory()
    study.declare({"genes": {"a": (1, 2)}, "metrics": ["latency_ms"], "budgets": {}})
    for where in ("latency_ms < 5 and `gene.a` != 1", "`gene.a` == 'text'", "`gene.a` == `gene.a`"):
        assert len(select(study.to_frame(), where=where, sort=["gene.a"])) == 0


def test_a_column_without_values_meets_numbers_and_text_alike() -> None:
    rows = frame(**{"gene.off": pd.Series([None] * 4, dtype=object)})
    assert chosen("`gene.off` == 1 or `gene.off` == 'x' or -`gene.off` > 1", rows) == []
    assert chosen("`gene.off` != 1 and `gene.off` == ''", rows) == [0, 1, 2, 3]


def test_the_frame_is_left_as_it_was() -> None:
    rows = frame()
    select(rows, where="accuracy > 0.5", sort=["-accuracy"], limit=1)
    pd.testing.assert_frame_equal(rows, frame())
    assert np.isnan(rows["accuracy"][2])

"""Numbers are shown with three digits, whatever their size."""

import pytest

from nas.report import numbers


@pytest.mark.parametrize(
    ("value", "text"),
    [(0.2144, "0.214 ms"), (9.996, "10.0 ms"), (14.26, "14.3 ms"), (99.96, "100 ms"),
     (1430.2, "1430 ms"), (0.00012345, "0.000123 ms"), (-0.1, "-0.100 ms"), (0, "0 ms")],
)  # fmt: skip
def test_milliseconds(value: float, text: str) -> None:
    assert numbers.ms(value) == text


@pytest.mark.parametrize(
    ("value", "text"),
    [(812, "812"), (999_600, "1.00 M"), (82_520, "82.5 k"), (4_000_000_000, "4.00 G")],
)
def test_counts(value: int, text: str) -> None:
    assert numbers.count(value) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.00844, "0.84 %"), (0.986, "98.6 %"), (1, "100.0 %"), (1.134, "113 %"), (0, "0.00 %")],
)
def test_shares(share: float, text: str) -> None:
    assert numbers.percent(share) == text

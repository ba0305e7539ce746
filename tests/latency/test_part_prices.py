from dataclasses import replace

import numpy as np
import pytest

from nas.errors import ConfigError
from nas.latency.calibration import Calibration
from nas.latency.part_prices import PartPrices
from nas.latency.table import Entry, LatencyTable
from nas.space import SearchSpace
from nas.target import Target

FAR = {"far_ms_per_mb": 0.9, "far_knee_mb": 0.8}


def table_of(
    space: SearchSpace, *, cold: bool = True, far: dict[str, float] | None = None
) -> LatencyTable:
    entries = {}
    for part in {part for block in space.every_block() for part in block.parts()}:
        ms = 0.01 + part.macs / 1e7
        entries[str(part)] = Entry(
            ms=ms, isolated_ms=ms, p10=ms, p90=ms, clean=3, taken=3, grade="A", by="x",
            cold_ms=2 * ms if cold else None,
        )  # fmt: skip
    rates = {"constant": 0.1, "scale": 1.1, "scale_mlp": 0.8, "cold": 0.4, "ms_per_mb": 0.7}
    fit = Calibration(
        form="parts",
        coefficients={**rates, "knee_mb": 0.5, **(far or {})},
        fitted_on={"x": 1.0},
        held_out={"mean": 0.01},
    )
    return LatencyTable(
        target=Target.parse("onnxruntime"),
        entries=entries,
        calibrations={f"{space.name}@{space.image_size}": fit},
    )


@pytest.mark.parametrize("far", [{}, FAR])
def test_sums_of_terms_make_the_tables_own_price_and_slopes_are_its_derivatives(
    far: dict[str, float],
) -> None:
    space = SearchSpace.load("tiny")
    table = table_of(space, far=far)
    prices = PartPrices(table, space)
    rng = np.random.default_rng(0)
    for level in np.linspace(0, 1, 7):
        blocks = space.blocks(space.sample(rng, float(level)))
        terms = np.sum([prices.terms(part) for b in blocks for part in b.parts()], axis=0)
        assert terms == pytest.approx(np.sum([prices.terms(b) for b in blocks], axis=0))
        assert prices.total_ms(terms) == pytest.approx(table.estimate(blocks, space), rel=1e-12)
        slopes = prices.slopes(terms)
        for place in range(3):
            step = np.zeros(3)
            step[place] = 1e-6
            change = (prices.total_ms(terms + step) - prices.total_ms(terms - step)) / 2e-6
            assert slopes[place] == pytest.approx(float(change), rel=1e-5, abs=1e-8)
    assert not prices.is_sum


def test_without_a_calibration_a_price_is_a_sum() -> None:
    space = SearchSpace.load("tiny")
    prices = PartPrices(replace(table_of(space), calibrations={}), space)
    blocks = space.blocks(space.largest())
    total = prices.total_ms(np.sum([prices.terms(block) for block in blocks], axis=0))
    assert prices.is_sum and prices.slopes(np.zeros(3)).tolist() == [1, 0, 0]
    assert total == pytest.approx(prices.table.estimate(blocks))


def test_a_table_without_cold_times_is_refused_where_they_count() -> None:
    space = SearchSpace.load("tiny")
    prices = PartPrices(table_of(space, cold=False), space)
    with pytest.raises(ConfigError, match="cold caches"):
        prices.terms(space.blocks(space.largest())[1])

"""The staircase is found where there is one, and only there."""

import math

import numpy as np
import pytest

from nas.latency.device_study.advice import width_advice
from nas.latency.device_study.catalogue import WIDTHS
from nas.latency.device_study.stairs import best_step, steps_of


def smooth_ms(channels: float) -> float:
    return 0.01 + 1e-3 * channels + 3e-5 * channels**2


def stair_ms(channels: int, step: int) -> float:
    return smooth_ms(math.ceil(channels / step) * step)


def found(step: int, *, noise: float = 0.005, jitter: float = 0.0) -> int:
    generator = np.random.default_rng(3)
    times = {c: stair_ms(c, step) * (1 + jitter * generator.standard_normal()) for c in WIDTHS}
    return best_step(steps_of(times, dict.fromkeys(WIDTHS, noise), side=14))


@pytest.mark.parametrize("step", [1, 4, 8, 16, 32])
@pytest.mark.parametrize("jitter", [0.0, 0.005])
def test_the_width_of_the_stairs_is_found(step: int, jitter: float) -> None:
    assert found(step, jitter=jitter) == step


def test_stairs_are_not_seen_in_noise_as_large_as_they_are() -> None:
    assert found(16, noise=0.2) == 1


def test_widths_that_are_slower_than_the_next_multiple_count_as_stairs_too() -> None:
    times = {c: smooth_ms(c) * (1.0 if c % 8 == 0 else 1.4) for c in WIDTHS}
    steps = steps_of(times, dict.fromkeys(WIDTHS, 0.005), side=28)
    (eight,) = [step for step in steps if step.multiple == 8]
    assert best_step(steps) == 8
    assert eight.saved < 0 and eight.cost == pytest.approx(1.4, rel=0.03)


def test_times_that_do_not_rise_give_no_steps_rather_than_nonsense() -> None:
    assert steps_of(dict.fromkeys(WIDTHS, 1.0), dict.fromkeys(WIDTHS, 0.0), side=14) == ()
    assert steps_of({8: 1.0, 16: 2.0}, {8: 0.01, 16: 0.01}, side=14) == ()


def test_the_advice_names_the_step_its_cost_and_the_side() -> None:
    noise = dict.fromkeys(WIDTHS, 0.005)
    steps = (
        *steps_of({c: stair_ms(c, 16) for c in WIDTHS}, noise, side=14),
        *steps_of({c: stair_ms(c, 1) for c in WIDTHS}, noise, side=28),
    )
    chosen, lines = width_advice(steps, [])
    assert chosen == 16
    assert lines[0].startswith("Use a width step of 16")
    assert "At side 14 multiples of 16 pay" in lines[1] and " x the straight line" in lines[1]
    assert "At side 28 no staircase was found" in lines[2]


def test_a_finer_multiple_that_is_dearer_to_miss_is_named_too() -> None:
    times = {c: stair_ms(c, 16) * (1.0 if c % 4 == 0 else 3.0) for c in WIDTHS}
    chosen, lines = width_advice(steps_of(times, dict.fromkeys(WIDTHS, 0.005), side=14), [])
    assert chosen == 16
    assert "avoid above all widths that are no multiple of 4" in lines[-1]


def test_no_step_is_advised_where_the_widths_were_too_noisy() -> None:
    chosen, lines = width_advice((), [14, 28])
    assert chosen is None
    assert all("too noisy" in line and "step" not in line for line in lines)

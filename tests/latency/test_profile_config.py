from typing import Any

import pytest

from nas.errors import ConfigError
from nas.latency.profile_config import ProfileConfig


@pytest.mark.parametrize(
    "wrong",
    [
        {"samples": 2},
        {"copies": 1},
        {"batch": 0},
        {"sample_ms": 0.0},
        {"timeout_s": float("nan")},
        {"spread_s": 400.0},
        {"calibrate_on": -1},
    ],
)
def test_settings_that_make_no_sense_are_refused_by_name(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        ProfileConfig(**wrong)


def test_a_winner_is_timed_in_more_processes_with_samples_from_each() -> None:
    usual = ProfileConfig(samples=12, processes=3)
    careful = usual.for_winners()
    assert (careful.processes, careful.samples) == (8, 32)
    assert careful.for_winners() == careful
    more = ProfileConfig(samples=90, processes=10).for_winners()
    assert (more.processes, more.samples) == (10, 90)
    assert ProfileConfig(samples=5, processes=1, winner_processes=1).for_winners().processes == 1

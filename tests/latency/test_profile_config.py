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

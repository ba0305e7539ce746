"""Calibrations in tables of older schemas, as those of today."""

import logging
from pathlib import Path
from typing import Any

from nas.latency.calibration import KNEE_MB, calibration_name
from nas.space import SearchSpace

logger = logging.getLogger(__name__)


def without_knees(calibrations: dict[str, Any], path: Path | str) -> dict[str, Any]:
    """Return the calibrations of a table of schema 1 that mean the same today."""
    kept = {
        name: value
        for name, value in calibrations.items()
        if not (isinstance(value, dict) and KNEE_MB in value.get("coefficients", {}))
    }
    for name in sorted(calibrations.keys() - kept.keys()):
        logger.warning(
            "%s: the calibration of %s is of an older form; `nas profile --space %s` measures the "
            "networks of a new one, and no entry again",
            path,
            name,
            name,
        )
    return kept


def with_sizes(calibrations: dict[str, Any]) -> dict[str, Any]:
    """Return calibrations of before schema 3 by space and image size, that of a shipped space.

    A space of the user's own keeps its name alone, and is known by the largest network.
    """
    shipped = {name: SearchSpace.load(name) for name in SearchSpace.names() if name in calibrations}
    sized = {name: calibration_name(name, space.image_size) for name, space in shipped.items()}
    return {sized.get(name, name): value for name, value in calibrations.items()}

"""The last correction: from sums of entries to whole networks of one space, with its honesty."""

from collections.abc import Callable, Sequence

import numpy as np

from nas.errors import NasError
from nas.latency.table import AFFINE, Calibration, Costs
from nas.seeds import stage_seed
from nas.space import Architecture, SearchSpace

MIN_FOR_LINE = 4
MAX_DRAWS = 20

Form = Callable[[Costs, Costs], tuple[float, float]]


def draw(
    space: SearchSpace, count: int, *, seed: int, avoid: Sequence[str] = ()
) -> list[Architecture]:
    """Return up to `count` distinct architectures, evenly spread over the space's levels of cost.

    Args:
        space: Where from.
        count: How many; a space with fewer gives what it has.
        seed: Fixes the choice.
        avoid: Ids of architectures that must not be among them.
    """
    rng = np.random.default_rng(stage_seed(seed, "networks"))
    found: dict[str, Architecture] = {}
    for _ in range(MAX_DRAWS):  # of all levels, because a level may hold few architectures
        for level in (np.arange(count) + rng.random(count)) / count:
            architecture = space.sample(rng, level=float(level))
            if architecture.id not in avoid and len(found) < count:
                found.setdefault(architecture.id, architecture)
    return list(found.values())


def fit(sums_ms: Costs, measured_ms: Costs, ids: Sequence[str]) -> Calibration:
    """Return the calibration whose held-out error is lowest: nothing, a scale, or a line.

    Args:
        sums_ms: Sums of entries of whole networks, shape (networks,).
        measured_ms: Their measured medians, shape (networks,).
        ids: Their architectures' ids.

    Raises:
        NasError: there are no networks.
    """
    if len(ids) == 0:
        raise NasError("a calibration needs at least one measured network.")
    forms: list[Form] = [_identity, _scale]
    if len(ids) >= MIN_FOR_LINE:
        forms.append(_line)
    errors = [_held_out(form, sums_ms, measured_ms) for form in forms]
    best = int(np.argmin([error.mean() for error in errors]))
    constant, scale = forms[best](sums_ms, measured_ms)
    return Calibration(
        form=AFFINE,
        coefficients={"constant": constant, "scale": scale},
        fitted_on=dict(zip(ids, measured_ms.tolist(), strict=True)),
        held_out={
            "mean": float(errors[best].mean()),
            "worst": float(errors[best].max()),
            "mean_of_sum": float(errors[0].mean()),
            "worst_of_sum": float(errors[0].max()),
        },
    )


def _identity(sums_ms: Costs, measured_ms: Costs) -> tuple[float, float]:
    return 0.0, 1.0


def _scale(sums_ms: Costs, measured_ms: Costs) -> tuple[float, float]:
    return 0.0, float(np.median(measured_ms / sums_ms)) if len(sums_ms) else 1.0


def relative_line(values: Costs, measured_ms: Costs) -> tuple[float, float]:
    """Return (constant, scale) of the line of least relative squares through measured times."""
    rows = np.stack([1 / measured_ms, values / measured_ms], axis=1)
    constant, scale = np.linalg.lstsq(rows, np.ones(len(rows)), rcond=None)[0]
    return float(constant), float(scale)


def _line(sums_ms: Costs, measured_ms: Costs) -> tuple[float, float]:
    """Return the relative line, or a scale alone where the line falls or starts below zero."""
    constant, scale = relative_line(sums_ms, measured_ms)
    if scale <= 0 or constant + scale * sums_ms.min() <= 0:
        return _scale(sums_ms, measured_ms)
    return constant, scale


def _held_out(form: Form, sums_ms: Costs, measured_ms: Costs) -> Costs:
    """Return the relative error of each network under a fit on all others."""
    errors = np.empty(len(sums_ms))
    for index in range(len(sums_ms)):
        others = np.arange(len(sums_ms)) != index
        constant, scale = form(sums_ms[others], measured_ms[others])
        predicted = constant + scale * sums_ms[index]
        errors[index] = abs(predicted - measured_ms[index]) / measured_ms[index]
    return errors

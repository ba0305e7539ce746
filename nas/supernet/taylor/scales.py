"""Scales: from sums of importance to changes of the loss, fitted on measured allocations."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nas.errors import ConfigError
from nas.supernet.agreement import spearman
from nas.supernet.taylor.tables import InnerDim, InnerNumbers

Numbers = npt.NDArray[np.float64]
FOLDS = 5


@dataclass(frozen=True, slots=True, kw_only=True)
class Scales:
    """What a unit of importance costs in nats of loss, for each kind of part.

    Attributes:
        by_kind: Kind of part and dimension -> scale, at least 0.
        r2: Share of the variance of the measured losses that is explained, in five folds each
            held out of the fit that predicts it; below 0 is worse than their mean.
        r2_fitted: The same of the losses that were fitted.
        spearman: Rank correlation of measured and predicted losses, held out in the same way; 0
            where all of either are equal, as of a supernet that has learnt nothing.
    """

    by_kind: Mapping[str, float]
    r2: float
    r2_fitted: float
    spearman: float

    def costs(self, dim: InnerDim) -> Numbers:
        """Return the predicted increase of the loss in nats for each option of a dimension."""
        return self.by_kind[dim.kind] * dim.lost

    def predict(self, dims: Sequence[InnerDim], numbers: InnerNumbers) -> float:
        """Return the predicted increase of the loss of a path with these numbers, in nats."""
        return sum(float(self.costs(dim)[dim.options.index(numbers[dim.name])]) for dim in dims)


def fit_scales(
    dims: Sequence[InnerDim],
    allocations: Sequence[InnerNumbers],
    increases: Sequence[float],
    *,
    pull: float = 0.2,
) -> Scales:
    """Fit a scale for each kind of part to measured increases of the loss of one path.

    Args:
        dims: Those of the path, from `taylor.inner_dims`.
        allocations: At least 10; each names every dimension.
        increases: Loss of each less that of the path's `widest`, in nats; both with statistics
            fitted to them.
        pull: As in `fit_lost`.

    Raises:
        ConfigError: too few allocations, not one increase each, one that is not a number, or an
            option that is not on offer.
    """
    rows = []
    for numbers in allocations:
        row = {dim.kind: 0.0 for dim in dims}
        for dim in dims:
            row[dim.kind] += _lost(dim, numbers)
        rows.append(row)
    return fit_lost(rows, increases, pull=pull)


def fit_lost(
    lost: Sequence[Mapping[str, float]], increases: Sequence[float], *, pull: float = 0.2
) -> Scales:
    """Fit a scale for each kind of part to measured increases of the loss of any networks.

    Increase = sum over kinds of scale(kind) * lost(kind), by non-negative least squares, since
    dropping channels is not expected to help. Raw sums are not comparable between kinds, but a
    kind that costs little cannot be told from noise either, and least squares alone would give it
    for nothing: scales are pulled towards one scale for all kinds. (Roots of what is lost, a
    change of the loss instead of its square, predict worse: LOG.md, 2026-11-22.)

    Args:
        lost: Of each network the importance that it drops, by kind; at least 10 networks. A kind
            that is absent drops nothing.
        increases: Loss of each less that of the network that drops nothing, in nats.
        pull: Strength of the pull: a kind as far from the common scale as that scale is from 0
            counts like an error of this share of all that was measured. 0 is none.

    Raises:
        ConfigError: too few networks, not one increase each, or one that is not a number.
    """
    measured = np.asarray(increases, dtype=np.float64)
    if len(lost) < 2 * FOLDS or len(measured) != len(lost):
        raise ConfigError(
            f"fit_scales takes at least {2 * FOLDS} allocations and an increase for each, but got "
            f"{len(lost)} and {len(measured)}."
        )
    if not np.isfinite(measured).all():
        raise ConfigError("increases must be numbers, but one is NaN or infinite.")
    kinds = sorted({kind for row in lost for kind in row})
    features = np.array([[row.get(kind, 0.0) for kind in kinds] for row in lost])
    held_out = np.empty_like(measured)
    for fold in range(FOLDS):
        out = np.arange(len(measured)) % FOLDS == fold
        held_out[out] = features[out] @ _fit(features[~out], measured[~out], pull)
    scales = _fit(features, measured, pull)
    return Scales(
        by_kind=dict(zip(kinds, scales.tolist(), strict=True)),
        r2=_r2(measured, held_out),
        r2_fitted=_r2(measured, features @ scales),
        spearman=spearman(measured, held_out) or 0.0,
    )


def _lost(dim: InnerDim, numbers: InnerNumbers) -> float:
    number = numbers.get(dim.name)
    if number not in dim.options:
        raise ConfigError(
            f"{dim.name} must be one of {', '.join(map(str, dim.options))}, but an allocation "
            f"gives {number}."
        )
    return dim.at(number)


def _fit(features: Numbers, measured: Numbers, pull: float) -> Numbers:
    """Return one scale a column, at least 0, by columns of length 1 and a row for each pull."""
    from scipy.optimize import nnls

    lengths = np.linalg.norm(features, axis=0)
    lengths[lengths == 0] = 1.0
    total = features.sum(1)
    rows, wanted = features / lengths, measured
    if pull and float(total @ measured) > 0:
        common = float(total @ measured) / float(total @ total)
        strength = pull * float(np.linalg.norm(measured))
        rows = np.vstack([rows, np.diag(strength / (common * lengths))])
        wanted = np.concatenate([measured, np.full(len(lengths), strength)])
    scales: Numbers = nnls(rows, wanted)[0] / lengths
    return scales


def _r2(measured: Numbers, predicted: Numbers) -> float:
    spread = float(((measured - measured.mean()) ** 2).sum())
    return 1.0 - float(((measured - predicted) ** 2).sum()) / spread if spread else 0.0

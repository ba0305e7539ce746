"""How well a number known in advance ranks networks by what they reach trained alone.

Rank correlations with their bootstrap intervals, what is left of them once MACs are known, order
inside bands of equal MACs, what choosing by the number costs, and how much the noise of the
trainings leaves to be had.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from nas.errors import ConfigError

Numbers = npt.NDArray[np.float64]
REGRETS = (1, 3, 5)
CEILING_DRAWS = 2000
SEED = 0  # of resampling: the same networks give the same intervals


@dataclass(frozen=True, slots=True, kw_only=True)
class Interval:
    """A number with the 2.5 % and 97.5 % points of its bootstrap."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Agreement:
    """How one predictor ranks networks.

    Attributes:
        predictor: Its name.
        tau: Kendall's tau-b with the true accuracy; None where all predictions, or all
            accuracies, are equal.
        spearman: Spearman's rank correlation.
        tau_given_macs: Kendall's partial tau with MACs held fixed (Kendall, Biometrika 32, 1942);
            None for MACs themselves and what ranks exactly like them.
        in_band: Share of the pairs in one band of MACs, and of different accuracy, that are in the
            right order; equal predictions count half. 0.5 is chance.
        regret: "1", "3", "5": how much better in accuracy (0 to 1) the best network is than the
            best among so many that are predicted best.
    """

    predictor: str
    tau: Interval | None
    spearman: Interval | None
    tau_given_macs: float | None
    in_band: float | None
    regret: Mapping[str, float]


@dataclass(frozen=True, slots=True, kw_only=True)
class Ceiling:
    """What the noise of the trainings leaves to be had.

    Attributes:
        networks: How many were trained twice.
        noise: Standard deviation of one training's accuracy, from the differences of the pairs.
        tau: Mean tau of the networks' accuracies without noise with those that were measured, were
            the measured ones the truth shrunk to the variance that noise leaves: what a perfect
            predictor would show.
        retest_tau: Tau between the first and the second trainings of those trained twice.
    """

    networks: int
    noise: float
    tau: float | None
    retest_tau: float | None


def agreement(
    predictor: str,
    predicted: Sequence[float],
    accuracies: Sequence[float],
    *,
    macs: Sequence[float],
    bands: Sequence[int],
    resamples: int = 2000,
) -> Agreement:
    """Compare a predictor with the accuracies of networks trained alone.

    Args:
        predictor: Its name.
        predicted: A number a network: the higher, the better it is expected to be.
        accuracies: What each network reached, 0 to 1.
        macs: Of each network.
        bands: The number of the band of MACs each network is in.
        resamples: Of the bootstrap over networks.

    Raises:
        ConfigError: fewer than three networks, not as many of each, or a number that is none.
    """
    columns = [np.asarray(each, dtype=np.float64) for each in (predicted, accuracies, macs)]
    _check(predictor, columns, len(bands))
    x, y, size = columns
    rng = np.random.default_rng(SEED)
    draws = rng.integers(0, len(x), size=(resamples, len(x)))
    order_x, order_y = signs(x), signs(y)
    taus = [_tau(order_x[np.ix_(d, d)], order_y[np.ix_(d, d)]) for d in draws]
    ranks = [spearman(x[d], y[d]) for d in draws]
    band = np.asarray(bands)
    return Agreement(
        predictor=predictor,
        tau=_interval(kendall(x, y), taus),
        spearman=_interval(spearman(x, y), ranks),
        tau_given_macs=partial_kendall(x, y, size),
        in_band=concordance(order_x, order_y, band[:, None] == band[None, :]),
        regret={str(k): regret(x, y, k) for k in REGRETS},
    )


def _check(predictor: str, columns: Sequence[Numbers], bands: int) -> None:
    lengths = {len(column) for column in columns} | {bands}
    if len(lengths) > 1 or min(lengths) < 3:
        raise ConfigError(
            "agreement takes at least 3 networks and one prediction, accuracy, number of MACs and "
            f"band for each, but got {sorted(lengths)} of them for {predictor}."
        )
    if not all(np.isfinite(column).all() for column in columns):
        raise ConfigError(
            f"predictions of {predictor} must be numbers, but one is NaN or infinite."
        )


def _interval(value: float | None, resampled: Sequence[float | None]) -> Interval | None:
    found = [each for each in resampled if each is not None]
    if value is None or not found:
        return None
    low, high = np.quantile(found, (0.025, 0.975))
    return Interval(value=value, low=float(low), high=float(high))


# ---------------------------------------------------------------- correlations
def signs(x: Numbers) -> Numbers:
    """Return the order of each pair, -1, 0 or 1, of shape (n, n)."""
    ordered: Numbers = np.sign(x[:, None] - x[None, :])
    return ordered


def kendall(x: Numbers, y: Numbers) -> float | None:
    """Return Kendall's tau-b; None where all of x or all of y is equal."""
    return _tau(signs(x), signs(y))


def _tau(x: Numbers, y: Numbers) -> float | None:
    scale = float(np.sqrt((x * x).sum() * (y * y).sum()))
    return float((x * y).sum()) / scale if scale else None


def spearman(x: Numbers, y: Numbers) -> float | None:
    """Return Spearman's rank correlation; None where all of x or all of y is equal."""
    from scipy.stats import rankdata  # half a second to import, for every command

    ranks = [rankdata(each) for each in (x, y)]
    centred = [each - each.mean() for each in ranks]
    scale = float(np.sqrt((centred[0] ** 2).sum() * (centred[1] ** 2).sum()))
    return float(centred[0] @ centred[1]) / scale if scale else None


def partial_kendall(x: Numbers, y: Numbers, given: Numbers) -> float | None:
    """Return the partial tau of x and y with a third number held fixed.

    (tau_xy - tau_xz tau_yz) / sqrt((1 - tau_xz^2) (1 - tau_yz^2)); None where it is not defined.
    """
    taus = kendall(x, y), kendall(x, given), kendall(y, given)
    if taus[0] is None or taus[1] is None or taus[2] is None:
        return None
    rest = (1 - taus[1] ** 2) * (1 - taus[2] ** 2)
    return (taus[0] - taus[1] * taus[2]) / float(np.sqrt(rest)) if rest > 1e-12 else None


def concordance(x: Numbers, y: Numbers, is_counted: npt.NDArray[np.bool_]) -> float | None:
    """Return the share of pairs in the same order; None where no pair counts.

    Args:
        x: Order of the predictions, from `signs`; equal ones count half.
        y: Order of the accuracies; pairs of equal ones do not count.
        is_counted: Which pairs to look at, of the same shape.
    """
    pairs = is_counted & (y != 0)
    return float(((x * y)[pairs] + 1).mean() / 2) if pairs.any() else None


def regret(predicted: Numbers, accuracies: Numbers, first: int) -> float:
    """Return the best accuracy less the best among the `first` that are predicted best.

    Of networks with equal predictions the worse one counts first.
    """
    order = np.lexsort((accuracies, -predicted))
    return float(accuracies.max() - accuracies[order[:first]].max())


# ---------------------------------------------------------------- the ceiling
def ceiling(trainings: Sequence[Sequence[float]]) -> Ceiling | None:
    """Return what the noise of the trainings leaves to be had; None if none was repeated.

    Args:
        trainings: For each network the accuracies of its one or two trainings, 0 to 1.
    """
    pairs = np.array([each[:2] for each in trainings if len(each) > 1], dtype=np.float64)
    if not len(pairs):
        return None
    variance = float(((pairs[:, 0] - pairs[:, 1]) ** 2).mean() / 2)
    measured = np.array([float(np.mean(each)) for each in trainings])
    counts = np.array([len(each) for each in trainings])
    spread = float(measured.var())
    kept = max(0.0, 1 - float((variance / counts).mean()) / spread) if spread else 0.0
    truth = measured.mean() + np.sqrt(kept) * (measured - measured.mean())
    rng = np.random.default_rng(SEED)
    noise = rng.normal(size=(CEILING_DRAWS, len(truth))) * np.sqrt(variance / counts)
    order = signs(truth)
    taus = [_tau(order, signs(truth + each)) for each in noise]
    found = [each for each in taus if each is not None]
    return Ceiling(
        networks=len(pairs),
        noise=float(np.sqrt(variance)),
        tau=float(np.mean(found)) if found else None,
        retest_tau=kendall(pairs[:, 0], pairs[:, 1]),
    )

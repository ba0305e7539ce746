"""Forms of a fit from sums of entries to whole networks, and which of them errs least.

A sum of entries is too low where a network does not stay in the processor's own caches from one
run to the next: parts timed in chains of themselves find what they need there. So the richest form
has, beside a constant and a scale for each kind of part, what parts cost with cold caches, or a
price for each megabyte of weights, from a size on ("knee") that is found from the networks as well;
and where networks are large enough a second knee, from which weights come from memory and not from
the cache that cores share.
Many networks also say which entries are off: an entry read off a small difference of noisy times is
some per cent wrong, and every network it is in has that error. Entries are then given factors, held
near 1 as ridge regression holds them.
What form a space gets is decided by its error on networks held out.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from nas.errors import NasError
from nas.latency.calibration import (
    AFFINE,
    COLD,
    FAR_KNEE_MB,
    FAR_MS_PER_MB,
    KNEE_MB,
    MS_PER_MB,
    PARTS,
    Calibration,
    Costs,
    cold_share,
    kind_of,
)

MIN_FOR_LINE, MIN_FOR_KNEE, MIN_FOR_KINDS, MIN_FOR_ENTRIES = 4, 12, 24, 40
FOLDS = 8
KNEES = np.geomspace(1 / 16, 4.0, 13)  # by the median network's footprint
FAR_KNEES = np.geomspace(0.25, 1.25, 8)  # by the largest network's
FAR_GAIN = 0.95  # of the error held out: a second knee must bring it as low
STRENGTHS = (1e-3, 1e-2, 1e-1)  # of holding the kinds' scales together
FIRMNESS = (0.04, 0.25)  # of holding entries: (a network's noise / an entry's error) squared
LOOSE = 1e-6  # of holding everything else to a plain sum

Coefficients = dict[str, float]
Rows = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Networks:
    """Whole networks, arrays of shape (networks,) but for `entry_ms`: (networks, entries).

    Sums of what each entry of `entries` costs, of what cold caches add to them (None: not known),
    of megabytes of weights and of `footprint_mb`; and measured ms.
    """

    entries: tuple[str, ...]
    entry_ms: Costs
    cold_ms: Costs | None
    megabytes: Costs
    footprint: Costs
    measured_ms: Costs

    def __len__(self) -> int:
        return len(self.measured_ms)

    def some(self, rows: Rows) -> "Networks":
        """Return those of a mask."""
        return Networks(
            self.entries,
            self.entry_ms[rows],
            None if self.cold_ms is None else self.cold_ms[rows],
            self.megabytes[rows],
            self.footprint[rows],
            self.measured_ms[rows],
        )

    @property
    def total_ms(self) -> Costs:
        """The plain sums, shape (networks,)."""
        total: Costs = self.entry_ms.sum(axis=1)
        return total

    @property
    def kind_ms(self) -> dict[str, Costs]:
        """The plain sums by kind of part, each of shape (networks,)."""
        kinds = np.array(list(map(kind_of, self.entries)))
        return {str(kind): self.entry_ms[:, kinds == kind].sum(axis=1) for kind in np.unique(kinds)}


@dataclass(frozen=True, slots=True)
class Found:
    """What a fit finds; see Calibration."""

    coefficients: Coefficients
    factors: Coefficients


Solve = Callable[[Networks], Found | None]


def fit(networks: Networks, ids: Sequence[str]) -> Calibration:
    """Return the calibration whose error on networks held out is lowest.

    Args:
        networks: What to fit on.
        ids: Their architectures' ids.

    Raises:
        NasError: there are no networks.
    """
    if not ids:
        raise NasError("a calibration needs at least one measured network.")
    found = _best(networks)
    errors = _held_out(_best, networks)
    of_sum = _errors(_identity(networks), networks)
    return replace(
        _calibration(found),
        fitted_on=dict(zip(ids, networks.measured_ms.tolist(), strict=True)),
        held_out={
            "mean": float(errors.mean()),
            "worst": float(errors.max()),
            "mean_of_sum": float(of_sum.mean()),
            "worst_of_sum": float(of_sum.max()),
        },
    )


def plain() -> Calibration:
    """Return the calibration that leaves sums as they are."""
    return _calibration(_identity())


def predict(found: Found, networks: Networks) -> Costs:
    """Return what a fit makes of sums of entries, ms.

    Raises:
        ValueError: it makes no calibration.
    """
    fit = _calibration(found)
    scaled_ms = networks.entry_ms @ np.array([fit.scale(entry) for entry in networks.entries])
    cold_ms = np.zeros(len(networks)) if networks.cold_ms is None else networks.cold_ms
    return fit.total(scaled_ms, fit.extra_ms(cold_ms, networks.megabytes), networks.footprint)


def _calibration(found: Found) -> Calibration:
    """Return the calibration of a fit alone."""
    is_plain = set(found.coefficients) == {"constant", "scale"} and not found.factors
    return Calibration(
        form=AFFINE if is_plain else PARTS,
        coefficients=found.coefficients,
        factors=found.factors,
        fitted_on={},
        held_out={},
    )


def relative_line(values: Costs, measured_ms: Costs) -> tuple[float, float]:
    """Return (constant, scale) of the line of least relative squares through measured times."""
    rows = np.stack([1 / measured_ms, values / measured_ms], axis=1)
    constant, scale = np.linalg.lstsq(rows, np.ones(len(rows)), rcond=None)[0]
    return float(constant), float(scale)


# ---------------------------------------------------------------- choosing a form
def _best(networks: Networks) -> Found:
    """Return the fit of the form that errs least on networks held out."""
    if len(networks) < 2:
        return _scale(networks)
    ways = _ways(networks)
    errors = [_mean_error(way, networks) for way in ways]
    if len(networks) >= MIN_FOR_KNEE:
        far = _far_ways(ways[int(np.argmin(errors))], networks)
        far_errors = [_mean_error(way, networks) for way in far]
        if min(far_errors) <= FAR_GAIN * min(errors):
            ways, errors = ways + far, errors + far_errors
    if len(networks) >= MIN_FOR_ENTRIES:
        first = ways[int(np.argmin(errors))]
        base = first if isinstance(first, partial) else partial(_solved)
        finer = [partial(base, firmness=firmness) for firmness in FIRMNESS]
        errors += [_mean_error(way, networks) for way in finer]
        ways += finer
    order: list[int] = np.argsort(errors, kind="stable").tolist()
    for place in order:
        found = ways[place](networks)
        if found is not None:
            return found
    raise AssertionError("a plain sum is always possible")


def _mean_error(way: Solve, networks: Networks) -> float:
    return float(_held_out(way, networks).mean())


def _far_ways(first: Solve, networks: Networks) -> list[Solve]:
    """Return the forms with two knees; scales are held as in the best form with one or none."""
    strength = first.keywords.get("strength") if isinstance(first, partial) else None
    adds = (COLD,) if networks.cold_ms is not None else (MS_PER_MB,)
    return [
        partial(
            _solved, knee_mb=float(near), far_knee_mb=float(far), adds=adds, strength=strength
        )
        for near in np.median(networks.footprint) * KNEES
        for far in networks.footprint.max() * FAR_KNEES
        if far > 2 * near
    ]  # fmt: skip


def _ways(networks: Networks) -> list[Solve]:
    """Return every form that so many networks can carry, the simplest first."""
    count = len(networks)
    ways: list[Solve] = [_identity, _scale]
    if count >= MIN_FOR_LINE:
        ways.append(_solved)
    knees = np.median(networks.footprint) * KNEES if count >= MIN_FOR_KNEE else ()
    adds: list[tuple[str, ...]] = [(MS_PER_MB,)]
    if networks.cold_ms is not None:
        adds += [(COLD,), (COLD, MS_PER_MB)]
    for strength in (None, *STRENGTHS) if count >= MIN_FOR_KINDS else (None,):
        if strength is not None:
            ways.append(partial(_solved, strength=strength))
        for knee in knees:
            ways += [
                partial(_solved, knee_mb=float(knee), adds=names, strength=strength)
                for names in adds
            ]
    return ways


def _identity(networks: Networks | None = None) -> Found:
    return Found({"constant": 0.0, "scale": 1.0}, {})


def _scale(networks: Networks) -> Found:
    scale = float(np.median(networks.measured_ms / networks.total_ms)) if len(networks) else 1.0
    return Found({"constant": 0.0, "scale": scale}, {})


def _solved(
    networks: Networks,
    *,
    knee_mb: float | None = None,
    adds: Sequence[str] = (),
    far_knee_mb: float | None = None,
    strength: float | None = None,
    firmness: float | None = None,
) -> Found | None:
    """Return the fit of least relative squares, None where it makes no sense.

    Args:
        networks: What to fit.
        knee_mb: From what footprint on caches are cold; None leaves them out.
        adds: What that costs: COLD, MS_PER_MB, or both.
        far_knee_mb: From what footprint on the shared cache is cold too; None leaves that out.
        strength: How firmly the kinds' scales are held together; None gives all kinds one.
        firmness: How firmly entries are held to their kinds; None gives them no factors.
    """
    columns = {"constant": np.ones(len(networks)), "scale": networks.total_ms}
    if strength is not None:
        columns |= {f"scale_{kind}": sums for kind, sums in networks.kind_ms.items()}
    if knee_mb is not None:
        share = cold_share(networks.footprint, knee_mb)
        costs = {COLD: networks.cold_ms, MS_PER_MB: networks.megabytes}
        columns |= {name: share * cost for name in adds if (cost := costs[name]) is not None}
    if far_knee_mb is not None:
        far = cold_share(networks.footprint, far_knee_mb)
        columns[FAR_MS_PER_MB] = networks.footprint * far
    names = list(columns)
    own = networks.entry_ms if firmness is not None else networks.entry_ms[:, :0]
    rows = np.column_stack([*columns.values(), own]) / networks.measured_ms[:, None]
    count = len(names)
    prior = np.zeros(rows.shape[1])
    prior[:count] = [float(name in ("scale", COLD)) for name in names]
    size = np.abs(rows).mean(axis=0) + 1e-12  # so that strengths mean the same in every column
    held = (firmness or 0.0) / (len(rows) * size**2)  # entries alike, large and small ones
    held[:count] = [strength if name.startswith("scale_") else LOOSE for name in names]
    scaled = rows / size
    normal = scaled.T @ scaled / len(rows) + np.diag(held)
    wanted = scaled.T @ (1 - rows @ prior) / len(rows)
    solved = prior + np.linalg.solve(normal, wanted) / size
    found = dict(zip(names, solved[:count].tolist(), strict=True))
    for name in names:
        if name.startswith("scale_"):
            found[name] += found["scale"]
    factors = {
        entry: 1 + change / found.get(f"scale_{kind_of(entry)}", found["scale"])
        for entry, change in zip(networks.entries, solved[count:].tolist(), strict=False)
    }
    if knee_mb is not None:
        found[KNEE_MB] = knee_mb
    if far_knee_mb is not None:
        found[FAR_KNEE_MB] = far_knee_mb
    fitted = Found(found, factors)
    try:
        return fitted if (predict(fitted, networks) > 0).all() else None
    except ValueError:  # a scale that turns the order round, say
        return None


def _held_out(solve: Solve, networks: Networks) -> Costs:
    """Return the relative error of each network under a fit on others, a fold at a time."""
    errors = np.full(len(networks), np.inf)
    fold = np.arange(len(networks)) % min(FOLDS, len(networks))
    for number in np.unique(fold):
        is_out = fold == number
        found = solve(networks.some(~is_out))
        if found is not None:
            errors[is_out] = _errors(found, networks.some(is_out))
    return errors


def _errors(found: Found, networks: Networks) -> Costs:
    error: Costs = np.abs(predict(found, networks) / networks.measured_ms - 1)
    return error

"""The last correction: from sums of entries to whole networks of one space, with its honesty.

A sum of entries is too low where a network does not stay in the processor's own caches from one
run to the next: parts timed in chains of themselves find what they need there. So the richest form
has, beside a constant and a scale for each kind of part, what parts cost with cold caches, or a
price for each megabyte of weights, from a size on ("knee") that is found from the networks as well.
What form a space gets is decided by its error on networks held out.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import numpy.typing as npt

from nas.block import Block
from nas.errors import NasError
from nas.latency.calibration import (
    AFFINE,
    COLD,
    KNEE_MB,
    MS_PER_MB,
    PARTS,
    Calibration,
    Costs,
    calibration_name,
    cold_share,
    footprint_mb,
)
from nas.latency.table import LatencyTable
from nas.seeds import stage_seed
from nas.space import Architecture, SearchSpace

MIN_FOR_LINE, MIN_FOR_KNEE, MIN_FOR_KINDS = 4, 12, 24
MAX_DRAWS = 20
FOLDS = 8
KNEES = np.geomspace(1 / 16, 4.0, 13)  # by the median network's footprint
STRENGTHS = (1e-3, 1e-2, 1e-1)  # of holding the kinds' scales together
LOOSE = 1e-6  # of holding everything else to a plain sum

Coefficients = dict[str, float]
Rows = npt.NDArray[np.bool_]


@dataclass(frozen=True, slots=True)
class Networks:
    """Whole networks, arrays of shape (networks,).

    Sums of entries by kind of part, of what cold caches add to them (None: not known), of
    megabytes of weights and of `footprint_mb`; and measured ms.
    """

    sums_ms: Mapping[str, Costs]
    cold_ms: Costs | None
    megabytes: Costs
    footprint: Costs
    measured_ms: Costs

    def __len__(self) -> int:
        return len(self.measured_ms)

    def some(self, rows: Rows) -> "Networks":
        """Return those of a mask."""
        return Networks(
            {kind: values[rows] for kind, values in self.sums_ms.items()},
            None if self.cold_ms is None else self.cold_ms[rows],
            self.megabytes[rows],
            self.footprint[rows],
            self.measured_ms[rows],
        )

    @property
    def total_ms(self) -> Costs:
        """The plain sums, shape (networks,)."""
        total: Costs = np.sum(list(self.sums_ms.values()), axis=0)
        return total


Solve = Callable[[Networks], Coefficients | None]


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


def calibrated(
    table: LatencyTable,
    space: str,
    networks: Mapping[str, Sequence[Block]],
    measured_ms: Mapping[str, float],
    *,
    by_block: Sequence[str] = (),
) -> LatencyTable:
    """Return a table with a space's calibration, fitted on whole networks of it.

    It stands under the space's name and the side of the networks' images, in place of an older
    one that rests on some of the same networks and does not note the side.

    Args:
        table: Must price the networks.
        space: The space's name.
        networks: {architecture id: blocks}, all of one image size.
        measured_ms: {architecture id: measured median}.
        by_block: Kinds of block to price by entries of their own.
    """
    way = replace(_calibration({"constant": 0.0, "scale": 1.0}), by_block=tuple(by_block))
    sums: list[dict[str, float]] = []
    cold: list[float | None] = []
    for blocks in networks.values():
        total_ms: dict[str, float] = {}
        for block in blocks:
            for kind, ms in table.kind_ms(block, way).items():
                total_ms[kind] = total_ms.get(kind, 0.0) + ms
        sums.append(total_ms)
        extra = [added for block in blocks if (added := table.cold_ms(block, way)) is not None]
        cold.append(sum(extra) if len(extra) == len(blocks) else None)
    kinds = sorted({kind for total_ms in sums for kind in total_ms})
    known = [ms for ms in cold if ms is not None]
    made = fit(
        Networks(
            {kind: np.array([total_ms.get(kind, 0.0) for total_ms in sums]) for kind in kinds},
            np.array(known) if len(known) == len(cold) else None,
            np.array([sum(block.bytes for block in blocks) / 1e6 for blocks in networks.values()]),
            np.array([sum(map(footprint_mb, blocks)) for blocks in networks.values()]),
            np.array([measured_ms[name] for name in networks]),
        ),
        list(networks),
    )
    older = table.calibrations.get(space)
    kept = dict(table.calibrations)
    if older is not None and older.fitted_on.keys() & networks.keys():
        del kept[space]
    side = next(iter(networks.values()))[0].resolution
    kept[calibration_name(space, side)] = replace(made, by_block=way.by_block)
    return replace(table, calibrations=kept)


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
    coefficients = _best(networks)
    errors = _held_out(_best, networks)
    plain = _errors(_identity(networks), networks)
    return replace(
        _calibration(coefficients),
        fitted_on=dict(zip(ids, networks.measured_ms.tolist(), strict=True)),
        held_out={
            "mean": float(errors.mean()),
            "worst": float(errors.max()),
            "mean_of_sum": float(plain.mean()),
            "worst_of_sum": float(plain.max()),
        },
    )


def predict(coefficients: Coefficients, networks: Networks) -> Costs:
    """Return what coefficients make of sums of entries, ms.

    Raises:
        ValueError: they make no calibration.
    """
    fit = _calibration(coefficients)
    scaled_ms: Costs = np.sum(
        [fit.scale(kind) * sums_ms for kind, sums_ms in networks.sums_ms.items()], axis=0
    )
    cold_ms = np.zeros(len(networks)) if networks.cold_ms is None else networks.cold_ms
    return fit.total(scaled_ms, fit.extra_ms(cold_ms, networks.megabytes), networks.footprint)


def _calibration(coefficients: Coefficients) -> Calibration:
    """Return the calibration of coefficients alone."""
    is_plain = set(coefficients) == {"constant", "scale"}
    form = AFFINE if is_plain else PARTS
    return Calibration(form=form, coefficients=coefficients, fitted_on={}, held_out={})


def relative_line(values: Costs, measured_ms: Costs) -> tuple[float, float]:
    """Return (constant, scale) of the line of least relative squares through measured times."""
    rows = np.stack([1 / measured_ms, values / measured_ms], axis=1)
    constant, scale = np.linalg.lstsq(rows, np.ones(len(rows)), rcond=None)[0]
    return float(constant), float(scale)


# ---------------------------------------------------------------- choosing a form
def _best(networks: Networks) -> Coefficients:
    """Return the coefficients of the form that errs least on networks held out."""
    if len(networks) < 2:
        return _scale(networks)
    ways = _ways(networks)
    errors = [float(_held_out(way, networks).mean()) for way in ways]
    order: list[int] = np.argsort(errors, kind="stable").tolist()
    for place in order:
        found = ways[place](networks)
        if found is not None:
            return found
    raise AssertionError("a plain sum is always possible")


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


def _identity(networks: Networks) -> Coefficients:
    return {"constant": 0.0, "scale": 1.0}


def _scale(networks: Networks) -> Coefficients:
    scale = float(np.median(networks.measured_ms / networks.total_ms)) if len(networks) else 1.0
    return {"constant": 0.0, "scale": scale}


def _solved(
    networks: Networks,
    *,
    knee_mb: float | None = None,
    adds: Sequence[str] = (),
    strength: float | None = None,
) -> Coefficients | None:
    """Return the coefficients of least relative squares, None where they make no sense.

    Args:
        networks: What to fit.
        knee_mb: From what footprint on caches are cold; None leaves them out.
        adds: What that costs: COLD, MS_PER_MB, or both.
        strength: How firmly the kinds' scales are held together; None gives all kinds one.
    """
    columns = {"constant": np.ones(len(networks)), "scale": networks.total_ms}
    if strength is not None:
        columns |= {f"scale_{kind}": sums for kind, sums in networks.sums_ms.items()}
    if knee_mb is not None:
        share = cold_share(networks.footprint, knee_mb)
        costs = {COLD: networks.cold_ms, MS_PER_MB: networks.megabytes}
        columns |= {name: share * cost for name in adds if (cost := costs[name]) is not None}
    names = list(columns)
    rows = np.stack([columns[name] for name in names], axis=1) / networks.measured_ms[:, None]
    prior = np.array([float(name in ("scale", COLD)) for name in names])
    held = [strength if name.startswith("scale_") else LOOSE for name in names]
    size = np.abs(rows).mean(axis=0) + 1e-12  # so that strengths mean the same in every column
    scaled = rows / size
    normal = scaled.T @ scaled / len(rows) + np.diag(np.array(held, dtype=float))
    wanted = scaled.T @ (1 - rows @ prior) / len(rows)
    values = dict(zip(names, prior + np.linalg.solve(normal, wanted) / size, strict=True))
    for name in names:
        if name.startswith("scale_"):
            values[name] += values["scale"]
    found = {name: float(value) for name, value in values.items()}
    if knee_mb is not None:
        found[KNEE_MB] = knee_mb
    try:
        return found if (predict(found, networks) > 0).all() else None
    except ValueError:  # a scale that turns the order round, say
        return None


def _held_out(solve: Solve, networks: Networks) -> Costs:
    """Return the relative error of each network under a fit on others, a fold at a time."""
    errors = np.full(len(networks), np.inf)
    fold = np.arange(len(networks)) % min(FOLDS, len(networks))
    for number in np.unique(fold):
        is_out = fold == number
        coefficients = solve(networks.some(~is_out))
        if coefficients is not None:
            errors[is_out] = _errors(coefficients, networks.some(is_out))
    return errors


def _errors(coefficients: Coefficients, networks: Networks) -> Costs:
    error: Costs = np.abs(predict(coefficients, networks) / networks.measured_ms - 1)
    return error

"""How true a table is: whole networks nobody fitted on, measured and predicted in three ways."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nas.block import Block
from nas.errors import ConfigError
from nas.latency.calibrate import draw
from nas.latency.calibration import Calibration, Costs
from nas.latency.compose import Export, Workshop
from nas.latency.forms import relative_line
from nas.latency.guard import GUARD, with_guard
from nas.latency.interpolate import interpolated_in
from nas.latency.measure import Progress, child_bench, measure_networks
from nas.latency.plan import session_seconds
from nas.latency.profile_config import ProfileConfig
from nas.latency.recipes import parts_of
from nas.latency.sessions import Benches, Sessions, Teller
from nas.latency.table import LatencyTable
from nas.latency.timing import Timing, summarise
from nas.seeds import stage_seed
from nas.space import SearchSpace

MIN_NETWORKS = 3
METHODS = ("table_ms", "isolated_ms", "isolated_line_ms", "macs_ms")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One whole network, ms: measured; by the table; by the sum of its parts each timed alone.

    `isolated_line_ms` and `macs_ms` are lines through the isolated sum and through the MACs,
    fitted on the very networks they are judged on, which flatters them. `repeat` is the error of
    measuring again (see Timing).
    """

    id: str
    measured_ms: float
    grade: str
    repeat: float | None
    table_ms: float
    isolated_ms: float
    isolated_line_ms: float
    macs_ms: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Extra:
    """A network beside those drawn: its blocks, and its calibration where not that of the space."""

    blocks: Sequence[Block]
    fit: Calibration | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Errors:
    """Relative errors of one way to predict, and Spearman's rank correlation with the truth."""

    mean: float
    median: float
    worst: float
    within_5: float
    within_10: float
    spearman: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Check:
    """Rows by measured latency, and the errors of each of METHODS.

    `repeat` is the mean over the rows. `by_kind` is the table's mean signed error over the networks
    that are dearest in blocks of a kind, for kinds that lead in any: too dear is above zero.
    `interpolated` is the mean share (0 to 1) of a network's price that was not measured.
    """

    rows: tuple[Row, ...]
    errors: dict[str, Errors]
    repeat: float | None
    by_kind: dict[str, float]
    interpolated: float


def check(
    table: LatencyTable,
    space: SearchSpace,
    *,
    networks: int = 10,
    also: Mapping[str, Extra] | None = None,
    config: ProfileConfig | None = None,
    progress: Progress = lambda done, total, text: None,
    benches: Benches = child_bench,
    export: Export | None = None,
) -> Check:
    """Measure networks of a space that its calibration has not seen, and compare.

    They are drawn evenly over the levels of cost and timed, interleaved, on the table's target. A
    clock that is slower or faster now than when the table was made is set right by its anchors; a
    core or a shared cache that others use meanwhile is waited for, and else graded C.

    Args:
        table: Must price the space; `benches` must run its target, by default this machine's.
        space: Where the networks are from.
        networks: How many, at least 3.
        also: Further networks by name, which nobody drew.
        config: How carefully to measure; its seed fixes the draw as well.
        progress: Told (done, total, text).
        benches: Makes the place where networks run; a child process by default.
        export: Writes ONNX files of parts; `nas.network.onnx.parts_to_onnx` by default.

    Raises:
        ConfigError: an entry is missing.
        UnreliableTiming, DeviceError: as `measure_networks`.
    """
    if networks < MIN_NETWORKS:
        raise ConfigError(f"networks must be at least {MIN_NETWORKS}, but is {networks}.")
    fitted = table.calibration(space)
    config = config or ProfileConfig()
    seed = stage_seed(config.seed, "check")
    drawn = draw(space, networks, seed=seed, avoid=list(fitted.fitted_on) if fitted else ())
    blocks: dict[str, Sequence[Block]] = {item.id: space.blocks(item) for item in drawn}
    blocks |= {name: known.blocks for name, known in (also or {}).items()}
    fits = {name: known.fit for name, known in (also or {}).items() if known.fit is not None}
    with tempfile.TemporaryDirectory() as scratch:
        takes = table.target.takes
        workshop = Workshop(Path(scratch), export, batch=table.target.batch, takes=takes)
        chains = [parts_of(network) for network in blocks.values()]
        seconds = session_seconds(config, table.target, networks=chains)
        teller = Teller(progress, len(blocks), seconds)
        _, series = Sessions(table.target, config, workshop, benches, teller).networks(
            table, blocks
        )
    progress(len(blocks), len(blocks), "whole networks timed")
    timings = {name: summarise(item, seed=config.seed) for name, item in series.items()}
    return compare(table, blocks, timings, space=space, fits=fits)


def time_networks(
    networks: Mapping[str, Sequence[Block]],
    table: LatencyTable,
    config: ProfileConfig | None = None,
    *,
    progress: Progress = lambda done, total, text: None,
    export: Export | None = None,
    benches: Benches = child_bench,
) -> dict[str, Timing]:
    """Return measured latencies of whole networks of random weights, to hold against a table.

    Large ones are timed while others leave the shared cache alone, or are grade C. ONNX files are
    joined from their parts, which takes a tenth of an export's time and gives the runtime the same
    operators; torch runs them as timm builds them. Weights do not change a latency.

    Args:
        networks: Name to blocks.
        table: Whose target and best speed to measure at.
        config: How carefully to measure.
        progress: Told (done, total, text).
        export: Writes ONNX files of parts; `nas.network.onnx.parts_to_onnx` by default.
        benches: Makes the place where networks run; a child process by default.

    Raises:
        UnreliableTiming, DeviceError: as `measure_networks`.
    """
    alone = {name: tuple(blocks) for name, blocks in networks.items()}
    chains = with_guard(alone, table.target)
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryDirectory() as folder:
        progress(0, len(networks), "exporting whole networks")
        takes = table.target.takes
        workshop = Workshop(Path(scratch), export, batch=table.target.batch, takes=takes)
        workshop.export(list(chains.values()))
        paths = workshop.join(chains, Path(folder))
        guard = paths.pop(GUARD, None)
        config = config or ProfileConfig()
        with benches(table.target, config) as bench:
            return measure_networks(
                paths,
                table.target,
                config,
                progress=progress,
                known=table.known,
                guard=guard,
                bench=bench,
            )


def compare(
    table: LatencyTable,
    networks: Mapping[str, Sequence[Block]],
    timings: Mapping[str, Timing],
    *,
    space: SearchSpace | str | None = None,
    fits: Mapping[str, Calibration] | None = None,
) -> Check:
    """Return measured against predicted latency of networks, at least 3.

    Args:
        table: What predicts.
        networks: Name to blocks.
        timings: Name to measured latency.
        space: Whose calibration to use.
        fits: Another one, for some of the networks.
    """
    names = list(networks)
    used = {name: table.calibration(space, networks[name]) for name in names} | dict(fits or {})
    measured = np.array([timings[name].median_ms for name in names])
    isolated = np.array([table.isolated(networks[name]) for name in names])
    macs = np.array([float(sum(block.macs for block in networks[name])) for name in names])
    predicted = {
        "table_ms": np.array([table.estimate(networks[name], used[name]) for name in names]),
        "isolated_ms": isolated,
        "isolated_line_ms": _on_line(isolated, measured),
        "macs_ms": _on_line(macs, measured),
    }
    rows = [
        Row(
            id=names[index],
            measured_ms=float(measured[index]),
            grade=timings[names[index]].grade,
            repeat=timings[names[index]].repeat,
            **{method: float(predicted[method][index]) for method in METHODS},
        )
        for index in np.argsort(measured)
    ]
    repeats = [row.repeat for row in rows if row.repeat is not None]
    signed = predicted["table_ms"] / measured - 1
    leads = np.array([_dearest_kind(table, networks[name], used[name]) for name in names])
    guessed = [interpolated_in(table, networks[name], used[name]).share for name in names]
    return Check(
        rows=tuple(rows),
        errors={method: errors_of(predicted[method], measured) for method in METHODS},
        repeat=float(np.mean(repeats)) if repeats else None,
        by_kind={str(kind): float(signed[leads == kind].mean()) for kind in np.unique(leads)},
        interpolated=float(np.mean(guessed)),
    )


def _dearest_kind(table: LatencyTable, blocks: Sequence[Block], fit: Calibration | None) -> str:
    cost_ms: dict[str, float] = {}
    for block in blocks:
        cost_ms[block.kind] = cost_ms.get(block.kind, 0.0) + table.block_ms(block, fit)
    return max(cost_ms, key=lambda kind: cost_ms[kind])


def errors_of(predicted_ms: Costs, measured_ms: Costs) -> Errors:
    """Return the errors of predictions, both arrays of shape (networks,)."""
    from scipy.stats import spearmanr

    error = np.abs(predicted_ms - measured_ms) / measured_ms
    return Errors(
        mean=float(error.mean()),
        median=float(np.median(error)),
        worst=float(error.max()),
        within_5=float((error <= 0.05).mean()),
        within_10=float((error <= 0.10).mean()),
        spearman=float(spearmanr(predicted_ms, measured_ms).statistic),
    )


def _on_line(values: Costs, measured_ms: Costs) -> Costs:
    constant, scale = relative_line(values, measured_ms)
    return constant + scale * values

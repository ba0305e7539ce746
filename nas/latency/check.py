"""How true a table is: whole networks nobody fitted on, measured and predicted in three ways."""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from nas.block import Block
from nas.errors import ConfigError
from nas.latency.calibrate import draw, relative_line
from nas.latency.compose import Export, Workshop
from nas.latency.measure import ProfileConfig, Progress, measure_networks
from nas.latency.recipes import parts_of
from nas.latency.sessions import Benches, child_bench
from nas.latency.table import Costs, LatencyTable
from nas.latency.timing import Timing
from nas.space import SearchSpace

MIN_NETWORKS = 3
METHODS = ("table_ms", "isolated_ms", "isolated_line_ms", "macs_ms")


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One whole network, ms: measured; by the table; by the sum of its parts each timed alone.

    `isolated_line_ms` and `macs_ms` are lines through the isolated sum and through the MACs,
    fitted on the very networks they are judged on, which flatters them.
    """

    id: str
    measured_ms: float
    grade: str
    table_ms: float
    isolated_ms: float
    isolated_line_ms: float
    macs_ms: float


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
    """Rows by measured latency, and the errors of each of METHODS."""

    rows: tuple[Row, ...]
    errors: dict[str, Errors]


def check(
    table: LatencyTable,
    space: SearchSpace,
    *,
    networks: int = 10,
    config: ProfileConfig | None = None,
    seed: int = 1,
    progress: Progress = lambda done, total, text: None,
    export: Export | None = None,
    benches: Benches = child_bench,
) -> Check:
    """Measure networks of a space that its calibration has not seen, and compare.

    They are drawn evenly over the levels of cost, joined from their parts and timed, interleaved,
    on the table's target.

    Args:
        table: Must price the space; `benches` must run its target, by default this machine's.
        space: Where the networks are from.
        networks: How many, at least 3.
        config: How carefully to measure.
        seed: Fixes the draw.
        progress: Told (done, total, text).
        export: Writes ONNX files of parts; `nas.network.onnx.parts_to_onnx` by default.
        benches: Makes the place where networks run; a child process by default.

    Raises:
        ConfigError: an entry is missing.
        UnreliableTiming, DeviceError: as `measure_networks`.
    """
    if networks < MIN_NETWORKS:
        raise ConfigError(f"networks must be at least {MIN_NETWORKS}, but is {networks}.")
    fitted = table.calibrations.get(space.name)
    drawn = draw(space, networks, seed=seed, avoid=list(fitted.fitted_on) if fitted else ())
    blocks = {architecture.id: space.blocks(architecture) for architecture in drawn}
    timings = time_networks(
        blocks, table, config, progress=progress, export=export, benches=benches
    )
    return compare(table, blocks, timings, space=space)


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

    They are joined from their parts, which takes a tenth of an export's time and gives the runtime
    the same operators; weights do not change a latency.

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
    chains = {name: parts_of(blocks) for name, blocks in networks.items()}
    with tempfile.TemporaryDirectory() as scratch, tempfile.TemporaryDirectory() as folder:
        progress(0, len(chains), "exporting whole networks")
        workshop = Workshop(Path(scratch), export, batch=table.target.batch)
        workshop.export(list(chains.values()))
        paths = workshop.join(chains, Path(folder))
        config = config or ProfileConfig()
        with benches(table.target, config) as bench:
            return measure_networks(
                paths,
                table.target,
                config,
                progress=progress,
                reference_ms=table.reference_ms,
                bench=bench,
            )


def compare(
    table: LatencyTable,
    networks: Mapping[str, Sequence[Block]],
    timings: Mapping[str, Timing],
    *,
    space: SearchSpace | str | None = None,
) -> Check:
    """Return measured against predicted latency of networks, at least 3.

    Args:
        table: What predicts.
        networks: Name to blocks.
        timings: Name to measured latency.
        space: Whose calibration to use.
    """
    names = list(networks)
    measured = np.array([timings[name].median_ms for name in names])
    isolated = np.array([table.isolated(networks[name]) for name in names])
    macs = np.array([float(sum(block.macs for block in networks[name])) for name in names])
    predicted = {
        "table_ms": np.array([table.estimate(networks[name], space) for name in names]),
        "isolated_ms": isolated,
        "isolated_line_ms": _on_line(isolated, measured),
        "macs_ms": _on_line(macs, measured),
    }
    rows = [
        Row(
            id=names[index],
            measured_ms=float(measured[index]),
            grade=timings[names[index]].grade,
            **{method: float(predicted[method][index]) for method in METHODS},
        )
        for index in np.argsort(measured)
    ]
    return Check(
        rows=tuple(rows),
        errors={method: errors_of(predicted[method], measured) for method in METHODS},
    )


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

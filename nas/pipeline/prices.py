"""What a network costs on a target, and how far a latency table may be believed."""

import tempfile
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nas.block import Block, parse_network
from nas.errors import ConfigError, DeviceError
from nas.files import read_json
from nas.latency import (
    QUICK,
    LatencyTable,
    ProfileConfig,
    check,
    find_table,
    measure_networks,
    time_networks,
)
from nas.latency.calibration import Calibration
from nas.latency.check import METHODS, Check, Extra
from nas.latency.guard import guard_file
from nas.latency.interpolate import interpolated_in
from nas.manifest import Winner
from nas.network import stock, timm_models
from nas.network.onnx import to_onnx
from nas.pipeline.outcome import Outcome, rows
from nas.pipeline.run import Progress
from nas.report import Prediction, write_check
from nas.space import Architecture, SearchSpace
from nas.target import DEFAULT_TARGET, ONNX, Target

ENDS = ("smallest", "largest")
METHOD_NAMES = {
    "table_ms": "this table",
    "isolated_ms": "sum of isolated parts",
    "isolated_line_ms": "line through that sum",
    "macs_ms": "line through MACs",
}


# ---------------------------------------------------------------- price
def price(
    what: str,
    *,
    space: str | None,
    target: str | None,
    table: str | None,
    by_block: bool,
    measure: bool,
    progress: Progress,
) -> Outcome:
    """Say what a network takes on a target: by the latency table, measured if asked or needed.

    Args:
        what: A published network, a winner's folder, an Architecture or winner.json, "smallest" or
            "largest" of the space, blocks as text, or the name of any timm model.
        space: The search space whose calibration to use; an Architecture knows its own.
        target: RUNTIME,PRECISION,bBATCH,tTHREADS here, or the id of another device's target.
        table: The latency table's path; found by the target otherwise.
        by_block: Whether to list every block with its share.
        measure: Whether to time the whole network even if the table can price it.
        progress: Told how far a measurement is.

    Raises:
        ConfigError: nothing of that name, or no price and no way to measure one.
    """
    wanted = Target.parse(target or DEFAULT_TARGET)
    blocks, space = _network(what, space)
    path = find_table(wanted, table)
    loaded = LatencyTable.load(path) if path is not None else None
    values: dict[str, Any] = {"network": what, "target": wanted.id, "table": str(path or "")}
    lines = {"network": what, "target": wanted.id}
    fit = loaded.calibration(_sized(space, blocks), blocks) if loaded is not None else None
    lacking = loaded.missing(blocks, fit) if loaded is not None and blocks else []
    if blocks:
        values |= {key: sum(getattr(block, key) for block in blocks) for key in ("params", "macs")}
        lines["size"] = f"{values['params']:,} parameters, {values['macs'] / 1e6:.4g} MMACs"
    if loaded is not None and blocks and not lacking:
        predicted_ms = loaded.estimate(blocks, fit)
        guessed = interpolated_in(loaded, blocks, fit)
        values |= {"predicted_ms": predicted_ms, "space": space, "interpolated": asdict(guessed)}
        lines["predicted"] = f"{predicted_ms:.4g} ms ({_trust(loaded, fit)})"
        if guessed.share:
            lines["interpolated"] = _guessed_text(guessed.share, guessed.error)
    else:
        measure = True
        lines["predicted"] = _why_not(path, blocks, lacking)
    if measure:
        timing = _measured(what, blocks, wanted, loaded, progress)
        values["measured"] = asdict(timing)
        lines["measured"] = (
            f"{timing.median_ms:.4g} ms (up to {timing.ci_high_ms:.4g}, grade {timing.grade})"
        )
    text = rows(lines)
    if by_block and loaded is not None and not lacking:
        values["blocks"] = _by_block(loaded, blocks, fit)
        text += ("", *_block_lines(values["blocks"]))
    return Outcome(values=values, lines=text)


def _by_block(
    table: LatencyTable, blocks: Sequence[Block], fit: Calibration | None
) -> list[dict[str, Any]]:
    """Return a row a block: its price, what of it is interpolated, whether it is of the whole."""
    return [
        {
            "block": str(block),
            "ms": table.block_ms(block, fit),
            "interpolated": interpolated_in(table, [block], fit).share,
            "is_whole": len(block.parts()) > 1 and len(table.entries_of(block, fit)) == 1,
        }
        for block in blocks
    ]


def _block_lines(costs: Sequence[dict[str, Any]]) -> list[str]:
    total_ms = sum(row["ms"] for row in costs)
    lines = []
    for row in costs:
        notes = ["whole block"] if row["is_whole"] else []
        notes += [f"{row['interpolated']:.0%} interpolated"] if row["interpolated"] else []
        note = f"  ({', '.join(notes)})" if notes else ""
        lines.append(f"{row['ms']:10.4g} ms  {row['ms'] / total_ms:6.1%}  {row['block']}{note}")
    return lines


def _guessed_text(share: float, error: float) -> str:
    return (
        f"{share:.0%} of the price, between measured sizes "
        f"({error:.1%} off on measured ones left out)"
    )


def _sized(space: str | None, blocks: Sequence[Block]) -> SearchSpace | str | None:
    """Return a space at the blocks' image size; its name alone where there is no such file."""
    if space is None or not blocks:
        return space
    try:
        return SearchSpace.load(space).replace(image_size=blocks[0].resolution)
    except ConfigError:
        return space  # a winner knows the name of its space, not the file


def _network(what: str, space: str | None) -> tuple[tuple[Block, ...], str | None]:
    """Return blocks and space of what was named; no blocks for a model that timm alone knows."""
    if what in ENDS:
        if space is None:
            raise ConfigError(f"{what!r} is of a search space: name it with --space.")
        loaded = SearchSpace.load(space)
        return loaded.blocks(getattr(loaded, what)()), loaded.name
    if what in stock.PUBLISHED:
        return stock.blocks_of(what), space or stock.space_of(what)
    if what.startswith("stem_"):
        return parse_network(what.split()), space
    path = Path(what)
    if path.is_dir() or path.name == "winner.json":
        winner = Winner.load(path if path.is_dir() else path.parent)
        known = Architecture.from_json(winner.architecture).space
        return parse_network(winner.blocks), space or known
    if path.suffix == ".json":
        architecture = Architecture.from_json(read_json(path), source=what)
        return SearchSpace.load(space or architecture.space).blocks(architecture), (
            space or architecture.space
        )
    return (), space


def _trust(table: LatencyTable, fit: Calibration | None) -> str:
    if fit is None:
        known = ", ".join(table.calibrations) or "none"
        return f"sum of entries, not calibrated; calibrated spaces: {known}"
    text = f"{fit.held_out['mean']:.1%} off on average, {fit.held_out['worst']:.0%} at worst"
    return text + (f"; {', '.join(fit.by_block)} by whole blocks" if fit.by_block else "")


def _why_not(path: Path | None, blocks: Sequence[Block], lacking: Sequence[str]) -> str:
    if not blocks:
        return "- (not made of blocks that a table knows)"
    if path is None:
        return "- (no latency table of this target; make one with `nas profile`)"
    if len(lacking) == 1:
        return f"- ({path} lacks an entry: {lacking[0]})"
    return f"- ({path} lacks {len(lacking)} entries, {lacking[0]} first)"


def _measured(
    what: str,
    blocks: Sequence[Block],
    target: Target,
    table: LatencyTable | None,
    progress: Progress,
) -> Any:
    """Return the Timing of a whole network, by its blocks or as the timm model of that name."""
    if not target.is_here():
        raise DeviceError(f"{target} is not here, so {what!r} can only be priced by a table.")
    if blocks:
        empty = LatencyTable(target=target, entries={})
        return time_networks({what: blocks}, table or empty, QUICK, progress=progress)[what]
    with tempfile.TemporaryDirectory() as folder:
        model = timm_models.create(what)
        if target.takes == ONNX:
            file = to_onnx(model, Path(folder) / "model.onnx", batch=target.batch)
        else:
            file = timm_models.save(model, Path(folder) / "model")
        found = measure_networks(
            {what: file},
            target,
            QUICK,
            progress=progress,
            known=table.known if table is not None else None,
            guard=guard_file(file, target, Path(folder)),
        )
        return found[what]


# ---------------------------------------------------------------- check-table
def check_table(
    space: str,
    *,
    target: str | None,
    table: str | None,
    networks: int,
    published: bool,
    out: Path | None,
    seed: int,
    progress: Progress,
) -> Outcome:
    """Measure networks that a table has not seen and say how far off it is, beside its rivals.

    Args:
        space: The space to draw from, as the table was made for it.
        target: RUNTIME,PRECISION,bBATCH,tTHREADS; must be this machine's.
        table: The latency table's path; found by the target otherwise.
        networks: How many to draw, evenly over the levels of cost.
        published: Whether to add the published networks that the table can price.
        out: A folder for an HTML page and its picture, if wanted.
        seed: Fixes the draw.
        progress: Told how far it is.

    Raises:
        ConfigError: there is no such table, or it lacks entries.
    """
    wanted = Target.parse(target or DEFAULT_TARGET)
    path = find_table(wanted, table)
    if path is None:
        raise ConfigError(
            f"there is no latency table of {wanted}. Make one with `nas profile --space {space}`."
        )
    loaded = LatencyTable.load(path)
    config = ProfileConfig(samples=60, spread_s=3.0, seed=seed)
    extra = published_in(loaded) if published else {}
    found = check(
        loaded,
        as_profiled(SearchSpace.load(space), loaded),
        networks=networks,
        also=extra,
        config=config,
        progress=progress,
    )
    page = None if out is None else _page(out, loaded, space, found)
    lines = [*_check_lines(found), *([] if page is None else ["", f"page: {page}"])]
    values = {"table": str(path), "target": wanted.id, "space": space, "page": str(page or "")}
    return Outcome(values={**values, **asdict(found)}, lines=tuple(lines))


def as_profiled(space: SearchSpace, table: LatencyTable) -> SearchSpace:
    """Return a space with as many classes as the table has parts for, itself if it has none."""
    heads = [name for name in table.entries if name.startswith("head_")]
    counts = sorted({int(word[1:]) for name in heads for word in name.split("_") if word[0] == "o"})
    candidates = [space, *(space.replace(num_classes=count) for count in counts)]
    complete = (item for item in candidates if not table.missing(item.every_block(), item))
    return next(complete, space)


def published_in(table: LatencyTable) -> dict[str, Extra]:
    """Return the published networks that a table can price, each calibrated as its own space is."""
    every = {name: stock.blocks_of(name) for name in stock.PUBLISHED}
    return {
        name: Extra(blocks=blocks, fit=table.calibration(stock.space_of(name), blocks))
        for name, blocks in every.items()
        if not table.missing(blocks)
    }


def _check_lines(found: Check) -> list[str]:
    header = f"{'':24}{'mean':>8}{'median':>8}{'worst':>8}{'<= 5%':>8}{'<= 10%':>8}{'Spearman':>10}"
    lines = [f"{len(found.rows)} networks, none of them seen by the fit", header]
    for method in METHODS:
        e = found.errors[method]
        shares = f"{e.within_5:>8.0%}{e.within_10:>8.0%}{e.spearman:>10.4f}"
        name = METHOD_NAMES[method]
        lines.append(f"{name:24}{e.mean:>8.1%}{e.median:>8.1%}{e.worst:>8.1%}{shares}")
    if found.interpolated:
        lines.append(f"{found.interpolated:.0%} of the table's prices are interpolated")
    if found.repeat is not None:
        lines.append(f"{'measuring again':24}{found.repeat:>8.1%}")
    lines += ["", "where a kind of block leads, the table is off by"]
    lines += [f"  {kind:22}{error:>+8.1%}" for kind, error in found.by_kind.items()]
    return lines


def _page(folder: Path, table: LatencyTable, space: str, found: Check) -> Path:
    predictions = [
        Prediction(
            id=row.id,
            measured_ms=row.measured_ms,
            table_ms=row.table_ms,
            isolated_ms=row.isolated_ms,
            macs_ms=row.macs_ms,
        )
        for row in found.rows
    ]
    title = f"{space} on {table.target.id}"
    return write_check(folder, title, predictions, "\n".join(_check_lines(found)))

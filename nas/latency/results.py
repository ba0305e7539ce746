"""Times that were taken elsewhere, a CSV file, become a latency table: nothing is guessed."""

import csv
import io
import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from nas.block import parse
from nas.errors import ConfigError
from nas.files import MAX_JSON_BYTES, digest_file, lock, unknown_key
from nas.latency.calibrate import calibrated
from nas.latency.calibration import MAX_MS, calibration_name
from nas.latency.check import MIN_NETWORKS, Check, compare
from nas.latency.plan import standing
from nas.latency.plan_folder import PlanManifest
from nas.latency.recipes import Recipe, chain_name
from nas.latency.table import Entry, LatencyTable
from nas.latency.timing import (
    CI_ERRORS,
    GRADE_A,
    GRADE_B,
    MIN_CLEAN,
    STANDARD_ERROR,
    Timing,
    grade_of_error,
)
from nas.target import Target

COLUMNS = ("file", "median_ms", "p10_ms", "p90_ms", "runs")
NUMBER = re.compile(r"[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?")
IQR_PER_SIGMA, P90_SIGMAS = 1.349, 1.2816  # of a normal distribution
WAY_OUT = "Correct or delete that line"


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """One visit to one file: the median of its runs, perhaps with their spread."""

    median_ms: float
    p10_ms: float | None = None
    p90_ms: float | None = None
    runs: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What all rows of one file say: `sigma_ms` is how far a visit lies from the median.

    `error_ms` is the standard error of `ms`. Both are infinite where there is one row that does
    not tell its spread.
    """

    ms: float
    sigma_ms: float
    error_ms: float
    rows: int

    @property
    def grade(self) -> str:
        """A and B as in `Timing`, by the spread; at best B for fewer than three rows."""
        spread = self.sigma_ms * IQR_PER_SIGMA / self.ms
        if spread >= GRADE_B:
            return "C"
        return "A" if spread < GRADE_A and self.rows >= MIN_CLEAN else "B"


@dataclass(frozen=True, slots=True, kw_only=True)
class Results:
    """The table so far, files that have no time yet, files with several rows, and the check."""

    table: LatencyTable
    missing: tuple[str, ...]
    repeated: int
    check: Check | None

    def problem(self) -> ConfigError | None:
        """Return an error that names the first missing file and their number, or None."""
        if not self.missing:
            return None
        return ConfigError(
            f"{len(self.missing)} files of the plan have no time yet, the first is "
            f"{self.missing[0]}. {len(self.table.entries)} entries are known and in "
            f"{self.table.path}. Append the missing rows and run the same command again."
        )


def add_results(
    manifest: PlanManifest, results: Path | str, target: Target, path: Path | str
) -> Results:
    """Make the latency table at `path` of what is known, and say what is not.

    Entries of this plan are computed anew from all rows, so that results may grow; entries of
    other plans of the same target stay. The fit and the check wait for all of their files.

    Args:
        manifest: What was to be timed.
        results: The CSV file of times.
        target: Where they were taken.
        path: The table's file; made if it is not there.

    Raises:
        ConfigError: a row breaks a rule, or the target does not fit the plan.
        CorruptFile: the table that stands at `path` is damaged.
        TryAgain: another process is writing this table.
    """
    path = Path(path)
    _check_batch(manifest, target)
    target = replace(target, exporter=manifest.exporter, opset=manifest.opset)
    rows = read_times(results, manifest)
    seen = {name: summarise_rows(found) for name, found in rows.items()}
    with lock(path.with_name(path.name + ".lock")):
        table = _with_entries(standing(path, target), manifest, seen)
        provenance = {
            "exporter": f"{manifest.exporter}, opset {manifest.opset}",
            "versions": f"{manifest.package}, {target.runtime} {target.version}",
            "plan": manifest.digest,
            "results": digest_file(results),
        }
        table = replace(
            table,
            provenance={**table.provenance, **provenance},
            protocol=table.protocol or {"copies": manifest.copies, "timed": "elsewhere"},
        )
        table = _with_fit(table, manifest, seen).save(path)
    return Results(
        table=table,
        missing=tuple(name for name in manifest.files if name not in seen),
        repeated=sum(len(found) > 1 for found in rows.values()),
        check=_check(table, manifest, seen),
    )


# ---------------------------------------------------------------- reading
def read_times(path: Path | str, manifest: PlanManifest) -> dict[str, list[Row]]:
    """Return the rows of each file of a plan.

    Raises:
        ConfigError: naming the line, what it says and the rule it breaks.
    """
    try:
        with open(path, "rb") as stream:
            raw = stream.read(MAX_JSON_BYTES + 1)
        text = raw.decode("utf-8-sig")
    except OSError as error:
        raise ConfigError(f"the results {path} cannot be read: {error.strerror}.") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"the results {path} are not UTF-8 text: {error}.") from error
    if len(raw) > MAX_JSON_BYTES:
        raise ConfigError(f"the results {path} are larger than {MAX_JSON_BYTES:,} bytes.")
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    found: dict[str, list[Row]] = {}
    try:
        header = _header(next(reader, []), path)
        for cells in reader:
            if not any(cell.strip() for cell in cells):
                continue
            where = f"{path}, line {reader.line_num}"
            name, row = _row(header, [cell.strip() for cell in cells], where, manifest)
            found.setdefault(name, []).append(row)
    except csv.Error as error:
        raise ConfigError(f"{path}, line {reader.line_num}: not CSV ({error}).") from error
    return found


def _header(cells: Sequence[str], path: Path | str) -> list[str]:
    names = [cell.strip() for cell in cells]
    for name in names:
        if name not in COLUMNS or names.count(name) > 1:
            known = f"{','.join(COLUMNS[:2])}[,{','.join(COLUMNS[2:])}]"
            raise ConfigError(f"{path}, line 1: the columns are {known}, but one is {name!r:.60}.")
    for name in COLUMNS[:2]:
        if name not in names:
            raise ConfigError(f"{path}, line 1: the column {name} is missing; it has {names!r:.80}")
    return names


def _row(
    header: Sequence[str], cells: Sequence[str], where: str, manifest: PlanManifest
) -> tuple[str, Row]:
    if len(cells) != len(header):
        raise ConfigError(
            f"{where}: a row has {len(header)} values, one a column, but this one has "
            f"{len(cells)}. {WAY_OUT}."
        )
    given = dict(zip(header, cells, strict=True))
    name = given.pop("file")
    if name not in manifest.files:
        hint = unknown_key(name[:200], list(manifest.files)[:5000], what="file")
        raise ConfigError(f"{where}: {hint[:400]} {WAY_OUT}.")
    runs = given.pop("runs", "")
    if runs and not re.fullmatch("[1-9][0-9]{0,8}", runs):
        raise ConfigError(f"{where}: runs must be a whole number from 1, but is {runs!r:.60}.")
    times = {key: _ms(text, f"{where}: {key}") for key, text in given.items() if text}
    if "median_ms" not in times:
        raise ConfigError(f"{where}: median_ms must be a number, but is empty. {WAY_OUT}.")
    if ("p10_ms" in times) != ("p90_ms" in times):
        raise ConfigError(f"{where}: p10_ms and p90_ms belong together; give both or none.")
    row = Row(**times, runs=int(runs) if runs else None)
    p10_ms, p90_ms = times.get("p10_ms", row.median_ms), times.get("p90_ms", row.median_ms)
    if not p10_ms <= row.median_ms <= p90_ms:
        raise ConfigError(
            f"{where}: p10_ms <= median_ms <= p90_ms must hold, but they are {p10_ms}, "
            f"{row.median_ms}, {p90_ms}. {WAY_OUT}."
        )
    return name, row


def _ms(text: str, where: str) -> float:
    value = float(text) if NUMBER.fullmatch(text) else math.nan
    if not 0 < value <= MAX_MS:
        raise ConfigError(
            f"{where} must be a number above 0 and at most {MAX_MS:,.0f} (milliseconds), "
            f"but is {text!r:.60}. {WAY_OUT}."
        )
    return value


# ---------------------------------------------------------------- from rows to entries
def summarise_rows(rows: Sequence[Row]) -> Seen:
    """Return what the rows of one file say, repeats pooled: their median and how far apart."""
    medians = np.array([row.median_ms for row in rows])
    ms = float(np.median(medians))
    inside = [
        ((row.p90_ms - row.p10_ms) / (2 * P90_SIGMAS), row.runs or 1)
        for row in rows
        if row.p10_ms is not None and row.p90_ms is not None
    ]
    if len(rows) > 1:
        low, high = np.quantile(medians, [0.25, 0.75])
        sigma_ms = float(high - low) / IQR_PER_SIGMA
        if len(rows) < MIN_CLEAN:  # a quartile of two is no quartile: take all there is between
            sigma_ms = float(np.ptp(medians))
        error_ms = STANDARD_ERROR * IQR_PER_SIGMA * sigma_ms / len(rows) ** 0.5
    elif inside:
        sigma_ms, runs = inside[0]
        error_ms = STANDARD_ERROR * IQR_PER_SIGMA * sigma_ms / runs**0.5
    else:
        sigma_ms = error_ms = math.inf
    return Seen(ms=ms, sigma_ms=sigma_ms, error_ms=error_ms, rows=len(rows))


def entry_of(recipe: Recipe, seen: Mapping[str, Seen], *, is_steady: bool = True) -> Entry:
    """Return what the times of a recipe's chains (by chain name) say of its entry.

    The price is a sum of medians, as `nas.latency.profile.entry` has it; its error is that of a
    sum of independent medians. A price that is not told from zero is never 0: it is set to its
    error (or, if that is not known, to its own size), with grade C.

    Raises:
        ConfigError: the times give a price that no device has.
    """
    used = [(weight, seen[chain_name(chain)]) for chain, weight in recipe.terms]
    ms = sum(weight * item.ms for weight, item in used)
    error_ms = math.sqrt(sum((weight * item.error_ms) ** 2 for weight, item in used))
    sigma_ms = math.sqrt(sum((weight * item.sigma_ms) ** 2 for weight, item in used))
    share = error_ms / ms if ms > 0 else math.inf
    letter = max([grade_of_error(share), *(item.grade for _, item in used)])
    rows = [item.rows for _, item in used]
    is_known = math.isfinite(error_ms)
    by = f"{recipe.by}; {min(rows)} to {max(rows)} rows" + ("" if is_known else ", spread unknown")
    if ms <= 0 or (is_known and ms <= error_ms):
        ms = max(error_ms if is_known else abs(ms), 1e-6)
        letter, by = "C", by + "; not told from zero"
    half_ms = P90_SIGMAS * sigma_ms if is_known else 0.0
    try:
        return Entry(
            ms=round(ms, 7),
            isolated_ms=round(seen[chain_name(recipe.alone)].ms, 7),
            p10=round(ms - half_ms, 7),
            p90=round(ms + half_ms, 7),
            clean=min(rows),
            taken=max(rows),
            grade=letter if is_steady else "C",
            by=by,
        )
    except ValueError as error:
        raise ConfigError(f"the times of {recipe.entry} make no price: {error}") from error


def _with_entries(
    table: LatencyTable, manifest: PlanManifest, seen: Mapping[str, Seen]
) -> LatencyTable:
    """Return the table with an entry for each recipe whose chains are all timed."""
    chains = {
        file.chain: seen[name] for name, file in manifest.of_kind("chain").items() if name in seen
    }
    references = [seen[name] for name in manifest.of_kind("reference") if name in seen]
    is_steady = all(item.rows == 1 or item.grade != "C" for item in references)
    entries = {name: old for name, old in table.entries.items() if name not in manifest.entries}
    for recipe in manifest.recipes():
        needed = {chain_name(recipe.alone), *(chain_name(chain) for chain, _ in recipe.terms)}
        if needed <= chains.keys():
            entries[recipe.entry] = entry_of(recipe, chains, is_steady=is_steady)
    gone = {manifest.space, calibration_name(manifest.space, manifest.image_size)}
    calibrations = {name: old for name, old in table.calibrations.items() if name not in gone}
    return replace(table, entries=entries, calibrations=calibrations)


def _with_fit(
    table: LatencyTable, manifest: PlanManifest, seen: Mapping[str, Seen]
) -> LatencyTable:
    """Return the table with the fit on whole networks, if everything it rests on is timed."""
    networks = manifest.of_kind("calibration")
    if not networks or not networks.keys() <= seen.keys():
        return table
    blocks = {
        str(file.architecture): [parse(text) for text in file.blocks] for file in networks.values()
    }
    if any(table.missing(chain) for chain in blocks.values()):
        return table
    measured_ms = {str(file.architecture): seen[name].ms for name, file in networks.items()}
    return calibrated(table, manifest.space, blocks, measured_ms)


def _check(table: LatencyTable, manifest: PlanManifest, seen: Mapping[str, Seen]) -> Check | None:
    """Return the table's errors on the networks nobody fitted on, if enough of them are timed."""
    files = {name: file for name, file in manifest.of_kind("check").items() if name in seen}
    networks = {
        str(file.architecture): [parse(text) for text in file.blocks] for file in files.values()
    }
    lacks = any(table.missing(blocks) for blocks in networks.values())
    if len(networks) < MIN_NETWORKS or lacks:
        return None
    timings = {str(file.architecture): _timing(seen[name]) for name, file in files.items()}
    space = calibration_name(manifest.space, manifest.image_size)
    return compare(table, networks, timings, space=space)


def network_times(manifest: PlanManifest, results: Path | str, target: Target) -> dict[str, Timing]:
    """Return the times of the whole networks that `write_networks` wrote, by name.

    Raises:
        ConfigError: a row breaks a rule, a file has no time, or the target has another batch.
    """
    _check_batch(manifest, target)
    rows = read_times(results, manifest)
    files = manifest.of_kind("check")
    missing = [name for name in files if name not in rows]
    if missing:
        raise ConfigError(
            f"{len(missing)} files of the plan have no time yet, the first is {missing[0]}. "
            "Append the missing rows and run the same command again."
        )
    return {
        str(file.architecture): _timing(summarise_rows(rows[name])) for name, file in files.items()
    }


def _check_batch(manifest: PlanManifest, target: Target) -> None:
    if target.batch != manifest.batch:
        raise ConfigError(
            f"the plan's files have batch {manifest.batch}, but {target} says b{target.batch}. "
            f"Name the target with b{manifest.batch}, or make a plan for that batch."
        )


def _timing(item: Seen) -> Timing:
    sigma_ms = item.sigma_ms if math.isfinite(item.sigma_ms) else 0.0
    p10_ms, p90_ms = item.ms - P90_SIGMAS * sigma_ms, item.ms + P90_SIGMAS * sigma_ms
    error_ms = item.error_ms if math.isfinite(item.error_ms) else 0.0
    return Timing(
        median_ms=item.ms,
        p10=p10_ms,
        p90=p90_ms,
        p95=item.ms + 1.645 * sigma_ms,
        ci_high_ms=item.ms + CI_ERRORS * error_ms,
        clean=item.rows,
        taken=item.rows,
        grade=item.grade,
        spread=sigma_ms * IQR_PER_SIGMA / item.ms,
        repeat=None,
    )

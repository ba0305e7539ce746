"""Profiling a device that runs no Python: files out, times in."""

from pathlib import Path
from typing import Any

from nas.latency.calibration import Calibration, calibration_name
from nas.latency.check import Check
from nas.latency.plan_folder import KINDS, PlanManifest, read_plan, write_plan
from nas.latency.results import Results, add_results
from nas.latency.table import TABLES
from nas.pipeline import budget as budgets
from nas.pipeline.config import RunConfig
from nas.pipeline.materials import Materials
from nas.pipeline.outcome import Outcome, rows
from nas.pipeline.prepare import PREDICTION_KEYS, errors_text, profiled
from nas.pipeline.run import Progress, Run, config_path
from nas.space import SearchSpace
from nas.target import Target


def write_files(
    config: RunConfig, folder: Path, *, check_networks: int, progress: Progress
) -> Outcome:
    """Write the files that a space's table needs into a new folder, with how to time them.

    Raises:
        ConfigError: the folder is there already.
    """
    materials = Materials(Run(folder, config, resume=False))
    manifest = write_plan(
        materials.space,
        folder,
        config.profile,
        batch=materials.target.batch,
        check_networks=check_networks,
        export=materials.parts,
        progress=progress,
    )
    size_bytes = sum(file.bytes for file in manifest.files.values())
    counts = {kind: len(manifest.of_kind(kind)) for kind in KINDS}
    lines = rows(
        {
            "plan": str(folder),
            "files": ", ".join(f"{count} {kind}" for kind, count in counts.items()),
            "size": f"{size_bytes / 1e6:,.0f} MB",
            "next": f"copy {folder} to the device and follow {folder / 'README.md'}",
        }
    )
    values = {"plan": str(folder), "digest": manifest.digest, "bytes": size_bytes, "files": counts}
    return Outcome(values=values, lines=lines)


def read_times(run_folder: Path, config: RunConfig, folder: Path, results: Path) -> Outcome:
    """Make the table of the times that came back; its `problem` is that some are missing.

    A run that has begun, of the same space, can search with the table afterwards.

    Raises:
        ConfigError: a row breaks a rule, or the target is no full id.
        CorruptFile: the plan is not as it was written.
    """
    manifest = read_plan(folder)
    target = Target.from_id(config.target)
    path = Path(config.table) if config.table is not None else TABLES / f"{target.id}.json"
    found = add_results(manifest, results, target, path)
    if not found.missing and config_path(run_folder).is_file():
        _tell_run(run_folder, config, manifest, found)
    grades = [entry.grade for entry in found.table.entries.values()]
    predictions = _predictions(found.check)
    fit = _fit(manifest, found)
    lines = rows(
        {
            "table": found.table.path,
            "entries": f"{len(grades)} on {target.id}: "
            + ", ".join(f"{grades.count(letter)} {letter}" for letter in "ABC"),
            "repeats": f"{found.repeated} files have several rows, pooled as repeats",
            "fit": f"on {len(fit.fitted_on)} whole networks" if fit is not None else "none",
            "error on unseen": errors_text(predictions) if predictions else "not checked",
        }
    )
    values = {
        "table": found.table.path,
        "target": target.id,
        "entries": len(grades),
        "grades": {letter: grades.count(letter) for letter in "ABC"},
        "repeated": found.repeated,
        "missing": list(found.missing),
        "predictions": predictions,
    }
    return Outcome(values=values, lines=lines, problem=found.problem())


def _predictions(check: Check | None) -> list[dict[str, Any]]:
    rows_ = check.rows if check is not None else ()
    return [{key: getattr(row, key) for key in PREDICTION_KEYS} for row in rows_]


def _fit(manifest: PlanManifest, found: Results) -> Calibration | None:
    return found.table.calibration(calibration_name(manifest.space, manifest.image_size))


def _tell_run(run_folder: Path, config: RunConfig, manifest: PlanManifest, found: Results) -> None:
    """Note the profile in a run of the plan's space, in place of an earlier one of the target."""
    fit = _fit(manifest, found)
    if SearchSpace.load(config.space).name != manifest.space or found.check is None or fit is None:
        return
    with Run.open(run_folder, config, resume=True) as run:
        space, check = Materials(run).space, found.check
        largest_ms = fit.fitted_on.get(space.largest().id)
        if largest_ms is None:  # the plan is of another image size
            return
        run.stages.pop(run.profile_key, None)
        fastest = budgets.cheapest(space, found.table.pricer(space))
        result = profiled(found.table, fastest, largest_ms, check)
        run.stage(run.profile_key, lambda progress: result)

"""A device that runs no Python, to the end: candidates and winners timed there by hand.

Files go out into a folder, and times come back as the same CSV that makes a table.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path

from nas.block import Block, parse_network
from nas.errors import ConfigError
from nas.files import digest_file
from nas.latency import Timing
from nas.latency.plan_folder import PlanManifest, read_plan, write_networks
from nas.latency.results import network_times
from nas.manifest import TargetResult, Winner
from nas.pipeline.candidates import search
from nas.pipeline.materials import Materials
from nas.pipeline.outcome import Outcome, rows
from nas.pipeline.run import Progress, Run
from nas.pipeline.winners import verdict
from nas.space import Architecture
from nas.target import Target
from nas.winner.latency import result_of
from nas.winner.quantized import INT8_KINDS, ONNX
from nas.winner.verify import verify_elsewhere


class _Written(Exception):  # noqa: N818  no error: the search stops here until times are there
    def __init__(self, manifest: PlanManifest) -> None:
        super().__init__()
        self.manifest = manifest


def search_by_files(run: Run, folder: Path, results: Path | None) -> Outcome:
    """Search up to the candidates and write them to be timed; or, with their times, to the end.

    Args:
        run: Its target names the device.
        folder: A new folder for the files; with `results`, the one that was written.
        results: The times, a CSV file.

    Raises:
        ConfigError: the folder is there already, there are several targets, a time is missing, or
            its row breaks a rule.
        InfeasibleBudget: as `search`.
    """
    run.config.only_target("--plan")
    materials = Materials(run)
    if results is not None:
        manifest = read_plan(folder)
        times = network_times(manifest, results, materials.target)
        known = {file.blocks: times[str(file.architecture)] for file in manifest.files.values()
                 if file.kind == "check"}  # fmt: skip
        materials.timed = lambda networks: _looked_up(networks, known, folder)
        return search(run, materials)
    if folder.exists():
        raise ConfigError(f"--plan must be a new folder, but {folder} is there. Choose another.")

    def write(networks: Mapping[str, Sequence[Block]]) -> dict[str, Timing]:
        command = f"nas search --run {run.folder} --plan THIS_FOLDER --results times.csv"
        raise _Written(
            write_networks(
                {f"trial-{name}": blocks for name, blocks in networks.items()},
                folder,
                space=materials.space.name,
                command=f"{command} --target TARGET",
                batch=materials.target.batch,
                export=materials.parts,
                progress=run.progress("plan"),
            )
        )

    materials.timed = write
    try:
        return search(run, materials)
    except _Written as written:
        return _written(folder, written.manifest)


def _written(folder: Path, manifest: PlanManifest) -> Outcome:
    count = len(manifest.of_kind("check"))
    lines = {"plan": str(folder), "networks": str(count)}
    lines["next"] = f"copy {folder} to the device and follow {folder / 'README.md'}"
    values = {"plan": str(folder), "digest": manifest.digest, "networks": count}
    return Outcome(values=values, lines=rows(lines))


def _looked_up(
    networks: Mapping[str, Sequence[Block]], known: Mapping[tuple[str, ...], Timing], folder: Path
) -> dict[str, Timing]:
    keys = {name: tuple(map(str, blocks)) for name, blocks in networks.items()}
    lacking = [name for name, key in keys.items() if key not in known]
    if lacking:
        raise ConfigError(
            f"{folder} has no file of trial {lacking[0]}: the search went on since it was written. "
            "Write another --plan and time that."
        )
    return {name: known[key] for name, key in keys.items()}


def _timed_file(folder: Path, winner: Winner) -> Path:
    """Return the file whose accuracy and latency are promised for the device: int8, if there is."""
    (int8,) = INT8_KINDS["onnxruntime"].files
    return folder / (int8 if int8 in winner.files else ONNX)


def plan_winner(folder: Path, plan: Path) -> Outcome:
    """Write a winner's ONNX file into a new folder, to be timed by hand."""
    winner = Winner.load(folder)
    winner.check_files(folder)
    manifest = write_networks(
        {winner.id: parse_network(winner.blocks)},
        plan,
        space=Architecture.from_json(winner.architecture).space,
        command=f"nas verify {folder} --plan THIS_FOLDER --results times.csv --target TARGET",
        given={winner.id: _timed_file(folder, winner)},
    )
    return _written(plan, manifest)


def verify_by_files(
    folder: Path,
    plan: Path,
    results: Path,
    *,
    target: str | None,
    data: str | None,
    progress: Progress,
) -> Outcome:
    """Check one exported folder in a fresh process here, its latency as it was timed by hand.

    Raises:
        ConfigError: no target is named, the plan is of another winner, or a row breaks a rule.
    """
    if target is None:
        raise ConfigError("--results needs --target: the full id of the device it is of.")
    winner, there = Winner.load(folder), Target.from_id(target)
    manifest = read_plan(plan)
    digests = [file.sha256 for file in manifest.of_kind("check").values()]
    file = _timed_file(folder, winner)
    if digests != [digest_file(file)]:
        raise ConfigError(f"{plan} is not of {file}. Write another --plan and time that.")
    (timing,) = network_times(manifest, results, there).values()

    def stopwatch(folder: Path) -> TargetResult:
        return result_of(timing, there)

    result = verify_elsewhere(
        folder, stopwatch, target=there, data_name=data or winner.data, progress=progress
    )
    return verdict(winner, result)

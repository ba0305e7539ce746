"""Verbs that do the whole job: quickstart and run."""

from pathlib import Path
from typing import Annotated

import typer

from nas.cli import flags
from nas.cli.agent import at_device, going_on
from nas.cli.console import Options, emit, guarded, progress
from nas.cli.words import changes, go_on


def quickstart(
    run: flags.RunFolder = Path("runs/quickstart"),
    seed: flags.Seed = None,
    resume: flags.Resume = False,
    json: flags.Json = False,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = 0,
    debug: flags.Debug = False,
    overrides: flags.Overrides = None,
) -> None:
    """Do the whole job on scikit-learn's digits: from nothing to a verified network.

    Measures this machine, trains a supernet of the `tiny` space, searches under half of the
    largest network's latency, distills, exports and verifies the winner. Its settings are
    written to config.yaml in the run's folder: copy and edit them for `nas run`.
    """
    options = Options(json, quiet, verbose, debug, go_on("quickstart", run))
    with guarded(options):
        from nas import pipeline

        words = changes({"seed": seed}, overrides)
        config = pipeline.load_config(pipeline.preset("quickstart"), words)
        with pipeline.Run.open(run, config, resume=resume, progress=progress(options)) as opened:
            result = pipeline.run_all(opened)
        emit(result.to_json(), result.text(), options)


def run(
    config: Annotated[
        Path | None, typer.Argument(help="A YAML file of settings (runs/quickstart/config.yaml).")
    ] = None,
    run: flags.RunFolder = Path("runs/default"),
    space: flags.Space = None,
    data: flags.Data = None,
    image_size: flags.ImageSize = None,
    target: flags.TargetName = None,
    table: flags.Table = None,
    device: flags.RemoteDevice = None,
    token_file: flags.TokenFile = None,
    latency_budget: flags.Budget = None,
    budget: flags.Budgets = None,
    seed: flags.Seed = None,
    storage: flags.Storage = None,
    resume: flags.Resume = False,
    json: flags.Json = False,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = 0,
    debug: flags.Debug = False,
    overrides: flags.Overrides = None,
) -> None:
    """Do the whole job with your settings: profile, train, search, distill, export, verify, report.

    With --device everything is timed on the device of an agent, and trained here.

    Example: nas run --data folder:photos --space hybrid-64 --latency-budget 5ms --run runs/photos
    """
    options = Options(json, quiet, verbose, debug, go_on("run", run))
    with guarded(options):
        from nas import pipeline

        words, path = list(overrides or ()), config
        if path is not None and "=" in str(path):
            words, path = [str(path), *words], None
        flagged = {
            "space": space, "data": data, "image_size": image_size, "target": target,
            "table": table, "latency_budget": latency_budget, "budgets": budget, "seed": seed,
            "storage": storage,
        }  # fmt: skip
        words = changes(flagged, words)
        stored = run / "config.yaml"
        if path is None and stored.is_file():
            path = stored
        settings = pipeline.load_config(path, words)
        with going_on(device, options):
            config_there, made = at_device(settings, device, token_file)
            reports = progress(options)
            with pipeline.Run.open(run, config_there, resume=resume, progress=reports) as opened:
                result = pipeline.run_all(opened, made(opened))
        emit(result.to_json(), result.text(), options)

"""Verbs of one stage each: profile, train, search, distill, export, verify, report."""

from pathlib import Path
from typing import Annotated

import typer

from nas.cli import flags
from nas.cli.agent import Elsewhere, at_device, check_files, going_on, profile_elsewhere
from nas.cli.console import Options, emit, guarded, progress
from nas.cli.words import changes, go_on, targets

DEFAULT_RUN = Path("runs/default")


def profile(
    run: flags.RunFolder = DEFAULT_RUN,
    space: flags.Space = None,
    data: flags.Data = None,
    image_size: flags.ImageSize = None,
    target: flags.TargetName = None,
    table: flags.Table = None,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Say what would be measured and how long it takes.")
    ] = False,
    measure_every: flags.MeasureEvery = None,
    device: flags.RemoteDevice = None,
    token_file: flags.TokenFile = None,
    plan: flags.PlanFolder = None,
    results: flags.ResultsFile = None,
    check_networks: flags.CheckNetworks = None,
    resume: flags.Resume = False,
    json: flags.Json = False,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = 0,
    debug: flags.Debug = False,
    overrides: flags.Overrides = None,
) -> None:
    """Measure the latency of every part a space needs, on this machine, into a table.

    The table is one JSON file per device and runtime (runs/tables/ by default) that any space
    adds to; what it holds already is not measured again. Whole networks are measured too: some to
    fit the sums of parts on (profile.calibrate_on), some to say how far off the table is on
    networks it has not seen (check_networks). A further target is profiled in a run of its own,
    with the same --space and --data: tables are shared by all runs. With --measure-every N sizes
    between measured ones are interpolated and marked so. Another device is measured with --device
    (through `nas agent` on it) or, without Python there, with --plan and then --results.
    """
    options = Options(json, quiet, verbose, debug, go_on("profile", run))
    with guarded(options):
        from nas import pipeline

        flagged = {
            "space": space, "data": data, "image_size": image_size, "target": target,
            "table": table, "profile.every": measure_every,
        }  # fmt: skip
        config = pipeline.config_of(run, changes(flagged, overrides), begin=True)
        elsewhere = Elsewhere(device, plan, results, check_networks, dry_run)
        if elsewhere.plan is not None:
            return profile_elsewhere(run, config, elsewhere, options)
        with going_on(device, options):
            config, made = at_device(config, device, token_file)
            reports = progress(options)
            with pipeline.Run.open(run, config, resume=resume, progress=reports) as opened:
                work = pipeline.plan_profile if dry_run else pipeline.profile
                result = work(opened, made(opened))
        emit(result.to_json(), result.text(), options)


def train(
    run: flags.RunFolder = DEFAULT_RUN,
    space: flags.Space = None,
    data: flags.Data = None,
    image_size: flags.ImageSize = None,
    init: flags.Init = None,
    workers: flags.TrainWorkers = None,
    fit_choice: flags.FitChoice = None,
    seed: flags.Seed = None,
    resume: flags.Resume = False,
    json: flags.Json = False,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = 0,
    debug: flags.Debug = False,
    overrides: flags.Overrides = None,
) -> None:
    """Train the supernet of a space once, for every device and budget.

    Checkpoints are kept in the run's folder; after a stop, --resume ends with the same weights.
    With --init it starts from the weights of a published network, or of a winner, that fits in.
    --fit-choice weighs the kinds of block against their latency on a target that has a table, with
    the weights as they are; --resume does that for a supernet that is trained.
    """
    options = Options(json, quiet, verbose, debug, go_on("train", run))
    with guarded(options):
        from nas import pipeline

        flagged = {"space": space, "data": data, "image_size": image_size}
        flagged |= {"init": init, "train.workers": workers, "seed": seed}
        config = pipeline.config_of(run, changes(flagged, overrides), begin=True)
        with pipeline.Run.open(run, config, resume=resume, progress=progress(options)) as opened:
            opened.refuse_repeat("train")
            result = pipeline.train(opened)
            if fit_choice is not None:
                result = result.joined("choice", pipeline.fit_kinds(opened, fit_choice))
        emit(result.to_json(), result.text(), options)


def search(
    run: flags.RunFolder = DEFAULT_RUN,
    latency_budget: flags.Budget = None,
    budget: flags.Budgets = None,
    name: flags.Name = None,
    evaluations: flags.Evaluations = None,
    sampler: flags.Sampler = None,
    mode: flags.Mode = None,
    importance: flags.Importance = None,
    stock: flags.Stock = None,
    statistic: flags.Statistic = None,
    workers: flags.Workers = None,
    engine: flags.Engine = None,
    address: flags.Address = None,
    winners: flags.Winners = None,
    target: flags.Targets = None,
    table: flags.Table = None,
    device: flags.RemoteDevice = None,
    token_file: flags.TokenFile = None,
    plan: flags.TimesPlan = None,
    results: flags.TimesFile = None,
    seed: flags.Seed = None,
    storage: flags.Storage = None,
    resume: flags.Resume = False,
    json: flags.Json = False,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = 0,
    debug: flags.Debug = False,
    overrides: flags.Overrides = None,
) -> None:
    """Search the trained supernet for the best networks under a hard budget.

    Needs `nas train` and, for the target, a table (`nas profile`), which four networks measured
    first set right (recalibrate_on=4). The study is kept in a database anyone can query; the best
    candidates are measured whole, on every target, before one is chosen: here, by an agent
    (--device), or by hand: --plan writes them and ends, with --results it goes on. --importance
    allocates widths inside blocks; --stock keeps to timm's own; --mode front spreads the winners.
    """
    options = Options(json, quiet, verbose, debug, go_on("search", run))
    with guarded(options):
        from nas import pipeline

        flagged = {
            "latency_budget": latency_budget, "budgets": budget, "evaluations": evaluations,
            "sampler": sampler, "mode": mode, "winners": winners, "workers": workers, "seed": seed,
            "engine": engine, "address": address, "importance": importance, "stock": stock,
            "statistic": statistic, **targets(target), "table": table, "storage": storage,
        }  # fmt: skip
        config = pipeline.config_of(run, changes(flagged, overrides), begin=False, study=name)
        check_files(plan, results, device)
        with going_on(device, options):
            config, made = at_device(config, device, token_file)
            reports = progress(options)
            with pipeline.Run.open(run, config, resume=resume, progress=reports) as opened:
                opened.refuse_repeat(f"search/{opened.study}")
                if plan is not None:
                    result = pipeline.search_by_files(opened, plan, results)
                else:
                    result = pipeline.search(opened, made(opened))
        emit(result.to_json(), result.text(), options)


def distill(
    run: flags.RunFolder = DEFAULT_RUN,
    name: flags.Name = None,
    resume: flags.Resume = False,
    json: flags.Json = False,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = 0,
    debug: flags.Debug = False,
    overrides: flags.Overrides = None,
) -> None:
    """Train the chosen candidates of a search on their own, taught by a teacher."""
    options = Options(json, quiet, verbose, debug, go_on("distill", run))
    with guarded(options):
        from nas import pipeline

        config = pipeline.config_of(run, changes({}, overrides), begin=False, study=name)
        with pipeline.Run.open(run, config, resume=resume, progress=progress(options)) as opened:
            result = pipeline.distill(opened)
        emit(result.to_json(), result.text(), options)


def export(
    run: flags.RunFolder = DEFAULT_RUN,
    name: flags.Name = None,
    resume: flags.Resume = False,
    json: flags.Json = False,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = 0,
    debug: flags.Debug = False,
) -> None:
    """Write the distilled candidates as folders that timm and ONNX Runtime load."""
    options = Options(json, quiet, verbose, debug, go_on("export", run))
    with guarded(options):
        from nas import pipeline

        config = pipeline.config_of(run, [], begin=False, study=name)
        with pipeline.Run.open(run, config, resume=resume, progress=progress(options)) as opened:
            result = pipeline.export(opened)
        emit(result.to_json(), result.text(), options)


def verify(
    folder: Annotated[Path, typer.Argument(help="A winner's folder, runs/NAME/winners/ID.")],
    target: flags.TargetName = None,
    data: flags.Data = None,
    device: flags.RemoteDevice = None,
    token_file: flags.TokenFile = None,
    plan: flags.TimesPlan = None,
    results: flags.TimesFile = None,
    json: flags.Json = False,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = 0,
    debug: flags.Debug = False,
) -> None:
    """Check a winner in a fresh process: its files, its test accuracy, its measured latency.

    Without --target that is the latency on every target it was promised for that is here. A budget
    that is missed while others use the processor, or by a slower clock than it was promised at, is
    timed up to three times more within three minutes, and the fastest counts. Exits with 7 if a
    promise in winner.json is broken. With --device the latency is that on the device of an agent,
    with --plan and then --results one that was timed by hand; all else is checked here.
    """
    options = Options(json, quiet, verbose, debug)
    with guarded(options):
        from nas import pipeline

        bar = progress(options)("verify")
        check_files(plan, results, device)
        if plan is not None and results is not None:
            result = pipeline.verify_by_files(
                folder, plan, results, target=target, data=data, progress=bar
            )
        elif plan is not None:
            result = pipeline.plan_winner(folder, plan)
        elif device is not None:
            result = pipeline.verify_on(
                folder, device, token_file, target=target, data=data, progress=bar
            )
        else:
            at_device(None, device, token_file)
            result = pipeline.verify_folder(folder, target=target, data=data, progress=bar)
        emit(result.to_json(), result.text(), options)
        result.raise_if_broken()


def report(
    run: flags.RunFolder = DEFAULT_RUN,
    name: flags.Name = None,
    json: flags.Json = False,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = 0,
    debug: flags.Debug = False,
) -> None:
    """Write report/index.html: the front with the budget, predicted against measured latency.

    A study of another name than the run's has its page in report/NAME/.
    """
    options = Options(json, quiet, verbose, debug)
    with guarded(options):
        from nas import pipeline

        config = pipeline.config_of(run, [], begin=False, study=name)
        with pipeline.Run.open(run, config, resume=True, progress=progress(options)) as opened:
            result = pipeline.report(opened)
        emit(result.to_json(), result.text(), options)

"""Verbs that say how far a supernet can be believed: rank and taylor."""

from pathlib import Path
from typing import Annotated

import typer

from nas.cli import flags
from nas.cli.console import Options, emit, guarded, progress
from nas.cli.words import changes, go_on

DEFAULT_RUN = Path("runs/default")


def rank(
    run: flags.RunFolder = DEFAULT_RUN,
    bands: Annotated[int | None, typer.Option(help="Bands of MACs, equal on a log scale.")] = None,
    per_band: Annotated[int | None, typer.Option(help="Networks drawn from each band.")] = None,
    twice: Annotated[
        int | None, typer.Option(help="Networks trained a second time, for the noise.")
    ] = None,
    epochs: Annotated[
        int | None, typer.Option(help="Epochs each network is trained alone.")
    ] = None,
    max_macs: Annotated[str | None, typer.Option(help="Draw no larger networks, e.g. 15M.")] = None,
    jobs: Annotated[
        int | None,
        typer.Option(
            help="Networks trained at once, a process with one thread each; 1, with ray all CPUs."
        ),
    ] = None,
    engine: Annotated[
        str, typer.Option(help="Where networks are trained: local, or ray (tasks).")
    ] = "local",
    address: flags.Address = None,
    resume: flags.Resume = False,
    json: flags.Json = False,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = 0,
    debug: flags.Debug = False,
    overrides: flags.Overrides = None,
) -> None:
    """Say how truthfully the trained supernet ranks: train a sample of its networks alone.

    Prints Kendall's tau and Spearman's correlation of inherited and stand-alone accuracy with
    their intervals, beside parameters, MACs, depth and table latency as predictors, what is left
    once MACs are known, what choosing by each costs (regret), and how much noise leaves to be
    had. Writes RUN/rank/: rank.json, one HTML page and its pictures.

    Can be stopped and started again at any time: what is trained with these settings is kept.
    With --engine ray the trainings are spread over a cluster; one that was not finished when its
    worker died begins anew, at most twice.
    Settings are rank.KEY=value, those of each training rank.train.KEY=value.

    Example: nas rank --run runs/mine --bands 8 --per-band 4 --jobs 2
    """
    options = Options(json, quiet, verbose, debug, go_on("rank", run))
    with guarded(options):
        from nas import pipeline
        from nas.search import parse_budgets

        macs = None if max_macs is None else int(parse_budgets([f"macs={max_macs}"])["macs"])
        flagged = {
            "rank.bands": bands, "rank.per_band": per_band, "rank.twice": twice,
            "rank.train.epochs": epochs, "rank.max_macs": macs,
        }  # fmt: skip
        config = pipeline.config_of(run, changes(flagged, overrides), begin=False)
        with pipeline.Run.open(run, config, resume=resume, progress=progress(options)) as opened:
            result = pipeline.rank(opened, jobs=jobs, engine=engine, address=address)
        emit(result.to_json(), result.text(), options)


def taylor(
    run: flags.RunFolder = DEFAULT_RUN,
    images: Annotated[int, typer.Option(help="Training images to measure on.")] = 256,
    json: flags.Json = False,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = 0,
    debug: flags.Debug = False,
) -> None:
    """Draw which channels of the trained supernet matter (Taylor importance), part by part.

    Says where importance lies by kind of channel and stage, how much can go for 1 % of it, how
    alike the heads of attentions are, and which findings of EfficientViT hold here. Writes
    RUN/taylor/: taylor.json, one HTML page and its heat map.
    """
    options = Options(json, quiet, verbose, debug)
    with guarded(options):
        from nas import pipeline

        config = pipeline.config_of(run, [], begin=False)
        with pipeline.Run.open(run, config, resume=True, progress=progress(options)) as opened:
            result = pipeline.taylor(opened, images=images)
        emit(result.to_json(), result.text(), options)

"""The verb of a worker: `nas worker`."""

from typing import Annotated

import typer

from nas.cli import flags
from nas.cli.console import Options, emit, guarded
from nas.cli.stages import DEFAULT_RUN


def worker(
    study: Annotated[str, typer.Option("--study", help="The study's name; `nas studies` lists.")],
    run: flags.RunFolder = DEFAULT_RUN,
    storage: flags.Storage = None,
    idle_s: Annotated[
        float, typer.Option("--idle-s", min=0, help="End when nobody searched it for so long.")
    ] = 300.0,
    with_owner: Annotated[bool, typer.Option("--with-owner", hidden=True)] = False,
    json: flags.Json = False,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = 0,
    debug: flags.Debug = False,
) -> None:
    """Evaluate candidates of a search that runs elsewhere, here or on another machine.

    `nas search --workers N` starts N of these. One more helps at once: give the same --storage
    and, on another machine, a copy of the run's folder. It may be stopped at any time.
    """
    options = Options(json, quiet, verbose, debug)
    with guarded(options):
        from nas import pipeline

        result = pipeline.work(run, study, storage=storage, idle_s=idle_s, with_owner=with_owner)
        emit(result.to_json(), result.text(), options)

"""The command line: parses, calls one function of the pipeline, prints. It holds no logic."""

from typing import Annotated

import typer

from nas.cli import agent, device, inspect, prices, prune, ranks, stages, studies, whole, worker

HELP = """
Find the most accurate vision network that meets a latency budget on YOUR device.

One supernet is trained once; a latency table is measured per device; a search picks networks
under a hard budget; the winner is distilled, exported for timm and ONNX, and measured again.

Start with `nas quickstart`. Every stage can be stopped and continued with --resume.

Exit codes: 0 ok, 1 failure, 2 usage or configuration, 3 nothing meets the budget, 4 timing
unreliable, 5 device or runtime unavailable, 6 corrupt file, 7 a verified promise is broken,
75 try again, 130/143 stopped by a signal after saving.
"""

app = typer.Typer(
    name="nas",
    help=HELP,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)
space_app = typer.Typer(help="List the search spaces, or show one.", no_args_is_help=True)
study_app = typer.Typer(help="Show or delete one study.", no_args_is_help=True)


def _print_version(asked: bool) -> None:
    if asked:
        import nas

        print(f"nas {nas.__version__}")
        raise typer.Exit


@app.callback()
def root(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print it and exit."
        ),
    ] = False,
) -> None:
    """Carry the flags of the command itself."""


app.command()(whole.quickstart)
app.command()(whole.run)
app.add_typer(space_app, name="space")
space_app.command("list")(inspect.space_list)
space_app.command("show")(inspect.space_show)
app.command()(stages.profile)
app.command()(prices.price)
app.command("check-table")(prices.check_table)
app.command()(stages.train)
app.command()(ranks.rank)
app.command()(ranks.taylor)
app.command()(stages.search)
app.command()(worker.worker)
app.command()(studies.studies)
app.add_typer(study_app, name="study")
study_app.command("show")(studies.study_show)
study_app.command("delete")(studies.study_delete)
app.command()(studies.trials)
app.command()(studies.front)
app.command()(stages.distill)
app.command()(stages.export)
app.command()(stages.verify)
app.command()(stages.report)
app.command()(prune.prune)
app.command()(agent.agent)
app.command()(inspect.doctor)
app.command()(device.device_study)


def main() -> None:
    """Run the command line."""
    app()

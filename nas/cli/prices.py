"""Verbs about latency without a run: price, check-table."""

from pathlib import Path
from typing import Annotated

import typer

from nas.cli import flags
from nas.cli.console import Options, emit, guarded, progress


def price(
    network: Annotated[
        str,
        typer.Argument(
            help="efficientformer_l1, a winner's folder, an Architecture (JSON file), smallest or "
            "largest (with --space), blocks in quotes, or any timm model."
        ),
    ],
    space: flags.Space = None,
    target: flags.TargetName = None,
    table: flags.Table = None,
    by_block: Annotated[
        bool, typer.Option("--by-block", help="List what each block costs.")
    ] = False,
    measure: Annotated[
        bool, typer.Option("--measure", help="Time the whole network on this machine as well.")
    ] = False,
    json: flags.Json = False,
    quiet: flags.Quiet = False,
    debug: flags.Debug = False,
) -> None:
    """Say what a network takes on a device: from its latency table, or measured here.

    What a table cannot price is timed whole, which takes some seconds.

      nas price efficientformer_l1 --space hybrid --by-block

      nas price mobilenetv3_large_100 --target openvino,fp32,b1,t1
    """
    options = Options(json=json, quiet=quiet, debug=debug)
    with guarded(options):
        from nas import pipeline

        found = pipeline.price(
            network,
            space=space,
            target=target,
            table=table,
            by_block=by_block,
            measure=measure,
            progress=progress(options)("price"),
        )
        emit(found.to_json(), found.text(), options)


def check_table(
    space: Annotated[str, typer.Option(help="The space to draw unseen networks from.")],
    target: flags.TargetName = None,
    table: flags.Table = None,
    networks: Annotated[int, typer.Option(help="How many networks to draw and measure.")] = 60,
    published: Annotated[
        bool,
        typer.Option("--published", help="Add EfficientFormer's and EfficientViT's own networks."),
    ] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="A folder for a page with the scatter plot.")
    ] = None,
    seed: Annotated[int, typer.Option(help="Fixes which networks are drawn.")] = 1,
    json: flags.Json = False,
    quiet: flags.Quiet = False,
    debug: flags.Debug = False,
) -> None:
    """Measure whole networks that a latency table has not seen, and say how far off it is.

    They are drawn evenly over the space's levels of cost. Beside the table's error stand those of
    the sum of parts each timed alone, of lines through that sum and through the MACs (both fitted
    on the very networks), and that of measuring the same networks again.
    """
    options = Options(json=json, quiet=quiet, debug=debug)
    with guarded(options):
        from nas import pipeline

        found = pipeline.check_table(
            space,
            target=target,
            table=table,
            networks=networks,
            published=published,
            out=out,
            seed=seed,
            progress=progress(options)("check-table"),
        )
        emit(found.to_json(), found.text(), options)

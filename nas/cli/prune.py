"""The verb prune: one trained network, cut inside until it meets a budget."""

from pathlib import Path
from typing import Annotated

import typer

from nas.cli import flags
from nas.cli.agent import device_of
from nas.cli.console import Options, emit, guarded, progress

Folder = Annotated[
    str,
    typer.Argument(
        metavar="FOLDER",
        help="A winner's folder, another folder that timm loads, or a timm name: of our blocks "
        "or of EfficientFormer or EfficientViT.",
    ),
]
Budget = Annotated[
    str,
    typer.Option(
        "--latency-budget",
        help="A time (5ms, 800us), or a share of what the network takes as it is (80%).",
    ),
]
Out = Annotated[Path, typer.Option("--out", help="A folder for the pruned network.")]
Importance = Annotated[
    str,
    typer.Option(
        help="What a cut costs: taylor (importance of channels, fitted on random cuts) or "
        "sensitivity (the loss of every cut, measured)."
    ),
]
Space = Annotated[
    str | None,
    typer.Option(
        help="Whose sizes are options; the folder's own, or multiples of 8, if not given."
    ),
]
Measure = Annotated[
    bool, typer.Option("--measure", help="Time the parts the table lacks, into runs/tables/.")
]
Epochs = Annotated[
    int, typer.Option(min=0, help="Then train it on, taught by the network as it was.")
]


def prune(
    folder: Folder,
    latency_budget: Budget,
    out: Out,
    target: flags.TargetName = None,
    budget: flags.Budgets = None,
    data: flags.Data = None,
    importance: Importance = "taylor",
    space: Space = None,
    table: flags.Table = None,
    measure: Measure = False,
    epochs: Epochs = 0,
    device: flags.RemoteDevice = None,
    token_file: flags.TokenFile = None,
    seed: flags.Seed = None,
    json: flags.Json = False,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = 0,
    debug: flags.Debug = False,
) -> None:
    """Cut the inside of one trained network until it meets a budget, with the least loss.

    Hidden widths, key and value channels and heads are cut, the least important channels first,
    as much in each block as the network as a whole loses least by; widths and depths stay.
    BatchNorm's statistics are fitted anew where that lowers the loss. The folder is like a
    winner's: for timm and as ONNX. The pruned network is timed whole where the target is this
    machine, or by the agent of --device. Exits with 3 if nothing meets the budget; then nothing
    is written.

      nas prune runs/quickstart/winners/ID --latency-budget 80% --out runs/pruned

      nas prune efficientvit_m2 --data folder:DIR --latency-budget 5ms --measure --out runs/pruned
    """
    options = Options(json, quiet, verbose, debug)
    with guarded(options):
        from nas import pipeline

        there = device_of(device, token_file, target)
        config = pipeline.PruneConfig(
            latency_budget=latency_budget,
            budgets=tuple(budget or ()),
            **({} if target is None else {"target": target}),
            **({} if there is None else {"target": there.target.id}),
            table=table,
            space=space,
            data=data,
            importance=importance,
            measure=measure,
            epochs=epochs,
            seed=seed or 0,
        )
        benches = None if there is None else there.agent.bench
        result = pipeline.prune(folder, out, config, progress=progress(options), benches=benches)
        emit(result.to_json(), result.text(), options)

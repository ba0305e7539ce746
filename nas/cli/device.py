"""The verb device-study: what a target likes, measured on it."""

from pathlib import Path
from typing import Annotated

import typer

from nas.cli import flags
from nas.cli.console import Options, emit, guarded, progress
from nas.cli.words import go_on


def device_study(
    target: flags.TargetName = None,
    out: Annotated[
        Path | None,
        typer.Option("--out", help="Folder to write; runs/device-study/TARGET by default."),
    ] = None,
    samples: Annotated[
        int | None, typer.Option(help="Clean samples of each network; 30 by default.")
    ] = None,
    resume: flags.Resume = False,
    json: flags.Json = False,
    quiet: flags.Quiet = False,
    verbose: flags.Verbose = 0,
    debug: flags.Debug = False,
) -> None:
    """Measure what this machine and runtime like, and say what that means for a search space.

    Seven questions from the papers of EfficientFormer and EfficientViT, each with small networks
    that differ in one thing and are timed in turns: patch embedding, token mixers and reshapes,
    MLPs, activations, memory-bound operations, attention, and which multiple of channels pays.
    Takes three to five minutes; writes study.json and one HTML page with its pictures.

    Example: nas device-study --target onnxruntime,fp32,b1,t1
    """
    options = Options(json, quiet, verbose, debug, go_on("device-study", out or Path()))
    with guarded(options):
        from nas.pipeline import study_device

        bar = progress(options)("device")
        result = study_device(target, out, samples=samples, resume=resume, progress=bar)
        emit(result.to_json(), result.text(), options)

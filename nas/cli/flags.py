"""The flags that several verbs share, with their help texts."""

from pathlib import Path
from typing import Annotated

import typer

Json = Annotated[bool, typer.Option("--json", help="Print one JSON object on stdout.")]
Quiet = Annotated[bool, typer.Option("--quiet", "-q", help="No progress; results only.")]
Verbose = Annotated[int, typer.Option("--verbose", "-v", count=True, help="More log; -vv all.")]
Debug = Annotated[bool, typer.Option("--debug", help="Show tracebacks of errors.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on where this run stopped.")]
RunFolder = Annotated[Path, typer.Option("--run", help="The run's folder, usually runs/NAME.")]
Seed = Annotated[int | None, typer.Option(help="Every random choice follows from this number.")]
Space = Annotated[
    str | None, typer.Option(help="A shipped space (`nas space list`) or a YAML file.")
]
Data = Annotated[
    str | None,
    typer.Option(help="digits (built in), folder:DIR (train/CLASS/*, val/CLASS/*), a timm name."),
]
ImageSize = Annotated[int | None, typer.Option(help="Side in pixels; the space's by default.")]
Init = Annotated[
    str | None,
    typer.Option(
        help="Start from a network's weights: a timm name (its weights are fetched) or a folder."
    ),
]
TrainWorkers = Annotated[
    int | None,
    typer.Option("--workers", help="Processes that share each batch, by Ray Train; 1 without Ray."),
]
FitChoice = Annotated[
    str | None,
    typer.Option(
        "--fit-choice",
        help="Then fit which kinds suit this target, as --target has it, into choice/ in the run.",
    ),
]
TargetName = Annotated[
    str | None,
    typer.Option("--target", help="RUNTIME,PRECISION,bBATCH,tTHREADS here, or a full id."),
]
Targets = Annotated[
    list[str] | None,
    typer.Option(
        "--target",
        help="RUNTIME,PRECISION,bBATCH,tTHREADS here, or a full id. Repeat it for more targets, "
        "each with a --budget latency_ms:TARGET=5ms and its table, profiled in a run of its own.",
    ),
]
Mode = Annotated[
    str | None,
    typer.Option(
        help="best: networks just below the budget; front: from the fastest up to the budget."
    ),
]
Importance = Annotated[
    str | None,
    typer.Option(
        help="How widths inside blocks are chosen: allocated by taylor (importance of channels) "
        "or sensitivity (measured losses), or none: one choice for all blocks of a kind."
    ),
]
Stock = Annotated[
    bool | None,
    typer.Option(
        "--stock/--no-stock",
        help="Only networks that plain timm builds (its EfficientFormer and EfficientViT classes).",
        show_default=False,
    ),
]
Statistic = Annotated[
    str | None,
    typer.Option(help="What of a measurement must meet the budget: median (upper end), or p95."),
]
Table = Annotated[str | None, typer.Option("--table", help="A latency table to use or to write.")]
RemoteDevice = Annotated[
    str | None, typer.Option("--device", help="http://HOST:PORT of an agent to measure on.")
]
TokenFile = Annotated[
    Path | None, typer.Option("--token-file", help="Holds that agent's token (mode 600).")
]
PlanFolder = Annotated[
    Path | None,
    typer.Option("--plan", help="Write the files to time into this new folder, measure nothing."),
]
ResultsFile = Annotated[
    Path | None,
    typer.Option("--results", help="Make the table of --plan's times; --target is a full id."),
]
CheckNetworks = Annotated[
    int | None,
    typer.Option("--check-networks", help="Networks in --plan to check the table with; 20."),
]
MeasureEvery = Annotated[
    int | None,
    typer.Option(
        "--measure-every",
        min=1,
        help="Measure every Nth size of a part and interpolate those between; 1: all of them.",
    ),
]
TimesPlan = Annotated[
    Path | None,
    typer.Option("--plan", help="Write what is to be timed by hand into this new folder."),
]
TimesFile = Annotated[
    Path | None,
    typer.Option("--results", help="The times of --plan's files (CSV); --target is a full id."),
]
Budget = Annotated[
    str | None,
    typer.Option(
        "--latency-budget",
        help="A time (5ms, 800us) or a share of the largest network's measured latency (50%).",
    ),
]
Budgets = Annotated[
    list[str] | None,
    typer.Option("--budget", help="A further hard budget, e.g. params=3M; may be repeated."),
]
Name = Annotated[str | None, typer.Option("--name", help="The study's name; the run's by default.")]
Storage = Annotated[
    str | None,
    typer.Option(help="Study database URL; NAS_STORAGE or sqlite:///runs/nas.db by default."),
]
Evaluations = Annotated[int | None, typer.Option(help="How many architectures to evaluate.")]
Sampler = Annotated[str | None, typer.Option(help="predictor, tpe, nsga2, gp, slimming or random.")]
Workers = Annotated[
    int | None,
    typer.Option(
        min=0,
        help="Processes that evaluate, one thread each; 0: the search itself (with ray: 8 actors).",
    ),
]
Engine = Annotated[
    str | None, typer.Option(help="Where candidates are scored: local, or ray (actors).")
]
Address = Annotated[
    str | None, typer.Option(help="A running Ray cluster for --engine ray: auto or HOST:PORT.")
]
Winners = Annotated[int | None, typer.Option(help="How many networks to leave behind.")]
Overrides = Annotated[
    list[str] | None,
    typer.Argument(help="Settings as key.sub=value, e.g. train.lr=0.002; see config.yaml."),
]

"""The supernet's claims: it ranks truthfully, trains and is scored cheaply, and survives kill -9.

Parts, all of them unless named:

* rank: a supernet and networks from bands of MACs, each trained alone, some twice; rank
  correlations, the noise ceiling, regret, beside parameters, MACs and depth (`nas rank`);
* sandwich: a step of several sub-networks against the same plain networks' own steps, taken in
  turns; what is kept for the backward pass; parameters and optimizer state;
* evaluation: scoring a sub-network (512 images refitted on, 2,000 scored) against a plain forward
  of the same images, in turns;
* resume: a training killed (-9) at random moments ends with the weights of one that was not.

    python benchmarks/supernet.py [PART ...] [--data folder:DIR] [--keep FOLDER] [--dry-run]

Digits and the space tiny by default, a quarter of an hour; with an image folder hybrid-64 at 64 px,
networks of at most 8 MMACs, under 100 minutes of two cores. What takes how long is measured and
printed first; --dry-run stops there. The same command with the same --keep goes on after a stop.
Each part writes benchmarks/results/supernet-PART.json when it is done.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from record import RESULTS, Figure, record
from supernet_kills import kill_part
from supernet_steps import Setting, evaluation_part, largest_of, sandwich_part, seconds_a_step

from nas import data as nas_data
from nas import processes
from nas.data import Data
from nas.pipeline import RunConfig
from nas.pipeline.alone import loaded
from nas.pipeline.config import load as load_settings
from nas.pipeline.rank import RESULT, sample_of, trainer_of, trainings
from nas.pipeline.sample import Drawn
from nas.space import SearchSpace

PARTS = ("rank", "sandwich", "evaluation", "resume")
MINUTES = 100
CORES = 2
BATCH = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much is done, by the kind of data set."""

    space: str
    image_size: int
    max_macs: int | None
    bands: int
    per_band: int
    twice: int
    epochs: int
    supernet_epochs: float
    lr: float


DIGITS = Scale(
    space="tiny", image_size=32, max_macs=None, bands=4, per_band=4, twice=4, epochs=12,
    supernet_epochs=40, lr=4e-3,
)  # fmt: skip
PHOTOS = Scale(
    space="hybrid-64", image_size=64, max_macs=8_000_000, bands=8, per_band=4, twice=8, epochs=12,
    supernet_epochs=48, lr=3e-3,
)  # fmt: skip


def words_of(options: argparse.Namespace) -> list[str]:
    """Return the settings of the run that is ranked, as `key=value`."""
    scale = DIGITS if options.data == "digits" else PHOTOS
    given = {
        name: getattr(options, name) for name in Scale.__slots__ if getattr(options, name, None)
    }
    of = {name: given.get(name, getattr(scale, name)) for name in Scale.__slots__}
    plain = {
        "space": of["space"], "data": options.data, "image_size": of["image_size"], "threads": 1,
        "train.epochs": of["supernet_epochs"], "train.batch_size": BATCH, "train.lr": of["lr"],
        "rank.bands": of["bands"], "rank.per_band": of["per_band"], "rank.twice": of["twice"],
        "rank.max_macs": of["max_macs"], "rank.train.epochs": of["epochs"],
        "rank.train.batch_size": BATCH, "rank.train.lr": of["lr"],
        "rank.train.warmup_epochs": min(1.0, of["epochs"] / 2), "seed": options.seed,
    }  # fmt: skip
    return [f"{key}={json.dumps(value)}" for key, value in plain.items()]


def space_of(config: RunConfig, data: Data) -> SearchSpace:
    """Return the space of a run for these images."""
    return SearchSpace.load(config.space).replace(
        num_classes=data.num_classes, in_chans=data.in_chans, image_size=data.image_size
    )


# ---------------------------------------------------------------- the plan
@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """What is to be done: trainings by band, and core seconds by piece."""

    lines: tuple[str, ...]
    core_seconds: float
    minutes: float


def plan_of(
    config: RunConfig, data: Data, space: SearchSpace, parts: Sequence[str], jobs: int
) -> Plan:
    """Time steps of one network a band and of the supernet; say what everything takes."""
    pieces: dict[str, float] = {}
    if "rank" in parts:
        sample = sample_of(space, config)
        tasks = trainings(space, sample, config.rank.twice)
        steps = config.rank.train.epochs * (len(data.split("train")) // BATCH)
        setting = Setting(space=space, data=data, batch_size=BATCH)
        for band in range(config.rank.bands):
            own = [drawn for drawn in sample if drawn.band == band]
            seconds = seconds_a_step(setting, own[len(own) // 2].architecture)
            ids = {drawn.architecture.id for drawn in own}
            count = sum(task.id in ids for task in tasks)
            name = f"{count} trainings of {band_text(own)}, {steps} steps of {seconds * 1e3:.0f} ms"
            pieces[name] = count * steps * seconds
        steps = round(config.train.epochs * (len(data.split("train")) // BATCH))
        seconds = setting.supernet_seconds_a_step(config.train)
        pieces[f"the supernet, {steps} steps of {seconds * 1e3:.0f} ms on average"] = (
            steps * seconds
        )
    alone = {"sandwich": 240.0, "evaluation": 300.0, "resume": 600.0}
    pieces |= {f"{part}, about": alone[part] for part in parts if part in alone}
    total = sum(pieces.values())
    lines = [f"{seconds / 60:7.1f} min  {name}" for name, seconds in pieces.items()]
    serial = sum(alone[part] for part in parts if part in alone)
    longest = max(pieces.values(), default=0.0)
    minutes = (max((total - serial) / jobs, min(longest, total - serial)) + serial) / 60
    lines.append(f"{total / 60:7.1f} min  of one core; {minutes:.0f} min with --jobs {jobs}")
    return Plan(lines=tuple(lines), core_seconds=total, minutes=minutes)


def band_text(own: Sequence[Drawn]) -> str:
    """Return the sizes of a band's networks."""
    return f"{own[0].macs / 1e6:.3g} to {own[-1].macs / 1e6:.3g} MMACs"


# ---------------------------------------------------------------- rank
def rank_part(options: argparse.Namespace, config: RunConfig, space: SearchSpace) -> dict[str, Any]:
    """Train the supernet and the networks beside each other, then rank; return rank.json."""
    run = options.keep / "run"
    words = [*words_of(options), f"rank.resamples={config.rank.resamples}"]
    command = [sys.executable, "-m", "nas", "train", "--run", str(run), *words, "--resume"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    is_trained = trained_already(run)
    training = (
        None
        if is_trained
        else subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
    )
    try:
        if training is not None:
            await_lock(run, training)
        data = loaded(config.data, config.image_size or space.image_size)
        trainer = trainer_of(run, config, data)
        tasks = trainings(space, sample_of(space, config), config.rank.twice)
        todo = [task for task in tasks if trainer.known(task, data) is None]
        print(f"{len(tasks) - len(todo)} of {len(tasks)} trainings are done", flush=True)
        while todo:
            beside = training is not None and training.poll() is None
            jobs = max(1, options.jobs - 1) if beside else options.jobs
            for task, result in processes.each(trainer, list(todo), jobs=jobs):
                todo.remove(task)
                left = f"{len(todo)} to go"
                print(f"{task.name}: {result.accuracy:.1%}, {result.seconds:.0f} s, {left}",
                      flush=True)  # fmt: skip
                if beside and options.jobs > jobs and training_ended(training):
                    break  # the supernet's core is free
        if training is not None and training.wait() != 0:
            sys.exit(f"training the supernet failed with exit code {training.returncode}.")
    finally:
        if training is not None and training.poll() is None:
            training.terminate()
            training.wait()
    done = [sys.executable, "-m", "nas", "rank", "--run", str(run), "--resume"]
    subprocess.run([*done, "--jobs", str(options.jobs)], check=True)
    ranked: dict[str, Any] = json.loads((run / "rank" / RESULT).read_text())
    return ranked


def training_ended(training: "subprocess.Popen[bytes] | None") -> bool:
    """Return whether a process has ended."""
    return training is not None and training.poll() is not None


def trained_already(run: Path) -> bool:
    """Return whether the supernet of a run is trained."""
    state = run / "state.json"
    return state.is_file() and "train" in json.loads(state.read_text())["stages"]


def await_lock(run: Path, training: "subprocess.Popen[bytes]") -> None:
    """Wait until the training holds the run's folder: it cleans up there first."""
    while not (run / ".lock.owner").is_file() and training.poll() is None:
        time.sleep(0.2)
    time.sleep(1.0)


def rank_figures(result: dict[str, Any]) -> list[Figure]:
    """Return what was asked for beside what was found."""
    by_name = {each["predictor"]: each for each in result["agreements"]}
    taus = {name: each["tau"]["value"] for name, each in by_name.items() if each["tau"]}
    ours = max(("inherited_loss", "inherited_accuracy"), key=lambda name: taus.get(name, -1.0))
    best, own = by_name[ours], taus.get(ours, -1.0)
    rival = max(taus.get(name, -1.0) for name in ("params", "macs", "depth"))
    limit = (result["ceiling"] or {}).get("tau")
    alone = [sum(n["alone_accuracies"]) / len(n["alone_accuracies"]) for n in result["networks"]]
    gap = result["inherited_less_alone"]["mean"]
    spread = max(alone) - min(alone)
    count = len(alone)
    return [
        Figure(figure=f"accuracy trained alone, {count} networks", asked="spans >= 10 points",
               measured=f"{min(alone):.1%} to {max(alone):.1%}", holds=spread >= 0.10),
        Figure(figure=f"Kendall's tau of {ours} with it [95 %]", asked=">= 0.70",
               measured=best["tau"], holds=own >= 0.70),
        Figure(figure="that tau by the noise ceiling's", asked=">= 0.9 x", measured=[own, limit],
               holds=limit is not None and own >= 0.9 * limit),
        Figure(figure="that tau and the best of parameters, MACs and depth", asked=">= best + 0.15",
               measured=[own, rival], holds=own >= rival + 0.15),
        Figure(figure="tau given MACs, share of pairs in order inside bands", asked="told",
               measured=[best["tau_given_macs"], best["in_band"]], holds=True),
        Figure(figure="regret@1, @3, @5 in accuracy", asked="told", measured=best["regret"],
               holds=True),
        Figure(figure="inherited less stand-alone accuracy, mean", asked="within 0.01",
               measured=gap, holds=abs(gap) <= 0.01),
    ]  # fmt: skip


def main() -> None:
    """Print the plan, do the parts, record each."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(PARTS)}; all")
    parser.add_argument("--data", default="digits", help="digits, or folder:DIR")
    parser.add_argument("--keep", type=Path, help="where work is kept; temporary by default")
    parser.add_argument("--out", type=Path, default=RESULTS, help="where results are written")
    parser.add_argument("--jobs", type=int, default=CORES, help="processes of one thread each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dry-run", action="store_true", help="print the plan and stop")
    parser.add_argument("--kills", type=int, default=20, help="of the part resume")
    parser.add_argument("--rounds", type=int, default=7, help="of sandwich and evaluation")
    for name, kind in (("space", str), ("image-size", int), ("max-macs", int), ("bands", int),
                       ("per-band", int), ("twice", int), ("epochs", int),
                       ("supernet-epochs", float), ("lr", float)):  # fmt: skip
        parser.add_argument(f"--{name}", type=kind, help="another scale than the data set's own")
    options = parser.parse_args()
    unknown = set(options.parts) - set(PARTS)
    if unknown:
        parser.error(f"a part is one of {', '.join(PARTS)}, not {', '.join(sorted(unknown))}.")
    parts = [part for part in PARTS if part in (options.parts or PARTS)]
    options.keep = (options.keep or Path(tempfile.mkdtemp())).resolve()
    torch.set_num_threads(1)
    config = load_settings(None, words_of(options))
    data = nas_data.load(config.data, image_size=config.image_size)
    space = space_of(config, data)
    plan = plan_of(config, data, space, parts, options.jobs)
    print("\n".join([f"plan ({', '.join(parts)}; {space.name}, {data.name}):", *plan.lines]))
    if plan.minutes > MINUTES:
        print(f"That is over {MINUTES} minutes: ask for fewer --bands, --per-band or --epochs.")
    if options.dry_run:
        return
    setting = Setting(space=space, data=data, batch_size=BATCH)
    for part in parts:
        begun = time.monotonic()
        if part == "rank":
            notes = rank_part(options, config, space)
            figures = rank_figures(notes)
        elif part == "sandwich":
            figures, notes = sandwich_part(setting, options.rounds)
        elif part == "evaluation":
            paths = [space.smallest(), largest_of(space, config.rank.max_macs)]
            figures, notes = evaluation_part(setting, paths, options.rounds)
        else:
            figures, notes = kill_part(options.keep / "resume", options.kills, options.seed)
        notes["minutes"] = round((time.monotonic() - begun) / 60, 1)
        notes["plan"] = list(plan.lines)
        notes["data"] = data.name.partition(":")[0]
        record(f"supernet-{part}", figures, notes=notes, folder=options.out)


if __name__ == "__main__":
    main()

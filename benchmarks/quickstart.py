"""The quickstart from an empty folder: how long, how good, and whether it can be repeated.

Runs the command three times in fresh folders: with fresh profiling; with the same seed and the
first run's latency table (must be equal bit for bit); with profiling from scratch again (budget
met, accuracy within a point). With --folder DIR the job is done on an image folder as well.

    python benchmarks/quickstart.py [--folder DIR] [--keep FOLDER]

Runs that stand in FOLDER already are finished and not begun anew.
"""

import argparse
import hashlib
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from record import Figure, record

RUN = "runs/quickstart"
SECONDS = 360
LEAST_USE = 0.8
LEAST_ACCURACY = 0.98


def nas(folder: Path, run: str, *words: str) -> tuple[dict[str, Any], float]:
    """Run one `nas` command in a folder; return its JSON and the seconds its stages took.

    A run that stands there already goes on where it stopped: what is done is not done again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    goes_on = ["--resume"] if (folder / run / "state.json").is_file() else []
    command = [sys.executable, "-m", "nas", *words, *goes_on, "--json"]
    done = subprocess.run(command, cwd=folder, stdout=subprocess.PIPE, text=True, check=True)
    stages = json.loads((folder / run / "state.json").read_text())["stages"]
    return json.loads(done.stdout), sum(stage["seconds"] for stage in stages.values())


def study_rows(folder: Path, name: str) -> list[Any]:
    """Return what a study says of each trial, but for times of the clock."""
    from nas.study import Study

    study = Study.load(name, storage=f"sqlite:///{folder / 'runs/nas.db'}")
    return [
        (trial.number, dict(trial.choice), trial.accuracy, trial.loss, dict(trial.costs))
        for trial in study.trials
    ]


def digest(folder: Path) -> str:
    """Return the sha256 of a winner's weights."""
    return hashlib.sha256((folder / "model.safetensors").read_bytes()).hexdigest()


def timm_loads(folder: Path) -> bool:
    """Return whether a fresh process loads the winner with timm and runs it."""
    code = (
        "import torch, timm, nas.network; "
        f"m = timm.create_model('local-dir:{folder}', pretrained=True).eval(); "
        "s = m.pretrained_cfg['input_size']; print(tuple(m(torch.zeros(1, *s)).shape))"
    )
    return subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def kept(winner: dict[str, Any]) -> tuple[float, float, float]:
    """Return test accuracy, measured ms and share of the budget used."""
    latency = winner["latency"]
    return (
        winner["accuracy"]["test"],
        latency["measured_ms"],
        latency["measured_ms"] / winner["budget_ms"],
    )


def prediction_figure(run: Path) -> Figure:
    """Return how far the table is off on unseen whole networks, beside its two rivals."""
    state = json.loads((run / "state.json").read_text())
    key = next(key for key in state["stages"] if key.startswith("profile/"))
    rows = state["stages"][key]["result"]["predictions"]
    off = {
        key: sum(abs(row[key] / row["measured_ms"] - 1) for row in rows) / len(rows)
        for key in ("table_ms", "isolated_ms", "macs_ms")
    }
    text = ", ".join(f"{key.removesuffix('_ms')} {error:.1%}" for key, error in off.items())
    return Figure(
        figure=f"mean error of predicted latency, {len(rows)} unseen networks",
        asked="table lowest",
        measured=text,
        holds=off["table_ms"] == min(off.values()),
    )


def figures_of(name: str, winner: dict[str, Any], seconds: float, share: float) -> list[Figure]:
    """Return the figures of one run."""
    accuracy, measured_ms, use = kept(winner)
    text = f"{measured_ms:.4g} ms of {winner['budget_ms']:.4g} ms ({use:.1%})"
    return [
        Figure(figure=f"{name}: seconds of all stages", asked="<= 360", measured=round(seconds, 1),
               holds=seconds <= SECONDS),
        Figure(figure=f"{name}: random networks that meet the budget", asked="5-50 %",
               measured=round(share, 4), holds=0.05 <= share <= 0.5),
        Figure(figure=f"{name}: test accuracy", asked=">= 0.98", measured=round(accuracy, 4),
               holds=accuracy >= LEAST_ACCURACY),
        Figure(figure=f"{name}: measured latency", asked="<= budget and >= 80 % of it",
               measured=text, holds=LEAST_USE <= use <= 1),
    ]  # fmt: skip


def main() -> None:
    """Run, compare, record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--folder", type=Path, help="an image folder: train/CLASS/*, val/CLASS/*")
    parser.add_argument("--keep", type=Path, help="where the runs go; temporary by default")
    options = parser.parse_args()
    place = options.keep or Path(tempfile.mkdtemp())
    first, second, third = place / "first", place / "second", place / "third"

    result, seconds = nas(first, RUN, "quickstart")
    winner = result["winners"][0]
    table = next((first / "runs/tables").rglob("*.json"))
    figures = figures_of("quickstart", winner, seconds, result["feasible_share"])
    figures.append(
        Figure(figure="timm loads the winner in a fresh process", asked="yes", measured="yes",
               holds=timm_loads(first / winner["folder"]))
    )  # fmt: skip

    figures.append(prediction_figure(first / "runs/quickstart"))

    again, _ = nas(second, RUN, "quickstart", f"table={table}")
    other = again["winners"][0]
    same = {
        "same study": study_rows(first, result["study"]) == study_rows(second, again["study"]),
        "same winner": winner["architecture_id"] == other["architecture_id"],
        "bit-equal weights": digest(first / winner["folder"]) == digest(second / other["folder"]),
    }
    figures += [
        Figure(figure=f"same seed and table, new folder: {name}", asked="yes", measured=holds,
               holds=holds)
        for name, holds in same.items()
    ]  # fmt: skip

    fresh, fresh_seconds = nas(third, RUN, "quickstart")
    last = fresh["winners"][0]
    figures += figures_of("profiled again", last, fresh_seconds, fresh["feasible_share"])
    apart = abs(kept(winner)[0] - kept(last)[0])
    figures.append(
        Figure(figure="profiled again: accuracy apart", asked="<= 0.01",
               measured=round(apart, 4), holds=apart <= 0.01)
    )  # fmt: skip

    if options.folder is not None:
        words = ["run", "--data", f"folder:{options.folder.resolve()}", "--run", "runs/photos"]
        words += ["--space", "tiny", "--image-size", "32", "train.epochs=10", "teach.epochs=8"]
        words += ["distill.epochs=10", "evaluations=40"]
        photos, photo_seconds = nas(place / "photos", "runs/photos", *words)
        accuracy, measured_ms, use = kept(photos["winners"][0])
        figures.append(
            Figure(
                figure="image folder: winner within its budget, verified",
                asked="ends the same way",
                measured=f"{measured_ms:.4g} ms ({use:.1%} of the budget), test accuracy "
                f"{accuracy:.3f}, {photo_seconds:.0f} s",
                holds=use <= 1,
            )
        )
    record("quickstart", figures)


if __name__ == "__main__":
    main()

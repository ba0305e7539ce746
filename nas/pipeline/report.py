"""The last stage: one HTML page of what the run found."""

import shlex
from datetime import UTC, datetime
from typing import Any

from nas import environment
from nas.manifest import Winner
from nas.pipeline.materials import Materials
from nas.pipeline.outcome import Outcome
from nas.pipeline.run import Run, config_path
from nas.report import Candidate, Command, LossPoint, Prediction, ReportInput, write_report
from nas.study import Study
from nas.supernet import load as load_supernet
from nas.target import Target


def report(run: Run, materials: Materials | None = None) -> Outcome:
    """Write the page of a run's study from what the stages left; made anew every time.

    It is RUN/report/index.html, and RUN/report/STUDY/index.html for a study with a name of its own.
    """
    materials = materials or Materials(run)
    name = run.study
    searched = run.result(f"search/{name}", make_with="search")
    profiled = run.result(run.profile_key, make_with="profile")
    study = Study.load(searched["study"], storage=run.config.storage)
    metric = f"latency_ms:{materials.target.id}"
    verified = [
        (record["result"], Winner.load(record["result"]["folder"]))
        for key, record in run.stages.items()
        if key.startswith(f"verify/{name}/")
    ]
    kept = [winner for row, winner in verified if row["kept"]]
    content = ReportInput(
        title=run.folder.name,
        space=materials.space.name,
        data=run.config.data,
        seed=run.config.seed,
        target=materials.target.id,
        device=_device(materials.target),
        budget_ms=searched["budget_ms"],
        candidates=tuple(
            Candidate(
                id=str(trial.architecture_id),
                accuracy=trial.accuracy or 0.0,
                latency_ms=trial.costs[metric],
            )
            for trial in study.trials
            if trial.is_complete
        ),
        winner=kept[0] if kept else None,
        rejected=tuple(winner for row, winner in verified if not row["kept"]),
        predictions=tuple(Prediction(**row) for row in profiled["predictions"]),
        losses=_losses(run),
        feasible_share=searched["feasible_share"],
        feasible_sample=searched["feasible_sample"],
        versions=environment.versions(),
        machine={key: str(value) for key, value in environment.machine().items()},
        commands=_commands(run, kept),
        created=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
    )
    page = write_report(run.folder / "report" / run.config.study, content)
    return Outcome(values={"page": str(page)}, lines=(f"report: {page}",))


def _device(target: Target) -> str:
    return environment.cpu_name() if target.is_here() else target.device.cpu


def _losses(run: Run) -> tuple[LossPoint, ...]:
    """Return the supernet's loss of random paths, else of the largest one, row by row."""
    history = load_supernet(run.folder / "supernet").history
    points = []
    for row in history:
        loss: Any = row.get("random") if row.get("random") is not None else row.get("largest")
        if loss is not None:
            points.append(LossPoint(step=row["step"], loss=loss))
    return tuple(points)


def _commands(run: Run, kept: list[Winner]) -> tuple[Command, ...]:
    config = shlex.quote(str(config_path(run.folder, run.config.study)))
    commands = [Command(text=f"nas run {config} --run runs/again", purpose="do it all again")]
    for winner in kept[:1]:
        text = f"nas verify {shlex.quote(str(run.winner_folder(winner.id)))}"
        commands.append(Command(text=text, purpose="check the winner on this machine"))
    return tuple(commands)

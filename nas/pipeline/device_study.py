"""What a target likes: the study and its page, in a folder of their own."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from nas.errors import DeviceError, UnreliableTiming
from nas.files import lock, sweep
from nas.latency import device_study
from nas.latency.device_study import DeviceStudy
from nas.latency.measure import Progress
from nas.pipeline.outcome import Outcome
from nas.report import write_device_report
from nas.target import DEFAULT_TARGET, Target

FOLDER = Path("runs/device-study")


def study_device(
    target: str | None = None,
    folder: Path | None = None,
    *,
    samples: int | None = None,
    resume: bool = False,
    questions: Sequence[device_study.Question] | None = None,
    hands: device_study.Hands | None = None,
    progress: Progress = lambda done, total, text: None,
) -> Outcome:
    """Measure what a target likes, and write study.json and index.html.

    Args:
        target: RUNTIME,PRECISION,bBATCH,tTHREADS on this machine.
        folder: Where to write; runs/device-study/TARGET by default.
        samples: Clean samples of each network.
        resume: Go on with the study that the folder holds.
        questions: What to ask instead of everything.
        hands: What to export and time with instead of torch and the runtime.
        progress: Told (networks done, networks in all, text).

    Raises:
        UnreliableTiming: the machine was too noisy for any answer; study.json and the page say so.
        DeviceError: the runtime is unknown, absent, or ran none of the networks.
    """
    what = Target.parse(target or DEFAULT_TARGET)
    folder = folder or FOLDER / what.id
    config = device_study.CONFIG if samples is None else _with(samples)
    with lock(folder / ".lock"):
        sweep(folder)
        study = device_study.begin(folder, what, config, resume=resume)
        study = device_study.run(
            study, folder, questions, config=config, hands=hands, progress=progress
        )
        page = write_device_report(folder, study)
    _require_any(study, folder)
    text = ("Advice for the search space:", *(f"  - {line}" for line in study.advice))
    values = study.to_json() | {"folder": str(folder), "page": str(page)}
    return Outcome(values=values, lines=(*text, "", f"page: {page}"))


def _with(samples: int) -> device_study.ProfileConfig:
    return replace(device_study.CONFIG, samples=samples)


def _require_any(study: DeviceStudy, folder: Path) -> None:
    """Raise unless at least one network was timed."""
    found = study.observations.values()
    if not found or any(item.is_measured for item in found):
        return
    if any(item.is_noisy for item in found):
        raise UnreliableTiming(
            "no network got enough clean samples: this machine is too noisy for a device study. "
            "Stop other programs, then go on with --resume."
        )
    problem = next((row.problem for item in found for row in item.rows if row.problem), "")
    raise DeviceError(
        f"{study.target.runtime} ran none of the networks (the first: {problem}); see "
        f"{folder / device_study.FILE}."
    )

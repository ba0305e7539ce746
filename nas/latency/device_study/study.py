"""DeviceStudy: the questions asked one after the other, each saved as it is answered."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from nas import environment
from nas.errors import ConfigError, CorruptFile
from nas.files import into, read_json, to_plain, write_json
from nas.latency.device_study.answer import Hands, answer
from nas.latency.device_study.observation import Observation
from nas.latency.device_study.question import Question
from nas.latency.measure import Progress
from nas.latency.profile_config import ProfileConfig
from nas.target import RuntimeFacts, Target, runtime_facts

SCHEMA = 1
FILE = "study.json"
CONFIG = ProfileConfig(samples=30, spread_s=8.0, time_limit_s=60.0)
START_S, EXPORT_S, EXPORT_EACH_S, LOADED_S = 5.0, 2.5, 0.25, 0.002  # for the time that is left
DECIDING = ("target", "settings")  # what two halves of a study must agree in


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceStudy:
    """What a target likes. `settings` are those of the timing; observations are by key."""

    target: Target
    settings: Mapping[str, Any]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    observations: Mapping[str, Observation] = field(default_factory=dict)

    @property
    def advice(self) -> tuple[str, ...]:
        """All sentences, in the order of the questions."""
        return tuple(line for item in self.observations.values() for line in item.advice)

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        plain: dict[str, Any] = to_plain(self)
        return {"schema": SCHEMA, **plain, "advice": list(self.advice)}

    def save(self, folder: Path) -> Path:
        """Write FOLDER/study.json, whole or not at all."""
        return write_json(folder / FILE, self.to_json())

    @classmethod
    def load(cls, folder: Path | str) -> "DeviceStudy":
        """Return the study in a folder.

        Raises:
            CorruptFile: missing, damaged, or not a study of this version.
        """
        path = Path(folder) / FILE
        value = read_json(path)
        known = {"schema", "target", "settings", "provenance", "observations", "advice"}
        if not isinstance(value, dict) or set(value) != known or value["schema"] != SCHEMA:
            raise CorruptFile(f"{path} is not a device study of schema {SCHEMA}; delete it.")
        if not all(isinstance(value[key], dict) for key in known - {"schema", "advice"}):
            raise CorruptFile(f"{path} has no observations as they are written here; delete it.")
        return cls(
            target=Target.from_json(value["target"], source=str(path)),
            settings=value["settings"],
            provenance=value["provenance"],
            observations={
                key: into(Observation, item, source=f"{path}: {key}", error=CorruptFile)
                for key, item in value["observations"].items()
            },
        )


def begin(
    folder: Path, target: Target, config: ProfileConfig = CONFIG, *, resume: bool = False
) -> DeviceStudy:
    """Return a new study, or with `resume` the one in the folder.

    Raises:
        ConfigError: the folder holds a study already, or one of another target or with other
            settings; or the target's runtime takes no ONNX files.
    """
    _require_onnx(target, runtime_facts(target.runtime))
    fresh = DeviceStudy(
        target=target,
        settings=to_plain(config),
        provenance={
            "created": datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
            "machine": environment.machine(),
            "versions": environment.versions(),
        },
    )
    if not (folder / FILE).exists():
        return fresh
    if not resume:
        raise ConfigError(
            f"{folder} holds a device study already. Use --resume to go on with it, or another "
            "--out to make a new one."
        )
    stored = DeviceStudy.load(folder)
    for name in DECIDING:
        if to_plain(getattr(stored, name)) != to_plain(getattr(fresh, name)):
            raise ConfigError(
                f"--resume needs the same target and settings, but the {name} of {folder / FILE} "
                "is another. Give another --out, or take the old ones back."
            )
    kept = {key: item for key, item in stored.observations.items() if not item.is_noisy}
    return replace(stored, observations=kept)


def _require_onnx(target: Target, facts: RuntimeFacts) -> None:
    """Raise ConfigError for a runtime that is known to take something else than ONNX files."""
    takes = str(getattr(facts, "takes", "onnx"))
    if "onnx" not in takes:
        raise ConfigError(
            f"the device study times ONNX files, but {target.runtime} takes {takes}. Choose a "
            "runtime that takes ONNX files, for example --target onnxruntime."
        )


def run(
    study: DeviceStudy,
    folder: Path,
    questions: Sequence[Question] | None = None,
    *,
    config: ProfileConfig = CONFIG,
    hands: Hands | None = None,
    progress: Progress = lambda done, total, text: None,
) -> DeviceStudy:
    """Answer the questions that the study has no answer to; each answer is saved at once.

    Args:
        study: From `begin`.
        folder: Where study.json goes.
        questions: What to ask; by default everything in the catalogue.
        config: How carefully to measure; the one given to `begin`.
        hands: What to export, time and profile with.
        progress: Told (networks done, networks in all, text with the time left).

    Raises:
        DeviceError: the runtime cannot be started at all.
        StorageError: an answer cannot be written; those before it are safe.
    """
    hands = hands or Hands()
    if questions is None:
        from nas.latency.device_study.catalogue import questions as catalogue

        questions = catalogue()
    asked = [question for question in questions if question.key not in study.observations]
    teller = _Teller(progress, asked, config)
    study.save(folder)  # a disk that is full is better met now
    for question in asked:
        found = answer(question, study.target, config, hands, partial(teller.tell, question))
        every = {**study.observations, question.key: found}
        keys = [item.key for item in questions if item.key in every]
        ordered = dict.fromkeys([*keys, *every])  # in the order of asking, whatever came first
        study = replace(study, observations={key: every[key] for key in ordered})
        study.save(folder)
        teller.end(question)
    return study


class _Teller:
    """Turns shares of questions into progress with the time that is left."""

    def __init__(
        self, progress: Progress, asked: Sequence[Question], config: ProfileConfig
    ) -> None:
        self._progress = progress
        self._planned_s = {item.key: _planned_s(item, config) for item in asked}
        self._counts = {item.key: len(item.variants) for item in asked}
        self._ended: list[str] = []
        self._began_s = time.monotonic()

    def tell(self, question: Question, share: float, what: str) -> None:
        """Say how far one question is."""
        every_s = sum(self._planned_s.values())
        spent_s = sum(self._planned_s[key] for key in self._ended)
        spent_s += share * self._planned_s.get(question.key, 0.0)
        left_s = every_s - spent_s
        if spent_s > 0.1 * every_s:
            left_s *= (time.monotonic() - self._began_s) / spent_s
        before = sum(self._counts[key] for key in self._ended)
        done = before + int(share * self._counts[question.key])
        total = sum(self._counts.values())
        text = f"{what} {question.title.lower()}, about {max(left_s, 1):.0f} s left"
        self._progress(min(done, total - 1), total, text)

    def end(self, question: Question) -> None:
        """Say that one question is answered and saved."""
        self._ended.append(question.key)
        if len(self._ended) == len(self._counts):
            total = sum(self._counts.values())
            self._progress(total, total, "device studied")


def _planned_s(question: Question, config: ProfileConfig) -> float:
    """Return what a question should take: exporting, starting, and its rounds."""
    count = len(question.variants)
    rounds_s = count * config.samples * (3 * config.sample_ms / 1000 + LOADED_S)
    return START_S + EXPORT_S + EXPORT_EACH_S * count + max(config.spread_s, rounds_s)

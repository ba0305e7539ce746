"""DeviceStudy: the questions asked one after the other, each saved as it is answered."""

import logging
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Protocol

from nas import environment
from nas.errors import (
    ConfigError,
    CorruptFile,
    DeviceError,
    NasError,
    StorageError,
    UnreliableTiming,
)
from nas.files import into, read_json, to_plain, write_json
from nas.latency.device_study.advice import pair_advice, profile_advice, width_advice
from nas.latency.device_study.compare import compare, noise_of
from nas.latency.device_study.observation import Observation, Row, row_of
from nas.latency.device_study.op_groups import shares_of
from nas.latency.device_study.question import Question
from nas.latency.device_study.stairs import Step, steps_of
from nas.latency.measure import ProfileConfig, Progress, measure_networks
from nas.latency.op_times import op_times
from nas.latency.timing import Timing
from nas.target import RuntimeFacts, Target, runtime_facts

logger = logging.getLogger(__name__)

SCHEMA = 1
FILE = "study.json"
CONFIG = ProfileConfig(samples=30, spread_s=8.0, time_limit_s=60.0)
START_S, EXPORT_S, EXPORT_EACH_S, LOADED_S = 5.0, 2.5, 0.25, 0.002  # for the time that is left
EXPORTED = 0.2  # share of a question's work that exporting counts for
MAX_LOST = 1 / 3  # of the widths at one side
DECIDING = ("target", "settings")  # what two halves of a study must agree in


class Measure(Protocol):
    """How networks are timed: `measure_networks`, or a fake in tests."""

    def __call__(
        self,
        networks: Mapping[str, Path],
        target: Target,
        config: ProfileConfig,
        *,
        progress: Progress,
    ) -> Mapping[str, Timing]:
        """Return each network's Timing, all interleaved; errors begin with a network's name."""


class Export(Protocol):
    """How modules become ONNX files: `nas.network.onnx.modules_to_onnx`, or a fake in tests."""

    def __call__(
        self, modules: Mapping[str, tuple[Any, tuple[int, int, int]]], folder: Path, *, batch: int
    ) -> Mapping[str, Path]:
        """Write each module into the folder and return {name: file}."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hands:
    """What a study touches the world with; tests give their own."""

    measure: Measure = measure_networks
    export: Export | None = None  # torch's, imported when it is needed
    op_times: Callable[[Path, Target], Mapping[str, float]] = op_times


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
        found = _answer(question, study.target, config, hands, teller)
        every = {**study.observations, question.key: found}
        keys = [item.key for item in questions if item.key in every]
        ordered = dict.fromkeys([*keys, *every])  # in the order of asking, whatever came first
        study = replace(study, observations={key: every[key] for key in ordered})
        study.save(folder)
        teller.end(question)
    return study


def _answer(
    question: Question, target: Target, config: ProfileConfig, hands: Hands, teller: "_Teller"
) -> Observation:
    """Return what one session says; a network that cannot run becomes a row that says why."""
    with tempfile.TemporaryDirectory(prefix="nas-device-study-") as temporary:
        teller.tell(question, 0.0, "exporting")
        rows, paths = _export(question, Path(temporary), target.batch, hands)
        timings: Mapping[str, Timing] = {}
        noise = ""
        while paths:
            try:
                timings = hands.measure(
                    paths,
                    target,
                    config,
                    progress=lambda done, total, text: teller.tell(
                        question, EXPORTED + (1 - EXPORTED) * done / max(total, 1), "timing"
                    ),
                )
                break
            except UnreliableTiming as error:
                noise = str(error)
                break
            except DeviceError as error:
                culprit = next((name for name in paths if str(error).startswith(f"{name}: ")), None)
                if culprit is None:
                    raise
                logger.warning("%s: %s", question.key, error)
                rows[culprit] = replace(rows[culprit], problem=_first_line(error, culprit))
                del paths[culprit]
        rows |= {name: row_of(rows[name], timing) for name, timing in timings.items()}
        rows |= {name: replace(rows[name], problem=noise) for name in paths if noise}
        op_ms, notes = _profile(question, paths, target, hands) if timings else ({}, [])
    notes += [noise] if noise else []
    return _observe(question, rows, op_ms, notes, is_noisy=bool(noise))


def _export(
    question: Question, folder: Path, batch: int, hands: Hands
) -> tuple[dict[str, Row], dict[str, Path]]:
    """Return a row and, where it can be exported, the file of each variant."""
    export = hands.export or _torch_export()
    modules: dict[str, tuple[Any, tuple[int, int, int]]] = {}
    rows: dict[str, Row] = {}
    for variant in question.variants:
        module = variant.make()
        modules[variant.name] = (module, variant.shape)
        params = sum(value.numel() for value in module.parameters())
        rows[variant.name] = Row(
            name=variant.name, text=variant.text, shape=variant.shape, params=params
        )
    try:
        return rows, dict(export(modules, folder, batch=batch))
    except StorageError:
        raise
    except NasError:
        logger.info("%s: not exported at once; one by one", question.key)
    paths: dict[str, Path] = {}
    for name, module in modules.items():
        try:
            paths |= export({name: module}, folder, batch=batch)
        except StorageError:
            raise
        except NasError as error:
            rows[name] = replace(rows[name], problem=_first_line(error, name))
    return rows, paths


def _torch_export() -> Export:
    from nas.network.onnx import modules_to_onnx

    return modules_to_onnx


def _first_line(error: NasError, name: str) -> str:
    return (str(error).removeprefix(f"{name}: ").splitlines() or ["failed"])[0]


def _profile(
    question: Question, paths: Mapping[str, Path], target: Target, hands: Hands
) -> tuple[Mapping[str, float], list[str]]:
    """Return the runtime's own profile by type of operation, or a note why there is none."""
    if question.profiled not in paths:
        return {}, []
    try:
        found = hands.op_times(paths[question.profiled], target)
    except DeviceError as error:
        return {}, [f"No profile of the runtime's own: {error}"]
    if not found:
        return {}, [f"{target.runtime} gives no profile of its own; shares are by leaving out."]
    return found, []


def _observe(
    question: Question,
    rows: Mapping[str, Row],
    op_ms: Mapping[str, float],
    notes: Sequence[str],
    *,
    is_noisy: bool,
) -> Observation:
    """Return the rows with what follows from them."""
    pairs = question.pairs
    comparisons = tuple(compare(pair, rows[pair.over], rows[pair.under]) for pair in pairs)
    shares = shares_of(op_ms)
    steps: tuple[Step, ...] = ()
    width_step = None
    if is_noisy:
        advice = [f"{question.title}: the machine was too noisy; measure again with --resume."]
    else:
        advice = [pair_advice(*both) for both in zip(pairs, comparisons, strict=True)]
        advice += [*profile_advice(shares), *question.more(rows)]
    if question.is_width_series and not is_noisy:
        steps, noisy_sides = _stairs(rows)
        width_step, lines = width_advice(steps, noisy_sides)
        advice += lines
    return Observation(
        key=question.key,
        title=question.title,
        asks=question.asks,
        rows=tuple(rows.values()),
        comparisons=comparisons,
        steps=steps,
        width_step=width_step,
        op_shares=shares,
        advice=tuple(advice),
        notes=tuple(notes),
        is_noisy=is_noisy,
    )


def _stairs(rows: Mapping[str, Row]) -> tuple[tuple[Step, ...], list[int]]:
    """Return the steps of each side, and the sides where too many widths were lost."""
    steps: list[Step] = []
    lost_sides = []
    for side in sorted({row.shape[1] for row in rows.values()}):
        own = [row for row in rows.values() if row.shape[1] == side]
        good = [row for row in own if row.median_ms is not None and row.grade != "C"]
        if len(good) < (1 - MAX_LOST) * len(own):
            lost_sides.append(side)
            continue
        times_ms = {row.shape[0]: row.median_ms or 0.0 for row in good}
        noise = {row.shape[0]: noise_of(row) for row in good}
        steps += steps_of(times_ms, noise, side=side)
    return tuple(steps), lost_sides


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

"""One question answered: its networks exported, timed in one session, and compared."""

import logging
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from nas.errors import DeviceError, NasError, StorageError, UnreliableTiming
from nas.latency.device_study.advice import pair_advice, profile_advice, width_advice
from nas.latency.device_study.compare import compare, noise_of
from nas.latency.device_study.observation import Observation, Row, row_of
from nas.latency.device_study.op_groups import shares_of
from nas.latency.device_study.question import Question
from nas.latency.device_study.stairs import Step, steps_of
from nas.latency.measure import Progress, measure_networks
from nas.latency.op_times import op_times
from nas.latency.profile_config import ProfileConfig
from nas.latency.timing import Timing
from nas.target import Target

logger = logging.getLogger(__name__)

EXPORTED = 0.2  # share of a question's work that exporting counts for
MAX_LOST = 1 / 3  # of the widths at one side


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


def answer(
    question: Question,
    target: Target,
    config: ProfileConfig,
    hands: Hands,
    tell: Callable[[float, str], None] = lambda share, what: None,
) -> Observation:
    """Return what one session says; a network that cannot run becomes a row that says why.

    Args:
        question: What to export, time and compare.
        target: Where.
        config: How carefully.
        hands: What does it.
        tell: Told (share done, what is being done).

    Raises:
        DeviceError: the runtime cannot be started at all.
    """
    with tempfile.TemporaryDirectory(prefix="nas-device-study-") as temporary:
        tell(0.0, "exporting")
        rows, paths = _export(question, Path(temporary), target.batch, hands)
        measure = partial(
            hands.measure,
            target=target,
            config=config,
            progress=lambda done, total, text: tell(
                EXPORTED + (1 - EXPORTED) * done / max(total, 1), "timing"
            ),
        )
        timings, problems, noise = _time(measure, paths)
        rows |= {name: row_of(rows[name], timing) for name, timing in timings.items()}
        rows |= {name: replace(rows[name], problem=text) for name, text in problems.items()}
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


def _time(
    measure: Callable[[Mapping[str, Path]], Mapping[str, Timing]], paths: Mapping[str, Path]
) -> tuple[Mapping[str, Timing], dict[str, str], str]:
    """Return the timings; what is wrong with each network that has none; what was too noisy."""
    left = dict(paths)
    problems: dict[str, str] = {}
    while left:
        try:
            return measure(left), problems, ""
        except UnreliableTiming as error:
            return {}, problems | dict.fromkeys(left, str(error)), str(error)
        except DeviceError as error:
            culprit = next((name for name in left if str(error).startswith(f"{name}: ")), None)
            if culprit is None:
                raise
            logger.info("timed without %s", error)
            problems[culprit] = _first_line(error, culprit)
            del left[culprit]
    return {}, problems, ""


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
        return {}, [f"{target.runtime} in {target.precision} gives no profile of its own."]
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

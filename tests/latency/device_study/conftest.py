"""A timer of known costs and modules that are nothing: a device study without torch."""

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from nas.latency.device_study import Hands, Pair, Question, Row, Variant
from nas.latency.measure import Progress
from nas.latency.profile_config import ProfileConfig
from nas.latency.timing import Timing
from nas.target import Target


class Nothing:
    """Stands for a torch module of no parameters."""

    def parameters(self) -> list[Any]:
        return []


def timing(median_ms: float, *, spread: float = 0.01, grade: str = "A") -> Timing:
    return Timing(
        median_ms=median_ms, p10=0.99 * median_ms, p90=1.02 * median_ms, p95=1.1 * median_ms,
        ci_high_ms=1.01 * median_ms, clean=32, taken=40, grade=grade, spread=spread, repeat=0.0,
    )  # fmt: skip


class FakeTimer:
    """What `measure_networks` is to a study: known costs, and failures on demand."""

    def __init__(self, costs_ms: Mapping[str, float]) -> None:
        self.costs_ms = costs_ms
        self.sessions: list[list[str]] = []
        self.failures: dict[str, Exception] = {}
        self.grades: dict[str, str] = {}
        self.spread = 0.01

    def __call__(
        self,
        networks: Mapping[str, Path],
        target: Target,
        config: ProfileConfig,
        *,
        progress: Progress,
    ) -> Mapping[str, Timing]:
        self.sessions.append(list(networks))
        assert all(path.is_file() for path in networks.values())
        for name, error in self.failures.items():
            if name in networks:
                raise error
        progress(len(networks), len(networks), "timed")
        return {
            name: timing(self.costs_ms[name], spread=self.spread, grade=self.grades.get(name, "A"))
            for name in networks
        }


def fake_export(
    modules: Mapping[str, tuple[Any, tuple[int, int, int]]], folder: Path, *, batch: int
) -> Mapping[str, Path]:
    paths = {name: folder / f"{name}.onnx" for name in modules}
    for path in paths.values():
        path.write_bytes(b"onnx")
    return paths


def variant(name: str, shape: tuple[int, int, int] = (8, 14, 14)) -> Variant:
    return Variant(name=name, text=f"the {name} one", shape=shape, make=Nothing)


def pair(over: str, under: str) -> Pair:
    return Pair(
        over=over, under=under, subject=f"{over} against {under}",
        above=f"use {under} here: {over} costs {{ratio}} as much",
        below=f"use {over} here: {under} costs {{ratio}} as much",
        equal=f"choose between {over} and {under} by accuracy",
    )  # fmt: skip


def question(key: str, *names: str, **more: Any) -> Question:
    """Ask how the other variants compare with the first."""
    return Question(
        key=key,
        title=key.title(),
        asks=f"What of {key}?",
        variants=tuple(variant(name) for name in names),
        pairs=tuple(pair(name, names[0]) for name in names[1:]),
        **more,
    )


@pytest.fixture
def timer() -> type[FakeTimer]:
    return FakeTimer


@pytest.fixture
def ask() -> Callable[..., Question]:
    return question


@pytest.fixture
def hands() -> Callable[[FakeTimer], Hands]:
    return lambda timer: Hands(measure=timer, export=fake_export, op_times=lambda path, target: {})


@pytest.fixture
def row() -> Callable[..., Row]:
    """Make a measured row of this name and median."""

    def make(name: str, median_ms: float | None, **changes: Any) -> Row:
        values: dict[str, Any] = {
            "name": name, "text": f"the {name} one", "shape": (8, 14, 14), "median_ms": median_ms,
            "p10_ms": median_ms, "p90_ms": median_ms, "spread": 0.01, "clean": 32, "taken": 40,
            "grade": "A",
        }  # fmt: skip
        return Row(**{**values, **changes})

    return make


@pytest.fixture
def compare_pair() -> Callable[[str, str], Pair]:
    return pair

"""The study and its page together: where they go, and how it ends when nothing was measured."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from nas.errors import DeviceError, TryAgain, UnreliableTiming
from nas.files import lock
from nas.latency.device_study import Hands, Pair, Question, Variant
from nas.latency.timing import Timing
from nas.pipeline import study_device


class Nothing:
    def parameters(self) -> list[Any]:
        return []


ASKED = Question(
    key="activations",
    title="Activations",
    asks="?",
    variants=tuple(
        Variant(name=name, text=name, shape=(8, 14, 14), make=Nothing) for name in ("relu", "gelu")
    ),
    pairs=(
        Pair(
            over="gelu", under="relu", subject="GELU against ReLU",
            above="use ReLU here: GELU costs {ratio} as much", below="", equal="",
        ),
    ),
)  # fmt: skip


def hands(measure: Any) -> Hands:
    def export(modules: Mapping[str, Any], folder: Path, *, batch: int) -> dict[str, Path]:
        return {name: folder / name for name in modules}

    return Hands(measure=measure, export=export, op_times=lambda path, target: {})


def quiet(networks: Mapping[str, Path], *rest: Any, **more: Any) -> dict[str, Timing]:
    return {
        name: Timing(
            median_ms=1.31 if name == "gelu" else 1.0, p10=1, p90=1, p95=1, ci_high_ms=1,
            clean=30, taken=30, grade="A", spread=0.01, repeat=0.0,
        )
        for name in networks
    }  # fmt: skip


def go(folder: Path, measure: Any, **more: Any) -> Any:
    return study_device(None, folder, questions=[ASKED], hands=hands(measure), **more)


def test_the_outcome_is_the_advice_the_page_and_the_study(tmp_path: Path) -> None:
    outcome = go(tmp_path, quiet, samples=5)
    assert "Use ReLU here: GELU costs 1.31 x as much" in outcome.text()
    value = outcome.to_json()
    assert Path(value["page"]).is_file() and value["settings"]["samples"] == 5
    assert value["observations"]["activations"]["comparisons"][0]["is_told"] is True


def test_a_machine_too_noisy_for_anything_is_exit_4_with_the_page_written(tmp_path: Path) -> None:
    def noisy(networks: Any, *rest: Any, **more: Any) -> Any:
        raise UnreliableTiming("relu: only 0 of 300 samples were clean")

    with pytest.raises(UnreliableTiming, match="too noisy.*--resume"):
        go(tmp_path, noisy)
    assert "only 0 of 300" in (tmp_path / "index.html").read_text()
    assert "1.31 x" in go(tmp_path, quiet, resume=True).text()


def test_a_runtime_that_runs_nothing_is_exit_5_with_the_first_reason(tmp_path: Path) -> None:
    def broken(networks: Mapping[str, Path], *rest: Any, **more: Any) -> Any:
        raise DeviceError(f"{next(iter(networks))}: no such kernel")

    with pytest.raises(DeviceError, match="ran none of the networks.*no such kernel"):
        go(tmp_path, broken)


def test_a_folder_in_use_is_refused(tmp_path: Path) -> None:
    with lock(tmp_path / ".lock"), pytest.raises(TryAgain, match="in use by pid"):
        go(tmp_path, quiet)

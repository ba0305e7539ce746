"""A whole study with a fake timer: saved as it goes, resumed, and never stopped by one network."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nas.errors import (
    ConfigError,
    CorruptFile,
    DeviceError,
    NasError,
    StorageError,
    UnreliableTiming,
)
from nas.latency.device_study import CONFIG, FILE, DeviceStudy, Hands, Question, begin, run
from nas.target import Target

COSTS = {"relu": 1.0, "gelu": 1.31, "silu": 1.004, "conv": 2.0, "tokens": 3.0}


@pytest.fixture
def asked(ask: Any) -> tuple[Question, ...]:
    return ask("activations", "relu", "gelu", "silu"), ask("mlps", "conv", "tokens")


@pytest.fixture
def do(tmp_path: Path, target: Target, hands: Any, asked: Sequence[Question]) -> Callable[..., Any]:
    """Begin (or resume) a study in one folder and run it with a timer."""

    def go(timer: Any, *, resume: bool = False, **changes: Any) -> DeviceStudy:
        study = begin(tmp_path / "out", target, CONFIG, resume=resume)
        given = {"hands": hands(timer), **changes}
        return run(study, tmp_path / "out", asked, config=CONFIG, **given)

    return go


def test_what_is_compared_is_timed_in_one_session_and_the_advice_has_its_ratio(
    do: Any, timer: Any
) -> None:
    clock = timer(COSTS)
    study = do(clock)
    assert clock.sessions == [["relu", "gelu", "silu"], ["conv", "tokens"]]
    ratios = {row.over: row for row in study.observations["activations"].comparisons}
    assert ratios["gelu"].ratio == pytest.approx(1.31) and ratios["gelu"].is_told
    assert not ratios["silu"].is_told
    assert any(line.startswith("Use relu here: gelu costs 1.31 x") for line in study.advice)
    assert any("not told from 1" in line for line in study.advice)


def test_a_study_comes_back_from_its_file_as_it_was(do: Any, timer: Any, tmp_path: Path) -> None:
    study = do(timer(COSTS))
    assert DeviceStudy.load(tmp_path / "out") == study
    value = json.loads((tmp_path / "out" / FILE).read_text())
    assert value["schema"] == 1 and value["advice"] == list(study.advice)


def test_resume_after_ctrl_c_asks_only_what_has_no_answer(do: Any, timer: Any) -> None:
    clock = timer(COSTS)
    clock.failures["conv"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        do(clock)
    later = timer(COSTS)
    study = do(later, resume=True)
    assert later.sessions == [["conv", "tokens"]]
    assert list(study.observations) == ["activations", "mlps"]


def test_a_folder_with_a_study_is_not_overwritten_without_resume(do: Any, timer: Any) -> None:
    do(timer(COSTS))
    with pytest.raises(ConfigError, match="--resume"):
        do(timer(COSTS))


def test_resume_refuses_another_target_or_other_settings(
    do: Any, timer: Any, tmp_path: Path, target: Target
) -> None:
    do(timer(COSTS))
    for changed in (replace(target, threads=2), replace(target, version="2.0")):
        with pytest.raises(ConfigError, match="the target of"):
            begin(tmp_path / "out", changed, CONFIG, resume=True)
    with pytest.raises(ConfigError, match="the settings of"):
        begin(tmp_path / "out", target, replace(CONFIG, samples=5), resume=True)


def test_a_network_that_the_runtime_cannot_run_says_so_and_the_others_go_on(
    do: Any, timer: Any
) -> None:
    clock = timer(COSTS)
    clock.failures["gelu"] = DeviceError("gelu: onnxruntime cannot load gelu.onnx: no such kernel")
    study = do(clock)
    rows = {row.name: row for row in study.observations["activations"].rows}
    assert rows["gelu"].median_ms is None and "no such kernel" in rows["gelu"].problem
    assert rows["relu"].median_ms == 1.0 and rows["silu"].grade == "A"
    assert any("gelu against relu: not measured" in line.lower() for line in study.advice)
    assert study.observations["mlps"].is_measured


def test_a_runtime_that_cannot_start_ends_the_study(do: Any, timer: Any) -> None:
    clock = timer(COSTS)
    clock.failures["relu"] = DeviceError("onnxruntime-1.0@here: cannot be measured here")
    with pytest.raises(DeviceError, match="cannot be measured here"):
        do(clock)


def test_a_network_that_cannot_be_exported_says_so_and_the_others_go_on(
    do: Any, timer: Any, hands: Any
) -> None:
    clock = timer(COSTS)
    plain = hands(clock)

    def export(modules: Any, folder: Path, *, batch: int) -> Any:
        if "silu" in modules:
            raise NasError("torch cannot export this SiLU: no symbolic")
        return plain.export(modules, folder, batch=batch)

    study = do(clock, hands=replace(plain, export=export))
    rows = {row.name: row for row in study.observations["activations"].rows}
    assert "no symbolic" in rows["silu"].problem and rows["gelu"].median_ms == 1.31
    assert clock.sessions[0] == ["relu", "gelu"]


def test_grade_c_gives_numbers_but_no_advice(do: Any, timer: Any) -> None:
    clock = timer(COSTS)
    clock.grades["relu"] = "C"
    study = do(clock)
    lines = study.observations["activations"].advice
    assert len(lines) == 2 and all("too noisy" in line for line in lines)
    assert study.observations["activations"].comparisons[0].grade == "C"
    assert "use conv" in " ".join(study.observations["mlps"].advice).lower()


def test_too_noisy_to_time_is_said_and_measured_again_at_resume(do: Any, timer: Any) -> None:
    clock = timer(COSTS)
    clock.failures["conv"] = UnreliableTiming("conv: only 0 of 400 samples were clean")
    study = do(clock)
    assert study.observations["mlps"].is_noisy
    assert "only 0 of 400" in study.observations["mlps"].notes[0]
    assert "too noisy" in study.observations["mlps"].advice[0]
    later = timer(COSTS)
    again = do(later, resume=True)
    assert later.sessions == [["conv", "tokens"]]
    assert not again.observations["mlps"].is_noisy


def test_progress_counts_networks_with_the_time_left_and_ends_at_the_whole(
    do: Any, timer: Any
) -> None:
    told: list[tuple[int, int, str]] = []
    do(timer(COSTS), progress=lambda *row: told.append(row))
    dones = [done for done, _, _ in told]
    assert dones == sorted(dones) and told[-1][:2] == (5, 5)
    assert all(done < 5 and "s left" in text for done, _, text in told[:-1])


def test_a_disk_that_is_full_says_so_and_keeps_what_was_there(
    do: Any, timer: Any, files_at_most: Any, tmp_path: Path
) -> None:
    clock = timer(COSTS)
    clock.failures["conv"] = KeyboardInterrupt()
    with pytest.raises(KeyboardInterrupt):
        do(clock)
    before = (tmp_path / "out" / FILE).read_bytes()
    with files_at_most(1000), pytest.raises(StorageError, match="Free space"):
        do(timer(COSTS), resume=True)
    assert (tmp_path / "out" / FILE).read_bytes() == before


@pytest.mark.parametrize(
    "spoil",
    [
        lambda value: value | {"schema": 2},
        lambda value: {key: item for key, item in value.items() if key != "target"},
        lambda value: value | {"observations": []},
        lambda value: value | {"observations": {"mlps": {"key": "mlps"}}},
        lambda value: [],
    ],
)
def test_a_damaged_study_is_refused(do: Any, timer: Any, tmp_path: Path, spoil: Any) -> None:
    do(timer(COSTS))
    path = tmp_path / "out" / FILE
    path.write_text(json.dumps(spoil(json.loads(path.read_text()))))
    with pytest.raises(CorruptFile, match=r"study\.json"):
        do(timer(COSTS), resume=True)


def test_a_runtime_that_takes_no_onnx_files_is_refused_with_the_way_out(target: Target) -> None:
    from types import SimpleNamespace

    from nas.latency.device_study.study import _require_onnx

    with pytest.raises(ConfigError, match="takes torch modules.*--target onnxruntime"):
        _require_onnx(target, SimpleNamespace(takes="torch modules"))  # type: ignore[arg-type]


def test_the_runtimes_profile_is_shown_as_shares_and_its_failure_is_a_note(
    tmp_path: Path, target: Target, timer: Any, hands: Any, ask: Any
) -> None:
    asked = [ask("memory", "block", "bare", profiled="block")]
    plain = hands(timer({"block": 2.0, "bare": 1.0}))

    def profiled(**answer: Any) -> Any:
        def op_times(path: Path, target: Target) -> Any:
            if "error" in answer:
                raise answer["error"]
            assert path.name == "block.onnx"
            return answer["found"]

        study = begin(tmp_path / "none", target, CONFIG)
        folder = tmp_path / str(len(list(tmp_path.iterdir())))
        return run(study, folder, asked, hands=replace(plain, op_times=op_times)).observations[
            "memory"
        ]

    shares = profiled(found={"MatMul": 3.0, "Softmax": 1.0}).op_shares
    assert [(item.group, item.share) for item in shares] == [("products", 0.75), ("softmax", 0.25)]
    failed = profiled(error=DeviceError("block.onnx: no profile"))
    assert failed.op_shares == () and "block.onnx: no profile" in failed.notes[0]
    assert failed.comparisons[0].ratio == 0.5


def test_widths_lead_to_a_step_unless_too_many_were_noisy(
    tmp_path: Path, target: Target, timer: Any, hands: Any
) -> None:
    from nas.latency.device_study.catalogue import WIDTHS
    from nas.latency.device_study.question import Variant

    names = {f"r14_c{width}": width for width in WIDTHS}
    asked = Question(
        key="widths", title="Widths", asks="?", is_width_series=True,
        variants=tuple(
            Variant(name=name, text=name, shape=(width, 14, 14), make=_Nothing)
            for name, width in names.items()
        ),
    )  # fmt: skip
    clock = timer({name: 0.1 + -(-width // 16) * 0.05 for name, width in names.items()})
    study = begin(tmp_path / "a", target, CONFIG)
    found = run(study, tmp_path / "a", [asked], hands=hands(clock)).observations["widths"]
    assert found.width_step == 16
    assert found.advice[0].startswith("Use a width step of 16")
    clock.grades = dict.fromkeys(list(names)[::2], "C")
    noisy = run(study, tmp_path / "b", [asked], hands=hands(clock)).observations["widths"]
    assert noisy.width_step is None and noisy.steps == ()
    assert "too noisy" in noisy.advice[0]


class _Nothing:
    def parameters(self) -> list[Any]:
        return []


def test_hands_are_the_real_ones_unless_told_otherwise() -> None:
    from nas.latency.measure import measure_networks
    from nas.latency.op_times import op_times

    assert Hands().measure is measure_networks and Hands().op_times is op_times


@pytest.mark.slow
def test_a_real_question_is_exported_timed_and_answered(tmp_path: Path) -> None:
    from nas.latency.device_study.catalogue import questions
    from nas.latency.profile_config import ProfileConfig

    here = Target.parse("onnxruntime")
    config = ProfileConfig(samples=3, spread_s=0.2, time_limit_s=3.0, processes=1)
    (asked,) = [item for item in questions() if item.key == "token_mixers"]
    study = begin(tmp_path, here, config)
    found = run(study, tmp_path, [asked], config=config).observations["token_mixers"]
    if found.is_noisy:
        pytest.skip("this machine is too noisy")
    ratios = {(row.over, row.under): row.ratio for row in found.comparisons}
    assert (ratios["mhsa", "pool"] or 0) > 2
    assert all(row.problem == "" and row.params > 0 for row in found.rows)

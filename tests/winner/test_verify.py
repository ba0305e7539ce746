"""Verifying a winner: what a fresh process sees of its folder, and how it may fail."""

import json
import math
import os
import shutil
import signal
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import onnx
import pytest
from PIL import Image
from typer.testing import CliRunner

from nas.block import parse
from nas.cli.app import app
from nas.errors import BrokenPromise, ConfigError, CorruptFile, DeviceError, UnreliableTiming
from nas.files import digest_file
from nas.latency import ProfileConfig
from nas.manifest import TargetResult, Winner
from nas.target import Target
from nas.winner import verify as verifying
from nas.winner.verify import examine, verify, verify_elsewhere

FAST = ProfileConfig(samples=3, spread_s=0.0, processes=1, winner_processes=1)


@pytest.fixture(scope="module")
def exported(winner_for: Callable[..., Path]) -> Path:
    """Return a winner that knows a little: it was trained for a moment."""
    return winner_for(Target.parse("onnxruntime"), epochs=1)


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    """Return a copy of the exported winner, in a place with an awkward name."""
    return shutil.copytree(exported, tmp_path / "a place & other: ünï#1" / "w")


@pytest.fixture
def child(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """Return what puts other code into the place of the verifying process."""
    return lambda code: monkeypatch.setattr(verifying, "CHILD", code)


def run(folder: Path, **changes: Any) -> Any:
    return verify(folder, target=Target.parse("onnxruntime"), config=FAST, **changes)


def answer(**seen: Any) -> str:
    """Return the code of a child that reads its request and answers this."""
    here = Target.parse("onnxruntime").id
    latency = {"target": here, "measured_ms": 0.02, "ci_high_ms": 0.021, "grade": "A"}
    whole = {"test": 0.9, "test_images": 359, "onnx_error": 1e-7, "params": 12186}
    text = json.dumps({"seen": {**whole, "latency": latency, **seen}})
    return f"import sys; sys.stdin.read(); sys.stdout.write({text!r})"


# ---------------------------------------------------------------- what is looked at
def test_the_folder_alone_gives_accuracy_agreement_and_size(folder: Path) -> None:
    seen = examine(folder, "digits")
    winner = Winner.load(folder)
    assert seen.test_images == 359 and seen.latency is None
    assert abs(seen.test - winner.accuracy.search) < 0.1 and seen.test > 0.2  # chance is 0.1
    assert seen.params == sum(parse(text).params for text in winner.blocks)
    assert seen.onnx_error is not None and seen.onnx_error < 1e-5


def test_accuracy_is_that_of_the_exported_normalisation(folder: Path) -> None:
    right = examine(folder, "digits").test
    config = json.loads((folder / "config.json").read_text())
    config["pretrained_cfg"]["mean"] = [3.0, 3.0, 3.0]
    (folder / "config.json").write_text(json.dumps(config))
    assert examine(folder, "digits").test < right - 0.1


def test_an_onnx_file_with_other_weights_is_noticed(folder: Path) -> None:
    model = onnx.load(folder / "model.onnx")
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weight.raw_data = weight.raw_data[4:] + weight.raw_data[:4]
    onnx.save(model, folder / "model.onnx")
    error = examine(folder, "digits").onnx_error
    assert error is not None and error > 0.01


@pytest.mark.parametrize("name", ["model.onnx", "model.safetensors", "config.json"])
def test_a_cut_file_with_a_fitting_digest_is_corrupt_and_no_traceback(
    folder: Path, name: str
) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CorruptFile, match=r"cannot (be run|load).*Export the winner again"):
        examine(folder, "digits")


def test_data_of_more_classes_than_the_winner_knows_is_refused(
    folder: Path, tmp_path: Path
) -> None:
    for part in ("train", "val"):
        for number in range(12):
            place = tmp_path / "photos" / part / f"{number:02}"
            place.mkdir(parents=True)
            Image.new("RGB", (32, 32), (number, 0, 0)).save(place / "0.png")
    with pytest.raises(ConfigError, match="the winner knows 10 classes"):
        examine(folder, f"folder:{tmp_path / 'photos'}")


# ---------------------------------------------------------------- what comes of it
def test_what_was_seen_is_written_into_winner_json_and_the_card(
    folder: Path, child: Callable[[str], None]
) -> None:
    child(answer())
    words = (folder / "README.md").read_text() + "My own words.\n"
    (folder / "README.md").write_text(words)
    before = Winner.load(folder)
    result = run(folder, tolerance=1.0)
    assert result.is_kept
    after = Winner.load(folder)
    assert after == result.winner
    assert (after.accuracy.test, after.targets[0].measured_ms) == (0.9, 0.02)
    assert after.targets[0].predicted_ms == before.targets[0].predicted_ms
    assert after.files == before.files
    after.check_files(folder)
    card = (folder / "README.md").read_text()
    assert "90.0 % of 359 images" in card and card.endswith("My own words.\n")


def test_a_broken_promise_is_written_down_and_raised_with_7(
    folder: Path, child: Callable[[str], None]
) -> None:
    winner = Winner.load(folder)
    replace(winner, budgets={"latency_ms": 0.0205}).save(folder)
    child(answer())
    result = run(folder, tolerance=1.0)
    assert result.is_over_budget
    assert Winner.load(folder).targets[0].measured_ms == 0.02
    with pytest.raises(BrokenPromise, match=r"over by 2\.4 %"):
        result.raise_if_broken()


@pytest.mark.parametrize("name", ["model.onnx", "model.safetensors", "config.json"])
def test_a_changed_file_breaks_the_promise_before_anything_is_run(
    folder: Path, child: Callable[[str], None], name: str
) -> None:
    child("raise SystemExit('must not be run')")
    raw = bytearray((folder / name).read_bytes())
    raw[len(raw) // 2] ^= 1
    (folder / name).write_bytes(raw)
    before = (folder / "winner.json").read_bytes()
    with pytest.raises(BrokenPromise, match=f"{name}: not the file that was exported"):
        run(folder).raise_if_broken()
    assert (folder / "winner.json").read_bytes() == before


def test_a_winner_that_was_never_exported_is_not_believed(folder: Path) -> None:
    replace(Winner.load(folder), files={}).save(folder)
    with pytest.raises(BrokenPromise, match=r"model\.onnx"):
        run(folder).raise_if_broken()


def test_a_winner_without_manifest_is_a_corrupt_file(folder: Path) -> None:
    (folder / "winner.json").unlink()
    with pytest.raises(CorruptFile, match=r"winner\.json"):
        run(folder)


def test_a_winner_of_unnamed_data_asks_for_a_name(folder: Path) -> None:
    replace(Winner.load(folder), data="").save(folder)
    with pytest.raises(ConfigError, match="names no data set"):
        run(folder)


# ---------------------------------------------------------------- the process
def test_progress_of_the_process_is_handed_on(folder: Path, child: Callable[[str], None]) -> None:
    said = 'import sys; print(\'{"progress": [1, 2, "half"]}\\nnoise\', file=sys.stderr); '
    child(said + answer())
    steps: list[tuple[int, int, str]] = []
    run(folder, tolerance=1.0, progress=lambda *step: steps.append(step))
    assert steps == [(1, 2, "half")]


def test_an_error_of_the_process_arrives_as_the_error_it_is(
    folder: Path, child: Callable[[str], None]
) -> None:
    text = json.dumps({"error": "UnreliableTiming", "text": "too noisy"})
    child(f"print({text!r})")
    with pytest.raises(UnreliableTiming, match="^too noisy$"):
        run(folder)


@pytest.mark.parametrize(
    ("code", "message"),
    [
        ("raise ValueError('what broke')", "with code 1 .*ValueError: what broke"),
        ("import os; os.kill(os.getpid(), 9)", "with signal 9"),
        ("print('hello')", "no answer"),
        (answer(test="high"), "test: input should be"),
        (answer(onnx_error=[]), "onnx_error"),
    ],
)
def test_a_process_that_dies_or_answers_nonsense_is_a_device_error_and_nothing_is_written(
    folder: Path, child: Callable[[str], None], code: str, message: str
) -> None:
    child(code)
    before = (folder / "winner.json").read_bytes()
    with pytest.raises(DeviceError, match=message):
        run(folder)
    assert (folder / "winner.json").read_bytes() == before


def test_a_process_that_hangs_is_ended(folder: Path, child: Callable[[str], None]) -> None:
    child("import os, sys, time; print(os.getpid(), file=sys.stderr, flush=True); time.sleep(600)")
    with pytest.raises(DeviceError, match="said nothing for 1 s") as caught:
        run(folder, timeout_s=1.0)
    pid = int(str(caught.value).rsplit(" ", 1)[1])
    assert not is_alive(pid)


def test_ctrl_c_ends_the_process_too(folder: Path, child: Callable[[str], None]) -> None:
    child(
        "import os, sys, time\n"
        'print(\'{"progress": [%d, 0, ""]}\' % os.getpid(), file=sys.stderr, flush=True)\n'
        "time.sleep(600)"
    )
    pids = []

    def interrupt(done: int, total: int, text: str) -> None:
        pids.append(done)
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    with pytest.raises(KeyboardInterrupt):
        run(folder, progress=interrupt)
    assert not is_alive(pids[0])


def is_alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


# ---------------------------------------------------------------- all of it
@pytest.mark.slow
def test_a_fresh_process_verifies_a_real_winner_on_this_machine(folder: Path) -> None:
    digest = digest_file(folder / "model.safetensors")
    steps: list[str] = []
    result = run(folder, progress=lambda done, total, text: steps.append(text))
    assert [row.about for row in result.statements] == ["files", "onnx", "accuracy", "latency_ms"]
    result.raise_if_broken()
    measured = result.winner.targets[0]
    assert measured.measured_ms is not None and measured.ci_high_ms is not None
    assert 0 < measured.measured_ms <= measured.ci_high_ms < math.inf
    assert {"scoring test images", "timing whole networks"} <= set(steps)
    assert Winner.load(folder) == result.winner
    assert digest_file(folder / "model.safetensors") == digest


@pytest.mark.slow
@pytest.mark.parametrize("words", ["torch", "torch,b2", "onnxruntime,int8"])
def test_a_winner_is_timed_on_runtimes_that_take_its_folder_or_quantize_it(
    folder: Path, words: str
) -> None:
    target = Target.parse(words)
    result = verifying.measure(folder, target, FAST)
    assert result.target == target.id
    assert result.measured_ms is not None and result.measured_ms > 0


# ---------------------------------------------------------------- a device that is elsewhere
def test_a_latency_taken_elsewhere_is_held_against_the_promise(
    folder: Path, child: Callable[[str], None]
) -> None:
    there = replace(Target.parse("onnxruntime"), version="9.9")
    taken = TargetResult(target=there.id, measured_ms=2.0, ci_high_ms=2.1, grade="A")
    asked: list[Path] = []

    def stopwatch(folder: Path) -> TargetResult:
        asked.append(folder)
        return taken

    child(answer(latency=None))
    promised = Winner.load(folder)
    replace(promised, budgets={f"latency_ms:{there.id}": 2.05}).save(folder)
    result = verify_elsewhere(folder, stopwatch, target=there)
    assert asked == [folder] and result.is_over_budget
    assert "over by 2.4 %" in result.broken[0].text
    assert Winner.load(folder).on(there.id) == taken
    (folder / "model.onnx").write_bytes(b"")
    assert not verify_elsewhere(folder, stopwatch, target=there).is_kept
    assert asked == [folder]  # nothing is timed of files that were changed


def nas(*words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(words))
    return result.exit_code, result.stdout, result.stderr


def test_a_winner_is_timed_by_hand_where_no_python_runs(
    folder: Path, child: Callable[[str], None], tmp_path: Path
) -> None:
    there = "tensorrt-10.3_fp16_nchw_b1_t1@jetson-orin-nano-aarch64"
    plan, times = tmp_path / "plan", tmp_path / "times.csv"
    code, out, err = nas("verify", str(folder), "--plan", str(plan))
    assert code == 0 and str(plan / "README.md") in out, err
    name = f"check-{Winner.load(folder).id}.onnx"
    assert digest_file(plan / name) == digest_file(folder / "model.onnx")
    assert "nas verify" in (plan / "README.md").read_text()
    child(answer(latency=None))
    words = ["verify", str(folder), "--plan", str(plan), "--results", str(times)]
    times.write_text("file,median_ms\nreference.onnx,1\n")
    code, _, err = nas(*words, "--target", there)
    assert code == 2 and f"no time yet, the first is {name}" in err
    times.write_text(f"file,median_ms\n{name},3.0\n{name},3.1\n{name},2.9\n")
    assert nas(*words)[0] == 2  # whose times are they?
    code, out, err = nas(*words, "--target", there)
    assert code == 0 and "no latency was promised there" in out, err
    row = Winner.load(folder).on(there)
    assert row is not None and row.measured_ms == 3.0 and row.upper_ms > 3.0  # type: ignore[operator]
    replace(Winner.load(folder), budgets={f"latency_ms:{there}": 2.0}).save(folder)
    code, out, err = nas(*words, "--target", there, "--json")
    assert code == 7 and "does not keep its promise" in err
    assert json.loads(out)["kept"] is False  # one object, and the error is no second one
    shutil.copy(folder / "config.json", folder / "model.onnx")
    assert "is not of" in nas(*words, "--target", there)[2]

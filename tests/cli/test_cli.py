"""The command line as its users meet it: help that teaches, results on stdout, exit codes."""

import json
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from nas.cli.app import app
from nas.cli.console import table

VERBS = [
    *("quickstart", "run", "space", "profile", "price", "check-table", "device-study", "train"),
    *("rank", "taylor", "search", "worker", "studies", "study", "trials", "front"),
    *("distill", "export", "verify", "report", "prune", "agent", "doctor"),
]


def nas(*words: str, cwd: Path | None = None) -> tuple[int, str, str]:
    done = subprocess.run(
        [sys.executable, "-m", "nas", *words], cwd=cwd, capture_output=True, text=True, check=False
    )
    return done.returncode, done.stdout, done.stderr


def run(*words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(words))
    return result.exit_code, result.stdout, result.stderr


def test_help_lists_every_verb() -> None:
    code, out, _ = run("--help")
    assert code == 0 and all(f"  {verb} " in out for verb in VERBS)


@pytest.mark.parametrize("verb", VERBS)
def test_every_verb_explains_itself(verb: str) -> None:
    code, out, _ = run(verb, "--help")
    assert code == 0 and "Usage:" in out and len(out.splitlines()) > 5


def test_version_is_printed() -> None:
    code, out, _ = run("--version")
    assert code == 0 and out.startswith("nas 0.")


def test_a_command_called_from_python_gives_sigterm_back() -> None:
    before = signal.getsignal(signal.SIGTERM)
    assert run("space", "show", "hybird")[0] == 2
    assert signal.getsignal(signal.SIGTERM) == before


def test_spaces_are_listed_for_people_and_programs() -> None:
    code, out, _ = run("space", "list")
    assert code == 0 and "hybrid-64" in out
    code, out, _ = run("space", "list", "--json")
    spaces = {space["name"]: space for space in json.loads(out)["spaces"]}
    assert spaces["hybrid"]["count"] > 1e15


def test_a_space_shows_choices_count_and_ends() -> None:
    code, out, _ = run("space", "show", "tiny")
    assert code == 0
    assert "s2.by" in out and "smallest" in out and "largest" in out and "patch_merge_r8" in out
    _, out, _ = run("space", "show", "tiny", "--json")
    value = json.loads(out)
    assert value["schema"] == 1 and value["genes"]["s1.width"] == [24, 32]
    assert value["smallest"]["macs"] < value["largest"]["macs"]


def test_a_misspelt_space_is_exit_2_with_the_nearest(tmp_path: Path) -> None:
    code, out, err = run("space", "show", "hybird")
    assert (code, out) == (2, "") and "did you mean 'hybrid'" in err


def test_an_unknown_key_in_yaml_is_exit_2_with_the_nearest(tmp_path: Path) -> None:
    path = tmp_path / "space.yaml"
    path.write_text("schema: 1\nname: mine\nimage_size: 32\nstagse: []\n")
    code, _, err = run("space", "show", str(path))
    assert code == 2 and "did you mean 'stages'" in err and "Traceback" not in err


def test_a_yaml_bomb_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "bomb.yaml"
    path.write_text("a: &a [x, x]\nb: &b [*a, *a]\nc: [*b, *b]\n")
    code, _, err = run("space", "show", str(path))
    assert code == 2 and "aliases" in err


@pytest.mark.slow
def test_a_missing_data_folder_is_exit_2(tmp_path: Path) -> None:
    words = ["train", "--run", str(tmp_path / "r"), "--space", "tiny"]
    code, _, err = run(*words, "--data", f"folder:{tmp_path / 'none'}", "-q")
    assert code == 2 and "none" in err and "Traceback" not in err


def test_errors_are_json_too_when_asked(tmp_path: Path) -> None:
    code, out, err = run("report", "--run", str(tmp_path / "none"), "--json")
    assert code == 2
    value = json.loads(out)
    assert value["exit_code"] == 2 and "holds no run" in value["error"] and value["error"] in err


def test_a_run_below_a_regular_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    code, _, err = run("train", "--run", str(tmp_path / "file" / "run"), "-q")
    assert code == 1 and str(tmp_path / "file") in err


def test_verifying_what_is_no_winner_is_exit_6(tmp_path: Path) -> None:
    code, _, err = run("verify", str(tmp_path))
    assert code == 6 and "winner.json" in err


def test_an_unknown_runtime_is_exit_5(tmp_path: Path) -> None:
    code, _, err = run("profile", "--run", str(tmp_path / "r"), "--target", "tensorrt", "-q",
                       "--space", "tiny", "--data", "digits")  # fmt: skip
    assert code == 5 and "onnxruntime" in err


def test_a_device_study_of_an_unknown_runtime_is_exit_5(tmp_path: Path) -> None:
    code, _, err = run("device-study", "--target", "tensorrt", "--out", str(tmp_path), "-q")
    assert code == 5 and "onnxruntime" in err
    code, _, err = run("device-study", "--samples", "1", "--out", str(tmp_path), "-q")
    assert code == 2 and "samples must be at least 3" in err


def test_a_device_study_is_one_json_object_on_stdout_and_a_page(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from nas.latency.device_study import catalogue, study

    monkeypatch.setattr(catalogue, "questions", lambda: ())
    out_folder = tmp_path / "out"
    code, out, _ = run("device-study", "--out", str(out_folder), "--json", "-q")
    value = json.loads(out)
    assert code == 0 and value["schema"] == 1 and value["observations"] == {}
    assert Path(value["page"]).is_file() and (out_folder / study.FILE).is_file()
    code, _, err = run("device-study", "--out", str(out_folder), "-q")
    assert code == 2 and "--resume" in err
    assert run("device-study", "--out", str(out_folder), "-q", "--resume")[0] == 0


def test_a_budget_without_unit_is_exit_2(tmp_path: Path) -> None:
    from nas.pipeline import RunConfig
    from nas.pipeline.budget import resolve

    with pytest.raises(ValueError, match="unit"):
        resolve(RunConfig(latency_budget="5"), target_id="x", largest_ms=1.0)
    assert resolve(RunConfig(latency_budget="40%"), target_id="x", largest_ms=2.0).latency_ms == 0.8


def test_the_module_is_the_command() -> None:
    code, out, _ = nas("space", "list")
    assert code == 0 and "tiny" in out


def test_tables_align_numbers_to_the_right() -> None:
    lines = table(["name", "ms"], [["a", 1.5], ["long", 12.25]]).splitlines()
    assert lines[0] == "name     ms" and lines[2] == "a       1.5" and lines[3] == "long  12.25"

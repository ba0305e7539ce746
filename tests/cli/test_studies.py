"""Asking the database on the command line: trials, front, study show, study delete."""

import csv
import io
import json
import re
import shlex
import traceback
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from nas.cli.app import app
from nas.study import Study

TARGET = "onnxruntime-1.31.1_fp32_nchw_b1_t1@cpu-x86_64"
LATENCY = f"latency_ms:{TARGET}"
README = (Path(__file__).resolve().parent.parent.parent / "README.md").read_text()
# (accuracy, latency in ms, parameters)
POINTS = [(0.90, 4.0, 2e6), (0.95, 4.8, 3e6), (0.80, 2.0, 1e6), (0.97, 5.5, 1e6), (0.80, 3.0, 9e5)]


def run(*words: str, answer: str = "") -> tuple[int, str, str]:
    result = CliRunner().invoke(app, list(words), input=answer)
    if result.exception and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result.exit_code, result.stdout_bytes.decode(), result.stderr


def make(url: str, name: str = "quickstart") -> Study:
    study = Study.create(name, storage=url, attrs={"space": "tiny", "targets": [TARGET]})
    study.declare(
        {
            "genes": {
                "s1.width": (16, 24, 32),
                "kernels": ((5, 3), (7, 5, 3)),
                "act": ("a,b", '"'),
            },
            "metrics": [LATENCY, "params"],
            "budgets": {LATENCY: 5.0},
            "seed": 0,
        }
    )
    for index, (accuracy, latency_ms, params) in enumerate(POINTS):
        study.add(
            {
                "s1.width": (16, 24, 32)[index % 3],
                "kernels": ((5, 3), (7, 5, 3))[index % 2],
                "act": ("a,b", '"')[index // 3],
            },
            {LATENCY: latency_ms, "params": params},
            accuracy=accuracy,
            loss=1 - accuracy,
            evaluation_s=0.5,
            attrs={"architecture_id": f"{index:012x}"},
        )
    study.add(
        {"s1.width": 32, "kernels": (5, 3), "act": '"'},
        {LATENCY: 1.0, "params": 5e5},
        reason='it said "no",\nthen stopped',
    )
    study.record_measurement(0, TARGET, "latency_ms", 4.1, 4.2)
    return study


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> str:
    """A database that no test changes."""
    found = f"sqlite:///{tmp_path_factory.mktemp('studies')}/nas.db"
    make(found)
    return found


@pytest.fixture(autouse=True)
def storage(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NAS_STORAGE", url)


# ---------------------------------------------------------------- trials
def test_trials_are_picked_sorted_and_cut() -> None:
    code, out, err = run("trials", "quickstart", "--where", "latency_ms < 5 and params < 3.5e6",
                         "--sort", "-accuracy", "--limit", "2", "--json")  # fmt: skip
    value = json.loads(out)
    assert (code, err, value["schema"], value["study"]) == (0, "", 1, "quickstart")
    assert [row["trial"] for row in value["trials"]] == [1, 0]
    best, second = value["trials"]
    assert (best["params"], best["gene.s1.width"], best["gene.kernels"]) == (3000000, 24, [7, 5, 3])
    assert (best[f"measured {LATENCY}"], second[f"measured {LATENCY}"]) == (None, 4.1)


def test_a_table_shows_facts_and_costs_under_short_names() -> None:
    code, out, _ = run("trials", "quickstart")
    lines = out.splitlines()
    assert code == 0 and len(lines) == 2 + 6
    assert lines[0].split()[:5] == ["trial", "state", "accuracy", "loss", "latency_ms"]
    assert "measured latency_ms" in lines[0] and TARGET not in out and "gene." not in out
    assert lines[2].split()[:6] == ["0", "COMPLETE", "0.9", "0.1", "4", "2000000"]
    assert 'it said "no", then stopped' in lines[-1]


def test_csv_is_rfc_4180_with_every_column_and_nothing_for_what_is_missing() -> None:
    code, out, err = run("trials", "quickstart", "--csv")
    assert (code, err) == (0, "")
    assert out.endswith("\r\n") and len(re.findall("\r\n", out)) == 1 + 6
    rows = list(csv.DictReader(io.StringIO(out, newline=""), strict=True))
    assert [row["trial"] for row in rows] == list("012345")
    failed = rows[-1]
    assert (failed["accuracy"], failed["reason"]) == ("", 'it said "no",\nthen stopped')
    assert (failed["gene.act"], rows[0]["gene.act"]) == ('"', "a,b")
    assert (rows[1]["gene.kernels"], rows[1]["params"]) == ("[7, 5, 3]", "3000000")
    assert (float(rows[0][LATENCY]), rows[0][f"measured {LATENCY}"]) == (4.0, "4.1")
    _, out, _ = run("trials", "quickstart", "--csv", "--where", "trial > 99")
    assert out.count("\r\n") == 1 and out.startswith("trial,state,accuracy,")


def test_json_is_strict_and_has_null_for_what_is_missing() -> None:
    def refuse(word: str) -> None:
        raise AssertionError(f"{word} is no JSON")

    _, out, _ = run("trials", "quickstart", "--where", "state == 'FAIL'", "--json")
    (failed,) = json.loads(out, parse_constant=refuse)["trials"]
    assert (failed["accuracy"], failed["loss"], failed["evaluation_s"]) == (None, None, None)
    assert failed["architecture_id"] is None and failed["created_at"].endswith("+00:00")


def test_nothing_found_is_said_and_is_no_failure() -> None:
    code, out, _ = run("trials", "quickstart", "--where", "accuracy > 0.99")
    assert code == 0 and "none of the 6 trials" in out
    code, out, _ = run("trials", "quickstart", "--where", "accuracy > 0.99", "--json")
    assert code == 0 and json.loads(out)["trials"] == []


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--where", "acuracy > 0.5"], "did you mean 'accuracy'"),
        (["--sort", "-acuracy"], "did you mean 'accuracy'"),
        (["--where", "__import__('os').system('true') == 0"], "a call"),
        (["--csv", "--json"], "leave one out"),
        (["--limit", "0"], "limit"),
    ],
)
def test_mistakes_are_exit_2_in_a_sentence(words: list[str], told: str) -> None:
    code, out, err = run("trials", "quickstart", *words)
    assert code == 2 and told in err and "Traceback" not in err
    assert out == "" or "--json" in words


def test_an_unknown_study_names_those_there_are() -> None:
    for words in (["trials"], ["front"], ["study", "show"], ["study", "delete", "--yes"]):
        code, out, err = run(*words, "quickstrat")
        assert (code, out) == (2, "") and "there are: 'quickstart'" in err


# ---------------------------------------------------------------- front
def test_the_front_is_within_the_budgets_and_cheapest_first() -> None:
    code, out, _ = run("front", "quickstart", "--json")
    value = json.loads(out)
    assert code == 0 and value["costs"] == [LATENCY]
    assert [row["trial"] for row in value["trials"]] == [2, 0, 1]


def test_the_costs_of_the_front_can_be_chosen() -> None:
    def numbers(*words: str) -> list[int]:
        rows = csv.DictReader(io.StringIO(run("front", "quickstart", *words, "--csv")[1]))
        return [int(row["trial"]) for row in rows]

    assert numbers("--cost", "params") == [4, 0, 1]
    assert numbers("--cost", "params", "--cost", "latency_ms") == [4, 2, 0, 1]
    code, _, err = run("front", "quickstart", "--cost", "macs")
    assert code == 2 and "macs is no known metric; choose from" in err


# ---------------------------------------------------------------- show and delete
def test_a_study_is_shown_with_its_settings_budgets_best_and_counts() -> None:
    code, out, _ = run("study", "show", "quickstart")
    assert code == 0
    for text in (
        *("6 (5 COMPLETE, 1 FAIL)", f"{LATENCY} <= 5 ms", "trial 1, accuracy 0.95", "tiny"),
        *("params 3M", "no reason recorded", "3, 12 combinations"),
    ):
        assert text in out
    value = json.loads(run("study", "show", "quickstart", "--json")[1])
    assert (value["states"], value["ended"]) == ({"COMPLETE": 5, "FAIL": 1}, None)
    assert value["best"]["costs"] == {LATENCY: 4.8, "params": 3000000}
    assert value["settings"]["seed"] == 0 and value["genes"]["kernels"] == 2


def test_a_study_without_a_best_is_shown(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/nas.db"
    study = Study.create("empty", storage=storage)
    code, out, _ = run("study", "show", "empty", "--storage", storage)
    assert code == 0 and "no trial is within the budgets" in out
    study.declare({"genes": {"a": (1, 2)}, "metrics": ["x"], "budgets": {"x": 1.0}})
    study.add({"a": 1}, {"x": 2.0}, accuracy=0.5)
    study.end("nothing else was found")
    value = json.loads(run("study", "show", "empty", "--storage", storage, "--json")[1])
    assert value["best"] is None and value["ended"] == "nothing else was found"


def test_deleting_asks_and_only_yes_deletes(tmp_path: Path) -> None:
    storage = f"sqlite:///{tmp_path}/nas.db"
    make(storage)
    Study.create("other", storage=storage)
    words = ["study", "delete", "quickstart", "--storage", storage]
    code, out, err = run(*words, answer="n\n")
    assert (
        code == 1 and "Delete" not in out and "with its 6 trials" in err and "stays as it is" in err
    )
    code, out, err = run(*words)  # nobody there to answer
    assert (code, out) == (2, "") and "add --yes" in err
    assert len(Study.load("quickstart", storage=storage).trials) == 6
    code, out, _ = run(*words, answer="y\n")
    assert (code, out) == (0, "deleted quickstart with its 6 trials.\n")
    assert [left.name for left in Study.list(storage)] == ["other"]
    code, out, _ = run("study", "delete", "other", "--storage", storage, "--yes", "--json")
    assert code == 0 and json.loads(out) == {"schema": 1, "deleted": "other", "trials": 0}
    assert Study.list(storage) == ()


# ---------------------------------------------------------------- passwords
@pytest.mark.parametrize("verb", [["trials"], ["front"], ["study", "show"], ["study", "delete"]])
@pytest.mark.parametrize("more", [[], ["--json"], ["--debug"]])
def test_a_password_is_never_shown(
    verb: list[str], more: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("nas.study.patience.OPEN_PATIENCE_S", 0.2)  # nobody listens there
    secret = "s3cr3t%40pw"
    for url in (
        f"postgresql://nas:{secret}@127.0.0.1:1/nas?connect_timeout=1",
        f"mysql://nas:{secret}@127.0.0.1/nas",
        f"postgresql//nas:{secret}@host",
    ):
        result = CliRunner().invoke(app, [*verb, "s", "--storage", url, *more])
        assert result.exit_code != 0
        told = [result.stdout, result.stderr]
        told += traceback.format_exception(result.exception) if result.exception else []
        assert "s3cr3t" not in "".join(told)


def test_the_command_to_go_on_with_has_no_password(monkeypatch: pytest.MonkeyPatch) -> None:
    from nas.cli.words import go_on

    words = [
        "nas",
        "search",
        "--storage",
        "postgresql://nas:s3cr3t@host/nas",
        "--run",
        "runs/a:b@c",
    ]
    monkeypatch.setattr("sys.argv", words)
    told = go_on("search", Path("runs/a"))[1:]
    assert told[2] == "postgresql://nas:***@host/nas" and told[-2:] == ["runs/a:b@c", "--resume"]


# ---------------------------------------------------------------- what README shows
def test_the_sql_and_the_optuna_code_of_the_readme_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import sqlite3

    blocks = re.findall(r"^```(sql|python)\n(.*?)^```$", README, re.MULTILINE | re.DOTALL)
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("NAS_STORAGE")
    make("sqlite:///runs/nas.db")
    database = sqlite3.connect("runs/nas.db")
    queries = [query for kind, text in blocks if kind == "sql" for query in text.split(";")]
    found = [database.execute(query).fetchall() for query in queries if query.strip()]
    database.close()
    assert len(found) == 2 and all(found)
    assert [row[0] for row in found[0]] == [1, 0, 4, 2]
    (code,) = [text for kind, text in blocks if kind == "python" and "optuna" in text]
    names: dict[str, Any] = {}
    exec(code, names)
    values = [trial.values for trial in names["study"].trials if trial.values]
    assert values == [[accuracy, latency_ms] for accuracy, latency_ms, _ in POINTS]


def test_the_commands_of_the_readme_run(tmp_path: Path) -> None:
    commands = re.findall(r"^nas ((?:trials|front|study show) .*)$", README, re.MULTILINE)
    assert len(commands) >= 3
    for command in commands:
        words = shlex.split(command)
        code, _, err = run(*words[: words.index(">") if ">" in words else None])
        assert code == 0, err

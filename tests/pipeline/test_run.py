"""A run's folder remembers what is done, with which settings, and who holds it."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nas.errors import ConfigError, CorruptFile, StorageError, TryAgain
from nas.pipeline import Run, RunConfig, config_of, load_config, preset
from nas.pipeline.config import differences
from nas.pipeline.run import Progress


def work(answer: Any) -> Any:
    def stage(progress: Progress) -> dict[str, Any]:
        progress(1, 1, "done")
        return {"answer": answer}

    return stage


def never(progress: Progress) -> dict[str, Any]:
    raise AssertionError("a finished stage was done again")


def test_a_finished_stage_is_not_done_again(tmp_path: Path) -> None:
    with Run.open(tmp_path / "a", RunConfig()) as run:
        assert run.stage("train", work(42)) == {"answer": 42}
    with Run.open(tmp_path / "a", resume=True) as run:
        assert run.stage("train", never) == {"answer": 42}


def test_a_failed_stage_is_done_again(tmp_path: Path) -> None:
    with pytest.raises(ZeroDivisionError), Run.open(tmp_path / "a", RunConfig()) as run:
        run.stage("train", lambda progress: {"answer": 1 / 0})
    with Run.open(tmp_path / "a", resume=True) as run:
        assert run.stage("train", work(1)) == {"answer": 1}


def test_repeating_without_resume_is_refused_with_the_way_out(tmp_path: Path) -> None:
    with Run.open(tmp_path / "a", RunConfig()) as run:
        run.stage("train", work(1))
    with Run.open(tmp_path / "a") as run, pytest.raises(ConfigError, match="Add --resume"):
        run.refuse_repeat("train")


def test_settings_of_a_finished_stage_cannot_change_but_later_ones_can(tmp_path: Path) -> None:
    with Run.open(tmp_path / "a", RunConfig()) as run:
        run.stage("train", work(1))
    changed = load_config(tmp_path / "a" / "config.yaml", ["train.lr=0.5"])
    with (
        pytest.raises(ConfigError, match=r"train is done.*train\.lr: 0\.003 -> 0\.5"),
        Run.open(tmp_path / "a", changed, resume=True),
    ):
        pass
    later = load_config(tmp_path / "a" / "config.yaml", ["evaluations=7"])
    with Run.open(tmp_path / "a", later, resume=True) as run:
        assert run.config.evaluations == 7
        assert run.stage("train", never) == {"answer": 1}


def test_studies_of_a_run_that_choose_one_architecture_make_promises_of_their_own(
    tmp_path: Path,
) -> None:
    with Run.open(tmp_path / "a", RunConfig()) as run:
        assert run.winner_folder("1f") == tmp_path / "a/winners/1f"
    with Run.open(tmp_path / "a", RunConfig(study="both")) as run:
        assert run.winner_folder("1f") == tmp_path / "a/winners/both/1f"


def test_a_missing_stage_names_the_verb_that_does_it(tmp_path: Path) -> None:
    with (
        Run.open(tmp_path / "a", RunConfig()) as run,
        pytest.raises(ConfigError, match=r"has no profile yet\. Run `nas profile --run"),
    ):
        run.result("profile", make_with="profile")


def test_a_run_that_does_not_exist_is_not_made_by_looking(tmp_path: Path) -> None:
    assert config_of(tmp_path / "none", ["evaluations=5"], begin=False) is None
    with pytest.raises(ConfigError, match="holds no run"), Run.open(tmp_path / "none"):
        pass
    assert not (tmp_path / "none").exists()


def test_two_processes_do_not_share_a_run_and_kill_frees_it(tmp_path: Path) -> None:
    code = (
        "import sys, time; from pathlib import Path; from nas.files import lock\n"
        "with lock(Path(sys.argv[1]) / '.lock'):\n print('held', flush=True); time.sleep(60)"
    )
    (tmp_path / "a").mkdir()
    child = subprocess.Popen(
        [sys.executable, "-c", code, str(tmp_path / "a")], stdout=subprocess.PIPE, text=True
    )
    assert child.stdout is not None and child.stdout.readline() == "held\n"
    with (
        pytest.raises(TryAgain, match=f"pid {child.pid}"),
        Run.open(tmp_path / "a", RunConfig()),
    ):
        pass
    child.kill()
    child.wait()
    child.stdout.close()
    with Run.open(tmp_path / "a", RunConfig()) as run:
        assert run.stages == {}


@pytest.mark.parametrize("share", [0.0, 0.3, 0.9])
def test_a_truncated_state_is_refused(tmp_path: Path, share: float) -> None:
    with Run.open(tmp_path / "a", RunConfig()) as run:
        run.stage("train", work(1))
    path = tmp_path / "a" / "state.json"
    path.write_bytes(path.read_bytes()[: int(share * path.stat().st_size)])
    with pytest.raises(CorruptFile, match="state"), Run.open(tmp_path / "a", resume=True):
        pass


def test_a_folder_below_a_file_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    with pytest.raises(StorageError), Run.open(tmp_path / "file" / "run", RunConfig()):
        pass


def test_the_effective_settings_are_written_and_read_back(tmp_path: Path) -> None:
    config = load_config(preset("quickstart"), ["train.epochs=3", "budgets=[params=3M]"])
    with Run.open(tmp_path / "a", config):
        pass
    assert load_config(tmp_path / "a" / "config.yaml") == config
    assert config.train.epochs == 3 and config.budgets == ("params=3M",)
    assert (tmp_path / "a" / "environment.json").is_file()


@pytest.mark.parametrize(
    ("word", "message"),
    [
        ("train.lrr=1", "did you mean 'lr'"),
        ("evaluatoins=3", "did you mean 'evaluations'"),
        ("evaluations=0", "at least 1"),
        ("evaluations=many", "evaluations"),
        ("margin=0.5", "leave no room"),
        ("train", "key=value"),
        ("schema=2", "schema must be 1"),
        ("space.name=x", "space"),
    ],
)
def test_a_wrong_override_is_named(word: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        load_config(preset("quickstart"), [word])


def test_differences_name_nested_settings() -> None:
    before = {"a": 1, "b": {"c": 2, "d": 3}}
    assert differences(before, {"a": 1, "b": {"c": 5, "d": 3}}) == "b.c: 2 -> 5"


def test_the_log_has_a_line_an_event(tmp_path: Path) -> None:
    with Run.open(tmp_path / "a", RunConfig()) as run:
        run.stage("train", work(1))
    lines = (tmp_path / "a" / "log.jsonl").read_text().splitlines()
    assert ['"begun"' in lines[0], '"done"' in lines[1]] == [True, True]


def test_a_run_has_many_studies_each_with_settings_of_its_own(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    with Run.open(folder, RunConfig()) as run:
        run.stage("train", work(1))
        run.stage("search/a", work(2))
    faster = config_of(folder, ["latency_budget=2ms"], begin=False, study="faster")
    with Run.open(folder, faster) as run:
        assert run.study == "faster" and run.config.latency_budget == "2ms"
        run.stage("search/faster", work(3))
    first = config_of(folder, [], begin=False, study=None)
    with Run.open(folder, first, resume=True) as run:
        assert run.study == "a" and run.config.latency_budget == "50%"
        assert run.stage("search/a", never) == {"answer": 2}
    again = config_of(folder, [], begin=False, study="faster")
    with Run.open(folder, again, resume=True) as run:
        assert run.config.latency_budget == "2ms"
        assert run.stage("search/faster", never) == {"answer": 3}
    changed = config_of(folder, ["latency_budget=3ms"], begin=False, study="faster")
    with (
        pytest.raises(ConfigError, match=r"search/faster is done.*latency_budget: 2ms -> 3ms"),
        Run.open(folder, changed, resume=True),
    ):
        pass


def test_a_study_s_name_is_no_path(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="a study's name"):
        config_of(tmp_path, [], begin=True, study="../x")

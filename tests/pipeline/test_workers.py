"""Searching with workers through the command line, and what a run's folder says of a database."""

import json
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nas.errors import ConfigError
from nas.pipeline import Run, RunConfig, config_of, workers
from nas.pipeline.candidates import _study
from nas.study import Study, hold, mask_url

SECRET = "c4nary"
ADDRESS = f"postgresql://nas:{SECRET}@127.0.0.1:1/nas"
ABOUT = {"supernet_digest": "a", "budget": 1}

Start = Callable[..., "subprocess.Popen[str]"]


# ---------------------------------------------------------------- passwords
def test_no_file_of_a_run_keeps_the_password_of_its_database(
    tmp_path: Path,
) -> None:
    folder = tmp_path / "a"
    with Run.open(folder, RunConfig(storage=ADDRESS)) as run:
        assert run.config.storage == ADDRESS
        run.stage("train", lambda progress: {"answer": 1})
    with Run.open(folder, RunConfig(storage=ADDRESS, study="other"), resume=True):
        pass
    files = [path for path in folder.rglob("*") if path.is_file()]
    assert len(files) >= 4
    assert not [path for path in files if SECRET in path.read_text()]
    again = config_of(folder, [], begin=False)
    assert again is not None and again.storage == mask_url(ADDRESS)
    with pytest.raises(ConfigError, match="not kept in files.*NAS_STORAGE or with --storage"):
        Study.load("a", storage=again.storage)
    given = config_of(folder, [f"storage={json.dumps(ADDRESS)}"], begin=False)
    assert given is not None and given.storage == ADDRESS


# ---------------------------------------------------------------- the same search
def test_a_search_that_goes_on_with_other_settings_is_refused_not_begun_anew(
    tmp_path: Path,
) -> None:
    storage = f"sqlite:///{tmp_path}/nas.db"
    begun = _study("a", named=False, resume=False, storage=storage, attrs=ABOUT)
    assert begun.name == "a"
    with pytest.raises(ConfigError, match="budget was 1 and is now 2"):
        _study("a", named=False, resume=True, storage=storage, attrs=ABOUT | {"budget": 2})
    other = ABOUT | {"supernet_digest": "b"}  # a run of the same name in another folder
    assert _study("a", named=False, resume=True, storage=storage, attrs=other).name == "a-2"
    assert _study("a", named=False, resume=False, storage=storage, attrs=other).name == "a-2"
    with pytest.raises(ConfigError, match="supernet_digest was 'a' and is now 'b'"):
        _study("a", named=True, resume=True, storage=storage, attrs=other)


def test_a_database_that_cannot_be_opened_is_said_once(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="not kept in files"):
        _study("a", named=False, resume=True, storage=mask_url(ADDRESS), attrs=ABOUT)


def test_the_batch_is_that_of_the_study_whatever_the_number_of_workers() -> None:
    new, begun = Study.in_memory(), Study.in_memory(attrs={"batch": 4})
    assert workers.batch(RunConfig(), new) == 1
    assert workers.batch(RunConfig(workers=3), new) == 6
    assert workers.batch(RunConfig(workers=3), begun) == 4
    assert workers.batch(RunConfig(), begun) == 4
    assert workers.batch(RunConfig(workers=3, batch=5), begun) == 5  # the engine refuses that


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"workers": -1}, "workers must be at least 0"),
        ({"batch": 0}, "batch must be at least 1"),
        ({"timeout_s": 0.0}, "timeout_s must be above zero"),
    ],
)
def test_settings_of_workers_have_rules(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        RunConfig(**settings)


def test_a_worker_completes_candidates_as_its_study_does(tmp_path: Path) -> None:
    folder = tmp_path / "a"
    with Run.open(folder, RunConfig(space="tiny")):
        pass
    named = RunConfig(space="tiny", study="other", importance="taylor")
    with Run.open(folder, named, resume=True):
        pass
    assert workers.run_of(folder, "other").config.importance == "taylor"
    assert workers.run_of(folder, "a").config.importance == "none"
    assert workers.run_of(folder, "other").config.threads == 1


def test_without_workers_the_search_evaluates_by_itself(tmp_path: Path) -> None:
    with Run.open(tmp_path, RunConfig()) as run, workers.executor(run, Study.in_memory()) as none:
        assert none is None


# ---------------------------------------------------------------- whole, with processes
def end(child: "subprocess.Popen[str]", *codes: int) -> str:
    out, err = child.communicate(timeout=300)
    assert child.returncode in codes, (child.returncode, err)
    return out + err


def rows(study: Study) -> list[tuple[Any, ...]]:
    return [(row.number, row.architecture_id, row.accuracy, row.loss) for row in study.trials]


@pytest.mark.slow
def test_workers_of_a_run_find_the_same_and_a_stranger_helps(finished: Path, start: Start) -> None:
    folder = finished
    words = ["search", "--run", "runs/small", "evaluations=10", "batch=4", "sampler=random"]
    alone = start(folder, *words, "--name", "alone")
    end(alone, 0, 3)
    end(start(folder, *words, "--name", "together", "--workers", "2"), 0, 3)
    storage = f"sqlite:///{folder}/runs/nas.db"
    found = Study.load("together", storage=storage)
    assert rows(found) == rows(Study.load("alone", storage=storage))
    log = (folder / "runs/small/workers.log").read_text()
    assert "Traceback" not in log
    # A worker by hand, of a study that somebody else holds, with work to do.
    from nas.study import Queue

    with hold(found):
        Queue(found.place).put(found.trials[0].choice, {"rank_by": "loss", "timeout_s": None})
        helper = start(folder, "worker", "--run", "runs/small", "--study", "together", "--json")
        while not (results := Queue(found.place).results()):
            assert helper.poll() is None, helper.communicate()
        helper.terminate()
        end(helper, 143)
    (result,) = results.values()
    assert result["loss"] == found.trials[0].loss
    # The supernet of another run is not the one the study was begun with.
    state = folder / "runs/small/state.json"
    state.write_text(state.read_text().replace(found.attrs["supernet_digest"], "0" * 64))
    told = end(start(folder, "worker", "--run", "runs/small", "--study", "together"), 2)
    assert "would not be comparable" in told

"""Our part of a database: made once, upgraded from before, refused when it is newer."""

import sqlite3
import threading
from contextlib import closing
from pathlib import Path

import optuna
import pytest

from nas.errors import ConfigError
from nas.study import Study, database, upgrade

BEFORE = Path(__file__).parent / "assets" / "schema-1.sql"  # dumped from what 0.1.0.dev made
OURS = {"nas_measurements", "nas_leases", "nas_queue", "nas_trials", "nas_costs"}


@pytest.fixture
def before(tmp_path: Path) -> Path:
    """A database of a version without migrations, with three trials and a measurement."""
    file = tmp_path / "before.db"
    with closing(sqlite3.connect(file)) as connection:
        connection.executescript(BEFORE.read_text())
    return file


def objects(file: Path) -> dict[str, str]:
    """Return {name: kind} of what is ours in a file."""
    with closing(sqlite3.connect(file)) as connection:
        rows = connection.execute("SELECT name, type FROM sqlite_master WHERE name LIKE 'nas_%'")
        return dict(rows.fetchall())


def test_a_database_from_before_is_upgraded_with_all_that_is_in_it(
    before: Path, file: Path
) -> None:
    assert "nas_leases" not in objects(before)
    study = Study.load("begun-before", storage=f"sqlite:///{before}")
    assert [row.accuracy for row in study.trials] == [0.5, 0.75, None]
    assert study.trials[1].measured[study.metrics[0]].ci_high == 2.5
    assert [row.number for row in study.front()] == [0, 1]
    assert objects(before) == objects(file)  # the same as in a new one
    assert objects(before).keys() >= OURS
    study.add({"depth": 3, "kernels": (5, 3)}, dict.fromkeys(study.metrics, 4.0), accuracy=0.8)
    assert len(Study.load("begun-before", storage=f"sqlite:///{before}").trials) == 4


def test_optuna_opens_what_was_upgraded(before: Path) -> None:
    url = f"sqlite:///{before}"
    Study.load("begun-before", storage=url)
    theirs = optuna.load_study(study_name="begun-before", storage=url)
    assert [trial.state.name for trial in theirs.trials] == ["COMPLETE", "COMPLETE", "FAIL"]
    theirs.set_user_attr("noted", 1)


def test_an_older_version_sees_that_an_upgraded_database_is_too_new(before: Path) -> None:
    Study.list(f"sqlite:///{before}")
    with closing(sqlite3.connect(before)) as connection:  # what it asks before anything else
        assert connection.execute("SELECT MAX(version) FROM nas_schema").fetchone() == (2,)


def test_what_a_killed_process_left_out_is_made(before: Path) -> None:
    with closing(sqlite3.connect(before)) as connection:
        connection.execute("DROP VIEW nas_costs")
        connection.commit()
    assert len(Study.load("begun-before", storage=f"sqlite:///{before}").trials) == 3
    assert objects(before).keys() >= OURS


def test_a_newer_database_is_refused_and_left_as_it_is(file: Path) -> None:
    with closing(sqlite3.connect(file)) as connection:
        connection.execute(f"UPDATE {upgrade.VERSION_TABLE} SET version_num = '9999'")
        connection.commit()
    whole = file.read_bytes()
    with pytest.raises(ConfigError, match=r"revision 9999.*up to 0002; install a newer") as caught:
        Study.list(f"sqlite:///{file}")
    assert caught.value.exit_code == 2
    assert file.read_bytes() == whole


def test_the_revisions_named_are_those_alembic_finds() -> None:
    from alembic.config import Config
    from alembic.script import ScriptDirectory

    config = Config()
    config.set_main_option("script_location", str(upgrade.SCRIPTS))
    found = [script.revision for script in ScriptDirectory.from_config(config).walk_revisions()]
    assert tuple(reversed(found)) == upgrade.REVISIONS


def test_processes_that_upgrade_at_once_all_succeed(before: Path) -> None:
    opened: list[Study] = []
    threads = [
        threading.Thread(
            target=lambda: opened.append(Study.load("begun-before", storage=f"sqlite:///{before}"))
        )
        for _ in range(4)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [len(study.trials) for study in opened] == [3] * 4


def test_deleting_a_study_forgets_its_owner_and_its_queue(url: str, file: Path) -> None:
    from nas.study import Lease, Queue

    study = Study.create("s", storage=url)
    assert study.place is not None
    lease = Lease(study.place)
    lease.take()
    Queue(study.place).put({"a": 1}, {})
    optuna.delete_study(study_name="s", storage=url)
    lease.release()
    with closing(sqlite3.connect(file)) as connection:
        for table in ("nas_leases", "nas_queue"):
            assert connection.execute(f"SELECT COUNT(*) FROM {table}").fetchone() == (0,)


def test_a_path_with_percent_signs_and_spaces_is_no_problem(tmp_path: Path) -> None:
    folder = tmp_path / "50% of it"
    folder.mkdir()
    database.open_storage(f"sqlite:///{folder}/nas.db", create=True)
    assert objects(folder / "nas.db").keys() >= OURS

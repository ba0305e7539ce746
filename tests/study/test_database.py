"""The database under faults: locks, races, a full disk, damage, and what must never be printed."""

import logging
import socket
import sqlite3
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nas.errors import ConfigError, CorruptFile, NasError, StorageError, TryAgain
from nas.study import Study, database, hold, mask_url, patience, storage_url

SECRET = "s3cr3t@{/:pw"
QUOTED = "s3cr3t%40%7B%2F%3Apw"


@pytest.fixture
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    """Give up at once instead of after a minute."""
    monkeypatch.setattr(patience, "OPEN_PATIENCE_S", 0.3)
    monkeypatch.setattr(patience, "WRITE_PATIENCE_S", 0.3)
    monkeypatch.setattr(database, "SQLITE_BUSY_TIMEOUT_S", 0.05)
    monkeypatch.setattr("optuna.storages._rdb.storage.random.random", lambda: 0.0)


def study(file: Path, name: str = "s") -> Study:
    made = Study.resume(name, storage=f"sqlite:///{file}")
    made.declare({"genes": {"a": tuple(range(50))}, "metrics": ["latency_ms"], "budgets": {}})
    return made


def add(to: Study, option: int) -> None:
    to.add({"a": option}, {"latency_ms": 1.0}, accuracy=0.5)


@pytest.fixture
def locked(file: Path) -> Iterator[sqlite3.Connection]:
    """Hold the write lock of a database that has a study."""
    study(file)
    holder = sqlite3.connect(file, isolation_level=None, check_same_thread=False)
    holder.execute("BEGIN IMMEDIATE")
    yield holder
    holder.close()


# ---------------------------------------------------------------- locked or away
def test_a_write_waits_for_a_short_lock(file: Path, locked: sqlite3.Connection) -> None:
    opened = study(file)
    release = threading.Timer(0.3, lambda: locked.execute("ROLLBACK"))
    release.start()
    add(opened, 0)
    release.join()
    assert len(opened.trials) == 1


def test_a_database_locked_for_long_says_to_try_again_and_loses_nothing(
    file: Path, locked: sqlite3.Connection, impatient: None
) -> None:
    opened = study(file)
    locked.execute("ROLLBACK")
    add(opened, 0)
    locked.execute("BEGIN IMMEDIATE")
    with pytest.raises(TryAgain, match="locked or away .*--resume") as caught:
        add(opened, 1)
    assert caught.value.exit_code == 75
    locked.execute("ROLLBACK")
    add(opened, 1)
    assert [row.choice["a"] for row in opened.trials] == [0, 1]


def test_a_commit_whose_answer_was_lost_is_not_repeated(
    file: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sqlalchemy.exc import OperationalError

    opened = study(file)
    assert opened._recorder is not None
    real = opened._recorder.write
    calls = 0

    def lossy(trial: Any, **named: Any) -> None:
        nonlocal calls
        calls += 1
        real(trial, **named)
        raise OperationalError("COMMIT", {}, Exception("server closed the connection"))

    monkeypatch.setattr(opened._recorder, "write", lossy)
    add(opened, 3)
    assert calls == 1
    assert [row.choice["a"] for row in opened.trials] == [3]


def test_a_server_that_is_away_says_to_try_again_without_its_password(
    impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    from sqlalchemy.exc import OperationalError

    url = f"postgresql://nas:{QUOTED}@127.0.0.1:1/nas"

    def away() -> None:
        raise OperationalError("SELECT 1", {}, Exception(f"no answer from {url}"))

    with caplog.at_level(logging.DEBUG), pytest.raises(TryAgain, match=r"nas:\*\*\*@") as caught:
        patience.with_patience(away, url=storage_url(url), patience_s=0.3)
    told = f"{caught.value} {caplog.text}"
    assert "does not answer; trying again" in told
    assert "s3cr3t" not in told


def test_a_server_that_accepts_and_says_nothing_is_given_up(
    impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(database.POSTGRESQL_WAITS, "connect_timeout", 2)
    with socket.create_server(("127.0.0.1", 0)) as silent:
        url = f"postgresql://nas@127.0.0.1:{silent.getsockname()[1]}/nas"
        with pytest.raises(TryAgain, match="timeout"):
            Study.load("s", storage=url)


def test_what_a_url_says_of_waiting_is_left_as_it_is() -> None:
    waits = database._waits("postgresql+psycopg://nas@host/db?connect_timeout=3")
    assert waits.keys() == database.POSTGRESQL_WAITS.keys() - {"connect_timeout"}
    assert database._waits("postgresql+pg8000://nas@host/db") == {}


def test_a_row_that_another_client_holds_is_waited_for_and_no_longer_than_said(
    postgresql: Any, impatient: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    import psycopg

    monkeypatch.setattr(database, "POSTGRESQL_LOCK_TIMEOUT_S", 0.2)
    opened = Study.resume("held", storage=postgresql.url)
    with psycopg.connect(postgresql.url) as other, hold(opened):
        other.execute("SELECT 1 FROM nas_leases FOR UPDATE")
        assert opened.lease is not None
        with pytest.raises(TryAgain, match="lock timeout"):
            opened.place.transact(opened.lease.renew)  # type: ignore[union-attr]
        other.rollback()
        opened.place.transact(opened.lease.renew)  # type: ignore[union-attr]


def test_a_bug_is_not_taken_for_a_locked_database() -> None:
    from sqlalchemy.exc import ProgrammingError

    def wrong() -> None:
        raise ProgrammingError("SELEC", {}, Exception("syntax error"))

    with pytest.raises(ProgrammingError):
        patience.with_patience(wrong, url="sqlite://", patience_s=60)


# ---------------------------------------------------------------- several at once
RACE = """
import sys
from nas.study import Study
study = Study.resume(sys.argv[2], storage=sys.argv[1])
study.declare({"genes": {"a": tuple(range(50))}, "metrics": ["latency_ms"], "budgets": {}})
for option in range(5):
    study.add({"a": option}, {"latency_ms": 1.0}, accuracy=0.5)
"""


@pytest.mark.slow
def test_processes_that_make_the_database_at_once_all_succeed(tmp_path: Path) -> None:
    url = f"sqlite:///{tmp_path}/new.db"
    racers = [
        subprocess.Popen([sys.executable, "-c", RACE, url, name], stderr=subprocess.PIPE, text=True)
        for name in ("a", "b")
    ]
    for racer in racers:
        _, errors = racer.communicate(timeout=120)
        assert racer.returncode == 0, errors
    assert [(s.name, s.trials) for s in Study.list(url)] == [("a", 5), ("b", 5)]


# ---------------------------------------------------------------- damage
def test_a_file_that_is_no_database_is_refused(file: Path) -> None:
    file.write_bytes(b"not a database at all" * 100)
    with pytest.raises(CorruptFile, match="not a whole database") as caught:
        Study.load("s", storage=f"sqlite:///{file}")
    assert caught.value.exit_code == 6


def test_a_truncated_database_is_refused_or_read_but_never_a_traceback(file: Path) -> None:
    opened = study(file)
    for option in range(5):
        add(opened, option)
    whole = file.read_bytes()
    for length in range(0, len(whole), len(whole) // 12):
        file.write_bytes(whole[:length])
        try:
            assert len(Study.load("s", storage=f"sqlite:///{file}").trials) <= 5
        except NasError as error:
            assert str(file) in str(error)


def test_a_full_disk_is_said_and_earlier_rows_stay(file: Path, impatient: None) -> None:
    opened = study(file)
    add(opened, 0)
    with sqlite3.connect(file) as connection:
        pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.close()
    limited = f"PRAGMA max_page_count = {pages}"
    from sqlalchemy import event

    @event.listens_for(opened._storage.engine, "connect")  # type: ignore[union-attr]
    def _limit(connection: Any, _: Any) -> None:
        connection.execute(limited)

    with pytest.raises(StorageError, match="disk is full.*choose another --storage"):
        for option in range(1, 50):
            opened.add(
                {"a": option}, {"latency_ms": 1.0}, accuracy=0.5, attrs={"notes": "x" * 4000}
            )
    limited = "PRAGMA max_page_count = 100000"
    rows = Study.load("s", storage=f"sqlite:///{file}").trials
    assert [row.choice["a"] for row in rows] == list(range(len(rows)))
    add(opened, len(rows))


def test_a_folder_that_cannot_be_made_is_said(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="cannot make the folder"):
        Study.create("s", storage=f"sqlite:///{tmp_path}/file/below/nas.db")


def test_a_database_of_optuna_alone_gets_our_views(tmp_path: Path) -> None:
    import optuna

    file = tmp_path / "theirs.db"
    optuna.create_study(study_name="theirs", storage=f"sqlite:///{file}")
    assert Study.list(f"sqlite:///{file}") == ()
    add(study(file), 0)
    assert Study.list(f"sqlite:///{file}")[0].trials == 1


# ---------------------------------------------------------------- addresses and passwords
@pytest.mark.parametrize(
    ("text", "masked"),
    [
        (f"postgresql://nas:{QUOTED}@host/db", "postgresql://nas:***@host/db"),
        (f"postgresql://nas:{SECRET}@host/db", "postgresql://nas:***@host/db"),
        ("postgresql://host/db?password=s3cr3t&user=x", "postgresql://host/db?password=***&user=x"),
        ("sqlite:///runs/nas.db", "sqlite:///runs/nas.db"),
        ("postgresql://nas@host:5432/db", "postgresql://nas@host:5432/db"),
    ],
)
def test_passwords_are_masked_and_the_rest_stays(text: str, masked: str) -> None:
    assert mask_url(text) == masked


@pytest.mark.parametrize(
    "url",
    [
        f"mysql://nas:{QUOTED}@host/db",
        f"postgresql//nas:{SECRET}",
        f"postgresql://nas:{QUOTED}@host:port/db",
        f"redis://:{QUOTED}@host/0",
        "nas.db",
    ],
)
def test_an_address_that_is_not_accepted_says_what_is_without_its_password(url: str) -> None:
    with pytest.raises(ConfigError, match="storage must be") as caught:
        Study.load("s", storage=url)
    assert "s3cr3t" not in str(caught.value)
    assert caught.value.__cause__ is None


def test_no_error_log_or_property_shows_a_password(
    impatient: None, caplog: pytest.LogCaptureFixture
) -> None:
    url = f"postgresql://nas:{QUOTED}@127.0.0.1:1/nas?connect_timeout=1"
    with caplog.at_level(logging.DEBUG), pytest.raises(NasError) as caught:
        Study.load("s", storage=url)
    told = [caplog.text]
    problem: BaseException | None = caught.value
    while problem is not None:
        told.append(f"{problem} {problem!r}")
        problem = problem.__cause__ or problem.__context__
    assert not [text for text in told if "s3cr3t" in text]


def test_postgresql_means_psycopg_3_and_sqlite_stays() -> None:
    assert storage_url("postgresql://nas@host/db") == "postgresql+psycopg://nas@host/db"
    assert storage_url(f"postgresql://nas:{QUOTED}@host/db").count("s3cr3t") == 1
    assert storage_url("sqlite:///a.db") == "sqlite:///a.db"


def test_an_address_without_its_password_takes_it_from_the_environment(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    whole = f"postgresql://nas:{QUOTED}@host/db"
    for kept in (mask_url(whole), mask_url(storage_url(whole))):
        monkeypatch.delenv("NAS_STORAGE", raising=False)
        with pytest.raises(ConfigError, match="not kept in files.*NAS_STORAGE or with --storage"):
            storage_url(kept)
        monkeypatch.setenv("NAS_STORAGE", f"postgresql://nas:{QUOTED}@other/db")
        with pytest.raises(ConfigError, match="not kept in files"):  # that of another database
            storage_url(kept)
        monkeypatch.setenv("NAS_STORAGE", whole)
        assert storage_url(kept) == storage_url(whole)
    words = "postgresql://host/db?user=nas&password=s3cr3t"
    monkeypatch.setenv("NAS_STORAGE", words)
    assert storage_url(mask_url(words)) == storage_url(words)


# ---------------------------------------------------------------- quiet and light
def test_optunas_level_and_warnings_are_put_back(file: Path) -> None:
    import warnings

    from optuna.exceptions import ExperimentalWarning

    before = logging.getLogger("optuna").level
    study(file)
    assert logging.getLogger("optuna").level == before
    with pytest.warns(ExperimentalWarning):
        warnings.warn("still heard", ExperimentalWarning, stacklevel=1)


def test_importing_search_and_study_loads_nothing_heavy() -> None:
    code = (
        "import sys, nas.search, nas.study\n"
        "heavy = ('torch', 'optuna', 'pandas', 'sqlalchemy', 'scipy')\n"
        "print([name for name in heavy if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)
    assert done.stdout.strip() == "[]", done.stderr


def test_nothing_is_printed(file: Path, capfd: pytest.CaptureFixture[str]) -> None:
    add(study(file), 0)
    assert capfd.readouterr() == ("", "")

"""The database of studies: its address, opening it, studies and measurements in it."""

import logging
import os
import warnings
import weakref
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas.errors import ConfigError, StorageError
from nas.study import patience
from nas.study.patience import mask_url, with_patience
from nas.study.place import Place
from nas.study.trial import Measurement
from nas.study.upgrade import upgrade

if TYPE_CHECKING:
    import optuna
    from optuna.storages import RDBStorage
    from sqlalchemy import Connection

DEFAULT_STORAGE = "sqlite:///runs/nas.db"
SQLITE_BUSY_TIMEOUT_S = 10.0
POSTGRESQL_LOCK_TIMEOUT_S = 10.0
# libpq's: seconds until a server that accepts and says nothing is given up, and until one whose
# machine is gone is found out. What a URL says itself is left as it is.
POSTGRESQL_WAITS = {
    "connect_timeout": 10,
    "keepalives_idle": 30,
    "keepalives_interval": 10,
    "keepalives_count": 3,
    "tcp_user_timeout": 60_000,
}


# ---------------------------------------------------------------- where
def storage_url(storage: str | None = None) -> str:
    """Return the database URL to use: the one given, $NAS_STORAGE, or `sqlite:///runs/nas.db`.

    A URL whose password is masked, as files keep it, is that of $NAS_STORAGE with its password.

    Raises:
        ConfigError: neither SQLite nor PostgreSQL, or no URL at all; or its password is not known.
    """
    text = storage or os.environ.get("NAS_STORAGE") or DEFAULT_STORAGE
    url = _checked(text)
    if not patience.is_masked(url):
        return url
    known = os.environ.get("NAS_STORAGE")
    if known and mask_url(_checked(known)) == mask_url(url):
        return _checked(known)
    raise ConfigError(
        f"the password of {mask_url(text)} is not kept in files. Give the whole URL again, in the "
        "environment variable NAS_STORAGE or with --storage."
    )


def _checked(text: str) -> str:
    """Return a URL with the driver we use, its password in it."""
    from sqlalchemy import make_url
    from sqlalchemy.exc import ArgumentError

    try:
        url = make_url(text)
    except (ArgumentError, ValueError):
        shown = "***@" + text.rpartition("@")[2] if "@" in text else text
        raise ConfigError(
            f"storage must be a database URL, but is {shown!r}. "
            "Write sqlite:///runs/nas.db or postgresql://user@host/name."
        ) from None  # its text holds the URL, password and all
    backend = url.get_backend_name()
    if backend not in ("sqlite", "postgresql"):
        raise ConfigError(
            f"storage must be sqlite or postgresql, but {mask_url(text)!r} is {backend}."
        )
    if url.drivername == "postgresql":  # a bare name means psycopg2 to older SQLAlchemy
        url = url.set(drivername="postgresql+psycopg")
    return url.render_as_string(hide_password=False)


def sqlite_file(url: str) -> Path | None:
    """Return the file of an SQLite URL; None for PostgreSQL and for SQLite in memory."""
    from sqlalchemy import make_url

    parsed = make_url(url)
    name = parsed.database
    if parsed.get_backend_name() != "sqlite" or name in (None, "", ":memory:"):
        return None
    return Path(str(name))


# ---------------------------------------------------------------- opening
def open_storage(url: str, *, create: bool) -> "RDBStorage":
    """Open Optuna's storage with our views in it; safe when several processes create it at once.

    Args:
        url: What `storage_url` returned.
        create: Make the file, the folder above it and the tables when they are missing.

    Raises:
        ConfigError: it is not there (and not to be made), or the server refuses the user.
        StorageError: its folder cannot be made or written.
        CorruptFile: the file is no database.
        TryAgain: the server does not answer, or somebody holds the file.
    """
    file = sqlite_file(url)
    if file is not None and not file.is_file():
        if not create:
            raise ConfigError(
                f"there is no database at {file}. Run `nas search` first, or give --storage."
            )
        _make_folder(file.parent)
    return with_patience(lambda: _open(url), url=url, patience_s=patience.OPEN_PATIENCE_S)


def _make_folder(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StorageError(
            f"cannot make the folder {folder} for the database: {error.strerror}. "
            "Choose another --storage."
        ) from error


def _open(url: str) -> "RDBStorage":
    from optuna.storages import RDBStorage
    from sqlalchemy.pool import NullPool

    is_sqlite = url.startswith("sqlite")
    if is_sqlite:
        # One connection a transaction: nothing is held open, in this process or a forked one.
        options = {"poolclass": NullPool, "connect_args": {"timeout": SQLITE_BUSY_TIMEOUT_S}}
    else:  # a server may restart between two trials
        options = {"pool_pre_ping": True, "connect_args": _waits(url)}
    try:
        with quiet_optuna():  # Optuna fills a template: braces of a password are doubled
            storage = RDBStorage(url.replace("{", "{{").replace("}", "}}"), engine_kwargs=options)
    except RuntimeError as error:  # written by another Optuna; its message says what to run
        raise ConfigError(f"{mask_url(url)}: {error}") from error
    except ImportError as error:
        raise ConfigError(
            "PostgreSQL needs a driver; install it with `pip install 'psycopg[binary]'`."
        ) from error
    weakref.finalize(storage, storage.engine.dispose)  # a server's connections are closed
    if not is_sqlite:
        _limit_waits_for_locks(storage)
    upgrade(storage)
    return storage


def _waits(url: str) -> dict[str, int]:
    from sqlalchemy import make_url

    parsed = make_url(url)
    if not parsed.get_driver_name().startswith("psycopg"):
        return {}  # the others do not go through libpq
    return {name: value for name, value in POSTGRESQL_WAITS.items() if name not in parsed.query}


def _limit_waits_for_locks(storage: "RDBStorage") -> None:
    """Let a row that another client never lets go of be an error; waiting is ours to do.

    Not among the options of a connection's start: a pooler such as PgBouncer refuses them.
    """
    from sqlalchemy import event

    def limit(connection: Any, record: object) -> None:  # Any: the driver's own connection
        was_automatic, connection.autocommit = connection.autocommit, True
        cursor = connection.cursor()
        cursor.execute(f"SET lock_timeout = {round(1000 * POSTGRESQL_LOCK_TIMEOUT_S)}")
        cursor.close()
        connection.autocommit = was_automatic

    event.listen(storage.engine, "connect", limit)
    storage.engine.dispose()  # those made before are not limited


def study_names(storage: "RDBStorage", url: str) -> tuple[str, ...]:
    """Return the names of all studies in a database, sorted."""
    return with_patience(
        lambda: tuple(sorted(study.study_name for study in storage.get_all_studies())),
        url=url,
        patience_s=patience.OPEN_PATIENCE_S,
    )


def create_study(storage: "RDBStorage | None", name: str) -> "optuna.Study":
    """Make Optuna's study, in memory without a storage.

    Raises:
        ConfigError: another process has just made one of that name.
    """
    import optuna

    with quiet_optuna():
        try:
            return optuna.create_study(
                study_name=name,
                storage=storage or optuna.storages.InMemoryStorage(),
                directions=["maximize", "minimize"],
            )
        except optuna.exceptions.DuplicatedStudyError as error:
            raise ConfigError(
                f"another process has just made a study named {name!r}; choose another --name."
            ) from error


def load_study(storage: "RDBStorage", name: str, url: str) -> "optuna.Study":
    """Open Optuna's study.

    Raises:
        ConfigError: it is not there; the message names those that are.
    """
    import optuna

    names = study_names(storage, url)
    if name not in names:
        there = ", ".join(repr(known) for known in names) or "none"
        raise ConfigError(f"there is no study {name!r} in {mask_url(url)}; there are: {there}.")
    return with_patience(
        lambda: optuna.load_study(study_name=name, storage=storage),
        url=url,
        patience_s=patience.OPEN_PATIENCE_S,
    )


def delete_study(storage: "RDBStorage", name: str, url: str) -> None:
    """Delete a study and all that belongs to it, in one transaction."""
    import optuna

    def delete() -> None:
        with suppress(KeyError):  # it is gone: somebody else's doing, or ours unanswered
            optuna.delete_study(study_name=name, storage=storage)

    with_patience(delete, url=url, patience_s=patience.WRITE_PATIENCE_S)


def place_of(storage: "RDBStorage", name: str, url: str) -> Place:
    """Return where a study is."""
    study_id = with_patience(
        lambda: storage.get_study_id_from_name(name), url=url, patience_s=patience.OPEN_PATIENCE_S
    )
    return Place(storage=storage, url=url, name=name, study_id=study_id)


# ---------------------------------------------------------------- measurements
def write_measurement(
    place: Place, trial_number: int, key: tuple[str, str], value: Measurement
) -> None:
    """Replace one measurement, in one transaction.

    Args:
        place: The study.
        trial_number: Which row.
        key: (metric, target).
        value: What was measured.
    """
    from sqlalchemy import text

    names = {"study": place.study_id, "trial": trial_number, "metric": key[0], "target": key[1]}
    names |= {"measured": value.measured, "ci_high": value.ci_high}

    def write(connection: "Connection") -> None:
        sql = "SELECT trial_id FROM trials WHERE study_id = :study AND number = :trial"
        names["trial_id"] = connection.execute(text(sql), names).scalar_one()
        connection.execute(
            text(
                "DELETE FROM nas_measurements "
                "WHERE trial_id = :trial_id AND target = :target AND metric = :metric"
            ),
            names,
        )
        connection.execute(
            text(
                "INSERT INTO nas_measurements (trial_id, target, metric, measured, ci_high) "
                "VALUES (:trial_id, :target, :metric, :measured, :ci_high)"
            ),
            names,
        )

    place.transact(write)


def read_measurements(place: Place) -> dict[int, dict[str, Measurement]]:
    """Return what was measured in a study: trial number -> full metric name -> measurement."""
    from sqlalchemy import text

    sql = text(
        "SELECT t.number, x.metric, x.target, x.measured, x.ci_high FROM nas_measurements x "
        "JOIN trials t ON t.trial_id = x.trial_id WHERE t.study_id = :study"
    )
    names = {"study": place.study_id}
    found: dict[int, dict[str, Measurement]] = {}
    for trial, metric, target, measured, ci_high in place.transact(
        lambda connection: connection.execute(sql, names).all()
    ):
        full = f"{metric}:{target}" if target else metric
        found.setdefault(trial, {})[full] = Measurement(measured=measured, ci_high=ci_high)
    return found


# ---------------------------------------------------------------- Optuna's own noise
@contextmanager
def quiet_optuna() -> Iterator[None]:
    """Hold back Optuna's notices and experimental warnings, here only and not for the process."""
    from optuna.exceptions import ExperimentalWarning

    log = logging.getLogger("optuna")
    before = log.level
    log.setLevel(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            yield
    finally:
        log.setLevel(before)

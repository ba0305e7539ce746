"""Our own tables and views beside Optuna's: made, and brought up to date, by alembic."""

from pathlib import Path
from typing import TYPE_CHECKING

from nas.errors import ConfigError

if TYPE_CHECKING:
    from optuna.storages import RDBStorage
    from sqlalchemy import Connection

VERSION_TABLE = "nas_alembic_version"  # Optuna has an `alembic_version` of its own
REVISIONS = ("0001", "0002")
SCRIPTS = Path(__file__).with_name("migrations")
_POSTGRESQL_LOCK = 0x6E6173  # "nas": whoever upgrades a database holds it


def upgrade(storage: "RDBStorage") -> None:
    """Bring our part of a database up to date, in one transaction; one process at a time.

    Raises:
        ConfigError: it was upgraded by a newer version.
    """
    with storage.engine.connect() as connection:
        if _revision(connection) == REVISIONS[-1]:
            return
    with storage.engine.begin() as connection:
        if connection.dialect.name == "sqlite":
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        else:
            connection.exec_driver_sql(f"SELECT pg_advisory_xact_lock({_POSTGRESQL_LOCK})")
        if _revision(connection) != REVISIONS[-1]:  # else somebody else has just done it
            _run(connection)


def _revision(connection: "Connection") -> str | None:
    """Return how far a database is; None for one that was made before there were migrations."""
    from alembic.migration import MigrationContext

    options = {"version_table": VERSION_TABLE}
    found = MigrationContext.configure(connection, opts=options).get_current_revision()
    if found is not None and found not in REVISIONS:
        raise ConfigError(
            f"the database has our tables of revision {found}, but this version knows those up "
            f"to {REVISIONS[-1]}; install a newer hybrid-nas."
        )
    return found


def _run(connection: "Connection") -> None:
    from alembic import command
    from alembic.config import Config

    config = Config(attributes={"connection": connection})
    config.set_main_option("script_location", str(SCRIPTS).replace("%", "%%"))
    command.upgrade(config, "head")

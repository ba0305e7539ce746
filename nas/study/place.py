"""Where a study's rows are, and how to run a transaction there."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeVar

from nas.study import patience
from nas.study.patience import with_patience

if TYPE_CHECKING:
    from optuna.storages import RDBStorage
    from sqlalchemy import Connection

T = TypeVar("T")

# Seconds since 1970 by the database's clock, which all machines that use it share.
_NOW = {
    "sqlite": "((julianday('now') - 2440587.5) * 86400.0)",
    "postgresql": "CAST(EXTRACT(EPOCH FROM clock_timestamp()) AS DOUBLE PRECISION)",
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """A study in a database."""

    storage: "RDBStorage"
    url: str
    name: str
    study_id: int

    @property
    def now(self) -> str:
        """SQL for the database's clock, s since 1970."""
        return _NOW[self.storage.engine.dialect.name]

    def transact(
        self, action: "Callable[[Connection], T]", *, patience_s: float | None = None
    ) -> T:
        """Run an action in one transaction, again if the database was locked or away.

        The action must be safe to repeat: a commit may have gone through although its answer was
        lost.

        Raises:
            TryAgain: still locked or away after `patience_s`, a minute if not given.
            StorageError, CorruptFile, ConfigError: waiting would not help.
        """

        def transaction() -> T:
            with self.storage.engine.begin() as connection:
                return action(connection)

        waits_s = patience.WRITE_PATIENCE_S if patience_s is None else patience_s
        return with_patience(transaction, url=self.url, patience_s=waits_s)

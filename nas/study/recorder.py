"""Finished trials into Optuna's tables, a transaction and a few statements each.

Optuna's own way asks the database three times for every gene, to find out what we know: that the
trial is new and finished and the genes are those of the study. What is written is the same, and
whether the owner still owns the study is part of the transaction.
"""

import json
import math
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from nas.study.lease import Lease, deleted
from nas.study.place import Place

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution
    from optuna.trial import FrozenTrial
    from sqlalchemy import Connection, Table

TRIALS, VALUES, PARAMS = "trials", "trial_values", "trial_params"
USER_ATTRS, SYSTEM_ATTRS = "trial_user_attributes", "trial_system_attributes"


class Recorder:
    """Writes the trials of one study."""

    def __init__(self, place: Place) -> None:
        self._place = place
        self._tables: dict[str, Table] = {}
        self._distributions: dict[str, tuple[BaseDistribution, str]] = {}

    def write(self, trial: "FrozenTrial", *, lease: Lease | None, candidate: str) -> None:
        """Record one trial and, for an owner, take its candidate out of the queue: both or neither.

        Raises:
            NasError: the study was deleted.
            TryAgain: the lease is another process's now; nothing was written.
        """
        from sqlalchemy import text

        engine = self._place.storage.engine
        if not self._tables:
            with engine.connect() as connection:
                self._tables = _reflect(connection)
        with engine.begin() as connection:
            if lease is not None:
                lease.renew(connection)
                connection.execute(
                    text("DELETE FROM nas_queue WHERE study_id = :study AND candidate = :key"),
                    {"study": self._place.study_id, "key": candidate},
                )
            self._lock(connection)
            self._insert(connection, trial)

    def _lock(self, connection: "Connection") -> None:
        """Let nobody else number a trial of this study meanwhile, as Optuna does it."""
        from sqlalchemy import text

        ending = "" if connection.dialect.name == "sqlite" else " FOR UPDATE"
        sql = text(f"SELECT study_id FROM studies WHERE study_id = :study{ending}")
        if connection.execute(sql, {"study": self._place.study_id}).one_or_none() is None:
            raise deleted(self._place.name)

    def _insert(self, connection: "Connection", trial: "FrozenTrial") -> None:
        from sqlalchemy import func, select

        tables, trials = self._tables, self._tables[TRIALS]
        row = trials.insert().values(
            study_id=self._place.study_id,
            state=trial.state.name,
            datetime_start=_naive_utc(trial.datetime_start),
            datetime_complete=_naive_utc(trial.datetime_complete),
        )
        added = connection.execute(row).inserted_primary_key
        assert added is not None, "a trial has a primary key"
        trial_id = added[0]
        before = select(func.count()).where(
            trials.c.study_id == self._place.study_id, trials.c.trial_id < trial_id
        )
        number = connection.execute(before).scalar_one()
        change = trials.update().where(trials.c.trial_id == trial_id).values(number=number)
        connection.execute(change)
        for name, rows in self._rows(trial).items():
            if rows:
                whole = [{"trial_id": trial_id, **one} for one in rows]
                connection.execute(tables[name].insert(), whole)

    def _rows(self, trial: "FrozenTrial") -> dict[str, list[dict[str, Any]]]:
        """Return what belongs to a trial, by table."""
        values = [_value(place, value) for place, value in enumerate(trial.values or ())]
        params = [
            {
                "param_name": name,
                "param_value": trial.distributions[name].to_internal_repr(value),
                "distribution_json": self._as_json(name, trial.distributions[name]),
            }
            for name, value in trial.params.items()
        ]
        attrs = {USER_ATTRS: trial.user_attrs, SYSTEM_ATTRS: trial.system_attrs}
        return {
            VALUES: values,
            PARAMS: params,
            **{
                table: [
                    {"key": key, "value_json": json.dumps(value)} for key, value in all_.items()
                ]
                for table, all_ in attrs.items()
            },
        }

    def _as_json(self, name: str, distribution: "BaseDistribution") -> str:
        from optuna.distributions import distribution_to_json

        known = self._distributions.get(name)
        if known is None or known[0] is not distribution:
            known = (distribution, distribution_to_json(distribution))
            self._distributions[name] = known
        return known[1]


def _reflect(connection: "Connection") -> "dict[str, Table]":
    """Return Optuna's tables as the database has them."""
    from sqlalchemy import MetaData, Table

    names, metadata = (TRIALS, VALUES, PARAMS, USER_ATTRS, SYSTEM_ATTRS), MetaData()
    return {
        name: Table(name, metadata, autoload_with=connection, resolve_fks=False) for name in names
    }


def _naive_utc(time: datetime | None) -> datetime | None:
    """Return a naive local time as Optuna stores it."""
    return None if time is None else time.astimezone(UTC).replace(tzinfo=None)


def _value(place: int, value: float) -> dict[str, Any]:
    """Return one objective's value; SQL has no infinity."""
    if math.isinf(value):
        return {
            "objective": place,
            "value": None,
            "value_type": f"INF_{'POS' if value > 0 else 'NEG'}",
        }
    return {"objective": place, "value": value, "value_type": "FINITE"}

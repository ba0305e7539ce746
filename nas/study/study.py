"""The study itself: rows in, rows out, and the questions asked of them."""

import logging
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from nas.errors import ConfigError, NasError
from nas.files import to_plain
from nas.study import database, identity, patience, queries
from nas.study.identity import SCHEMA
from nas.study.lease import Lease
from nas.study.metrics import find_metric, front_metrics, split_metric
from nas.study.patience import mask_url, with_patience
from nas.study.queries import StudySummary
from nas.study.queue import candidate_key
from nas.study.recorder import Recorder
from nas.study.trial import (
    Choice,
    Codec,
    Measurement,
    NewTrial,
    Trial,
    check_genes,
    from_optuna,
    to_optuna,
)

if TYPE_CHECKING:
    import optuna
    import pandas
    from optuna.storages import RDBStorage
    from optuna.trial import FrozenTrial

T = TypeVar("T")
logger = logging.getLogger(__name__)

PREFIX = "nas."


class Study:
    """All evaluated candidates of one search, in a database or in memory.

    Every row is a finished Optuna trial (maximise accuracy, minimise the first cost), so that
    `optuna.load_study` and its plots work on it; nothing infeasible is ever recorded. Make one
    with `create`, `load`, `resume` or `in_memory`. One process at a time may add rows.
    """

    def __init__(
        self, study: "optuna.Study", *, storage: "RDBStorage | None" = None, url: str = ""
    ) -> None:
        self._optuna = study
        self._storage = storage
        self._url = url
        self._memory: dict[int, dict[str, Measurement]] = {}
        self._codec: Codec | None = None
        self.lease: Lease | None = None  # of this process, while it searches
        self.place = None if storage is None else database.place_of(storage, self.name, url)
        self._recorder = None if self.place is None else Recorder(self.place)
        attrs = self._patiently(lambda: study.user_attrs, patience.OPEN_PATIENCE_S)
        self._attrs = {
            key.removeprefix(PREFIX): value
            for key, value in attrs.items()
            if key.startswith(PREFIX)
        }

    # ------------------------------------------------------------ making one
    @classmethod
    def create(
        cls, name: str, *, storage: str | None = None, attrs: Mapping[str, Any] | None = None
    ) -> "Study":
        """Make a new study; `attrs` (space_digest, table_digests, ...) say what it is about.

        Raises:
            ConfigError: a study of that name is there.
        """
        url = database.storage_url(storage)
        backend = database.open_storage(url, create=True)
        if name in database.study_names(backend, url):
            raise ConfigError(
                f"a study named {name!r} is in {mask_url(url)}. Continue it with "
                "--resume, or choose another --name."
            )
        made = database.create_study(backend, name)
        return cls(made, storage=backend, url=url)._begin(attrs)

    @classmethod
    def load(cls, name: str, *, storage: str | None = None) -> "Study":
        """Open a study that is there.

        Raises:
            ConfigError: it is not there (the message names those that are), or is not ours.
        """
        url = database.storage_url(storage)
        backend = database.open_storage(url, create=False)
        study = cls(database.load_study(backend, name, url), storage=backend, url=url)
        identity.check_schema(name, study.attrs.get("schema"))
        return study

    @classmethod
    def resume(
        cls, name: str, *, storage: str | None = None, attrs: Mapping[str, Any] | None = None
    ) -> "Study":
        """Open a study to go on with it, made if it is not there.

        Raises:
            ConfigError: it is there and one of `attrs` differs; the message shows how.
        """
        url = database.storage_url(storage)
        backend = database.open_storage(url, create=True)
        if name not in database.study_names(backend, url):
            database.create_study(backend, name)
        study = cls(database.load_study(backend, name, url), storage=backend, url=url)
        opened = study.optuna_study
        if opened.user_attrs or opened.get_trials(deepcopy=False):  # else killed while it was made
            identity.check_schema(name, study.attrs.get("schema"))
        return study._begin(attrs)

    @classmethod
    def in_memory(
        cls, name: str = "in-memory", *, attrs: Mapping[str, Any] | None = None
    ) -> "Study":
        """Make a study that lives as long as the process."""
        return cls(database.create_study(None, name))._begin(attrs)

    def _begin(self, attrs: Mapping[str, Any] | None) -> "Study":
        """Mark the study as ours and set what it is about."""
        import nas

        self.declare({"schema": SCHEMA, "version": nas.__version__, **(attrs or {})})
        return self

    # ------------------------------------------------------------ what it is about
    @property
    def name(self) -> str:
        """The study's name, unique in its database."""
        return self._optuna.study_name

    @property
    def url(self) -> str:
        """The database with its password masked; empty in memory."""
        return mask_url(self._url)

    @property
    def attrs(self) -> Mapping[str, Any]:
        """What the study is about, without the prefix `nas.` they carry in the database."""
        return dict(self._attrs)

    @property
    def optuna_study(self) -> "optuna.Study":
        """Optuna's own study, for its plots and samplers; do not ask or tell on it."""
        return self._optuna

    @property
    def metrics(self) -> tuple[str, ...]:
        """The costs every row has, the minimised one first."""
        return tuple(self._attrs.get("metrics", ()))

    @property
    def budgets(self) -> Mapping[str, float]:
        """The budgets it was searched under, by metric."""
        return dict(self._attrs.get("budgets", {}))

    @property
    def ended(self) -> str | None:
        """Why the search stopped before its number of evaluations; None when it did not."""
        return self._attrs.get("ended") or None

    def check(self, attrs: Mapping[str, Any]) -> None:
        """Raise ConfigError if an attribute that is set differs from these; sets nothing."""
        plain = {key: to_plain(value) for key, value in attrs.items()}
        identity.check(self.name, before=self._attrs, now=plain)

    def declare(self, attrs: Mapping[str, Any]) -> None:
        """Set what the study is about; an attribute once set may not change.

        Raises:
            ConfigError: one is set to something else; the message shows both values.
        """
        self.check(attrs)
        attrs = {key: to_plain(value) for key, value in attrs.items()}
        for key, value in attrs.items():
            if key not in self._attrs or self._attrs[key] != value:
                self._set(key, value)
        if "metrics" in attrs and self._optuna.metric_names is None:
            names = ["accuracy", self.metrics[0]]
            with database.quiet_optuna():
                self._patiently(
                    lambda: self._optuna.set_metric_names(names), patience.WRITE_PATIENCE_S
                )

    def end(self, statement: str | None) -> None:
        """Record why the search stopped before its number of evaluations, or that it did not."""
        if (statement or None) != self.ended:
            self._set("ended", statement or "")

    def _set(self, key: str, value: Any) -> None:  # Any: plain JSON
        self._patiently(
            lambda: self._optuna.set_user_attr(PREFIX + key, value), patience.WRITE_PATIENCE_S
        )
        self._attrs[key] = value

    def _words(self) -> Codec:
        if self._codec is None:
            if "genes" not in self._attrs or not self.metrics:
                raise ConfigError(
                    f"the study {self.name!r} has no genes or metrics yet; declare them first."
                )
            self._codec = Codec(check_genes(self._attrs["genes"]))
        return self._codec

    # ------------------------------------------------------------ rows in
    def add(
        self,
        choice: Choice,
        costs: Mapping[str, float],
        *,
        accuracy: float | None = None,
        loss: float | None = None,
        reason: str | None = None,
        evaluation_s: float | None = None,
        attempt: int = 1,
        attrs: Mapping[str, Any] | None = None,
    ) -> None:
        """Record one evaluated candidate; without an accuracy it is a failed one.

        Args:
            choice: One option per declared gene.
            costs: Every declared metric, as predicted.
            accuracy: In [0, 1] or any other finite number to maximise.
            loss: Finite, if given.
            reason: Why there is no accuracy.
            evaluation_s: How long the evaluation took.
            attempt: 1 unless the candidate failed before.
            attrs: More to keep: `architecture`, `architecture_id`, ... (plain JSON).

        Raises:
            ConfigError: an unknown gene or option.
            TryAgain: the database stays locked or away, or another process has taken the study
                over; nothing recorded before is lost.
        """
        new = NewTrial(
            choice=choice,
            costs=costs,
            accuracy=accuracy,
            loss=loss,
            reason=None if accuracy is not None else reason or "no accuracy",
            evaluation_s=evaluation_s,
            attempt=attempt,
            attrs=attrs or {},
        )
        words = self._words()
        trial = to_optuna(new, words, objective=self.metrics[0], budgets=self.budgets)
        key, tries = candidate_key(choice), 0

        def write() -> None:
            nonlocal tries
            tries += 1
            if self._recorder is None:
                self._optuna.add_trial(trial)
            elif tries == 1 or not self._has(trial):
                self._recorder.write(trial, lease=self.lease, candidate=key)

        self._patiently(write, patience.WRITE_PATIENCE_S)

    def _has(self, trial: "FrozenTrial") -> bool:
        """Return whether a row is there already: its commit may have outlived the connection."""
        return any(
            known.params == trial.params
            and known.user_attrs.get("attempt") == trial.user_attrs.get("attempt")
            for known in self._optuna.get_trials(deepcopy=False)
        )

    def record_measurement(
        self, trial_number: int, target: str, metric: str, measured: float, ci_high: float | None
    ) -> None:
        """Keep what was measured of a trial on its device; a later measurement replaces it.

        Args:
            trial_number: Which row.
            target: The Target's id, "" for a cost that belongs to no device.
            metric: `latency_ms`, `params`, ...
            measured: In the metric's unit (ms).
            ci_high: Upper end of the interval of its median, if known.

        Raises:
            ConfigError: no such row, or it has no such cost.
        """
        full = f"{metric}:{target}" if target else metric
        rows = {row.number: row for row in self.trials}
        if trial_number not in rows:
            raise ConfigError(f"the study {self.name!r} has no trial {trial_number}.")
        if full not in rows[trial_number].costs:
            known = ", ".join(rows[trial_number].costs)
            raise ConfigError(f"trial {trial_number} has no cost {full!r}; it has {known}.")
        value = Measurement(measured=measured, ci_high=ci_high)
        if self.place is None:
            self._memory.setdefault(trial_number, {})[full] = value
        else:
            database.write_measurement(self.place, trial_number, split_metric(full), value)

    # ------------------------------------------------------------ rows out
    @property
    def trials(self) -> tuple[Trial, ...]:
        """Every evaluated candidate in the order of evaluation, failed ones included."""
        if "genes" not in self._attrs:
            return ()
        codec, metrics = self._words(), self.metrics
        frozen = self._patiently(
            lambda: self._optuna.get_trials(deepcopy=False), patience.WRITE_PATIENCE_S
        )
        ours = [
            trial
            for trial in frozen
            if trial.state.is_finished() and trial.params.keys() == codec.genes.keys()
        ]
        if len(ours) < len(frozen):
            logger.warning("%d trials of %s are not ours", len(frozen) - len(ours), self.name)
        measured = self._measurements()
        return tuple(
            from_optuna(trial, codec, metrics, measured.get(trial.number, {})) for trial in ours
        )

    def _measurements(self) -> Mapping[int, Mapping[str, Measurement]]:
        return self._memory if self.place is None else database.read_measurements(self.place)

    def front(
        self,
        *,
        metric: str | Sequence[str] | None = None,
        budgets: Mapping[str, float] | None = None,
        by: queries.Merit = "accuracy",
    ) -> tuple[Trial, ...]:
        """Return the rows that no other beats in merit and the costs, the cheapest first.

        Args:
            metric: One cost or several; if not given, the latencies of all targets (or the
                study's first cost if it has no latency).
            budgets: Only rows within these; the study's own if not given.
            by: The merit: "accuracy", or "loss" on the same images, which ties less.

        Raises:
            ConfigError: the study has no such cost.
        """
        if not self.metrics:
            return ()
        names = front_metrics(metric, self.metrics)
        return queries.front(queries.within(self.trials, self._limits(budgets)), names, by=by)

    def best(self, budgets: Mapping[str, float] | None = None) -> Trial:
        """Return the row of highest accuracy within the budgets (the study's own if not given).

        Ties go to the lower loss, then to the lower cost, then to the earlier row.

        Raises:
            InfeasibleBudget: no row is within them.
            NasError: no row has an accuracy.
        """
        rows = [row for row in self.trials if row.is_complete]
        if not rows:
            raise NasError(f"the study {self.name!r} has no evaluated candidate yet.")
        return queries.best(rows, self._limits(budgets), self.metrics[0])

    def _limits(self, budgets: Mapping[str, float] | None) -> dict[str, float]:
        given = self.budgets if budgets is None else budgets
        return {find_metric(name, self.metrics): limit for name, limit in given.items()}

    def to_frame(self, rows: Sequence[Trial] | None = None) -> "pandas.DataFrame":
        """Return rows (all if not given) as a DataFrame: a column a fact, a cost and a gene."""
        genes = tuple(self._attrs.get("genes", ()))
        known = self.trials if rows is None else rows
        return queries.to_frame(known, metrics=self.metrics, genes=genes)

    # ------------------------------------------------------------ all of them
    @staticmethod
    def list(storage: str | None = None) -> tuple[StudySummary, ...]:
        """Return what there is in a database, by name; studies that are not ours left out."""
        url = database.storage_url(storage)
        backend = database.open_storage(url, create=False)
        return with_patience(
            lambda: queries.summaries(backend), url=url, patience_s=patience.OPEN_PATIENCE_S
        )

    @staticmethod
    def delete(name: str, *, storage: str | None = None) -> None:
        """Delete a study with its rows; a search that is adding to it ends with an error.

        Raises:
            ConfigError: it is not there, or is not ours.
        """
        study = Study.load(name, storage=storage)
        assert study._storage is not None, "what was loaded has a storage"
        database.delete_study(study._storage, name, study._url)

    def _patiently(self, action: Callable[[], T], patience_s: float) -> T:
        """Run a database action with retries; in memory there is nothing to wait for."""
        if self._storage is None:
            return action()
        return with_patience(action, url=self._url, patience_s=patience_s)

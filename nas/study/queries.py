"""Questions to a study's rows: the front, the best, a data frame, the list of studies."""

import math
import operator
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal

from nas.errors import InfeasibleBudget
from nas.study.metrics import describe_cost
from nas.study.trial import Trial

if TYPE_CHECKING:
    import pandas
    from optuna.storages import RDBStorage


@dataclass(frozen=True, slots=True, kw_only=True)
class StudySummary:
    """What `nas studies` lists of one study; `ended` says why it stopped before its count."""

    name: str
    trials: int
    failed: int
    best_accuracy: float | None
    budgets: Mapping[str, float]
    ended: str | None


def within(rows: Iterable[Trial], budgets: Mapping[str, float]) -> list[Trial]:
    """Return the complete rows whose predicted costs meet every budget."""
    return [
        row
        for row in rows
        if row.is_complete and all(row.costs[name] <= limit for name, limit in budgets.items())
    ]


Merit = Literal["accuracy", "loss"]


def front(
    rows: Iterable[Trial], metrics: Sequence[str], *, by: Merit = "accuracy"
) -> tuple[Trial, ...]:
    """Return the complete rows not beaten in merit and all of `metrics`, cheapest first.

    A row is beaten by one that is nowhere worse and somewhere better; ties all stay.
    """
    loss_of = {"accuracy": lambda row: -_accuracy(row), "loss": _loss}[by]
    points = [((*(row.costs[name] for name in metrics), loss_of(row)), row) for row in rows]
    points.sort(key=lambda pair: (pair[0], pair[1].number))
    kept: list[tuple[tuple[float, ...], Trial]] = []
    for point, row in points:  # whatever beats a row stands before it
        if not any(
            best != point and all(map(operator.le, best, point)) for best, _ in reversed(kept)
        ):
            kept.append((point, row))
    return tuple(row for _, row in kept)


def best(rows: Sequence[Trial], budgets: Mapping[str, float], metric: str) -> Trial:
    """Return the row of highest accuracy within the budgets; ties: lower loss, then lower cost.

    Raises:
        InfeasibleBudget: none is within them; names the metric that is furthest away.
    """
    feasible = within(rows, budgets)
    if not feasible:
        smallest = {name: min(row.costs[name] for row in rows) for name in budgets}
        worst = max(budgets, key=lambda name: smallest[name] / budgets[name])
        budget, least = (describe_cost(worst, v) for v in (budgets[worst], smallest[worst]))
        raise InfeasibleBudget(
            f"no row of the study meets {worst} <= {budget}; the smallest has {least}.",
            metric=worst,
            budget=budgets[worst],
            smallest=smallest[worst],
        )
    return min(
        feasible,
        key=lambda row: (-_accuracy(row), _loss(row), row.costs[metric], row.number),
    )


def _accuracy(row: Trial) -> float:
    assert row.accuracy is not None, "only complete rows are compared"
    return row.accuracy


def _loss(row: Trial) -> float:
    return math.inf if row.loss is None else row.loss


def to_frame(
    rows: Sequence[Trial], *, metrics: Sequence[str], genes: Sequence[str]
) -> "pandas.DataFrame":
    """Return rows as a DataFrame: facts, costs by metric, `gene.<name>` columns.

    Numbers are float64 (NaN where there is none), `trial` and `attempt` int64, `created_at`
    datetime64 in UTC; options of genes keep their own types.
    """
    import pandas as pd

    columns: dict[str, Any] = {
        "trial": pd.Series([row.number for row in rows], dtype="int64"),
        "state": pd.Series([row.state for row in rows], dtype="str"),
        "accuracy": pd.Series([row.accuracy for row in rows], dtype="float64"),
        "loss": pd.Series([row.loss for row in rows], dtype="float64"),
    }
    for metric in metrics:
        costs = [row.costs.get(metric) for row in rows]
        columns[metric] = pd.Series(costs, dtype="float64")
    measured = sorted({metric for row in rows for metric in row.measured})
    for metric in measured:
        values = [row.measured[metric].measured if metric in row.measured else None for row in rows]
        columns[f"measured {metric}"] = pd.Series(values, dtype="float64")
    columns |= {
        "architecture_id": pd.Series([row.architecture_id for row in rows], dtype="str"),
        "evaluation_s": pd.Series([row.evaluation_s for row in rows], dtype="float64"),
        "attempt": pd.Series([row.attempt for row in rows], dtype="int64"),
        "reason": pd.Series([row.reason for row in rows], dtype="str"),
        "created_at": pd.to_datetime(pd.Series([row.created_at for row in rows]), utc=True),
    }
    for gene in genes:
        columns[f"gene.{gene}"] = pd.Series([row.choice[gene] for row in rows])
    return pd.DataFrame(columns)


def summaries(storage: "RDBStorage") -> tuple[StudySummary, ...]:
    """Return one summary a study of ours, by name."""
    sql = (
        "SELECT study, COUNT(*), SUM(CASE WHEN state = 'FAIL' THEN 1 ELSE 0 END), MAX(accuracy) "
        "FROM nas_trials GROUP BY study"
    )
    with storage.engine.connect() as connection:
        counts = {name: rest for name, *rest in connection.exec_driver_sql(sql)}
    found = []
    for study in storage.get_all_studies():
        attrs = study.user_attrs
        if "nas.schema" in attrs:
            trials, failed, accuracy = counts.get(study.study_name, (0, 0, None))
            found.append(
                StudySummary(
                    name=study.study_name,
                    trials=trials,
                    failed=failed,
                    best_accuracy=accuracy,
                    budgets=attrs.get("nas.budgets", {}),
                    ended=attrs.get("nas.ended") or None,
                )
            )
    return tuple(sorted(found, key=lambda summary: summary.name))

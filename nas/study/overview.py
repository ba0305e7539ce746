"""One study at a glance: what it was begun with, what it holds, how it ended."""

from collections import Counter
from typing import Any

from nas.errors import NasError
from nas.files import to_plain
from nas.study.study import Study
from nas.study.trial import Trial

_TOLD_APART = ("genes", "metrics", "budgets", "ended")


def overview(study: Study) -> dict[str, Any]:  # Any: plain JSON
    """Return what `nas study show` says of a study, as plain values.

    `best` is None while no row is within the budgets, and `ended` unless the search gave a reason
    for stopping before its number of evaluations.
    """
    rows = study.trials
    times = sorted(row.created_at for row in rows if row.created_at is not None)
    return {
        "name": study.name,
        "storage": study.url,
        "trials": len(rows),
        "states": dict(Counter(row.state for row in rows)),
        "first_at": times[0].isoformat(timespec="seconds") if times else None,
        "last_at": times[-1].isoformat(timespec="seconds") if times else None,
        "metrics": list(study.metrics),
        "budgets": dict(study.budgets),
        "best": _best(study, rows),
        "ended": study.ended,
        "genes": {name: len(options) for name, options in study.attrs.get("genes", {}).items()},
        "settings": {name: value for name, value in study.attrs.items() if name not in _TOLD_APART},
    }


def _best(study: Study, rows: tuple[Trial, ...]) -> dict[str, Any] | None:
    if not rows:
        return None
    try:
        best = study.best()
    except NasError:  # every row failed, or none is within the budgets
        return None
    return {
        "trial": best.number,
        "accuracy": best.accuracy,
        "loss": best.loss,
        "costs": dict(best.costs),
        "measured": {name: to_plain(found) for name, found in best.measured.items()},
        "architecture_id": best.architecture_id,
    }

"""What a trial reports, as an outcome; outcomes as plain JSON in a searcher's journal, and back."""

from collections.abc import Hashable, Mapping
from dataclasses import replace
from typing import Any, TypeAlias

from nas.search.evaluate import Outcome, understand
from nas.search.options import RankBy
from nas.study import Trial

Result: TypeAlias = Mapping[str, Any]  # Any: whatever a trainable reports


def reported(result: Result | None, metric: str, *, rank_by: RankBy, error: bool) -> Outcome:
    """Return what a trial's last report means; `error`: the trial failed."""
    if error:
        return Outcome(reason="the trial failed; Tune's error file of the trial says how")
    if not result or metric not in result:
        return Outcome(reason=f"the trial reported no {metric}")
    answer = {"accuracy": result[metric]}
    if result.get("loss") is not None:
        answer["loss"] = result["loss"]
    try:
        outcome = understand(answer, rank_by)
    except (TypeError, ValueError):
        return Outcome(reason=f"{metric} is {result[metric]!r:.80}, not a number")
    return replace(outcome, evaluation_s=result.get("time_total_s"))


def config_of(result: Result) -> Mapping[str, Any]:  # Any: of a trial's config
    """Return the config in a report; Tune hands reports on with nested keys joined by "/"."""
    start = "config/"
    flat = {
        key.removeprefix(start): value for key, value in result.items() if key.startswith(start)
    }
    return {**flat, **(result.get("config") or {})}


def attempts_of(rows: Mapping[Hashable, Trial]) -> dict[Hashable, tuple[int, bool]]:
    """Return how often each candidate was tried, and whether it has a result."""
    return {key: (row.attempt, row.is_complete) for key, row in rows.items()}


def to_event(outcome: Outcome) -> dict[str, Any]:  # Any: plain JSON
    """Return an outcome as an event of a journal has it."""
    names = ("accuracy", "loss", "reason", "evaluation_s")
    return {name: getattr(outcome, name) for name in names}


def from_event(event: Mapping[str, Any]) -> Outcome:  # Any: plain JSON
    """Return the outcome in an event of a journal."""
    values: dict[str, Any] = {name: event.get(name) for name in to_event(Outcome())}
    return Outcome(**values)

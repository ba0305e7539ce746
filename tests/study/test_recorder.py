"""A trial we write is the trial Optuna would have written."""

import math
from collections.abc import Callable
from datetime import datetime, timedelta
from typing import Any

import pytest
from optuna.distributions import CategoricalDistribution
from optuna.trial import FrozenTrial, TrialState, create_trial

from nas.study import Study

Open = Callable[[], Study]
OPTIONS = CategoricalDistribution(tuple(range(50)))
ATTRS = {"architecture": {"n": [1, None, "é:%"]}, "loss": 0.1 + 0.2, "attempt": 1}


def trial(**changes: Any) -> FrozenTrial:
    settings: dict[str, Any] = {
        "state": TrialState.COMPLETE,
        "values": [0.1 + 0.2, 1.5],
        "params": {"a": 3},
        "distributions": {"a": OPTIONS},
        "user_attrs": ATTRS,
        "constraints": {"latency_ms": -0.5, "params": 1e9},
    }
    made = create_trial(**settings | changes)
    made.datetime_complete = datetime(2026, 3, 29, 12, 30, 1, 250_000)
    made.datetime_start = made.datetime_complete - timedelta(seconds=2)
    return made


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"state": TrialState.FAIL, "values": None, "user_attrs": {"reason": "out of memory"}},
        {"values": [0.5, math.inf]},
        {"user_attrs": {}, "constraints": None},
    ],
    ids=["complete", "failed", "infinite", "bare"],
)
def test_a_trial_reads_back_as_the_one_optuna_writes(opened: Open, changes: Any) -> None:
    study = opened()
    assert study._recorder is not None
    study.optuna_study.add_trial(trial(**changes))
    study._recorder.write(trial(**changes), lease=None, candidate="")
    theirs, ours = opened().optuna_study.get_trials()
    assert (theirs.number, ours.number) == (0, 1)
    assert ours._trial_id != theirs._trial_id
    ours.number, ours._trial_id = theirs.number, theirs._trial_id
    assert ours == theirs
    assert ours.constraints == theirs.constraints
    study.optuna_study.add_trial(trial(**changes))  # and Optuna goes on from there
    assert [each.number for each in opened().optuna_study.get_trials()] == [0, 1, 2]

"""`nas search --mode front`: networks along the front of loss and latency, up to the budget."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nas.errors import ConfigError
from nas.pipeline import RunConfig
from nas.pipeline.budget import Budget
from nas.pipeline.candidates import spread
from nas.pipeline.completion import Level
from nas.study import Study, Trial, queries

METRIC = "latency_ms"


def trials_of(costs: Any, losses: Any) -> list[Trial]:
    return [
        Trial(number=number, state="COMPLETE", choice={}, costs={METRIC: cost}, accuracy=0.5,
              loss=loss)
        for number, (cost, loss) in enumerate(zip(costs, losses, strict=True))
    ]  # fmt: skip


def test_nothing_beats_what_is_on_the_front_and_all_of_it_is_there() -> None:
    rng = np.random.default_rng(0)
    trials = trials_of(rng.uniform(1, 10, 60), rng.uniform(0, 1, 60))
    front = spread(queries.front(trials, [METRIC], by="loss"), [METRIC])
    unbeaten = {
        one.number
        for one in trials
        if not any(
            other.costs[METRIC] <= one.costs[METRIC] and other.loss < one.loss  # type: ignore
            for other in trials
        )
    }
    assert {trial.number for trial in front} == unbeaten and len(front) > 3


def test_the_first_few_are_the_best_the_cheapest_and_the_middle() -> None:
    trials = trials_of([1, 2, 3, 4, 5, 9, 16, 16], [0.9, 0.8, 0.7, 0.6, 0.5, 0.4, 0.3, 0.3])
    found = spread(trials, [METRIC])
    assert [trial.costs[METRIC] for trial in found[:3]] == [16, 1, 4]
    assert {trial.number for trial in found} == set(range(8))  # equals too, at the end
    assert spread([], [METRIC]) == []


def test_a_front_of_several_targets_is_spread_along_each() -> None:
    trials = [
        Trial(number=number, state="COMPLETE", choice={}, costs=dict(zip("ab", costs, strict=True)),
              accuracy=0.5, loss=number / 10)
        for number, costs in enumerate([(4, 4), (3.9, 4), (4, 1), (1.5, 4)])
    ]  # fmt: skip
    assert [trial.number for trial in spread(trials, ["a", "b"])] == [0, 2, 3, 1]


def test_a_front_has_no_lower_end_but_the_same_margin() -> None:
    budget = Budget(latency_ms=2.0, metric=METRIC, others={})
    front = Level.of(RunConfig(mode="front", margin=0.1), budget)
    for cost, off in ((1e-9, front.half), (1.8, front.half), (1.9, front.half + 0.05)):
        assert front.off({METRIC: cost}, {METRIC: cost}) == pytest.approx(off)


def test_settings_that_do_not_go_with_a_front_are_refused() -> None:
    with pytest.raises(ConfigError, match="Take front or importance"):
        RunConfig(mode="front", importance="taylor")
    with pytest.raises(ConfigError, match="mode must be one of best, front, but is 'pareto'"):
        RunConfig(mode="pareto")
    assert "mode" not in RunConfig().reads("search")  # runs of before go on
    assert RunConfig(mode="front").reads("search")["mode"] == "front"


@pytest.mark.slow
def test_winners_of_a_front_go_from_fast_to_good(finished: Path, start: Callable[..., Any]) -> None:
    words = ("--name", "along", "--mode", "front", "--winners", "3", "--evaluations", "16")
    level = "least_use=0.65"  # of which a front knows nothing
    child = start(finished, "search", "--run", "runs/small", "--json", *words, level)
    out, err = child.communicate(timeout=300)
    assert child.returncode == 0, err
    study = Study.load("along", storage=f"sqlite:///{finished}/runs/nas.db")
    metric = study.metrics[0]
    found = json.loads(out)
    numbers = [row["trial"] for row in found["measured"]]
    expected = spread(study.front(by="loss"), [metric])[: len(numbers)]
    assert numbers == [trial.number for trial in expected]
    used = [trial.costs[metric] / found["budget_ms"] for trial in study.trials]
    assert max(used) <= 1 and min(used) < 0.65

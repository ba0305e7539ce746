"""Networks measured before a search set its prices right, and only where they can be trusted."""

import json
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nas.block import Block
from nas.errors import ConfigError
from nas.latency import Timing
from nas.latency.table import LatencyTable
from nas.pipeline import budget as budgets
from nas.pipeline.allocation import GenesAlone
from nas.pipeline.budget import Budget, pricers
from nas.pipeline.completion import Level
from nas.pipeline.config import RunConfig
from nas.pipeline.materials import Materials
from nas.pipeline.recalibrate import correction, networks_at, recalibrate, told
from nas.pipeline.run import Run
from nas.space import SearchSpace
from nas.study import Study, latency_metric
from nas.target import DEFAULT_TARGET, Target

Made = Callable[..., LatencyTable]
SPACE = SearchSpace.load("tiny").replace(num_classes=10)
TARGET = Target.parse(DEFAULT_TARGET).id
METRIC = latency_metric(TARGET)


def timing(median_ms: float, grade: str = "A") -> Timing:
    return Timing(
        median_ms=median_ms, p10=median_ms, p90=median_ms, p95=median_ms, ci_high_ms=median_ms,
        clean=30, taken=30, grade=grade, spread=0.01, repeat=0.0,
    )  # fmt: skip


def test_the_factor_is_the_average_of_what_can_be_trusted() -> None:
    said = {"a": 1.0, "b": 2.0, "c": 4.0}
    found = correction(said, {"a": timing(1.1), "b": timing(2.4), "c": timing(9.0, "C")})
    assert found == {"factor": pytest.approx(1.15), "found": pytest.approx(1.15),
                     "networks": 3, "trusted": 2}  # fmt: skip
    assert "2 of 3 networks measured whole before the search take 1.150 x" in told("t", found)


def test_what_may_be_chance_changes_no_price() -> None:
    said = dict.fromkeys("abcd", 1.0)
    ratios = np.array([-0.08, 0.0, 0.02, 0.06])  # standard error 3 %
    small, large = (
        correction(said, {name: timing(by + off) for name, off in zip("abcd", ratios, strict=True)})
        for by in (1.05, 1.15)
    )
    assert small["factor"] == 1.0 and small["found"] == pytest.approx(1.05)
    assert "take 1.050 x what the table of t says, no more than chance" in told("t", small)
    assert large["factor"] == large["found"] == pytest.approx(1.15)


def test_a_table_is_taken_as_it_is_where_too_few_timings_can_be_trusted() -> None:
    said = {"a": 1.0, "b": 1.0, "c": 1.0}
    found = correction(said, {"a": timing(2), "b": timing(2, "C"), "c": timing(2, "C")})
    assert found["factor"] == 1.0
    assert "the table of t is taken as it is: 2 of 3 networks" in told("t", found)
    alone = correction({"a": 1.0}, {"a": timing(2)})
    assert alone["factor"] == 1.0 and alone["found"] == 2.0
    nothing = correction({}, {})
    assert nothing == {"factor": 1.0, "found": None, "networks": 0, "trusted": 0}
    assert "taken as it is" in told("t", nothing)


def completion_by(table: LatencyTable) -> GenesAlone:
    return GenesAlone(SPACE, pricers(SPACE, {TARGET: table.pricer(SPACE)}))


def level_of(table: LatencyTable, share: float) -> Level:
    largest_ms = table.estimate(SPACE.blocks(SPACE.largest()), SPACE)
    budget = Budget(latency_ms=share * largest_ms, metric=METRIC, others={})
    return Level.of(RunConfig(margin=0.04, least_use=0.9), budget)


def test_networks_are_of_the_level_and_differ_and_a_seed_fixes_them(made_table: Made) -> None:
    table = made_table(SPACE, memory=True)
    completion, level = completion_by(table), level_of(table, 0.5)
    found = networks_at(completion, level, 6, seed=0)
    assert len({architecture.id for architecture, _ in found}) == 6
    for architecture, costs in found:
        assert costs[METRIC] == pytest.approx(table.estimate(SPACE.blocks(architecture), SPACE))
        known = {METRIC: np.array([costs[METRIC]])}
        assert level.off(known, known)[0] <= level.half
    ids = [architecture.id for architecture, _ in networks_at(completion, level, 6, seed=0)]
    assert ids == [architecture.id for architecture, _ in found]
    assert ids != [one.id for one, _ in networks_at(completion, level, 6, seed=1)]


def test_where_nothing_is_at_the_level_the_nearest_networks_are_taken(made_table: Made) -> None:
    table = made_table(SPACE)
    found = networks_at(completion_by(table), level_of(table, 1e-3), 3, seed=0)
    smallest_ms = table.estimate(SPACE.blocks(SPACE.smallest()), SPACE)
    assert len(found) == 3
    assert all(costs[METRIC] < 1.5 * smallest_ms for _, costs in found)


class Restricted:
    """A completion in which only one width is possible at all, or nothing."""

    def __init__(self, inner: GenesAlone, *, is_empty: bool = False) -> None:
        self._inner, self._is_empty = inner, is_empty
        self.genes = inner.genes
        self.canonical, self.architecture = inner.canonical, inner.architecture

    def price(self, choices: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        costs = self._inner.price(choices)
        first = next(iter(self.genes))
        is_possible = np.array([choice[first] == self.genes[first][0] for choice in choices])
        is_possible &= not self._is_empty
        return {metric: np.where(is_possible, own, np.inf) for metric, own in costs.items()}

    def bounds(self, choices: Sequence[Mapping[str, Any]]) -> tuple[dict[str, Any], dict[str, Any]]:
        costs = self.price(choices)
        return costs, costs


def test_what_cannot_be_completed_is_not_measured(made_table: Made) -> None:
    table = made_table(SPACE)
    completion = Restricted(completion_by(table))
    found = networks_at(completion, level_of(table, 0.5), 4, seed=0)
    assert found and all(np.isfinite(costs[METRIC]) for _, costs in found)
    nothing = Restricted(completion_by(table), is_empty=True)
    assert networks_at(nothing, level_of(table, 0.5), 4, seed=0) == []


# ---------------------------------------------------------------- as a stage of a run
@pytest.fixture
def measured(
    made_table: Made, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> Callable[..., tuple[dict[str, Any], dict[str, Any]]]:
    """Return what recalibrates a run whose networks take 1.2 x as long, by their table."""
    table = made_table(SPACE)
    table.save(tmp_path / "table.json")

    def time(
        self: Materials, own: LatencyTable, networks: Mapping[str, Sequence[Block]], progress: Any
    ) -> dict[str, Timing]:
        times.append(len(networks))
        return {name: timing(1.2 * table.estimate(own_blocks, SPACE))
                for name, own_blocks in networks.items()}  # fmt: skip

    times: list[int] = []
    monkeypatch.setattr(Materials, "time", time)

    def begin(**changes: Any) -> tuple[dict[str, Any], dict[str, Any]]:
        config = RunConfig(
            space="tiny", table=str(tmp_path / "table.json"), latency_budget="1ms", **changes
        )
        with Run.open(tmp_path / "runs/a", config, resume=True) as run:
            run.stages.setdefault(
                run.profile_key, {"settings": _digest(run), "result": {"largest_ms": 2.0}}
            )
            materials = Materials(run)
            completion, level = completion_by(table), level_of(table, 0.5)
            before = budgets.priced(run, materials)[0][METRIC]
            result = recalibrate(run, materials, completion, level)
            after = budgets.priced(run, materials)[0][METRIC]
            codes = SPACE.encode([SPACE.choice(SPACE.largest())])
            return result, {
                "grew": float(after(codes)[0] / before(codes)[0]),
                "digest": materials.tables[TARGET].digest == table.digest,
                "times": tuple(times),
            }

    return begin


def _digest(run: Run) -> str:
    from nas.files import digest_json

    return digest_json(run.config.reads("profile"))


def test_prices_of_the_search_are_multiplied_and_measured_once(measured: Any) -> None:
    result, seen = measured()
    assert result[TARGET]["factor"] == pytest.approx(1.2) and result[TARGET]["trusted"] == 4
    assert seen == {"grew": pytest.approx(1.2), "digest": True, "times": (4,)}
    again, seen = measured()  # a search that goes on prices by what it began with
    assert again == result and seen["times"] == (4,)
    assert seen["grew"] == pytest.approx(1.0)  # it was set right before, and still is
    with pytest.raises(ConfigError, match="other settings: recalibrate_on: 4 -> 2"):
        measured(recalibrate_on=2)


def test_a_search_may_take_its_tables_as_they_are(measured: Any) -> None:
    result, seen = measured(recalibrate_on=0)
    assert result == {} and seen == {"grew": 1.0, "digest": True, "times": ()}
    for wrong in (-1, 1):
        with pytest.raises(ConfigError, match=f"recalibrate_on must be 0 or at least 2.*{wrong}"):
            RunConfig(recalibrate_on=wrong)


@pytest.mark.slow
def test_a_search_predicts_by_the_networks_it_measured_and_says_so(
    finished: Path, start: Callable[..., Any]
) -> None:
    words = ("search", "--run", "runs/small", "--name", "today", "--evaluations", "6")
    child = start(finished, *words, "--latency-budget", "5ms", "recalibrate_on=2", "least_use=0.0")
    out, err = child.communicate(timeout=300)
    assert child.returncode == 0, err
    state = json.loads((finished / "runs/small/state.json").read_text())
    (found,) = state["stages"]["recalibrate/today"]["result"].values()
    study = Study.load("today", storage=f"sqlite:///{finished}/runs/nas.db")
    assert list(study.attrs["price_factors"].values()) == [found["factor"]]
    if found["trusted"] == 2:
        assert f"take {found['found']:.3f} x what the table of" in out
    table = LatencyTable.load(next((finished / "runs/tables").glob("onnxruntime*.json")))
    space = SearchSpace.load("tiny").replace(num_classes=10, in_chans=3, image_size=32)
    for trial in study.trials:
        blocks = [str(block) for block in space.blocks(space.architecture(trial.choice))]
        said = trial.costs[study.metrics[0]]
        assert said == pytest.approx(found["factor"] * table.estimate(blocks, space))

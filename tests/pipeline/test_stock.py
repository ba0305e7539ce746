"""`nas search --stock`: only what plain timm builds is ever evaluated, and it loads without us."""

import json
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from nas import network, pipeline
from nas.block import Block
from nas.errors import ConfigError, InfeasibleBudget
from nas.files import digest_json
from nas.latency import LatencyTable, Timing
from nas.manifest import Accuracy, Ancestry, Winner
from nas.network.stock import stock_args
from nas.pipeline import RunConfig
from nas.pipeline.allocation import Completion
from nas.pipeline.budget import Budget, pricers
from nas.pipeline.materials import Materials
from nas.pipeline.run import Run
from nas.pipeline.stock import StockAlone
from nas.search import SearchOptions
from nas.search import run as run_search
from nas.search.mind import whole_key
from nas.search.samplers import SAMPLERS
from nas.space import Architecture, SearchSpace
from nas.study import Study
from nas.supernet import TrainConfig, score
from nas.target import Target
from nas.winner import export as export_module

Made = Callable[..., LatencyTable]
TARGET = Target.parse("onnxruntime,fp32,b1,t1").id
METRIC = f"latency_ms:{TARGET}"

# Of 32 pixels; half of its options are no timm class's.
VIT = {
    "schema": 1,
    "name": "small-vit",
    "image_size": 32,
    "stem": {"convs": 4, "bias": False, "act_last": False},
    "head": {"norm": "batch"},
    "blocks": {
        "cga": {"expand": [1, 2], "key": [4, 8], "kernels": [[3], [5, 3]], "window": [7]},
        "patch_merge": {"expand": [2, 4], "se": [0.25], "expand_in": [1, 2], "expand_out": [2]},
    },
    "stages": [
        {"width": [16, 32], "depth": [1, 2], "kinds": ["cga"], "head_dim": 8},
        {"width": [32, 48], "depth": [1, 2], "kinds": ["cga"], "head_dim": 16,
         "by": ["patch_merge"]},
    ],
}  # fmt: skip


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return SearchSpace.from_plain(VIT).replace(num_classes=10)


def alone(space: SearchSpace, table: LatencyTable) -> StockAlone:
    return StockAlone(space, pricers(space, {TARGET: table.pricer(space)}))


def budget(limit_ms: float) -> Budget:
    return Budget(latency_ms=limit_ms, metric=METRIC, others={})


@pytest.mark.parametrize("sampler", ["predictor", "random"])
def test_a_search_evaluates_nothing_that_timm_cannot_build(
    space: SearchSpace, made_table: Made, sampler: str
) -> None:
    assert sampler in SAMPLERS
    table = made_table(space)
    stock: Completion = alone(space, table)
    limit_ms = 0.8 * table.estimate(space.blocks(space.largest()), space)
    seen = []

    def evaluate(choice: Mapping[str, Any]) -> dict[str, float]:
        blocks = space.blocks(stock.architecture(choice))
        seen.append(blocks)
        macs = sum(block.macs for block in blocks)
        return {"accuracy": 1 - 1e5 / (1e5 + macs), "loss": 1e5 / macs}

    study = run_search(
        stock.genes,
        evaluate,
        stock.price,
        {METRIC: limit_ms},
        evaluations=12,
        options=SearchOptions(
            sampler=sampler,
            complete=lambda choice, level: stock.canonical(choice),
            bound=lambda choices: stock.bounds(choices)[0],
            key=lambda choice: whole_key(stock.canonical(choice)),
        ),
    )
    assert len(seen) == len(study.trials) == 12
    assert len(set(seen)) == 12
    assert all(table.estimate(blocks, space) <= limit_ms for blocks in seen)
    for blocks in seen:
        expressed = stock_args(blocks)
        assert expressed is not None and expressed[0].startswith("efficientvit_m")


def test_every_stock_network_of_a_space_can_be_found(space: SearchSpace, made_table: Made) -> None:
    """All choices of the space that timm can build, beside all that the genes give."""
    import itertools

    from nas.space.stock import is_stock

    stock = alone(space, made_table(space))
    genes = space.genes()
    every = {
        space.architecture(dict(zip(genes, picked, strict=True)))
        for picked in itertools.product(*genes.values())
    }
    wanted = {a.id for a in every if is_stock(space.blocks(a))}
    found = set()
    for picked in itertools.product(*stock.genes.values()):
        choice = dict(zip(stock.genes, picked, strict=True))
        if np.isfinite(stock.price([choice])[METRIC][0]):
            found.add(stock.architecture(choice).id)
    assert found == wanted and 4 < len(wanted) < len(every) / 8


def test_a_budget_that_no_stock_network_meets_is_exit_3_with_the_lowest(
    space: SearchSpace, made_table: Made
) -> None:
    table = made_table(space)
    stock = alone(space, table)
    stock.check_reachable(budget(1.0))
    with pytest.raises(InfeasibleBudget, match="plain timm can build meets") as caught:
        stock.check_reachable(budget(1e-4))
    smallest = caught.value.smallest
    assert caught.value.exit_code == 3
    assert smallest > table.estimate(space.blocks(space.smallest()), space)
    stock.check_reachable(budget(smallest))


def test_a_space_without_stock_networks_is_exit_3(made_table: Made) -> None:
    space = SearchSpace.load("tiny")
    with pytest.raises(InfeasibleBudget, match="no network of tiny was found") as caught:
        alone(space, made_table(space)).check_reachable(budget(1e3))
    assert caught.value.exit_code == 3


def test_stock_is_a_setting_that_a_search_may_not_change(tmp_path: Path) -> None:
    config = RunConfig(space="efficientvit")
    assert "stock" not in config.reads("search")  # runs of before go on
    with Run.open(tmp_path / "r", config) as run:
        done = {"settings": digest_json(config.reads("search")), "seconds": 1.0, "result": {}}
        state = {"schema": 1, "stages": {"search/r": done}}
        (run.folder / "state.json").write_text(json.dumps(state))
    with (
        pytest.raises(ConfigError, match="other settings: stock"),
        Run.open(tmp_path / "r", replace(config, stock=True), resume=True),
    ):
        pass
    with pytest.raises(ConfigError, match="Take stock or importance"):
        RunConfig(stock=True, importance="taylor")


@pytest.mark.slow
def test_the_best_of_a_stock_search_loads_with_timm_alone(
    tmp_path: Path, made_table: Made, space: SearchSpace, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "vit.yaml").write_text(json.dumps(VIT))
    table = made_table(space).save(tmp_path / "table.json")
    largest_ms = table.estimate(space.blocks(space.largest()), space)
    config = RunConfig(
        space=str(tmp_path / "vit.yaml"), table=table.path, storage=f"sqlite:///{tmp_path}/s.db",
        stock=True, latency_budget="100%", least_use=0.0, evaluations=4, candidates=1, threads=1,
        train=TrainConfig(steps=2, batch_size=32, order_images=0),
    )  # fmt: skip

    def timed(networks: Mapping[str, Sequence[Block]]) -> dict[str, Timing]:
        return {name: a_timing(table.estimate(own, space)) for name, own in networks.items()}

    with Run.open(tmp_path / "r", config) as run:
        settings = digest_json(config.reads("profile"))
        known = {"settings": settings, "seconds": 1.0, "result": {"largest_ms": largest_ms}}
        run.stages[run.profile_key] = known
        pipeline.train(run)
        materials = Materials(run)
        materials.timed = timed
        found = pipeline.search(run, materials).values
        trials = {t.number: t for t in Study.load("r", storage=config.storage).trials}
        assert len(trials) == 4
        for trial in trials.values():
            blocks = space.blocks(Architecture.from_json(trial.architecture))
            assert stock_args(blocks) is not None
        best = Architecture.from_json(trials[found["chosen"][0]].architecture)
        supernet, data = materials.supernet, materials.data
        model = supernet.extract(best, score(supernet, best, data).statistics)
    monkeypatch.setattr(network, "to_onnx", lambda model, path, batch: path.write_bytes(b"-"))
    monkeypatch.setattr(export_module, "_compare", lambda *_: None)  # of the file left out
    winner = Winner(
        architecture=best.to_json(), blocks=tuple(map(str, model.blocks_spec)), data="digits",
        accuracy=Accuracy(search=0.5), budgets={}, targets=(),
        ancestry=Ancestry(study="r", trial=0),
    )  # fmt: skip
    export_module.export(model, folder=tmp_path / "w", winner=winner, data=data)
    name = json.loads((tmp_path / "w" / "config.json").read_text())["architecture"]
    assert name.startswith("efficientvit_m")
    assert f"`{name}(" in (tmp_path / "w" / "README.md").read_text()
    x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    assert scores_of_a_stranger(tmp_path / "w") == pytest.approx(
        model(x).flatten().tolist(), abs=1e-4
    )


def a_timing(ms: float) -> Timing:
    return Timing(
        median_ms=ms, p10=ms, p90=ms, p95=ms, ci_high_ms=ms, clean=9, taken=9, grade="A",
        spread=0.0, repeat=None,
    )  # fmt: skip


def scores_of_a_stranger(folder: Path) -> list[float]:
    """Return what a process says of two images that has timm, and nothing of this package."""
    code = (
        "import sys, json, timm, torch\n"
        f"model = timm.create_model('local-dir:{folder}', pretrained=True).eval()\n"
        "x = torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))\n"
        "assert not any(name.partition('.')[0] == 'nas' for name in sys.modules)\n"
        "print(json.dumps(model(x).flatten().tolist()))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd="/", capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    scores: list[float] = json.loads(done.stdout)
    return scores

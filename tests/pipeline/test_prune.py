"""`nas prune`: never over the budget, the least important first, and nothing without need."""

import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from typer.testing import CliRunner

import nas.data
from nas import network
from nas.block import Block, parse
from nas.cli.app import app
from nas.data import Augment, Data, Split
from nas.errors import ConfigError, CorruptFile, InfeasibleBudget
from nas.latency import LatencyTable, Timing
from nas.manifest import Accuracy, Ancestry, Winner
from nas.network import NasHybrid
from nas.pipeline import PruneConfig, cut_losses, prune
from nas.space import SearchSpace, architecture_of
from nas.target import Target
from nas.winner import export as export_module
from nas.winner.distill import DistillConfig, train
from nas.winner.export import export

Made = Callable[..., LatencyTable]
TO_ONNX, COMPARE = network.to_onnx, export_module._compare

# Every kind that can be cut, none of its numbers the space's smallest.
BLOCKS = [
    "stem_r32_i3_c8-16_b1_a1",
    "mb4d_r8_c16_h64_p3_relu",
    "patch_merge_r8_i16_o32_h32_s16_f32-64",
    "cga_r4_c32_n2_k16_q5-3_w7_h64-64",
    "mbconv_r4_c32_h64_k3_s16_a0_relu",
    "mb3d_r4_c32_n4_k16_v16_h64_relu",
    "head_r4_i32_o4_bn_d0",
]
SMALLEST = [
    "stem_r32_i3_c8-16_b1_a1",
    "mb4d_r8_c16_h16_p3_relu",
    "patch_merge_r8_i16_o32_h16_s8_f16-32",
    "cga_r4_c32_n2_k8_q5-3_w7_h32-32",
    "mbconv_r4_c32_h32_k3_s8_a0_relu",
    "mb3d_r4_c32_n2_k8_v8_h32_relu",
    "head_r4_i32_o4_bn_d0",
]
SPACE = {
    "schema": 1,
    "name": "made",
    "image_size": 32,
    "act": "relu",
    "head": {"norm": "batch"},
    "num_classes": 4,
    "blocks": {
        "mb4d": {"expand": [1, 2, 4], "pool": [3]},
        "cga": {"expand": [1, 2], "key": [8, 16], "kernels": [[5, 3]], "window": [7]},
        "mb3d": {"expand": [1, 2], "heads": [2, 4], "key": [8, 16], "value": [8, 16]},
        "mbconv": {"expand": [1, 2], "kernel": [3], "se": [0.25]},
        "patch_merge": {"expand": [1, 2], "se": [0.5], "expand_in": [1, 2], "expand_out": [1, 2]},
    },
    "stages": [
        {"width": [16], "depth": [1], "kinds": ["mb4d"]},
        {
            "width": [32], "depth": [3], "kinds": ["cga", "mbconv"], "head_dim": 16, "tail": [1],
            "by": ["patch_merge"],
        },
    ],
}  # fmt: skip


def a_split(name: str, count: int, first: int) -> Split:
    """Return noisy images whose class is the quarter that is bright."""
    rng = np.random.default_rng(first)
    labels = np.arange(count) % 4
    images = rng.integers(0, 150, (count, 3, 32, 32), dtype=np.uint8)
    for image, label in zip(images, labels, strict=True):
        row, column = label // 2 * 16, label % 2 * 16
        image[:, row : row + 16, column : column + 16] += 60
    return Split.of(
        name, torch.from_numpy(images), torch.from_numpy(labels), torch.arange(first, first + count)
    )


@pytest.fixture(scope="module")
def quarters() -> Data:
    splits = {"train": (128, 0), "choice": (64, 1000), "search": (64, 2000)}
    return Data(
        name="quarters",
        image_size=32,
        in_chans=3,
        mean=(0.5, 0.5, 0.5),
        std=(0.25, 0.25, 0.25),
        class_names=("a", "b", "c", "d"),
        augment=Augment(),
        splits={name: a_split(name, *numbers) for name, numbers in splits.items()},
    )


@pytest.fixture(autouse=True)
def _small_and_known(quarters: Data, monkeypatch: pytest.MonkeyPatch) -> None:
    """Load `quarters` whatever is asked for, fit scales on few cuts, and leave the ONNX file out.

    Making that takes the time; the command line's test makes it.
    """
    monkeypatch.setattr(nas.data, "load", lambda name, **_: quarters)
    monkeypatch.setattr(cut_losses, "ALLOCATIONS", 12)
    monkeypatch.setattr(network, "to_onnx", lambda model, path, batch: path.write_bytes(b"-"))
    monkeypatch.setattr(export_module, "_compare", lambda *_: None)


@pytest.fixture(scope="module")
def trained(quarters: Data) -> NasHybrid:
    torch.manual_seed(0)
    model = network.build(BLOCKS)
    train(model, quarters, DistillConfig(epochs=6, warmup_epochs=1, batch_size=32, lr=3e-3))
    return model


def saved(model: NasHybrid, folder: Path, data: Data) -> Path:
    architecture = architecture_of(model.blocks_spec, space="made")
    winner = Winner(
        architecture=architecture.to_json(),
        blocks=tuple(map(str, model.blocks_spec)),
        accuracy=Accuracy(search=0.9),
        budgets={},
        targets=(),
        ancestry=Ancestry(study="s", trial=7),
        data="quarters",
    )
    export(model, folder=folder, winner=winner, data=data)
    return folder


@pytest.fixture
def folder(trained: NasHybrid, quarters: Data, tmp_path: Path) -> Path:
    return saved(trained, tmp_path / "trained", quarters)


@pytest.fixture(scope="module")
def space() -> SearchSpace:
    return SearchSpace.from_plain(SPACE)


@pytest.fixture(scope="module")
def table(space: SearchSpace, made_table: Made, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Return the path of a table with all that the space needs, calibrated with a knee."""
    path = tmp_path_factory.mktemp("table") / "table.json"
    return made_table(space, memory=True).save(path).path


@pytest.fixture(scope="module")
def space_file(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("space") / "made.yaml"
    path.write_text(json.dumps(SPACE))  # YAML has JSON in it
    return str(path)


def silent(stage: str) -> Callable[[int, int, str], None]:
    return lambda done, total, text: None


def clock(table: str, slower: float = 1.0) -> Any:
    """Return what "measures" networks as the table prices them, or slower."""
    loaded = LatencyTable.load(table)
    fit = next(iter(loaded.calibrations.values()))

    def timed(networks: Mapping[str, Sequence[Block]]) -> dict[str, Timing]:
        found = {}
        for name, blocks in networks.items():
            ms = slower * loaded.estimate(blocks, fit)
            found[name] = Timing(
                median_ms=ms, p10=ms, p90=ms, p95=ms, ci_high_ms=ms, clean=9, taken=9, grade="A",
                spread=0.0, repeat=None,
            )  # fmt: skip
        return found

    return timed


@pytest.fixture(scope="module")
def whole_ms(table: str) -> float:
    loaded = LatencyTable.load(table)
    fit = next(iter(loaded.calibrations.values()))
    return loaded.estimate(BLOCKS, fit)


def pruned(folder: Path, out: Path, table: str, budget: str, **changes: Any) -> dict[str, Any]:
    slower = changes.pop("slower", 1.0)
    config = PruneConfig(latency_budget=budget, table=table, **changes)
    found = prune(str(folder), out, config, progress=silent, timed=clock(table, slower))
    assert found.text()
    return dict(found.values)


def metric(values: Mapping[str, Any]) -> str:
    return f"latency_ms:{values['target']}"


# ---------------------------------------------------------------- budgets
def test_a_network_within_the_budget_is_written_as_it_is(
    folder: Path, table: str, space_file: str, trained: NasHybrid, tmp_path: Path
) -> None:
    found = pruned(folder, tmp_path / "p", table, "100%", space=space_file)
    assert found["cut"] == [] and not found["statistics_refitted"]
    loaded: Any = timm.create_model(f"local-dir:{tmp_path / 'p'}", pretrained=True).eval()
    x = torch.randn(4, 3, 32, 32)
    torch.testing.assert_close(loaded(x), trained(x), rtol=1e-5, atol=1e-5)
    state = trained.state_dict()
    assert all(torch.equal(value, state[name]) for name, value in loaded.state_dict().items())


@pytest.mark.parametrize("share", [95, 85, 75])
def test_what_is_cut_is_within_the_budget_by_the_table_and_within_its_options(
    folder: Path, table: str, space: SearchSpace, space_file: str, tmp_path: Path, share: int
) -> None:
    found = pruned(folder, tmp_path / "p", table, f"{share}%", space=space_file)
    winner = Winner.load(tmp_path / "p")
    limit = found["budgets"][metric(found)]
    loaded = LatencyTable.load(table)
    price = loaded.estimate([parse(text) for text in winner.blocks], space)
    assert found["predicted"]["after"][metric(found)] == pytest.approx(price, rel=1e-9)
    assert 0.8 * limit < price <= limit
    assert found["cut"] and all(row["after"] < row["before"] for row in found["cut"])
    known = {str(block) for block in space.every_block()}
    parts = {str(part) for name in known for part in parse(name).parts()}
    assert all(str(part) in parts for text in winner.blocks[1:-1] for part in parse(text).parts())
    assert winner.ancestry.study == "s" and len(winner.ancestry.pruned_from) == 64
    assert winner.targets[0].ci_high_ms is not None and winner.targets[0].ci_high_ms <= limit


def test_a_machine_slower_than_its_table_gets_a_smaller_network(
    folder: Path, table: str, space_file: str, whole_ms: float, tmp_path: Path
) -> None:
    budget = f"{0.9 * whole_ms}ms"
    plain = pruned(folder, tmp_path / "a", table, budget, space=space_file)
    slower = pruned(folder, tmp_path / "b", table, budget, space=space_file, slower=1.1)
    assert slower["measured"]["after"]["ci_high_ms"] <= slower["budgets"][metric(slower)]
    assert slower["params"]["after"] < plain["params"]["after"]
    with pytest.raises(InfeasibleBudget, match="measured whole; the nearest takes"):
        pruned(folder, tmp_path / "c", table, budget, space=space_file, slower=3.0)
    assert not (tmp_path / "c").exists()


def test_two_budgets_hold_at_once(
    folder: Path, table: str, space_file: str, tmp_path: Path
) -> None:
    found = pruned(folder, tmp_path / "p", table, "95%", space=space_file, budgets=("params=24k",))
    assert found["params"]["after"] <= 24_000 < found["params"]["before"]


def test_a_budget_that_nothing_meets_names_the_least_possible(
    folder: Path, table: str, space: SearchSpace, space_file: str, tmp_path: Path
) -> None:
    with pytest.raises(InfeasibleBudget, match="the least possible here is") as caught:
        pruned(folder, tmp_path / "p", table, "5%", space=space_file)
    least_ms = LatencyTable.load(table).estimate(SMALLEST, space)
    assert caught.value.smallest == pytest.approx(least_ms, rel=1e-9)
    assert caught.value.exit_code == 3 and not (tmp_path / "p").exists()


def test_options_the_table_cannot_price_are_no_options(
    folder: Path, table: str, space_file: str, tmp_path: Path
) -> None:
    loaded = LatencyTable.load(table)
    lacking = "mlp_r8_c16_h16_relu"
    entries = {name: entry for name, entry in loaded.entries.items() if name != lacking}
    path = replace(loaded, entries=entries).save(tmp_path / "t.json").path
    found = pruned(folder, tmp_path / "p", path, "75%", space=space_file)
    assert found["lacking"] == 1
    assert lacking not in {str(p) for t in Winner.load(tmp_path / "p").blocks
                           for p in parse(t).parts()}  # fmt: skip


def test_without_a_space_the_options_are_multiples_of_eight(
    folder: Path, table: str, tmp_path: Path
) -> None:
    found = pruned(folder, tmp_path / "p", table, "85%")
    assert found["offered"] > 40 and 0 < found["lacking"] < found["offered"]
    assert all(row["after"] % 8 == 0 or row["field"] == "heads" for row in found["cut"])


def test_on_a_device_that_is_elsewhere_all_is_timed_there(
    folder: Path, table: str, space_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    here = LatencyTable.load(table)
    board = replace(here.target, device=replace(here.target.device, cpu="board"))
    path = replace(here, target=board).save(tmp_path / "board.json").path
    asked: list[Any] = []

    def time(networks: Any, table: LatencyTable, config: Any, **given: Any) -> dict[str, Timing]:
        asked.append((table.target, given["benches"], config.processes))
        found: dict[str, Timing] = clock(path)(networks)
        return found

    monkeypatch.setattr(sys.modules["nas.pipeline.prune"], "time_networks", time)
    config = PruneConfig(latency_budget="85%", table=path, space=space_file, target=board.id)
    benches: Any = object()
    found = prune(str(folder), tmp_path / "p", config, progress=silent, benches=benches)
    assert asked and all(row == (board, benches, 8) for row in asked)
    assert found.values["target"] == board.id and found.values["measured"]
    asked.clear()
    found = prune(str(folder), tmp_path / "q", config, progress=silent)  # nobody to time it
    assert not asked and not found.values["measured"]


# ---------------------------------------------------------------- which channels
def test_losses_measured_one_by_one_do_as_well(
    folder: Path, table: str, space_file: str, tmp_path: Path
) -> None:
    found = pruned(folder, tmp_path / "p", table, "75%", space=space_file, importance="sensitivity")
    assert found["cut"] and found["importance"] == "sensitivity"
    assert found["scores"]["pruned"]["accuracy"] > 0.5


def test_training_on_is_taught_by_the_network_it_was(
    folder: Path, table: str, space_file: str, tmp_path: Path
) -> None:
    found = pruned(folder, tmp_path / "p", table, "75%", space=space_file, epochs=2)
    assert {"before", "pruned", "trained"} <= set(found["scores"])
    assert ("refitted" in found["scores"]) is found["statistics_refitted"]
    assert found["scores"]["trained"]["loss"] < found["scores"]["pruned"]["loss"]


# ---------------------------------------------------------------- bad input
def test_damaged_folders_and_misfits_are_refused(
    folder: Path, table: str, trained: NasHybrid, quarters: Data, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match="another folder"):
        pruned(folder, folder, table, "80%")
    with pytest.raises(ConfigError, match="above 0% and at most 100%"):
        pruned(folder, tmp_path / "p", table, "120%")
    with pytest.raises(ConfigError, match="importance must be one of"):
        PruneConfig(latency_budget="80%", importance="magnitude")
    damaged = saved(trained, tmp_path / "damaged", quarters)
    weights = damaged / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-100])
    with pytest.raises(CorruptFile, match="is not the file that was exported"):
        pruned(damaged, tmp_path / "p", table, "80%")
    (damaged / "winner.json").unlink()
    with pytest.raises(CorruptFile, match="timm cannot load"):
        pruned(damaged, tmp_path / "p", table, "80%", data="quarters")
    (tmp_path / "empty.json").write_text("{}")
    with pytest.raises(CorruptFile, match="not a latency table"):
        pruned(folder, tmp_path / "p", str(tmp_path / "empty.json"), "80%")


def test_the_command_line_ends_with_the_codes_it_promises(
    folder: Path, table: str, space_file: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(Target, "is_here", lambda self: False)
    monkeypatch.setattr(network, "to_onnx", TO_ONNX)
    monkeypatch.setattr(export_module, "_compare", COMPARE)

    def run(*words: str) -> tuple[int, str, str]:
        every = ["prune", *words, "--table", table, "--space", space_file, "-q"]
        result = CliRunner().invoke(app, every)
        return result.exit_code, result.stdout, result.stderr

    out = ["--out", str(tmp_path / "p")]
    code, text, err = run(str(folder), "--latency-budget", "80%", *out, "--json")
    assert code == 0, err
    assert json.loads(text)["cut"] and json.loads(text)["measured"] == {}
    assert (tmp_path / "p" / "model.onnx").stat().st_size > 1000
    code, _, err = run(str(folder), "--latency-budget", "1us", *out)
    assert code == 3 and "the least possible here is" in err
    code, _, err = run(str(tmp_path / "none"), "--latency-budget", "80%", *out)
    assert code == 2 and "timm knows no network" in err
    (tmp_path / "bad").mkdir()
    (tmp_path / "bad" / "winner.json").write_text("{")
    code, _, err = run(str(tmp_path / "bad"), "--latency-budget", "80%", *out)
    assert code == 6 and "winner.json" in err

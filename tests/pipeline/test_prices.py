"""What a network costs, by a table that is known; what a table's check says and leaves."""

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nas.block import Block
from nas.errors import ConfigError
from nas.latency import LatencyTable, Timing, compare
from nas.latency.calibrate import draw
from nas.latency.calibration import Calibration
from nas.latency.table import Entry
from nas.network import stock
from nas.pipeline import check_table, price, prices
from nas.pipeline.prices import published_in
from nas.space import SearchSpace
from nas.target import Target

HERE = "onnxruntime,fp32,b1,t1"
Ask = Callable[..., Any]


def silent(done: int, total: int, text: str) -> None:
    """Report no progress."""


def cost_ms(part: Block) -> float:
    return 0.001 + part.macs / 1e8


def table_of(blocks: Sequence[Block], path: Path) -> LatencyTable:
    parts = {part for block in blocks for part in block.parts()}
    entries = {
        str(part): Entry(
            ms=cost_ms(part), isolated_ms=2 * cost_ms(part), p10=0.1, p90=0.2, clean=30,
            taken=30, grade="A", by="known",
        )
        for part in parts
    }  # fmt: skip
    path.parent.mkdir(parents=True, exist_ok=True)
    return LatencyTable(target=Target.parse(HERE), entries=entries).save(path)


def truth(
    networks: Mapping[str, Sequence[Block]], *args: object, **kwargs: object
) -> dict[str, Timing]:
    """Stand in for time_networks: 10 % above the sum, so that the table is off by as much."""
    found = {}
    for name, blocks in networks.items():
        ms = 1.1 * sum(cost_ms(part) for block in blocks for part in block.parts())
        found[name] = Timing(
            median_ms=ms, p10=ms, p90=ms, p95=ms, ci_high_ms=1.01 * ms, clean=30, taken=30,
            grade="A", spread=0.0, repeat=0.002,
        )  # fmt: skip
    return found


def checked(
    table: LatencyTable, space: SearchSpace, *, networks: int, also: Any, **ignored: Any
) -> Any:
    """Stand in for check: the true times are those of `truth`."""
    blocks = {item.id: space.blocks(item) for item in draw(space, networks, seed=1)}
    blocks |= {name: known.blocks for name, known in also.items()}
    return compare(table, blocks, truth(blocks), space=space)


@pytest.fixture
def tiny() -> SearchSpace:
    return SearchSpace.load("tiny").replace(num_classes=7)


@pytest.fixture
def table(tiny: SearchSpace, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> LatencyTable:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(prices, "time_networks", truth)
    monkeypatch.setattr(prices, "check", checked)
    path = Path("runs/tables") / f"{Target.parse(HERE).id}.json"
    published = stock.blocks_of("efficientvit_m0")
    return table_of([*tiny.every_block(), *published], path)


@pytest.fixture
def ask(table: LatencyTable) -> Ask:
    def asked(what: str, **changes: Any) -> Any:
        given = {"space": None, "target": None, "table": None, "by_block": False, "measure": False}
        return price(what, **{**given, **changes}, progress=silent)

    return asked


def test_a_network_is_priced_by_name_by_file_and_by_its_blocks(
    ask: Ask, tiny: SearchSpace, table: LatencyTable, tmp_path: Path
) -> None:
    assert ask("efficientvit_m0").values["predicted_ms"] == pytest.approx(
        sum(cost_ms(p) for block in stock.blocks_of("efficientvit_m0") for p in block.parts())
    )
    largest = tiny.blocks(tiny.largest())
    expected = table.estimate(largest)
    assert ask(" ".join(map(str, largest))).values["predicted_ms"] == expected
    file = tmp_path / "a.json"
    file.write_text(json.dumps(tiny.smallest().to_json()))
    with_default_head = ask(str(file))  # the space has ten classes, the table seven
    assert "measured" in with_default_head.values
    assert "lacks an entry: head_" in with_default_head.text()


def test_a_published_network_is_calibrated_as_the_space_it_is_of(
    ask: Ask, table: LatencyTable
) -> None:
    plain_ms = ask("efficientvit_m0").values["predicted_ms"]
    double = Calibration(
        form="affine", coefficients={"constant": 0.0, "scale": 2.0}, fitted_on={"a": 1.0},
        held_out={"mean": 0.01, "worst": 0.02},
    )  # fmt: skip
    replace(table, calibrations={"efficientvit@224": double}).save(table.path)
    found = ask("efficientvit_m0")
    assert found.values["predicted_ms"] == pytest.approx(2 * plain_ms)
    assert found.values["space"] == "efficientvit" and "1.0% off" in found.text()
    loaded = LatencyTable.load(table.path)
    assert {name: known.fit for name, known in published_in(loaded).items()} == {
        "efficientvit_m0": double
    }


def test_blocks_are_listed_with_their_shares(ask: Ask) -> None:
    found = ask("efficientvit_m0", by_block=True)
    blocks = found.values["blocks"]
    assert [row["block"] for row in blocks] == list(map(str, stock.blocks_of("efficientvit_m0")))
    assert sum(row["ms"] for row in blocks) == pytest.approx(found.values["predicted_ms"])
    assert blocks[0]["block"] in found.text() and "%" in found.text()


def test_what_is_interpolated_and_what_is_priced_whole_is_said(
    ask: Ask, table: LatencyTable, tiny: SearchSpace
) -> None:
    network = tiny.blocks(tiny.largest())
    whole = next(block for block in network if block.kind == "mb4d")
    entries = {
        name: replace(entry, interpolated=0.02) if name.startswith("mlp") else entry
        for name, entry in table.entries.items()
    }
    fit = Calibration(
        form="affine", coefficients={"constant": 0.0, "scale": 1.0}, by_block=("mb4d",),
        fitted_on={tiny.largest().id: 1.0}, held_out={"mean": 0.01, "worst": 0.02},
    )  # fmt: skip
    mine = replace(table, entries=entries, calibrations={"tiny@32": fit})
    mine.save(table.path)
    text = " ".join(map(str, network))
    assert "lacks" in ask(text, space="tiny").text()  # its blocks are not measured whole
    assert "2.0% off on measured ones left out" in ask(text).text()
    blocks = {str(b): entries[str(whole.parts()[0])] for b in network if b.kind == "mb4d"}
    replace(mine, entries=entries | blocks).save(table.path)
    found = ask(text, space="tiny", by_block=True)
    assert "mb4d by whole blocks" in found.text() and "(whole block)" in found.text()
    assert found.values["interpolated"]["share"] == 0.0  # no mlp is left in its price
    other = ask(text, space="hybrid-64")
    assert "not calibrated" in other.text()


def test_measuring_stands_beside_the_prediction(ask: Ask) -> None:
    found = ask("efficientvit_m0", measure=True)
    assert found.values["measured"]["median_ms"] == pytest.approx(
        1.1 * found.values["predicted_ms"]
    )
    assert "grade A" in found.text() and "not calibrated" in found.text()


@pytest.mark.parametrize(
    ("what", "rule"),
    [
        ("largest", "name it with --space"),
        ("efficientfromer_l1", "timm knows no network .*efficientformer_l1"),
        ("stem_r32_x9", "stem_r32_x9"),
    ],
)
def test_what_is_no_network_is_said_with_a_way_out(ask: Ask, what: str, rule: str) -> None:
    with pytest.raises(ConfigError, match=rule):
        ask(what)


def test_a_check_says_how_far_off_a_table_is_beside_its_rivals_and_draws_it(
    table: LatencyTable, tmp_path: Path
) -> None:
    found = check_table(
        "tiny", target=None, table=None, networks=12, published=True, out=tmp_path / "page",
        seed=1, progress=silent,
    )  # fmt: skip
    errors = found.values["errors"]
    assert len(found.values["rows"]) == 12 + 1
    assert "efficientvit_m0" in {row["id"] for row in found.values["rows"]}
    assert errors["table_ms"]["mean"] == pytest.approx(1 - 1 / 1.1)
    assert found.values["repeat"] == pytest.approx(0.002)
    assert all(error == pytest.approx(1 / 1.1 - 1) for error in found.values["by_kind"].values())
    text = found.text()
    assert "this table" in text and "line through MACs" in text and "measuring again" in text
    page = (tmp_path / "page/index.html").read_text()
    assert "efficientvit_m0" in page and "http" not in page.replace("http-equiv", "")
    assert (tmp_path / "page/prediction.png").read_bytes().startswith(b"\x89PNG")


def test_a_check_without_a_table_says_how_to_make_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="nas profile --space hybrid-64"):
        check_table(
            "hybrid-64", target="onnxruntime,fp32,b3,t1", table=None, networks=5,
            published=False, out=None, seed=1, progress=silent,
        )  # fmt: skip

"""Tables of further targets, and a winner that is checked on every target it was promised for."""

import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nas.errors import ConfigError
from nas.latency.table import LatencyTable
from nas.manifest import Accuracy, Ancestry, TargetResult, Winner
from nas.pipeline import winners
from nas.pipeline.config import RunConfig
from nas.pipeline.materials import Materials
from nas.pipeline.run import Run
from nas.space import SearchSpace
from nas.target import Target
from nas.winner.promise import Statement, VerifyResult

FIRST, FURTHER = "onnxruntime,fp32,b1,t1", "torch,fp32,b1,t1"
IDS = [Target.parse(words).id for words in (FIRST, FURTHER)]
MakeTable = Callable[..., LatencyTable]


def materials_with(tables: Sequence[LatencyTable], folder: Path) -> Materials:
    for table in tables:
        table.save(folder / f"runs/tables/{table.target.id}.json")
    config = RunConfig(space="tiny", data="digits", target=FIRST, other_targets=(FURTHER,))
    return Materials(Run(folder / "runs/mine", config, resume=False))


def test_a_further_target_needs_a_whole_table_and_the_command_for_it_is_named(
    made_table: MakeTable, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("nas.latency.table.packaged_folder", lambda name: tmp_path / "none")
    space = SearchSpace.load("tiny").replace(num_classes=10)
    first, further = (made_table(space, words=words) for words in (FIRST, FURTHER))
    command = "torch-fp32-b1-t1 --space tiny --data digits --target torch,fp32,b1,t1`"
    with pytest.raises(ConfigError, match=f"no latency table of torch.*in a run of its.*{command}"):
        _ = materials_with([first], tmp_path).tables
    of_others = made_table(SearchSpace.load("tiny").replace(num_classes=3), words=FURTHER)
    with pytest.raises(ConfigError, match=f"no entry for head_.*{command}"):
        _ = materials_with([first, of_others], tmp_path).tables
    assert list(materials_with([first, further], tmp_path).tables) == IDS


@pytest.fixture
def exported(tmp_path: Path) -> Winner:
    """A winner that was promised for two targets of this machine and one of another."""
    space = SearchSpace.load("tiny")
    names = [*IDS, "tensorrt-10.3_fp16_nchw_b1_t1@board-aarch64"]
    winner = Winner(
        architecture=space.smallest().to_json(),
        blocks=tuple(map(str, space.blocks(space.smallest()))),
        accuracy=Accuracy(search=0.9),
        budgets={f"latency_ms:{name}": 1.0 for name in names},
        targets=tuple(TargetResult(target=name, predicted_ms=0.9) for name in names),
        ancestry=Ancestry(study="s", trial=0),
        data="digits",
    )
    winner.save(tmp_path)
    return winner


def checked(folder: Path, *, target: Target, **others: Any) -> VerifyResult:
    """Return a check that finds the second target over its budget."""
    files = Statement(about="files", text="as they were", is_kept=True)
    timed = Statement(about="latency_ms", text=f"timed on {target.id}", is_kept=target.id != IDS[1])
    return VerifyResult(winner=Winner.load(folder), target=target.id, statements=(files, timed))


def test_a_winner_is_checked_on_every_target_that_was_promised_and_is_here(
    exported: Winner, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(winners, "verify_winner", checked)

    def verify(target: str | None = None) -> tuple[str, dict[str, Any], bool]:
        found = winners.verify_folder(
            tmp_path, target=target, data=None, progress=lambda done, total, text: None
        )
        return found.text(), json.loads(json.dumps(found.to_json())), found.problem is not None

    text, values, is_broken = verify()
    assert [row["text"] for row in values["statements"]] == [
        "as they were", f"timed on {IDS[0]}", f"timed on {IDS[1]}",
    ]  # fmt: skip
    assert is_broken and not values["kept"]
    assert f"latency_ms  kept   timed on {IDS[0]}" in text and f"BROKEN timed on {IDS[1]}" in text
    text, values, is_broken = verify(FIRST)
    assert values["kept"] and not is_broken and IDS[1] not in text.partition("\n")[2]
    foreign = [exported.targets[2]]
    replace(exported, targets=tuple(foreign)).save(tmp_path)
    assert f"timed on {IDS[0]}" in verify()[0]  # none is here: the default target

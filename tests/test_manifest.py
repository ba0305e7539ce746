"""winner.json: what it holds comes back, and what is damaged or contradicts itself is refused."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nas.errors import ConfigError, CorruptFile
from nas.files import digest_file
from nas.manifest import Accuracy, Ancestry, Int8Accuracy, TargetResult, Winner
from nas.space import SearchSpace

HERE, THERE = "onnxruntime-1.31.1_fp32_nchw_b1_t1@a-x86_64", "onnxruntime-1.31.1@b-x86_64"


def a_winner(**changes: Any) -> Winner:
    """Return the smallest network of the tiny space, measured on one target."""
    space = SearchSpace.load("tiny")
    smallest = space.smallest()
    values: dict[str, Any] = {
        "architecture": smallest.to_json(),
        "blocks": tuple(str(block) for block in space.blocks(smallest)),
        "accuracy": Accuracy(search=0.985, search_images=360, test=0.98, test_images=360),
        "budgets": {f"latency_ms:{HERE}": 0.25, "params": 1e6},
        "targets": (TargetResult(target=HERE, predicted_ms=0.2, measured_ms=0.21, grade="A"),),
        "ancestry": Ancestry(study="s", trial=3, supernet="ab", tables={HERE: "cd"}, teacher="ef"),
        "data": "digits",
        "command": "nas quickstart",
    }
    return Winner(**{**values, **changes})


def test_a_saved_winner_comes_back_equal_with_its_id(tmp_path: Path) -> None:
    winner = a_winner()
    winner.save(tmp_path)
    back = Winner.load(tmp_path)
    assert back == winner
    assert back.id == SearchSpace.load("tiny").smallest().id


def test_winner_json_has_the_documented_keys(tmp_path: Path) -> None:
    a_winner().save(tmp_path)
    plain = json.loads((tmp_path / "winner.json").read_text())
    documented = {"schema", "architecture", "blocks", "accuracy", "budgets", "targets"}
    assert documented | {"ancestry", "command"} <= set(plain)
    assert {"search", "test"} <= set(plain["accuracy"])
    target = {"target", "predicted_ms", "measured_ms", "ci_high_ms", "p95_ms", "grade"}
    target |= {"reference_promised_ms", "reference_measured_ms"}
    assert set(plain["targets"][0]) == target
    assert {"study", "trial", "supernet", "tables", "teacher", "pruned_from"} == set(
        plain["ancestry"]
    )


def test_a_winner_of_the_second_schema_says_nothing_of_the_machine_s_speed(tmp_path: Path) -> None:
    winner = a_winner()
    plain = json.loads(winner.save(tmp_path).read_text())
    for row in plain["targets"]:
        del row["reference_promised_ms"], row["reference_measured_ms"]
    (tmp_path / "winner.json").write_text(json.dumps({**plain, "schema": 2}))
    assert Winner.load(tmp_path) == winner
    assert winner.targets[0].slower is None


def test_a_winner_of_the_first_schema_keeps_what_its_int8_file_scored(tmp_path: Path) -> None:
    path = a_winner().save(tmp_path)
    plain = {**json.loads(path.read_text()), "schema": 1}
    flat = {"search": 0.98, "search_images": 300, "test": None, "test_images": 0}
    for search, test, int8 in (
        (0.97, 0.96, {"onnxruntime": Int8Accuracy(search=0.97, test=0.96)}),
        (None, None, {}),
    ):
        accuracy = {**flat, "search_int8": search, "test_int8": test}
        path.write_text(json.dumps({**plain, "accuracy": accuracy}))
        winner = Winner.load(tmp_path)
        assert winner.accuracy == Accuracy(search=0.98, search_images=300, int8=int8)
        winner.save(tmp_path / "again")
        assert Winner.load(tmp_path / "again") == winner
    path.write_text(json.dumps({**plain, "accuracy": {"search": 0.98}}))
    assert Winner.load(tmp_path).accuracy == Accuracy(search=0.98)
    path.write_text(json.dumps({**plain, "accuracy": 0.98}))
    with pytest.raises(CorruptFile, match="accuracy"):
        Winner.load(tmp_path)


def test_a_winner_cut_at_any_byte_is_a_corrupt_file(tmp_path: Path) -> None:
    raw = a_winner().save(tmp_path).read_bytes()
    for end in range(0, len(raw) - 2, 37):
        (tmp_path / "winner.json").write_bytes(raw[:end])
        with pytest.raises(CorruptFile, match=r"winner\.json"):
            Winner.load(tmp_path)


def test_a_missing_winner_is_a_corrupt_file_that_names_the_path(tmp_path: Path) -> None:
    with pytest.raises(CorruptFile, match=r"winner\.json cannot be read"):
        Winner.load(tmp_path)


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("schema", 4, "schema 4"),
        ("acuracy", {}, "did you mean 'accuracy'"),
        ("blocks", ["stem_r32"], "stem_r32"),
        ("architecture", {"schema": 1}, "not an Architecture"),
        ("accuracy", {"search": 98.5}, "from 0 to 1"),
        ("accuracy", {"search": "high"}, "accuracy.search"),
        ("accuracy", {"search": 0.9, "int8": {"openvino": {"search": 2}}}, "from 0 to 1"),
        ("accuracy", {"search": 0.9, "int8": 0.9}, "accuracy.int8"),
        ("budgets", {"params": 0}, "budget of params must be above 0"),
        ("targets", [{"target": HERE, "predicted_ms": 0.0}], "predicted_ms must be above 0"),
        ("targets", [{"target": HERE}, {"target": HERE}], "each target stands once"),
        ("files", {"../../secret": "ab"}, "plain names"),
        ("files", {"/etc/passwd": "ab"}, "plain names"),
        ("files", {"..": "ab"}, "plain names"),
    ],
)
def test_a_winner_that_breaks_a_rule_is_refused_by_name(
    tmp_path: Path, key: str, value: Any, message: str
) -> None:
    path = a_winner().save(tmp_path)
    path.write_text(json.dumps({**json.loads(path.read_text()), key: value}))
    with pytest.raises(CorruptFile, match=message):
        Winner.load(tmp_path)


def test_blocks_of_another_network_than_the_architecture_are_refused() -> None:
    space = SearchSpace.load("tiny")
    other = tuple(str(block) for block in space.blocks(space.largest()))
    with pytest.raises(ConfigError, match="same network"):
        a_winner(blocks=other)


def test_files_are_believed_only_with_the_bytes_they_were_exported_with(tmp_path: Path) -> None:
    (tmp_path / "model.onnx").write_bytes(b"network")
    winner = a_winner(files={"model.onnx": digest_file(tmp_path / "model.onnx")})
    winner.check_files(tmp_path)
    (tmp_path / "model.onnx").write_bytes(b"netw0rk")
    assert winner.changed_files(tmp_path) == ("model.onnx",)
    with pytest.raises(CorruptFile, match=r"model\.onnx .*export the winner again"):
        winner.check_files(tmp_path)
    (tmp_path / "model.onnx").unlink()
    assert winner.changed_files(tmp_path) == ("model.onnx",)


def test_a_latency_budget_belongs_to_its_target() -> None:
    winner = a_winner()
    assert winner.latency_budget_ms(HERE) == 0.25
    assert winner.latency_budget_ms(THERE) is None
    assert winner.on(THERE) is None


def test_a_budget_without_target_is_that_of_the_only_target() -> None:
    lone = a_winner(budgets={"latency_ms": 0.3})
    assert (lone.latency_budget_ms(HERE), lone.latency_budget_ms(THERE)) == (0.3, None)
    two = replace(lone, targets=(*lone.targets, TargetResult(target=THERE)))
    assert two.latency_budget_ms(HERE) is None


def test_a_budget_is_held_against_the_upper_end_of_the_interval() -> None:
    assert TargetResult(target=HERE).upper_ms is None
    assert TargetResult(target=HERE, measured_ms=1.0).upper_ms == 1.0
    assert TargetResult(target=HERE, measured_ms=1.0, ci_high_ms=1.1).upper_ms == 1.1

"""Files that leave and times that come back: the table of a device without Python."""

import csv
import json
import shutil
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from nas.block import parse
from nas.errors import ConfigError, CorruptFile, StorageError
from nas.latency import LatencyTable, ProfileConfig
from nas.latency.plan_folder import PlanManifest, read_plan, write_plan
from nas.latency.recipes import parts_of
from nas.latency.results import Row, add_results, summarise_rows
from nas.space import SearchSpace
from nas.target import Target

NAME = "tensorrt-10.3_fp16_nchw_b1_t1@jetson-orin-nano-aarch64"
CONFIG = ProfileConfig(calibrate_on=6)


@pytest.fixture(scope="session")
def tiny() -> SearchSpace:
    return SearchSpace.load("tiny").replace(num_classes=10)


@pytest.fixture
def elsewhere() -> Target:
    return Target.from_id(NAME)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory, tiny: SearchSpace, export: Any) -> Path:
    """A plan's folder, for looking only."""
    folder = tmp_path_factory.mktemp("plans") / "plan"
    write_plan(tiny, folder, CONFIG, check_networks=5, export=export)
    return folder


@pytest.fixture
def own_folder(folder: Path, tmp_path: Path) -> Path:
    """A copy of the plan's folder that a test may spoil."""
    return Path(shutil.copytree(folder, tmp_path / "plan"))


@pytest.fixture
def timed(true_ms: Any) -> Callable[..., list[list[str]]]:
    """Time a plan's files on a device that knows what they take, by what is in the files."""

    def work(folder: Path, *, repeats: int = 5, jitter: float = 0.002) -> list[list[str]]:
        rng = np.random.default_rng(0)
        rows = []
        for _ in range(repeats):
            for path in sorted(folder.glob("*.onnx")):
                nodes = onnx.load(str(path)).graph.node
                ms = true_ms([parse(node.name.rpartition("/")[2]) for node in nodes])
                rows.append([path.name, f"{ms * (1 + jitter * rng.normal()):.9f}"])
        return rows

    return work


def save(path: Path, rows: Sequence[Sequence[str]], header: str = "file,median_ms") -> Path:
    with open(path, "w", newline="") as stream:
        stream.write(header + "\n")
        csv.writer(stream).writerows(rows)
    return path


# ---------------------------------------------------------------- the whole way
def test_times_of_the_plan_s_files_make_a_table_that_predicts_unseen_networks(
    folder: Path, timed: Any, true_ms: Any, tiny: SearchSpace, elsewhere: Target, tmp_path: Path
) -> None:
    results = save(tmp_path / "times.csv", timed(folder))
    found = add_results(read_plan(folder), results, elsewhere, tmp_path / "t.json")
    table = LatencyTable.load(tmp_path / "t.json")
    assert found.problem() is None and table.missing(tiny.every_block()) == []
    assert table.target.id == NAME
    assert tiny.largest().id in table.calibrations["tiny@32"].fitted_on
    blocks = tiny.blocks(tiny.largest())
    assert table.estimate(blocks, tiny) == pytest.approx(true_ms(parts_of(blocks)), rel=0.02)
    assert found.check is not None and len(found.check.rows) == 5
    ours = found.check.errors["table_ms"].mean
    assert ours < 0.02 and ours < found.check.errors["isolated_ms"].mean
    assert not {row.id for row in found.check.rows} & set(table.calibrations["tiny@32"].fitted_on)
    assert found.repeated == len(list(folder.glob("*.onnx")))


def test_the_manifest_says_of_each_file_what_it_is_and_what_it_is_for(
    folder: Path, tiny: SearchSpace
) -> None:
    manifest = read_plan(folder)
    plain = json.loads((folder / "manifest.json").read_text())
    assert {path.name for path in folder.glob("*.onnx")} == set(plain["files"])
    assert [len(manifest.of_kind(kind)) for kind in ("reference", "calibration", "check")] == [
        *(1, 6, 5)
    ]
    used = {entry for file in manifest.files.values() for entry in file.recipes}
    assert used == set(manifest.entries)
    largest = manifest.files[f"calibration-{tiny.largest().id}.onnx"]
    assert largest.input_shape == (1, 3, 32, 32)
    readme = (folder / "README.md").read_text()
    assert "trtexec" in readme and "benchmark_app" in readme
    assert "@FILES@" not in readme and "@CHECK@" not in readme


def test_a_plan_goes_into_a_new_folder_only_and_leaves_nothing_behind_on_a_full_disk(
    tmp_path: Path, tiny: SearchSpace, export: Any, files_at_most: Any
) -> None:
    with pytest.raises(ConfigError, match="must be a new folder"):
        write_plan(tiny, tmp_path, CONFIG, export=export)
    with files_at_most(64), pytest.raises((StorageError, OSError)):
        write_plan(tiny, tmp_path / "plan", CONFIG, export=export)
    assert list(tmp_path.iterdir()) == []


# ---------------------------------------------------------------- a part of it
def test_a_part_of_the_times_makes_a_part_of_the_table_and_says_what_is_missing(
    folder: Path, timed: Any, tiny: SearchSpace, elsewhere: Target, tmp_path: Path
) -> None:
    rows, path = timed(folder), tmp_path / "t.json"
    part = [row for row in rows if row[0] < "chain-0040"]
    first = add_results(read_plan(folder), save(tmp_path / "a.csv", part), elsewhere, path)
    lacking = len(first.missing)
    assert lacking > 20 and first.check is None
    assert str(first.problem()).startswith(f"{lacking} files of the plan have no time yet")
    assert first.missing[0] in str(first.problem())
    kept = LatencyTable.load(path)
    assert 0 < len(kept.entries) < len(read_plan(folder).entries) and not kept.calibrations
    whole = add_results(read_plan(folder), save(tmp_path / "b.csv", rows), elsewhere, path)
    assert whole.problem() is None and "tiny@32" in whole.table.calibrations
    assert {name: whole.table.entries[name] for name in kept.entries} == dict(kept.entries)


def test_entries_of_another_plan_of_the_same_target_stay(
    folder: Path, timed: Any, elsewhere: Target, tmp_path: Path, tiny: SearchSpace, export: Any
) -> None:
    path = tmp_path / "t.json"
    add_results(read_plan(folder), save(tmp_path / "a.csv", timed(folder)), elsewhere, path)
    before = LatencyTable.load(path)
    more = write_plan(tiny.replace(num_classes=7), tmp_path / "p2", CONFIG, export=export)
    add_results(more, save(tmp_path / "b.csv", timed(tmp_path / "p2")), elsewhere, path)
    after = LatencyTable.load(path)
    assert set(before.entries) < set(after.entries)


# ---------------------------------------------------------------- grades
@pytest.mark.parametrize(
    ("rows", "grade"),
    [
        ([Row(median_ms=1.0)], "C"),
        ([Row(median_ms=1.0, p10_ms=0.99, p90_ms=1.01, runs=100)], "B"),
        ([Row(median_ms=1.0, p10_ms=0.7, p90_ms=1.3, runs=100)], "C"),
        ([Row(median_ms=1.0), Row(median_ms=1.001)], "B"),
        ([Row(median_ms=1.0), Row(median_ms=1.001), Row(median_ms=0.999)], "A"),
        ([Row(median_ms=1.0), Row(median_ms=1.5), Row(median_ms=0.7)], "C"),
    ],
)
def test_a_grade_is_what_the_repeats_deserve(rows: list[Row], grade: str) -> None:
    assert summarise_rows(rows).grade == grade


def test_without_repeats_everything_is_grade_c_and_says_so(
    folder: Path, timed: Any, elsewhere: Target, tmp_path: Path
) -> None:
    results = save(tmp_path / "times.csv", timed(folder, repeats=1))
    found = add_results(read_plan(folder), results, elsewhere, tmp_path / "t.json")
    assert {entry.grade for entry in found.table.entries.values()} == {"C"}
    assert all("spread unknown" in entry.by for entry in found.table.entries.values())
    assert found.repeated == 0


def test_a_device_that_did_not_keep_its_speed_gets_grade_c(
    folder: Path, timed: Any, elsewhere: Target, tmp_path: Path
) -> None:
    rows = [row for row in timed(folder, jitter=1e-5) if row[0] != "reference.onnx"]
    quiet = save(tmp_path / "a.csv", [*rows, *[["reference.onnx", "0.4"]] * 3])
    grades = [
        item.grade
        for item in add_results(
            read_plan(folder), quiet, elsewhere, tmp_path / "t.json"
        ).table.entries.values()
    ]
    assert set(grades) == {"A"}
    warm = [["reference.onnx", ms] for ms in ("0.4", "0.5", "0.6")]
    found = add_results(
        read_plan(folder), save(tmp_path / "b.csv", [*rows, *warm]), elsewhere, tmp_path / "t.json"
    )
    assert {entry.grade for entry in found.table.entries.values()} == {"C"}


def test_a_price_that_is_not_told_from_zero_is_never_zero_or_below(
    folder: Path, timed: Any, elsewhere: Target, tmp_path: Path
) -> None:
    names = [name for name, _ in timed(folder, repeats=1) if not name.startswith("check")]
    same = [[name, "0.5"] for name in names]
    found = add_results(
        read_plan(folder), save(tmp_path / "a.csv", same), elsewhere, tmp_path / "t.json"
    )
    by = {entry.by.rpartition("; ")[2] for entry in found.table.entries.values() if entry.ms < 0.1}
    assert by == {"not told from zero"}
    assert all(entry.ms > 0 for entry in found.table.entries.values())


# ---------------------------------------------------------------- rows nobody can believe
@pytest.mark.parametrize(
    ("line", "says"),
    [
        ("chain-0001.onnx,-1", "line 3: median_ms must be a number above 0.*'-1'"),
        ("chain-0001.onnx,0", "line 3: median_ms must be a number above 0.*'0'"),
        ("chain-0001.onnx,nan", "line 3: median_ms must be a number above 0.*'nan'"),
        ("chain-0001.onnx,inf", "line 3: median_ms .*'inf'"),
        ("chain-0001.onnx,1e400", "line 3: median_ms .*'1e400'"),
        ("chain-0001.onnx,1000001", "line 3: median_ms .*at most 1,000,000.*'1000001'"),
        ("chain-0001.onnx,fast", "line 3: median_ms must be a number.*'fast'"),
        ("chain-0001.onnx,1_0", "line 3: median_ms must be a number.*'1_0'"),
        ("chain-0001.onnx,", "line 3: median_ms must be a number, but is empty"),
        ("chain-0001.onnx", "line 3: a row has 2 values.*has 1"),
        ("chain-0001.onnx,1,5", "line 3: a row has 2 values.*has 3"),
        ("chain-001.onnx,1", "line 3: unknown file 'chain-001.onnx'; did you mean"),
        ("../../etc/passwd,1", "line 3: unknown file"),
        ('chain-0001.onnx,"1', "line 3: not CSV"),
    ],
)
def test_a_row_that_breaks_a_rule_is_named_by_line_value_and_rule(
    folder: Path, tmp_path: Path, elsewhere: Target, line: str, says: str
) -> None:
    results = tmp_path / "times.csv"
    results.write_text(f"file,median_ms\nchain-0002.onnx,1\n{line}\n")
    with pytest.raises(ConfigError, match=says):
        add_results(read_plan(folder), results, elsewhere, tmp_path / "t.json")
    assert not (tmp_path / "t.json").exists()


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("", "line 1: the column file is missing"),
        ("file,ms\n", "line 1: the columns are .*'ms'"),
        ("file,median_ms,median_ms\n", "line 1: the columns are"),
        ("file;median_ms\n", "line 1: the columns are"),
        ("median_ms\n1\n", "line 1: the column file is missing"),
        ("file,median_ms,p10_ms\nreference.onnx,1,0.9\n", "line 2: p10_ms and p90_ms belong"),
        ("file,median_ms,p10_ms,p90_ms\nreference.onnx,1,2,3\n", "line 2: p10_ms <= median_ms"),
        ("file,median_ms,runs\nreference.onnx,1,0\n", "line 2: runs must be a whole number"),
        ("file,median_ms,runs\nreference.onnx,1,2.5\n", "line 2: runs must be a whole number"),
    ],
)
def test_a_file_of_other_columns_is_refused(
    folder: Path, tmp_path: Path, elsewhere: Target, text: str, says: str
) -> None:
    (tmp_path / "times.csv").write_text(text)
    with pytest.raises(ConfigError, match=says):
        add_results(read_plan(folder), tmp_path / "times.csv", elsewhere, tmp_path / "t.json")


def test_what_spreadsheets_write_is_read(folder: Path, tmp_path: Path, elsewhere: Target) -> None:
    raw = b"\xef\xbb\xbfmedian_ms, file ,runs\r\n 0.5 ,reference.onnx,\r\n\r\n,,\r\n"
    (tmp_path / "times.csv").write_bytes(raw)
    found = add_results(read_plan(folder), tmp_path / "times.csv", elsewhere, tmp_path / "t.json")
    assert "reference.onnx" not in found.missing
    (tmp_path / "times.csv").write_bytes(b"file,median_ms\n\xff\xfe,1\n")
    with pytest.raises(ConfigError, match="not UTF-8"):
        add_results(read_plan(folder), tmp_path / "times.csv", elsewhere, tmp_path / "t.json")
    with pytest.raises(ConfigError, match="cannot be read"):
        add_results(read_plan(folder), tmp_path / "none.csv", elsewhere, tmp_path / "t.json")


# ---------------------------------------------------------------- a plan that does not fit
def test_a_changed_file_or_manifest_is_corrupt(own_folder: Path) -> None:
    folder = own_folder
    manifest = folder / "manifest.json"
    whole = manifest.read_text()
    for old, new in (('"copies": 3', '"copies": 4'), ('"schema": 1', '"schema": 9')):
        manifest.write_text(whole.replace(old, new, 1))
        with pytest.raises(CorruptFile, match="changed after|schema 1"):
            read_plan(folder)
    manifest.write_text(whole[:-40])
    with pytest.raises(CorruptFile, match="not whole JSON"):
        read_plan(folder)
    manifest.write_text(whole)
    file = folder / "chain-0001.onnx"
    raw = file.read_bytes()
    file.write_bytes(raw + b"x")
    with pytest.raises(CorruptFile, match=r"chain-0001.onnx is not the file of sha256"):
        read_plan(folder)
    file.unlink()
    with pytest.raises(CorruptFile, match=r"chain-0001.onnx cannot be read"):
        read_plan(folder)
    file.write_bytes(raw)
    assert isinstance(read_plan(folder), PlanManifest)


def test_a_plan_whose_recipes_are_another_version_s_is_not_read(own_folder: Path) -> None:
    from dataclasses import replace

    from nas.files import write_json

    other = replace(read_plan(own_folder), copies=4).sealed()
    write_json(own_folder / "manifest.json", other)
    with pytest.raises(CorruptFile, match="whose recipes are others"):
        read_plan(own_folder)


def test_a_target_of_another_batch_is_refused(folder: Path, timed: Any, tmp_path: Path) -> None:
    results = save(tmp_path / "times.csv", timed(folder, repeats=1))
    other = Target.from_id(NAME.replace("_b1_", "_b8_"))
    with pytest.raises(ConfigError, match="batch 1.*says b8"):
        add_results(read_plan(folder), results, other, tmp_path / "t.json")

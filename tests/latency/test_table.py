import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from nas.block import parse
from nas.errors import ConfigError, CorruptFile, StorageError
from nas.latency import LatencyTable, find_table
from nas.latency.calibration import Calibration, calibration_name, footprint_mb
from nas.latency.table import Entry
from nas.space import SearchSpace
from nas.target import Target

BLOCKS = ["stem_r32_i3_c8-16_b1_a1", "mb4d_r8_c16_h32_p3", "head_r8_i16_o10_bn_d0"]
FIT = Calibration(
    form="affine",
    coefficients={"constant": 0.5, "scale": 1.1},
    fitted_on={"0a1b2c3d4e5f": 0.5},
    held_out={"mean": 0.01, "worst": 0.02, "mean_of_sum": 0.1, "worst_of_sum": 0.2},
)


MEMORY = Calibration(
    form="parts",
    coefficients={
        "constant": 0.5, "scale": 1.1, "scale_mlp": 2.0,
        "cold": 0.8, "ms_per_mb": 3.0, "knee_mb": 0.1,
    },
    fitted_on={"0a1b2c3d4e5f": 0.5},
    held_out={"mean": 0.01, "worst": 0.02, "mean_of_sum": 0.1, "worst_of_sum": 0.2},
)  # fmt: skip


def price(ms: float, **changes: Any) -> Entry:
    values: dict[str, Any] = {
        "p10": ms * 0.9,
        "p90": ms * 1.1,
        "clean": 30,
        "taken": 40,
        "grade": "A",
    }
    values |= {"cold_ms": 1.5 * ms, "isolated_ms": ms + 1, "by": "slope of 1 and 3"}
    return Entry(**{"ms": ms, **values, **changes})


@pytest.fixture
def table(target: Target) -> LatencyTable:
    entries = {
        "stem_r32_i3_c8-16_b1_a1": price(1.0),
        "pool_r8_c16_p3": price(0.25),
        "mlp_r8_c16_h32": price(2.0),
        "head_r8_i16_o10_bn_d0": price(0.125),
    }
    return LatencyTable(
        target=target,
        entries=entries,
        calibrations={"tiny": FIT},
        protocol={"samples": 30},
        provenance={"exporter": "dynamo, opset 20"},
    )


def full(space: SearchSpace, target: Target, seed: int = 0) -> LatencyTable:
    rng = np.random.default_rng(seed)
    names = sorted({str(part) for block in space.every_block() for part in block.parts()})
    return LatencyTable(
        target=target, entries={name: price(rng.uniform(0.01, 1)) for name in names}
    )


# ---------------------------------------------------------------- prices
def test_an_estimate_is_the_sum_of_the_parts(table: LatencyTable) -> None:
    assert table.estimate(BLOCKS) == 3.375
    assert table.estimate([parse(text) for text in BLOCKS]) == 3.375


def test_a_block_with_an_entry_of_its_own_is_priced_by_it(table: LatencyTable) -> None:
    entries = {**table.entries, "mb4d_r8_c16_h32_p3": price(2.125)}
    assert replace(table, entries=entries).estimate(BLOCKS) == 3.25


def test_a_space_s_calibration_is_used_for_that_space_alone(table: LatencyTable) -> None:
    assert table.estimate(BLOCKS, "tiny") == pytest.approx(0.5 + 1.1 * 3.375)
    assert table.estimate(BLOCKS, "hybrid") == 3.375


def test_kinds_have_scales_of_their_own_and_cold_caches_cost_time_from_the_knee_on(
    table: LatencyTable,
) -> None:
    fitted = replace(table, calibrations={"tiny": MEMORY})
    megabytes = sum(parse(text).bytes for text in BLOCKS) / 1e6
    share = 1 / (1 + (0.1 / (megabytes + 4 * 0.02)) ** 6)
    parts_ms = 1.1 * (1.0 + 0.25 + 0.125) + 2.0 * 2.0
    cold_ms = 0.8 * 0.5 * 3.375 + 3.0 * megabytes
    assert fitted.estimate(BLOCKS, "tiny") == pytest.approx(0.5 + parts_ms + share * cold_ms)
    assert fitted.block_ms(parse(BLOCKS[1]), "tiny") == pytest.approx(1.1 * 0.25 + 4.0)
    assert fitted.block_ms(parse(BLOCKS[1])) == 2.25


def test_a_table_that_does_not_know_cold_prices_is_not_priced_with_them(
    table: LatencyTable,
) -> None:
    old = {name: replace(entry, cold_ms=None) for name, entry in table.entries.items()}
    fitted = replace(table, entries=old, calibrations={"tiny": MEMORY})
    with pytest.raises(ConfigError, match="stem_.* costs with cold caches.*`nas profile` again"):
        fitted.estimate(BLOCKS, "tiny")
    assert fitted.estimate(BLOCKS) == 3.375


def test_a_calibration_is_of_one_image_size_of_a_space(table: LatencyTable) -> None:
    tiny = SearchSpace.load("tiny")
    sized = replace(table, calibrations={"tiny@32": FIT, "tiny@48": MEMORY})
    assert sized.calibration(tiny) == FIT
    assert sized.calibration(tiny.replace(image_size=48)) == MEMORY
    assert sized.calibration(tiny.replace(image_size=64)) is None
    assert sized.estimate(BLOCKS, "tiny") == pytest.approx(0.5 + 1.1 * 3.375)
    assert sized.estimate(BLOCKS, "tiny@48") == sized.estimate(BLOCKS, MEMORY)
    assert sized.calibration("tiny") is None  # nothing says which


def test_a_calibration_of_before_the_size_was_noted_is_a_space_s_whose_largest_it_has(
    table: LatencyTable,
) -> None:
    mine = SearchSpace.load("tiny").replace(name="mine")
    older = replace(FIT, fitted_on={mine.largest().id: 0.5})
    known = replace(table, calibrations={"mine": older})
    assert known.calibration(mine) == older
    assert known.calibration(mine.replace(image_size=48)) is None


def test_a_kind_by_whole_blocks_is_priced_by_its_own_entries_and_never_by_parts(
    table: LatencyTable,
) -> None:
    whole = "mb4d_r8_c16_h32_p3"
    entries = {**table.entries, whole: price(2.125)}
    by_part, by_block = FIT, replace(FIT, by_block=("mb4d",))
    both = replace(table, entries=entries, calibrations={"a@32": by_part, "b@32": by_block})
    assert both.estimate(BLOCKS, "a") == pytest.approx(0.5 + 1.1 * 3.375)
    assert both.estimate(BLOCKS, "b") == pytest.approx(0.5 + 1.1 * 3.25)
    assert [name for name, _ in both.entries_of(parse(whole), by_block)] == [whole]
    lacking = replace(table, calibrations={"b@32": by_block})
    assert lacking.missing([parse(whole)], "b@32") == [whole]
    with pytest.raises(ConfigError, match=f"no entry for {whole}"):
        lacking.estimate(BLOCKS, "b")


def test_the_isolated_sum_is_of_parts_timed_alone(table: LatencyTable) -> None:
    assert table.isolated([parse(text) for text in BLOCKS]) == 3.375 + 4


def test_a_missing_entry_is_an_error_with_the_command_that_measures_it(
    table: LatencyTable, tmp_path: Path
) -> None:
    saved = table.save(tmp_path / "t.json")
    with pytest.raises(
        ConfigError, match=r"no entry for mlp_r8_c16_h64\. .*`nas profile"
    ) as caught:
        saved.estimate([*BLOCKS, "mb4d_r8_c16_h64_p3"])
    assert f"--target {table.target.id}" in str(caught.value)
    assert f"--table {tmp_path / 't.json'}" in str(caught.value)


def test_a_pricer_names_what_is_missing_for_a_space_before_it_prices(table: LatencyTable) -> None:
    with pytest.raises(
        ConfigError, match=r"no entry for .* and \d+ others.*`nas profile --space tiny"
    ):
        table.pricer(SearchSpace.load("tiny"))


@pytest.mark.parametrize("calibration", [FIT, MEMORY, None])
@pytest.mark.parametrize("name", ["tiny", "hybrid-64"])
def test_prices_of_many_equal_one_by_one_estimates(
    name: str, calibration: Calibration | None, target: Target
) -> None:
    space = SearchSpace.load(name)
    fits = {} if calibration is None else {f"{name}@{space.image_size}": calibration}
    table = replace(full(space, target), calibrations=fits)
    assert table.calibration(space) is calibration
    rng = np.random.default_rng(1)
    options = [len(values) for values in space.genes().values()]
    codes = rng.integers(0, options, size=(50, len(options)))
    prices = table.pricer(space)(codes)
    for choice, ms in zip(space.decode(codes), prices, strict=True):
        blocks = space.blocks(space.architecture(choice))
        assert table.estimate(blocks, space) == pytest.approx(ms, abs=1e-9)


@pytest.mark.parametrize("far", [{}, {"far_knee_mb": 0.2, "far_ms_per_mb": 5.0}])
@pytest.mark.parametrize("calibration", [FIT, MEMORY, None])
def test_a_scaled_table_s_prices_are_all_multiplied_and_nothing_else_changes(
    calibration: Calibration | None, far: dict[str, float], target: Target
) -> None:
    space = SearchSpace.load("tiny")
    fits = {}
    if calibration is not None:
        added = far if calibration is MEMORY else {}
        fits["tiny@32"] = replace(calibration, coefficients={**calibration.coefficients, **added})
    table = replace(full(space, target), calibrations=fits, provenance={"reference_ms": 0.1})
    slower = table.scaled(1.25)
    options = [len(values) for values in space.genes().values()]
    codes = np.random.default_rng(1).integers(0, options, size=(50, len(options)))
    assert slower.pricer(space)(codes) == pytest.approx(1.25 * table.pricer(space)(codes))
    blocks = space.blocks(space.largest())
    assert slower.isolated(blocks) == pytest.approx(1.25 * table.isolated(blocks))
    assert slower.known == table.known and slower.target == table.target


# ---------------------------------------------------------------- files
def test_a_saved_table_comes_back_the_same(table: LatencyTable, tmp_path: Path) -> None:
    path = tmp_path / "t.json"
    table.save(path)
    loaded = LatencyTable.load(path)
    assert replace(loaded, path="") == table
    assert loaded.digest == table.digest
    text = path.read_text()
    loaded.save(path)
    assert path.read_text() == text


def test_a_table_of_schema_1_keeps_its_entries_and_says_which_calibration_is_too_old(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    loaded = LatencyTable.load(Path(__file__).parent / "assets" / "table-schema-1.json")
    blocks = ["stem_r64_i3_c8-16_b1_a1", "mb4d_r16_c16_h48_p3", "head_r2_i64_o1000_ln_d0"]
    plain_ms = sum(entry.ms for entry in loaded.entries.values())
    assert loaded.estimate(blocks) == pytest.approx(plain_ms)
    assert loaded.estimate(blocks, "mine") == pytest.approx(0.01 + 1.1 * plain_ms)
    assert loaded.estimate(blocks, "hybrid-64") == pytest.approx(plain_ms)
    assert "calibration of hybrid-64 is of an older form; `nas profile" in caplog.text
    loaded.save(tmp_path / "t.json")
    assert LatencyTable.load(tmp_path / "t.json").entries == loaded.entries
    assert '"schema": 3' in (tmp_path / "t.json").read_text()


def test_a_table_of_schema_2_gets_the_size_of_the_shipped_space_its_calibration_is_of() -> None:
    loaded = LatencyTable.load(Path(__file__).parent / "assets" / "table-schema-2.json")
    assert set(loaded.calibrations) == {"hybrid-64@64", "mine"}
    space = SearchSpace.load("hybrid-64")
    fit = loaded.calibration(space)
    assert fit is not None and fit.by_block == ()
    assert loaded.calibration(space.replace(image_size=96)) is None
    assert all(entry.interpolated is None for entry in loaded.entries.values())


def test_a_table_of_schema_3_is_written_as_it_was() -> None:
    path = Path(__file__).parent / "assets" / "table-schema-3.json"
    loaded = LatencyTable.load(path)
    assert set(loaded.calibrations) == {"hybrid-64@64", "mine@64"}
    assert loaded.to_json() == json.loads(path.read_text())


def test_what_a_second_knee_adds_is_in_every_price_and_needs_schema_4(
    target: Target, tmp_path: Path
) -> None:
    far = {"far_knee_mb": 0.2, "far_ms_per_mb": 5.0}
    both = replace(MEMORY, coefficients={**MEMORY.coefficients, **far})
    space = SearchSpace.load("tiny")
    name = calibration_name(space.name, space.image_size)
    plain = full(space, target)
    one, two = (replace(plain, calibrations={name: fit}) for fit in (MEMORY, both))
    blocks = space.blocks(space.largest())
    footprint = sum(map(footprint_mb, blocks))
    more_ms = 5.0 * footprint / (1 + (0.2 / footprint) ** 6)
    assert two.estimate(blocks, space) - one.estimate(blocks, space) == pytest.approx(more_ms)
    options = [len(values) for values in space.genes().values()]
    codes = np.random.default_rng(0).integers(0, options, size=(20, len(options)))
    expected = [
        two.estimate(space.blocks(space.architecture(choice)), space)
        for choice in space.decode(codes)
    ]
    assert two.pricer(space)(codes) == pytest.approx(expected)
    assert (one.to_json()["schema"], two.to_json()["schema"]) == (3, 4)
    path = tmp_path / "t.json"
    two.save(path)
    assert replace(LatencyTable.load(path), path="") == two


def test_the_file_has_one_entry_a_line_sorted(table: LatencyTable, tmp_path: Path) -> None:
    table.save(tmp_path / "t.json")
    lines = (tmp_path / "t.json").read_text().splitlines()
    rows = [line for line in lines if line.startswith('  "')]
    names = [json.loads("{" + row.rstrip(",") + "}").popitem()[0] for row in rows]
    assert names == [*sorted(table.entries), "tiny"]


def test_the_digest_changes_with_any_number(table: LatencyTable) -> None:
    changed = {**table.entries, "pool_r8_c16_p3": price(0.2500001)}
    assert replace(table, entries=changed).digest != table.digest


def test_a_file_cut_at_any_byte_is_corrupt(table: LatencyTable, tmp_path: Path) -> None:
    table.save(tmp_path / "t.json")
    whole = (tmp_path / "t.json").read_bytes().rstrip()
    for size in range(0, len(whole), 7):
        (tmp_path / "cut.json").write_bytes(whole[:size])
        with pytest.raises(CorruptFile, match=r"cut\.json"):
            LatencyTable.load(tmp_path / "cut.json")


@pytest.mark.parametrize(
    "change",
    [
        {"schema": 5},
        {"unit": "s"},
        {"entries": []},
        {"target": {}},
        {"colour": 1},
        {"entries": {"mlp_r8": {}}},
        {"calibrations": {"tiny": {"form": "affine"}}},
    ],
)
def test_a_file_of_another_form_is_corrupt(
    table: LatencyTable, tmp_path: Path, change: dict[str, Any]
) -> None:
    path = tmp_path / "t.json"
    path.write_text(json.dumps(table.to_json() | change))
    with pytest.raises(CorruptFile, match=r"t\.json"):
        LatencyTable.load(path)


@pytest.mark.parametrize(
    "change",
    [
        {"ms": -1.0},
        {"ms": 0.0},
        {"ms": 1e7},
        {"ms": "1"},
        {"isolated_ms": -2.0},
        {"grade": "Z"},
        {"clean": 50},
        {"by": None},
        {"more": 1},
    ],
)
def test_an_absurd_entry_is_refused_by_name(
    table: LatencyTable, tmp_path: Path, change: dict[str, Any]
) -> None:
    plain = table.to_json()
    plain["entries"]["pool_r8_c16_p3"] |= change
    path = tmp_path / "t.json"
    path.write_text(json.dumps(plain))
    with pytest.raises(CorruptFile, match=r"t\.json: entries.*pool_r8_c16_p3"):
        LatencyTable.load(path)


@pytest.mark.parametrize("number", ["NaN", "Infinity", "-Infinity"])
def test_a_number_that_is_none_is_refused(table: LatencyTable, tmp_path: Path, number: str) -> None:
    path = tmp_path / "t.json"
    text = json.dumps(table.to_json()).replace('"ms": 0.25', f'"ms": {number}')
    assert number in text
    path.write_text(text)
    with pytest.raises(CorruptFile):
        LatencyTable.load(path)


def test_a_table_that_cannot_be_written_says_where(table: LatencyTable, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StorageError, match="file"):
        table.save(tmp_path / "file" / "t.json")


# ---------------------------------------------------------------- looking for one
def test_folders_are_searched_in_order_and_by_device(
    table: LatencyTable, target: Target, tmp_path: Path
) -> None:
    first, second = tmp_path / "first", tmp_path / "second"
    assert find_table(target, folders=[first, second]) is None
    late = second / target.device.slug / f"{target.id}.json"
    table.save(late)
    assert find_table(target, folders=[first, second]) == late
    early = first / f"{target.id}.json"
    table.save(early)
    assert find_table(target, folders=[first, second]) == early


def test_a_file_of_another_target_is_never_used(
    table: LatencyTable, target: Target, tmp_path: Path
) -> None:
    other = replace(table, target=replace(target, exporter="other"))
    path = tmp_path / f"{target.id}.json"
    other.save(path)
    assert find_table(target, folders=[tmp_path]) is None
    with pytest.raises(ConfigError, match="Leave --table out"):
        find_table(target, path)


def test_a_given_table_is_the_one_that_is_used(
    table: LatencyTable, target: Target, tmp_path: Path
) -> None:
    table.save(tmp_path / "mine.json")
    assert find_table(target, tmp_path / "mine.json") == tmp_path / "mine.json"
    with pytest.raises(CorruptFile):
        find_table(target, tmp_path / "none.json")


def test_a_calibration_that_would_turn_the_ranking_round_is_refused() -> None:
    with pytest.raises(ValueError, match="must be above 0"):
        replace(FIT, coefficients={"constant": 1.0, "scale": -1.0})
    for wrong in ({"scale_mlp": -0.1}, {"knee_mb": 0.0}, {"ms_per_mb": -1.0}, {"cold": -1.0}):
        with pytest.raises(ValueError, match="must be above 0"):
            replace(MEMORY, coefficients={**MEMORY.coefficients, **wrong})
    far = {"far_knee_mb": 1.0, "far_ms_per_mb": 0.1}
    for wrong in ({"far_knee_mb": 0.0}, {"far_ms_per_mb": -1.0}):
        with pytest.raises(ValueError, match="must be above 0"):
            replace(MEMORY, coefficients={**MEMORY.coefficients, **far, **wrong})
    for alone in ({"far_knee_mb": 1.0}, {"far_ms_per_mb": 0.1}):
        with pytest.raises(ValueError, match="far_knee_mb and far_ms_per_mb, but is"):
            replace(MEMORY, coefficients={**MEMORY.coefficients, **alone})
    with pytest.raises(ValueError, match="affine with constant and scale, or parts"):
        replace(MEMORY, form="affine")
    with pytest.raises(ValueError, match="or parts with scale_<kind>"):
        replace(FIT, form="parts", coefficients={"constant": 0.0, "scale": 1.0, "knee_mb": 1.0})
    with pytest.raises(ValueError, match="times above 0"):
        replace(FIT, fitted_on={"0a1b2c3d4e5f": -1.0})

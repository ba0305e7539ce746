"""Files are read as plain values only, with a sentence for everything that is wrong with them."""

import json
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from nas import files
from nas.errors import ConfigError, CorruptFile


# ---------------------------------------------------------------- reading JSON
def test_json_cut_at_any_byte_is_corrupt_and_never_half_read(tmp_path: Path) -> None:
    whole = json.dumps({"schema": 1, "entries": {"mlp_r4_c8_h16": {"ms": 0.25, "ü": None}}})
    path = tmp_path / "table.json"
    for length in range(len(whole.encode())):
        path.write_bytes(whole.encode()[:length])
        with pytest.raises(CorruptFile, match=r"table\.json"):
            files.read_json(path)


@pytest.mark.parametrize(
    ("content", "rule"),
    [
        (b"\xff\xfe", "not UTF-8"),
        (b'{"ms": NaN}', "NaN is no JSON number"),
        (b"[-Infinity]", "-Infinity is no JSON number"),
        (b"[" * 100_000, "not whole JSON"),
        (b"1" * 5000, "not whole JSON"),
        (b"", "not whole JSON"),
    ],
)
def test_what_is_not_json_is_corrupt_with_the_reason(
    tmp_path: Path, content: bytes, rule: str
) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(CorruptFile, match=rule):
        files.read_json(tmp_path / "a.json")


def test_missing_huge_or_odd_files_are_refused_without_reading_them(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(files, "MAX_JSON_BYTES", 100)
    (tmp_path / "huge.json").write_text(" " * 101)
    with pytest.raises(CorruptFile, match="larger than 100 bytes"):
        files.read_json(tmp_path / "huge.json")
    for odd in (tmp_path / "none.json", tmp_path, Path("/dev/zero"), tmp_path / ("x" * 5000)):
        with pytest.raises(CorruptFile):
            files.read_json(odd)


# ---------------------------------------------------------------- reading YAML
@pytest.mark.parametrize(
    ("text", "rule"),
    [
        ("a: &x [1]\nb: *x", r"line 2: aliases \(\*x\) are not accepted"),
        ("a: !!python/object/apply:os.system [touch marker]", "tags .*os.system"),
        ("a: !!int '1'", "line 1: tags"),
        ("[" * 20_000, "deeper than 32 levels"),
        ("{a: " * 40 + "1" + "}" * 40, "deeper than 32 levels"),
        ("a: 1\nb: 2\n'a': 3", "'a' stands twice"),
        ("a:\n  x: 1\n  x: 2", "'x' stands twice"),
        ("[1, 2]: 3", "a key must be a word"),
        ("3: 1", "a key must be a word, but is 3; quote it"),
        ("a: 1\n---\na: 2", "single document"),
        ("a: [1", "is not YAML"),
        ("a: " + "1" * 5000, "4300 digits"),
        ("a: \x07", "is not YAML"),
    ],
)
def test_yaml_that_breaks_a_rule_is_refused_with_the_rule(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, rule: str
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("space.yaml").write_text(text)
    with pytest.raises(ConfigError, match=rule) as caught:
        files.read_yaml("space.yaml")
    assert str(caught.value).startswith("space.yaml")
    assert os.listdir() == ["space.yaml"]


def test_the_billion_laughs_stop_at_the_first_alias(tmp_path: Path) -> None:
    lines = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    lines += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 10)]
    (tmp_path / "bomb.yaml").write_text("\n".join(lines))
    with pytest.raises(ConfigError, match=r"line 2: aliases \(\*a0\)"):
        files.read_yaml(tmp_path / "bomb.yaml")


def test_yaml_is_read_up_to_256_kilobytes(tmp_path: Path) -> None:
    path = tmp_path / "big.yaml"
    path.write_text("a: " + "x" * (256 * 1024 - 3))
    assert len(files.read_yaml(path)["a"]) == 256 * 1024 - 3
    path.write_text("a: " + "x" * (256 * 1024 - 2))
    with pytest.raises(ConfigError, match="larger than 262,144 bytes"):
        files.read_yaml(path)


@pytest.mark.parametrize("name", [".", "none.yaml", "x" * 5000, "file/below.yaml", "latin.yaml"])
def test_a_file_that_cannot_be_yaml_is_a_configuration_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "file").touch()
    (tmp_path / "latin.yaml").write_bytes("name: Ü".encode("latin-1"))
    with pytest.raises(ConfigError, match="give the path of a YAML file"):
        files.read_yaml(tmp_path / name)


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1e-3", 0.001),
        ("5E2", 500.0),
        (".5", 0.5),
        ("-7", -7),
        ("true", True),
        ("~", None),
        ("no", "no"),
        ("on", "on"),
        ("1:30", "1:30"),
        ("010", "010"),
        ("1_000", "1_000"),
        ("2026-13-45", "2026-13-45"),
        (".nan", ".nan"),
        ("'1'", "1"),
        ('"\\ud83d\\ude00"', "\U0001f600"),
    ],
)
def test_yaml_values_mean_what_version_1_2_says(text: str, value: object) -> None:
    read = files.parse_yaml(f"a: {text}", source="x")["a"]
    assert (read, type(read)) == (value, type(value))


# ---------------------------------------------------------------- into dataclasses
@dataclass(frozen=True, slots=True, kw_only=True)
class Wheel:
    size: int
    tyre: str = "soft"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ValueError(f"size must be 1 or more, but is {self.size}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Sail:
    area: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Vehicle:
    name: str
    wheels: tuple[Wheel, ...]
    spare: Wheel | None = None
    named: dict[str, Wheel] | None = None
    pair: tuple[Wheel, Sail] | None = None
    drive: Wheel | Sail | None = None
    speed: float = 1.0
    fast: bool = False


def vehicle(**changes: Any) -> Vehicle:
    value = {"name": "car", "wheels": [{"size": 3}]} | changes
    return files.into(Vehicle, value, source="car.yaml")


def test_plain_values_become_frozen_dataclasses_with_their_defaults() -> None:
    made = vehicle(spare={"size": 2, "tyre": "hard"}, speed=3)
    assert made == Vehicle(
        name="car", wheels=(Wheel(size=3),), spare=Wheel(size=2, tyre="hard"), speed=3.0
    )
    assert type(made.speed) is float


def test_unions_and_pairs_of_dataclasses_know_their_own_keys() -> None:
    made = vehicle(drive={"area": 2.5}, pair=[{"size": 1}, {"area": 1.5}], named={"x": {"size": 1}})
    assert (made.drive, made.pair) == (Sail(area=2.5), (Wheel(size=1), Sail(area=1.5)))


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"wheals": []}, "unknown key 'wheals'; did you mean 'wheels'?"),
        ({"zzz": 1}, "unknown key 'zzz'; known: drive, fast, name"),
        ({"wheels": [{"size": 1}, {"seize": 1}]}, "unknown key 'wheels.1.seize'; did you mean 'si"),
        ({"spare": {"sizes": 1}}, "unknown key 'spare.sizes'; did you mean 'size'?"),
        ({"named": {"x": {"tire": "a"}}}, "unknown key 'named.x.tire'; did you mean 'tyre'?"),
        ({"pair": [{"size": 1}, {"aera": 1}]}, "unknown key 'pair.1.aera'; did you mean 'area'?"),
        ({"drive": {"aera": 1}}, "unknown key 'drive.aera'; did you mean 'area'?"),
        ({"wheels": [{"size": "3"}]}, "wheels.0.size: input should be a valid integer, but is '3'"),
        ({"wheels": [{"size": 3.0}]}, "wheels.0.size: input should be a valid integer"),
        ({"wheels": [{"size": True}]}, "wheels.0.size: input should be a valid integer"),
        ({"wheels": [{}]}, "wheels.0.size: field required"),
        ({"wheels": [{"size": 0}]}, "wheels.0: size must be 1 or more, but is 0."),
        ({"wheels": {"size": 1}}, "wheels: input should be a valid"),
        ({"name": None}, "name: input should be a valid string, but is None"),
        ({"fast": "yes"}, "fast: input should be a valid boolean, but is 'yes'"),
        ({"speed": "1"}, "speed: input should be a valid number, but is '1'"),
        ({"speed": math.inf}, "Out of range float"),
    ],
)
def test_a_wrong_value_is_refused_with_place_value_and_way_out(
    changes: dict[str, Any], said: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        vehicle(**changes)
    assert str(caught.value).startswith("car.yaml: ")
    assert said in str(caught.value)


@pytest.mark.parametrize("value", [None, [], "text", 3])
def test_something_else_than_keys_and_values_is_refused(value: Any) -> None:
    with pytest.raises(ConfigError, match=r"^car\.yaml: the whole file"):
        files.into(Vehicle, value, source="car.yaml")


def test_the_caller_chooses_the_error_for_files_we_wrote() -> None:
    with pytest.raises(CorruptFile, match="unknown key"):
        files.into(Wheel, {"size": 1, "x": 1}, source="winner.json", error=CorruptFile)

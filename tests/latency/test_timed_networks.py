from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from nas.errors import CorruptFile, DeviceError
from nas.latency import LatencyTable, ProfileConfig, measure, profile
from nas.space import SearchSpace
from nas.target import Target

CONFIG = ProfileConfig(samples=4, spread_s=0.1, calibrate_on=6)


@pytest.fixture
def tiny() -> SearchSpace:
    return SearchSpace.load("tiny").replace(num_classes=10)


@pytest.fixture
def path(
    make_bench: Any, export: Any, on: Any, target: Target, tmp_path: Path, tiny: SearchSpace,
    monkeypatch: pytest.MonkeyPatch,
) -> Path:  # fmt: skip
    """A table with all of a space's entries, where two networks at most are loaded together."""
    path = tmp_path / "t.json"
    profile(tiny.every_block(), target, path, CONFIG, benches=on(make_bench()), export=export)
    sizes = measure.by_bytes

    def in_pairs(of: Mapping[str, int], limit: int, **given: int) -> list[list[str]]:
        return sizes(of, limit, at_most=2)

    monkeypatch.setattr("nas.latency.sessions.by_bytes", in_pairs)
    return path


class Dies:
    """Benches of which one cannot be begun."""

    def __init__(self, make_bench: Any, on: Any, dies_at: int) -> None:
        self.made, self.dies_at = 0, dies_at
        self.benches: list[Any] = []
        self._make_bench, self._on = make_bench, on

    def __call__(self, target: Target, config: ProfileConfig) -> Any:
        self.made += 1
        if self.made == self.dies_at:
            raise DeviceError("it is gone")
        self.benches.append(self._make_bench())
        return self._on(self.benches[-1])(target, config)


def fit(path: Path, tiny: SearchSpace, benches: Any, export: Any, config: Any) -> LatencyTable:
    target = LatencyTable.load(path).target
    return profile(tiny, target, path, config, benches=benches, export=export)


def networks_in(benches: Dies) -> list[str]:
    return [
        name for bench in benches.benches for name in bench.loaded
        if len(name) == 12 and "_" not in name
    ]  # fmt: skip


def test_networks_timed_before_a_crash_are_not_timed_again(
    make_bench: Any, export: Any, on: Any, path: Path, tiny: SearchSpace
) -> None:
    first = Dies(make_bench, on, dies_at=3)
    with pytest.raises(DeviceError):
        fit(path, tiny, first, export, CONFIG)
    assert len(networks_in(first)) == 4
    second = Dies(make_bench, on, dies_at=0)
    table = fit(path, tiny, second, export, CONFIG)
    assert len(networks_in(second)) == 2
    fitted = set(table.calibrations["tiny@32"].fitted_on)
    assert fitted == {*networks_in(first), *networks_in(second)}
    assert not list(path.parent.glob("*.networks"))


def test_what_was_timed_in_another_way_or_for_another_table_is_timed_again(
    make_bench: Any, export: Any, on: Any, path: Path, tiny: SearchSpace
) -> None:
    with pytest.raises(DeviceError):
        fit(path, tiny, Dies(make_bench, on, dies_at=3), export, CONFIG)
    careful = Dies(make_bench, on, dies_at=0)
    fit(path, tiny, careful, export, replace(CONFIG, samples=8))
    assert len(networks_in(careful)) == 6


def test_a_damaged_file_of_timed_networks_is_said(
    make_bench: Any, export: Any, on: Any, path: Path, tiny: SearchSpace
) -> None:
    kept = Path(f"{path}.networks")
    kept.write_text('{"schema": 1, "made')
    before = path.read_bytes()
    with pytest.raises(CorruptFile, match="networks"):
        fit(path, tiny, Dies(make_bench, on, dies_at=0), export, CONFIG)
    assert path.read_bytes() == before

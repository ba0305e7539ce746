from dataclasses import replace
from pathlib import Path

import pytest

from nas import target as target_module
from nas.latency import LatencyTable
from nas.latency import table as table_module
from nas.pipeline.doctor import _clock, _runtimes, _tables
from nas.target import Target


def runtimes() -> dict[str, tuple[str, str]]:
    """Return {runtime: (state, detail)} of what the doctor says about runtimes."""
    return {name: (state, detail) for name, state, detail in _runtimes()}


def test_each_runtime_is_listed_with_the_precisions_it_can_be_timed_in() -> None:
    found = runtimes()
    assert set(found) == set(target_module.RUNTIMES)
    state, detail = found["onnxruntime"]
    assert (state, detail.split(", ")[1:]) == ("ok", ["fp32", "int8"])


def test_a_runtime_that_is_absent_is_no_illness_but_the_default_one_is(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(target_module, "_version_or_none", lambda package: None)
    found = runtimes()
    assert found["onnxruntime"][0] == "fail"
    state, detail = found["openvino"]
    assert state == "ok"
    assert "pip install 'hybrid-nas[openvino]'" in detail
    assert detail.count("is not installed") == 1


def test_a_precision_that_lacks_its_package_is_told_beside_those_that_work(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(
        target_module, "_version_or_none", lambda package: None if package == "nncf" else "1.2"
    )
    state, detail = runtimes()["openvino"]
    assert state == "ok"
    assert detail.startswith("1.2, fp32; openvino needs nncf for int8")


def test_the_tables_of_this_machine_are_listed_and_those_of_versions_it_had(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(table_module, "table_folders", lambda: (tmp_path,))
    assert "none for this machine" in _tables()[2]
    own = Target.parse("onnxruntime,fp32,b1,t1")
    older = replace(own, version="0.9")
    elsewhere = replace(own, device=replace(own.device, cpu="another"))
    folder = tmp_path / own.device.slug
    folder.mkdir()
    for name in (older.id, elsewhere.id, "notes@home"):
        (folder / f"{name}.json").touch()
    detail = _tables()[2]
    assert "only for what is not installed: onnxruntime-0.9_fp32_nchw_b1_t1;" in detail
    (folder / f"{own.id}.json").touch()
    state, words = _tables()[1:]
    assert state == "warn" and own.id in words, "a damaged table is told"
    LatencyTable(target=own, entries={}).save(folder / f"{own.id}.json")
    assert _tables()[1:] == ("ok", f"of this machine: {own.id.partition('@')[0]}")


class Clock:
    """A processor that somebody else slows down in some of the runs of the reference kernel."""

    def __init__(self, slow_every: int) -> None:
        self.now_s, self.runs, self.slow_every = 0.0, 0, slow_every

    def perf_counter(self) -> float:
        return self.now_s

    thread_time = perf_counter

    def run(self) -> None:
        self.runs += 1
        self.now_s += 0.2e-3 if self.runs % self.slow_every == 0 else 0.1e-3


@pytest.mark.parametrize(
    ("slow_every", "state", "words"),
    [
        (20, "ok", "at full speed in 95% of"),
        (1, "ok", "at full speed in 100% of"),  # as fast as it ever is
        (2, "warn", "profiling takes about 2 x as long"),
    ],
)
def test_a_processor_that_others_use_too_is_told_with_what_it_costs(
    slow_every: int, state: str, words: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(slow_every)
    monkeypatch.setitem(_clock.__globals__, "time", clock)
    monkeypatch.setattr("nas.latency.worker.reference_kernel", lambda: clock.run)
    name, found, detail = _clock()
    assert (name, found) == ("timing", state)
    assert words in detail

"""The child process that measures: dead, silent, lying, and in order."""

import os
import subprocess
import sys
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nas.errors import DeviceError
from nas.latency.bench import ChildBench, Visit
from nas.latency.worker import Worker, evictor_bytes
from nas.target import Target

FAKE_WORKER = """
import json, os, sys, time
for line in sys.stdin:
    request = json.loads(line)
    verb = request["do"]
    if verb == "start":
        trace = request["trace"]
    answer = {"ok": {"version": "1", "run_ns": 1000}}
    if verb == "run":
        answer = {"ok": [[[1000, 1000, 700]] * visit[3] for visit in request["visits"]]}
    %s
    print(json.dumps(answer), flush=True)
"""


@pytest.fixture
def here() -> Target:
    return Target.parse("onnxruntime,fp32,b1,t1")


def bench_that(does: str, tmp_path: Path, here: Target) -> ChildBench:
    """Return a bench whose child does something else at a point of its work."""
    script = tmp_path / "worker.py"
    script.write_text(FAKE_WORKER % does)
    return ChildBench(here, timeout_s=1.0, command=[sys.executable, str(script)])


VISIT = Visit(name="dw_r4_c8", prime=1, loops=2, samples=3)
AT_LOAD = "if verb == 'load': "
AT_RUN = "if verb == 'run': open(trace, 'w').write('dw_r4_c8   '); "


@pytest.mark.parametrize(
    ("does", "says"),
    [
        (AT_LOAD + "time.sleep(60)", "dw_r4_c8: the process that measures said nothing for 1 s"),
        (AT_LOAD + "os._exit(3)", "dw_r4_c8: the process that measures ended with code 3"),
        (AT_LOAD + "os.abort()", "dw_r4_c8: .*ended with signal 6"),
        (AT_LOAD + "os.kill(os.getpid(), 9)", "dw_r4_c8: .*signal 9 .often too little memory"),
        (AT_LOAD + "sys.exit('no such kernel')", "dw_r4_c8: .*last words: no such kernel"),
        (AT_LOAD + "print('Illegal instruction')", "dw_r4_c8: .*answered garbage"),
        (AT_LOAD + "answer = {'ok': {'run_ns': None}}", "dw_r4_c8: .*answered no number"),
        (AT_LOAD + "answer = {'ok': {'run_ns': float('nan')}}", "dw_r4_c8: .*answered no number"),
        (AT_LOAD + "answer = {'ok': {'run_ns': -5}}", "dw_r4_c8: .*-5 ns, which no run takes"),
        (AT_LOAD + "answer = {'ok': {'run_ns': 1e15}}", "dw_r4_c8: .*which no run takes"),
        (AT_LOAD + "answer = {'error': 'no kernel for Foo'}", "dw_r4_c8: no kernel for Foo"),
        (AT_LOAD + "answer = 7", "dw_r4_c8: the measuring process answered garbage"),
        (AT_RUN + "time.sleep(60)", "dw_r4_c8: the process that measures said nothing"),
        (AT_RUN + "os._exit(1)", "dw_r4_c8: the process that measures ended with code 1"),
        (AT_RUN + "answer = {'ok': []}", "dw_r4_c8: .*not a list of visits"),
        (AT_RUN + "answer = {'ok': [[[1, 1]]]}", "dw_r4_c8: .*too few samples"),
        (AT_RUN + "answer = {'ok': [[[1, 1, 1], [1, 1], [1, 1, 1]]]}", "dw_r4_c8: .*no number"),
        (AT_RUN + "answer = {'ok': [[[0, 1, 1]] * 3]}", "dw_r4_c8: .*0 ns, which no run takes"),
        (AT_RUN + "answer = {'ok': [[[1, 1, -1]] * 3]}", "dw_r4_c8: .*-1 ns, which no run takes"),
    ],
)
def test_whatever_the_child_does_is_an_error_that_names_the_network(
    does: str, says: str, tmp_path: Path, here: Target
) -> None:
    with (
        pytest.raises(DeviceError, match=f"(?s){says}"),
        bench_that(does, tmp_path, here) as bench,
    ):
        bench.load("dw_r4_c8", tmp_path / "x.onnx")
        bench.run([VISIT])


def test_a_child_that_does_not_start_is_an_error_that_names_the_target(
    tmp_path: Path, here: Target
) -> None:
    with (
        pytest.raises(DeviceError, match=f"{here.runtime}.*ended with code 1"),
        bench_that("sys.exit(1)", tmp_path, here),
    ):
        pass


def test_times_are_of_one_run_in_milliseconds(tmp_path: Path, here: Target) -> None:
    with bench_that("", tmp_path, here) as bench:
        assert bench.load("dw_r4_c8", tmp_path / "x.onnx") == 1e-3
        (times,) = bench.run([VISIT])
    assert times.tolist() == [[0.5e-3, 0.5e-3, 0.7e-3]] * 3  # the reference ran once


def test_a_sample_whose_processor_time_was_not_accounted_does_not_count_and_stops_nothing(
    tmp_path: Path, here: Target
) -> None:
    does = AT_RUN + "answer = {'ok': [[[9000, 0, 500]] * 3]}"
    with bench_that(does, tmp_path, here) as bench:
        bench.load("dw_r4_c8", tmp_path / "x.onnx")
        (times,) = bench.run([VISIT])
    assert (times[:, 0] / times[:, 1] > 1000).all()  # waited for a processor, so to say


def test_the_child_is_gone_when_the_context_ends(tmp_path: Path, here: Target) -> None:
    with bench_that("", tmp_path, here) as bench:
        child = bench._child
        assert child.poll() is None
    assert child.poll() == 0


def test_another_machine_s_target_is_refused_before_a_child_is_started(target: Target) -> None:
    with pytest.raises(DeviceError, match="cannot be measured here.*onnxruntime,fp32,b1,t1"):
        ChildBench(target)


def test_the_worker_loads_no_torch() -> None:
    code = "import sys, nas.latency.worker; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "False"


def test_the_real_worker_times_a_real_network_and_survives_a_bad_file(
    tmp_path: Path, here: Target, write_conv: Any
) -> None:
    (tmp_path / "bad.onnx").write_bytes(b"not onnx")
    with ChildBench(here) as bench:
        with pytest.raises(DeviceError, match=r"broken: onnxruntime cannot load bad\.onnx"):
            bench.load("broken", tmp_path / "bad.onnx")
        assert bench.load("conv", write_conv(tmp_path / "conv.onnx")) > 0
        visits = [
            Visit(name="conv", prime=2, loops=5, samples=4),
            Visit(name="conv", prime=1, loops=5, samples=2, cold=True),
        ]
        warm, cold = bench.run(visits)
    assert warm.shape == (4, 3)
    assert cold.shape == (2, 3)
    assert (warm > 0).all()
    assert (cold > 0).all()


def test_the_child_is_of_this_package_wherever_the_command_is_run(
    tmp_path: Path, here: Target, write_conv: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "nas").mkdir()
    (tmp_path / "nas" / "__init__.py").write_text("raise SystemExit('another package')")
    monkeypatch.chdir(tmp_path)
    with ChildBench(here) as bench:
        assert bench.load("conv", write_conv(tmp_path / "conv.onnx")) > 0


@pytest.mark.parametrize(
    ("text", "megabytes"), [("2048K", 4), ("16384K", 32), ("512K", 4), ("1048576K", 64), ("?", 4)]
)
def test_caches_are_emptied_by_twice_the_second_level(
    tmp_path: Path, text: str, megabytes: int
) -> None:
    (tmp_path / "size").write_text(text + "\n")
    assert evictor_bytes(tmp_path / "size") == megabytes * 1024**2
    assert evictor_bytes(tmp_path / "none") == 4 * 1024**2


def test_rounds_take_turns_with_the_loads_of_a_network(
    tmp_path: Path, here: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[int] = []

    class Counted:
        """A runtime whose loads say when they run."""

        def load(self, path: Path, times: int) -> list[Any]:
            return [SimpleNamespace(run=partial(order.append, number)) for number in range(times)]

    monkeypatch.setattr("nas.latency.worker.create", lambda target, cache: Counted())
    worker = Worker()
    cores = sorted(os.sched_getaffinity(0))
    worker.start(here.to_json(), cores, str(tmp_path / "trace"), loads=3)
    worker.load("n", "n.onnx")
    order.clear()
    for turn in range(4):
        worker.run([("n", 0, 2, 1, False), ("n", 1, 1, 1, True)], turn)
    assert order == [0] * 4 + [1] * 4 + [2] * 4 + [0] * 4  # all visits of a round at one place


def test_the_child_gets_the_target_s_threads(tmp_path: Path, here: Target) -> None:
    does = "answer['ok']['run_ns'] = int(os.environ['OMP_NUM_THREADS']) * 7"
    with bench_that(does, tmp_path, here) as bench:
        assert bench.load("x", tmp_path / "x.onnx") == pytest.approx(7e-6)

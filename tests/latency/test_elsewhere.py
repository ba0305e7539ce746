"""Other devices through the command line: a plan and its times, and an agent."""

import csv
import json
import shlex
import threading
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import onnx
import pytest
from typer.testing import CliRunner

from nas.block import Block, parse
from nas.cli.app import app
from nas.latency import LatencyTable, find_table
from nas.latency.agent import Agent
from nas.latency.agent_http import AgentServer
from nas.latency.file_store import FileStore
from nas.latency.protocol import make_token
from nas.pipeline import materials
from nas.target import Target

NAME = "tensorrt-10.3_fp16_nchw_b1_t1@jetson-orin-nano-aarch64"
SETTINGS = (
    "profile.calibrate_on=4 profile.samples=3 profile.spread_s=0.0 profile.winner_processes=1 "
    "check_networks=3"
)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, export: Any) -> Path:
    """Work in a folder of its own, with parts that know what they cost."""

    def parts(blocks: Sequence[Block], folder: Path, *, batch: int) -> Mapping[str, Path]:
        folder.mkdir(parents=True, exist_ok=True)
        made: Mapping[str, Path] = export(blocks, folder, batch=batch)
        return made

    monkeypatch.setattr(materials, "parts_to_onnx", parts)
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture
def url(folder: Path, target: Target, make_bench: Any) -> Iterator[str]:
    """An agent of a made-up device, whose token is in the file `token`."""
    agent = Agent(
        FileStore(folder / "agent"),
        parse=lambda words: target,
        benches=lambda target, config: nullcontext(make_bench()),
    )
    with AgentServer(agent, make_token("token")) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.05,))
        thread.start()
        yield f"http://127.0.0.1:{server.port}"
        server.shutdown()
        thread.join()


def nas(words: str) -> tuple[int, str, str]:
    result = CliRunner().invoke(app, shlex.split(words))
    assert result.exception is None or isinstance(result.exception, SystemExit), result.exception
    return result.exit_code, result.stdout, result.stderr


def time_files(folder: Path, true_ms: Any, *, count: int | None = None) -> None:
    """Write times.csv, three rows for each of the first `count` files."""
    with open("times.csv", "w", newline="") as stream:
        rows = csv.writer(stream)
        rows.writerow(["file", "median_ms"])
        for path in sorted(folder.glob("*.onnx"), reverse=True)[:count]:
            nodes = onnx.load(str(path)).graph.node
            ms = true_ms([parse(node.name.rpartition("/")[2]) for node in nodes])
            rows.writerows([path.name, ms * (1 + turn * 1e-4)] for turn in range(3))


def test_a_plan_is_written_timed_elsewhere_and_read_into_a_table(true_ms: Any) -> None:
    code, out, err = nas(f"profile --space tiny --plan plan --check-networks 5 -q {SETTINGS}")
    assert code == 0 and "4 calibration, 5 check" in out, err
    assert not Path("runs").exists()
    time_files(Path("plan"), true_ms, count=20)
    code, _, err = nas(f"profile --plan plan --results times.csv --target {NAME}")
    assert code == 2 and "files of the plan have no time yet, the first is chain-0001.onnx" in err
    time_files(Path("plan"), true_ms)
    code, out, err = nas(f"profile --plan plan --results times.csv --target {NAME} --json")
    assert code == 0, err
    found = json.loads(out)
    assert found["missing"] == [] and len(found["predictions"]) == 5
    path = find_table(Target.parse(NAME))
    assert path == Path(f"runs/tables/{NAME}.json") == Path(found["table"])
    code, out, _ = nas(f"profile --plan plan --results times.csv --target {NAME}")
    assert "off on 5 unseen networks" in out and "pooled as repeats" in out


def test_a_run_that_has_begun_notes_the_profile(true_ms: Any) -> None:
    nas(f"profile --space tiny --plan plan --check-networks 3 -q {SETTINGS}")
    time_files(Path("plan"), true_ms)
    nas(f"profile --space tiny --run r --dry-run {SETTINGS}")
    code, _, err = nas(f"profile --run r --plan plan --results times.csv --target {NAME}")
    assert code == 0, err
    stage = json.loads(Path("r/state.json").read_text())["stages"][f"profile/{NAME}"]
    assert stage["result"]["target"] == NAME and stage["result"]["largest_ms"] > 0


def test_profile_on_a_device_makes_that_device_s_table(url: str, target: Target) -> None:
    words = f"--run r --space tiny --device {url} --token-file token -q {SETTINGS}"
    code, out, err = nas(f"profile {words}")
    assert code == 0 and target.id in out, err
    table = LatencyTable.load(f"runs/tables/{target.id}.json")
    assert table.target == target and "tiny@32" in table.calibrations


def test_a_device_that_does_not_answer_is_exit_5_with_the_command_to_go_on(url: str) -> None:
    other = url.rpartition(":")[0] + ":9"
    code, _, err = nas(f"profile --space tiny --device {other} --token-file token")
    assert code == 5 and "no agent answers" in err and "--resume" in err
    Path("token").chmod(0o640)
    code, _, err = nas(f"profile --space tiny --device {url} --token-file token")
    assert code == 2 and "chmod 600" in err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("--results times.csv", "--results needs --plan"),
        ("--plan p --device http://h:1", "choose one"),
        ("--plan p --dry-run", "leave it out"),
        ("--check-networks 5", "for writing a --plan"),
        ("--token-file t", "give both"),
        ("--device http://127.0.0.1:9", "needs --token-file"),
        (f"--target {NAME}", "--device"),
    ],
)
def test_flags_that_do_not_go_together_are_refused(words: str, says: str) -> None:
    code, _, err = nas(f"profile --space tiny {words}")
    assert code in (2, 5) and says in err


@pytest.mark.parametrize(
    ("words", "says"),
    [
        ("search --run none --token-file t", "--token-file is for --device"),
        ("search --run none --device http://127.0.0.1:9 --token-file t", "holds no run"),
        ("run --run none --device http://127.0.0.1:9", "--device needs --token-file"),
        ("verify none --token-file t", "--token-file is for --device"),
    ],
)
def test_other_verbs_take_a_device_by_the_same_rules(words: str, says: str) -> None:
    code, _, err = nas(words)
    assert code == 2 and says in err


@pytest.mark.slow
def test_a_search_is_ended_with_times_that_were_taken_by_hand(true_ms: Any) -> None:
    small = "train.steps=4 train.checkpoint_steps=4 train.batch_size=32 threads=1"
    code, _, err = nas(f"train --run r --space tiny -q {small} {SETTINGS}")
    assert code == 0, err
    nas(f"profile --run r --plan plan --check-networks 3 -q {SETTINGS}")
    time_files(Path("plan"), true_ms)
    code, _, err = nas(f"profile --run r --plan plan --results times.csv --target {NAME}")
    assert code == 0, err
    settings = "--latency-budget 70% --evaluations 4 --sampler random candidates=3 margin=0.2"
    code, out, err = nas(f"search --run r --plan some -q {settings} least_use=0.2")
    assert code == 0 and "networks  3" in out, err
    assert "nas search --run r --plan THIS_FOLDER" in Path("some/README.md").read_text()
    stages = json.loads(Path("r/state.json").read_text())["stages"]
    assert "search/r" not in stages
    code, _, err = nas("search --run r --plan some --results times.csv")
    assert code == 2 and "unknown file" in err  # those are the times of the other folder
    time_files(Path("some"), true_ms)
    code, out, err = nas("search --run r --plan some --results times.csv --json")
    assert code == 0, err
    found = json.loads(out)
    assert len(found["measured"]) == 3 and found["chosen"] and found["evaluated"] == 4
    assert all(row["ci_high_ms"] >= row["measured_ms"] > 0 for row in found["measured"])

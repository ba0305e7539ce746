"""A run so small that the whole job takes a minute, how to start it, and tables by a formula."""

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from filelock import FileLock

from nas.block import Block
from nas.latency.calibration import Calibration
from nas.latency.table import Entry, LatencyTable
from nas.space import SearchSpace
from nas.target import Target

SMALL = """\
schema: 1
space: tiny
data: digits
latency_budget: 60%
margin: 0.3
least_use: 0.2
recalibrate_on: 0
candidates: 2
evaluations: 6
sampler: random
check_networks: 3
threads: 1
profile: {samples: 3, processes: 1, spread_s: 0.0, time_limit_s: 60.0, calibrate_on: 3,
          winner_processes: 1}
train: {steps: 12, checkpoint_steps: 3, batch_size: 32}
teacher: resnet10t
teach: {epochs: 1, warmup_epochs: 0.5, batch_size: 128, checkpoint_steps: 2}
distill: {epochs: 2, warmup_epochs: 0.5, batch_size: 128, checkpoint_steps: 3}
"""


@pytest.fixture(scope="session")
def small(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the path of the small run's settings."""
    path = tmp_path_factory.mktemp("settings") / "small.yaml"
    path.write_text(SMALL)
    return path


@pytest.fixture(scope="session")
def start() -> Callable[..., "subprocess.Popen[str]"]:
    """Return what starts a `nas` command in a folder."""

    def begin(folder: Path, *words: str) -> "subprocess.Popen[str]":
        folder.mkdir(parents=True, exist_ok=True)
        return subprocess.Popen(
            [sys.executable, "-m", "nas", *words],
            cwd=folder,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    return begin


@pytest.fixture(scope="session")
def undisturbed(
    tmp_path_factory: pytest.TempPathFactory,
    small: Path,
    start: Callable[..., "subprocess.Popen[str]"],
) -> tuple[Path, dict[str, Any]]:
    """Return the folder of a whole small run, and what it printed with --json.

    It is made once for all processes that run tests; a test that writes there takes a copy. Its
    latency table is a formula, several times too slow: whatever else this machine does, no
    candidate is over the budget when it is measured.
    """
    shared = tmp_path_factory.getbasetemp()
    folder = (shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared) / "undisturbed"
    printed = folder / "printed.json"
    with FileLock(f"{folder}.lock"):
        if not printed.exists():
            tables = folder / "runs/tables"
            tables.mkdir(parents=True, exist_ok=True)
            space = SearchSpace.load("tiny").replace(num_classes=10, in_chans=3, image_size=32)
            table = _made_table(space, speed=5.0)
            table.save(tables / f"{table.target.id}.json")
            child = start(folder, "run", str(small), "--run", "runs/small", "--json")
            out, err = child.communicate(timeout=600)
            # 7: a network trained for seconds may miss a promise
            assert child.returncode in (0, 7), err
            printed.write_text(out)
    return folder, json.loads(printed.read_text())


@pytest.fixture
def finished(undisturbed: tuple[Path, dict[str, Any]], tmp_path: Path) -> Path:
    """Return a folder with a finished small run of one's own."""
    return Path(shutil.copytree(undisturbed[0], tmp_path / "finished"))


# ---------------------------------------------------------------- latency tables by a formula
MEMORY = {"constant": 0.01, "scale": 0.9, "cold": 0.5, "ms_per_mb": 0.3, "knee_mb": 0.6}


def entry_ms(block: Block, speed: float) -> float:
    """Return what a part takes: a launch, its arithmetic, and its weights."""
    return 0.004 + block.macs / (speed * 1e6) + block.bytes * 2e-8


def _made_table(
    space: SearchSpace,
    *,
    words: str = "onnxruntime,fp32,b1,t1",
    speed: float = 20.0,
    memory: bool = False,
) -> LatencyTable:
    """Return a table of every part of a space; with memory, calibrated with a knee."""
    entries = {}
    for block in space.every_block():
        for part in block.parts():
            ms = entry_ms(part, speed)
            entries[str(part)] = Entry(
                ms=ms, isolated_ms=2 * ms, p10=ms, p90=ms, clean=30, taken=30, grade="A",
                by="formula", cold_ms=1.3 * ms + 0.002,
            )  # fmt: skip
    fit = Calibration(
        form="parts",
        coefficients=MEMORY,
        fitted_on={space.largest().id: 1.0},
        held_out={"mean": 0.01, "worst": 0.02},
    )
    return LatencyTable(
        target=Target.parse(words),
        entries=entries,
        calibrations={f"{space.name}@{space.image_size}": fit} if memory else {},
    )


@pytest.fixture(scope="session")
def made_table() -> Callable[..., LatencyTable]:
    """Return what makes a table that needs no measurement."""
    return _made_table

"""A run so small that the whole job takes a minute, and how to start it as its user does."""

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

SMALL = """\
schema: 1
space: tiny
data: digits
latency_budget: 60%
margin: 0.3
least_use: 0.2
candidates: 2
evaluations: 6
sampler: random
check_networks: 3
threads: 1
profile: {samples: 3, spread_s: 0.0, time_limit_s: 20.0, calibrate_on: 3}
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
    """Return the folder of a whole small run, and what it printed with --json."""
    folder = tmp_path_factory.mktemp("undisturbed")
    child = start(folder, "run", str(small), "--run", "runs/small", "--json")
    out, err = child.communicate(timeout=400)
    assert child.returncode in (0, 7), err  # 7: a network trained for seconds may miss a promise
    return folder, json.loads(out)

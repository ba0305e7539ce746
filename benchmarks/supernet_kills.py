"""A training that is killed (-9) at random moments, and one that is not: equal weights?"""

import json
import os
import random
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

from record import Figure

from nas.files import write_json

WORDS = (
    *("space=tiny", "data=digits", "threads=1", "train.steps=120", "train.batch_size=32"),
    *("train.checkpoint_steps=8", "train.order_images=64", "train.choice_every=5"),
)
MOST_LIVES = 200


def kill_part(folder: Path, kills: int, seed: int) -> tuple[list[Figure], dict[str, Any]]:
    """Train once in peace, then again and again with kills until there were enough of them.

    Each disturbed training is of the same seed, and is resumed until it ends. Those that are done
    are kept in the folder.
    """
    peace, seconds = undisturbed(folder / "undisturbed")
    rng = random.Random(seed)
    done: list[dict[str, Any]] = []
    for life in range(MOST_LIVES):
        if sum(len(row["kills_s"]) for row in done) >= kills:
            break
        moments = [rng.uniform(0.05, 0.95) * seconds for _ in range(100)]
        done.append(disturbed(folder / f"life-{life}", moments))
    total = sum(len(row["kills_s"]) for row in done)
    failed = sum(row["refusals"] for row in done)
    equal = sum(row["digest"] == peace for row in done)
    return [
        Figure(figure=f"resumed after {total} kills (-9) at random moments", asked="every time",
               measured=f"{failed} refusals", holds=failed == 0 and total >= kills),
        Figure(figure="final weights equal to the undisturbed training's, bit for bit",
               asked=f"{len(done)} of {len(done)}", measured=f"{equal} of {len(done)}",
               holds=equal == len(done)),
    ], {"undisturbed_s": seconds, "digest": peace, "lives": done}  # fmt: skip


def undisturbed(run: Path) -> tuple[str, float]:
    """Train without a kill; return the digest of the weights and how long the command took."""
    path = run / "seconds.json"
    if not path.is_file():
        begun = time.monotonic()
        if begin(run).wait() != 0:
            sys.exit("the undisturbed training failed.")
        write_json(path, {"seconds": time.monotonic() - begun})
    return digest_of(run), float(json.loads(path.read_text())["seconds"])


def disturbed(run: Path, moments: list[float]) -> dict[str, Any]:
    """Train with a kill after each of these seconds until a try ends before its kill.

    After a try that neither ended well nor was killed, which is counted, the next goes on.
    """
    path = run / "life.json"
    if path.is_file():
        known: dict[str, Any] = json.loads(path.read_text())
        return known
    killed: list[float] = []
    refusals = 0
    for moment in [*moments, 3600.0]:
        child = begin(run)
        try:
            code = child.wait(timeout=moment)
        except subprocess.TimeoutExpired:
            child.kill()
            child.wait()
            killed.append(round(moment, 2))
            continue
        if code == 0:
            break
        refusals += 1
    life = {"kills_s": killed, "refusals": refusals, "digest": digest_of(run)}
    print(f"{run.name}: {len(killed)} kills, {refusals} refusals", flush=True)
    write_json(path, life)
    return life


def begin(run: Path) -> "subprocess.Popen[bytes]":
    """Begin a training, or go on with it."""
    command = [sys.executable, "-m", "nas", "train", "--run", str(run), "-q", "--resume", *WORDS]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)


def digest_of(run: Path) -> str:
    """Return the digest of the weights a run ended with, "" if it has not ended."""
    state = run / "state.json"
    if not state.is_file():
        return ""
    stages = json.loads(state.read_text())["stages"]
    return str(stages.get("train", {}).get("result", {}).get("digest", ""))

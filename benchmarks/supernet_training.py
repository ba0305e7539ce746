"""How training recipes of the supernet compare at toy scale: digits, `tiny`, about a minute each.

python benchmarks/supernet_training.py [VARIANT[:SEED] ...]

One training a variant and seed; those that are in the results already are kept. Scored on the
search split: 24 networks at levels of MACs, drawn by a seed no training uses, and both ends of the
space; with the last weights and with their moving average.
"""

import argparse
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import RESULTS

from nas import environment
from nas.data import Data, load
from nas.files import read_json, write_json
from nas.space import SearchSpace
from nas.supernet import SuperNet, TrainConfig, score
from nas.supernet.training import Training

STEPS, SEEDS = 240, (0, 1)
BASE = TrainConfig(
    sampling="level",
    steps=STEPS,
    lr=0.004,
    ema_decay=0.999,
    checkpoint_steps=STEPS,
    log_steps=20,
    path_threads=1,
)
VARIANTS = {
    "level": BASE,
    "uniform": replace(BASE, sampling="uniform"),
    "smooth-largest": replace(BASE, regularise="largest"),
}
RESULT = RESULTS / "supernet_training.json"


def scored(supernet: SuperNet, data: Data) -> dict[str, float]:
    """Return the mean losses of thirds of the networks by MACs, and accuracies of the ends."""
    space, rng = supernet.space, np.random.default_rng(2024)
    networks = [space.sample(rng, level) for level in np.linspace(0.02, 0.98, 24)]
    losses = np.array([score(supernet, network, data).loss for network in networks])
    thirds = zip(("small", "middle", "large"), np.split(losses, 3), strict=True)
    ends = {"smallest": space.smallest(), "largest": space.largest()}
    return {
        "loss": float(losses.mean()),
        **{f"{name}_loss": float(part.mean()) for name, part in thirds},
        **{f"{end}_accuracy": score(supernet, ends[end], data).accuracy for end in ends},
    }


class Scored(Training):
    """A training that is scored with its last weights before it settles on one of two."""

    last: dict[str, float]

    def _settle(self) -> None:
        self.last = scored(self.supernet, self.data)
        super()._settle()


def train_once(name: str, seed: int, data: Data, space: SearchSpace) -> dict[str, Any]:
    """Train one variant with one seed and score it."""
    with tempfile.TemporaryDirectory() as folder:
        config = replace(VARIANTS[name], seed=seed)
        run = Scored(SuperNet(space, seed=seed), data, config, Path(folder))
        begun = time.perf_counter()
        run.go(None)
        assert run.average is not None
        return {
            "seconds": round(time.perf_counter() - begun, 1),
            "last": run.last,
            "averaged": scored(run.average.supernet, data),
            "is_averaged": run.is_averaged,
        }


def main() -> None:
    """Run what is asked and not there yet; print all there is."""
    parser = argparse.ArgumentParser(description=__doc__)
    every = [f"{name}:{seed}" for seed in SEEDS for name in VARIANTS]
    parser.add_argument("runs", nargs="*", default=every)
    torch.set_num_threads(1)
    known: dict[str, Any] = read_json(RESULT)["runs"] if RESULT.is_file() else {}
    data = load("digits", image_size=32)
    space = SearchSpace.load("tiny").replace(num_classes=data.num_classes)
    for word in parser.parse_args().runs:
        name, _, seed = word.partition(":")
        if word not in known:
            known[word] = train_once(name, int(seed or 0), data, space)
            write_json(RESULT, {"machine": environment.machine(), "steps": STEPS, "runs": known})
    for word, row in sorted(known.items()):
        for weights in ("last", "averaged"):
            figures = " ".join(f"{key} {value:.3f}" for key, value in row[weights].items())
            print(f"{word:<18} {weights:<9} {figures}")


if __name__ == "__main__":
    main()

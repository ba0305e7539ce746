"""Several workers reach what one process does: losses after 200 steps, beside those of three seeds.

python benchmarks/supernet_workers.py [one:0 one:1 one:2 two:0]

Digits, `tiny`, the same batch of 64 in all of them; two workers normalise halves of it. The loss is
the mean cross-entropy on the search split of 12 networks at levels of MACs. What is in the results
already is kept.
"""

import argparse
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from record import RESULTS, Figure, record

from nas.data import Data, load
from nas.files import read_json, write_json
from nas.space import SearchSpace
from nas.supernet import SuperNet, TrainConfig, score, train

STEPS = 200
WORKERS = {"one": 1, "two": 2}
PARTS = RESULTS / "workers-parts.json"


def train_once(workers: int, seed: int, data: Data, space: SearchSpace) -> dict[str, Any]:
    """Train and score once."""
    config = TrainConfig(
        steps=STEPS, lr=0.004, checkpoint_steps=100, workers=workers, seed=seed, path_threads=1
    )
    rng = np.random.default_rng(2024)
    with tempfile.TemporaryDirectory() as folder:
        begun = time.perf_counter()
        supernet = SuperNet(space, seed=seed)
        trained = train(supernet, data, config, Path(folder) / "supernet")
        seconds = time.perf_counter() - begun
    networks = [space.sample(rng, level) for level in np.linspace(0.02, 0.98, 12)]
    losses = [score(trained.supernet, network, data).loss for network in networks]
    return {"loss": float(np.mean(losses)), "seconds": round(seconds, 1)}


def main() -> None:
    """Run what is asked and not there yet; with all of it, record the figure."""
    parser = argparse.ArgumentParser(description=__doc__)
    every = ["one:0", "one:1", "one:2", "two:0"]
    parser.add_argument("runs", nargs="*", default=every)
    torch.set_num_threads(1)
    known: dict[str, Any] = read_json(PARTS) if PARTS.is_file() else {}
    data = load("digits", image_size=32)
    space = SearchSpace.load("tiny").replace(num_classes=data.num_classes)
    for word in parser.parse_args().runs:
        name, _, seed = word.partition(":")
        if word not in known:
            known[word] = train_once(WORKERS[name], int(seed), data, space)
            write_json(PARTS, known)
        print(word, known[word])
    if not set(every) <= known.keys():
        return
    alone = [known[f"one:{seed}"]["loss"] for seed in range(3)]
    two, mean, deviation = known["two:0"]["loss"], np.mean(alone), np.std(alone, ddof=1)
    figure = Figure(
        figure="loss after 200 steps with two workers, beside one process with three seeds",
        asked="within two standard deviations of their mean",
        measured=f"{two:.3f}; " + ", ".join(f"{loss:.3f}" for loss in alone),
        holds=bool(abs(two - mean) <= 2 * deviation),
    )
    record("supernet_workers", [figure], notes={"runs": known})
    PARTS.unlink()


if __name__ == "__main__":
    main()

"""Evaluate every architecture of a part of `tiny` with one trained supernet, into a table.

nas profile --run RUN --space tiny --data digits
nas train --run RUN train.epochs=8 train.batch_size=64 train.lr=0.004
python benchmarks/search_space.py RUN --table TABLE [--seconds N]

Accuracy and cross-entropy are those of the search split with BatchNorm fitted to each network;
latencies are sums of the table's parts, without its fit. The first stage is 32 channels wide in
all. Rows are kept in RUN/space.csv as they come: call it again until nothing is left; then
benchmarks/assets/search_space.csv.gz is written.
"""

import argparse
import csv
import gzip
import io
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F

from nas import data as nas_data
from nas.data import Data, eval_batches
from nas.latency import LatencyTable
from nas.space import Architecture, SearchSpace
from nas.supernet import EvaluateConfig, SuperNet, load, score
from nas.supernet.evaluate import first_images
from nas.supernet.template import template_of

ASSET = Path(__file__).parent / "assets" / "search_space.csv.gz"
MEASURED = ("accuracy", "loss", "latency_ms", "params")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("run", type=Path)
    parser.add_argument("--table", type=Path, required=True)
    parser.add_argument("--seconds", type=float, default=50.0, help="begin nothing after that long")
    options = parser.parse_args()
    torch.set_num_threads(1)
    until_s = time.perf_counter() + options.seconds
    data = nas_data.load("digits", image_size=32)
    supernet = load(options.run / "supernet").supernet
    found = {architecture.id: architecture for architecture in every(supernet.space)}
    order = sorted(found, key=lambda name: walk_text(supernet, found[name]))
    file = options.run / "space.csv"
    done = known(file)
    left = [name for name in order if name not in done]
    shared = Shared(supernet, data)
    if left:
        first = found[left[0]]
        assert abs(shared.score(first)[1] - score(supernet, first, data).loss) < 1e-5
    with file.open("a", newline="") as stream:
        writer = csv.writer(stream)
        for name in left:
            if time.perf_counter() > until_s:
                print(f"{len(found) - len(done)} of {len(found)} are left: call it again")
                return
            done[name] = shared.score(found[name])
            writer.writerow([name, *done[name]])
            stream.flush()
    write_asset(supernet.space, found, done, options.table)


def walk_text(supernet: SuperNet, architecture: Architecture) -> list[str]:
    """Return what sorts architectures that begin alike beside each other."""
    return [f"{slot} {block}" for slot, block in supernet.walk(architecture)]


class Shared:
    """Scores as `nas.supernet.score`; what an architecture shares with the one before is kept.

    Statistics of a block depend on the blocks before it only, so that the outputs behind equal
    beginnings are equal, of the images that BatchNorm is fitted on and of those that count.
    """

    def __init__(self, supernet: SuperNet, data: Data) -> None:
        split = data.split("search")
        device = torch.device("cpu")
        train = first_images(data.split("train"), EvaluateConfig().refit_images)
        ((fitted, _),) = eval_batches(train, data, batch_size=len(train), device=device)
        ((images, self._labels),) = eval_batches(split, data, batch_size=len(split), device=device)
        self._supernet = supernet
        self._names: list[str] = []
        self._outputs = [(fitted, images)]

    @torch.no_grad()
    def score(self, architecture: Architecture) -> tuple[float, float]:
        """Return accuracy and cross-entropy on the search split."""
        supernet, names = self._supernet, walk_text(self._supernet, architecture)
        same = 0
        while same < min(len(names), len(self._names)) and names[same] == self._names[same]:
            same += 1
        self._names = names
        del self._outputs[same + 1 :]
        for slot, block in list(supernet.walk(architecture))[same:]:
            fitted, images = self._outputs[-1]
            statistics = template_of(block, images.device).empty_statistics(images.device)
            fitted = supernet.run_block(fitted, slot, block, statistics, fit=True)
            self._outputs.append((fitted, supernet.run_block(images, slot, block, statistics)))
        scores = self._outputs[-1][1].double()
        right = int((scores.argmax(1) == self._labels).sum())
        return right / len(scores), float(F.cross_entropy(scores, self._labels))


def genes_of(space: SearchSpace) -> dict[str, tuple[Any, ...]]:
    """Return the genes of the part that is evaluated."""
    return {**space.genes(), "s1.width": (32,)}


def every(space: SearchSpace) -> Iterator[Architecture]:
    """Yield the architecture of every combination of genes; inactive ones repeat."""
    genes = genes_of(space)
    sizes = [len(known) for known in genes.values()]
    for number in range(int(np.prod(sizes))):
        codes = np.unravel_index(number, sizes)
        yield space.architecture(
            {gene: known[c] for (gene, known), c in zip(genes.items(), codes, strict=True)}
        )


def known(file: Path) -> dict[str, tuple[float, float]]:
    """Return {id: (accuracy, loss)} of the rows that are whole."""
    if not file.exists():
        return {}
    rows = [row for row in csv.reader(file.open()) if len(row) == 3]
    return {name: (float(accuracy), float(loss)) for name, accuracy, loss in rows}


def write_asset(
    space: SearchSpace,
    found: dict[str, Architecture],
    done: dict[str, tuple[float, float]],
    table_path: Path,
) -> None:
    """Write genes, accuracy, loss, latency and parameters of all, one a line."""
    table = LatencyTable.load(table_path)
    names = sorted(found)
    choices = [space.choice(found[name]) for name in names]
    latency_ms = replace(table, calibrations={}).pricer(space)(space.encode(choices))
    text = io.StringIO()
    writer = csv.writer(text)
    writer.writerow([*space.genes(), *MEASURED])
    for name, choice, cost_ms in zip(names, choices, latency_ms, strict=True):
        accuracy, loss = done[name]
        params = sum(block.params for block in space.blocks(found[name]))
        writer.writerow(
            [*choice.values(), f"{accuracy:.5f}", f"{loss:.5f}", f"{cost_ms:.6f}", params]
        )
    ASSET.parent.mkdir(exist_ok=True)
    with gzip.GzipFile(ASSET, "wb", mtime=0) as stream:
        stream.write(text.getvalue().encode())
    print(f"{ASSET}: {len(names)} architectures, {ASSET.stat().st_size} bytes")


if __name__ == "__main__":
    main()

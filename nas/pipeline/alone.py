"""A network trained alone, from random weights: what the supernet's ranking is compared with."""

import logging
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from nas import data as nas_data
from nas import files, network
from nas.data import Data
from nas.errors import CorruptFile
from nas.network import scale_residuals
from nas.pipeline.materials import best_device
from nas.processes import end_without_parent
from nas.seeds import stage_seed
from nas.supernet.model import RESIDUAL_SCALE
from nas.winner.distill import DistillConfig, train

SCHEMA = 1

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Alone:
    """One training: an architecture's id, its blocks as text, and which of its trainings it is."""

    id: str
    blocks: tuple[str, ...]
    number: int = 0

    @property
    def name(self) -> str:
        """The name of its file: "afbc4f14f9bb-0"."""
        return f"{self.id}-{self.number}"


@dataclass(frozen=True, slots=True, kw_only=True)
class AloneResult:
    """What a training came to: accuracy and loss on the search split, and how long it took."""

    accuracy: float
    loss: float
    seconds: float


@dataclass(frozen=True, slots=True, kw_only=True)
class Trainer:
    """Trains networks alone, in a folder for exactly these images and settings.

    It starts as the supernet does, every residual branch at the same scale; each training has a
    seed of its own for its weights, the order of images and their augmentation. A training that
    was stopped goes on from its checkpoint; one that is done is read from its file.

    Attributes:
        folder: Where the folder of these settings stands.
        data: Name of the data set.
        image_size: Side of its images.
        config: How; its seed is the root of all seeds here.
        threads: Of each training.
    """

    folder: Path
    data: str
    image_size: int
    config: DistillConfig
    threads: int = 1

    def place(self, data: Data) -> Path:
        """Return the folder of these images and settings."""
        settings = files.to_plain(self.config)
        del settings["checkpoint_steps"]
        shown = [data.digest, list(data.mean), list(data.std), RESIDUAL_SCALE]
        return self.folder / files.digest_json([SCHEMA, settings, shown])[:16]

    def known(self, task: Alone, data: Data) -> AloneResult | None:
        """Return what a training came to; None if it is not done or its file is damaged."""
        path = self.place(data) / f"{task.name}.json"
        if not path.is_file():
            return None
        try:
            plain = files.read_json(path)
            if not isinstance(plain, dict) or plain.get("blocks") != list(task.blocks):
                raise CorruptFile(f"{path} is not what that network's training came to.")
            found = {key: plain.get(key) for key in ("accuracy", "loss", "seconds")}
            return files.into(AloneResult, found, source=str(path), error=CorruptFile)
        except CorruptFile as error:
            log.warning("%s The network is trained again.", error)
            return None

    def __call__(self, task: Alone) -> AloneResult:
        """Train one network in this process, unless that is done.

        Raises:
            TrainingDiverged: its loss became NaN or infinite.
            TryAgain: another process is training it.
        """
        torch.set_num_threads(self.threads)
        data = loaded(self.data, self.image_size)
        place = self.place(data)
        with files.lock(place / f".{task.name}.lock"):
            found = self.known(task, data)
            if found is None:
                found = self.train(task, data, place / task.name)
                self.keep(task, data, found)
        return found

    def train(self, task: Alone, data: Data, checkpoints: Path | None = None) -> AloneResult:
        """Train one network in this process; go on from its checkpoints if it may have some.

        Raises:
            TrainingDiverged: its loss became NaN or infinite.
        """
        begun = time.process_time()
        trained = train(
            start(task.blocks, self._seed(task)).to(best_device()),
            data,
            replace(self.config, seed=self._seed(task)),
            folder=checkpoints,
            progress=lambda done, total, text: end_without_parent(),
        )
        return AloneResult(
            accuracy=trained.score.accuracy,
            loss=trained.score.loss,
            seconds=time.process_time() - begun,
        )

    def keep(self, task: Alone, data: Data, result: AloneResult) -> None:
        """Write what a training came to; its checkpoints go."""
        place = self.place(data)
        seed = self._seed(task)
        record: dict[str, Any] = {"schema": SCHEMA, "blocks": list(task.blocks), "seed": seed}
        files.write_json(place / f"{task.name}.json", record | files.to_plain(result))
        shutil.rmtree(place / task.name, ignore_errors=True)

    def _seed(self, task: Alone) -> int:
        return stage_seed(self.config.seed, f"alone/{task.name}")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Away:
    """A trainer where the run's folder may not be: it has the images with it and writes nothing."""

    trainer: Trainer
    data: Data

    def __call__(self, task: Alone) -> AloneResult:
        """Train one network in this process, from the start; the owner keeps the result."""
        torch.set_num_threads(self.trainer.threads)
        return self.trainer.train(task, self.data)


def start(blocks: Sequence[str], seed: int) -> network.NasHybrid:
    """Return a network of random weights drawn from a seed, as a supernet's are."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        model = network.build(blocks)
    scale_residuals(model, RESIDUAL_SCALE)
    return model


@lru_cache(maxsize=1)
def loaded(name: str, image_size: int) -> Data:
    """Return a data set, loaded once a process."""
    return nas_data.load(name, image_size=image_size)

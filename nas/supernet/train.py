"""Training a supernet: in this process, or divided among several."""

from pathlib import Path

from torch import nn

from nas.data import Data
from nas.supernet.model import SuperNet
from nas.supernet.ray_workers import train_with_workers
from nas.supernet.schedule import TrainConfig
from nas.supernet.stored import Trained
from nas.supernet.training import Progress, Training


def train(
    supernet: SuperNet,
    data: Data,
    config: TrainConfig,
    folder: Path | str,
    *,
    teacher: nn.Module | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Train a supernet in place, on the device it is on, and leave its checkpoints in a folder.

    A folder with a checkpoint of the same training is gone on with: on a CPU, with as many threads
    as before, the result is bit for bit that of a training that was never interrupted, because
    every draw is a function of the seed and the number of the step. `load(folder)` gives the
    result back later.

    Tensors of a slot that no path touched in a step stay as they are. Entries that a path of the
    same kind did not reach get zero gradients, so that AdamW's decay and momentum move them on.

    Between the largest paths and the random ones the channels are put into the order of their
    Taylor importance, together with AdamW's moments and the moving average (`taylor.order`), so
    that the small networks, which come then, begin with the channels that matter.

    With `config.workers` above 1 the steps are made by Ray Train, in processes that divide each
    batch; each normalises its own share. They are started from here, on this machine or on the
    cluster that RAY_ADDRESS names, which must see `folder`. One that is lost is replaced, and all
    go on from the last checkpoint.

    Args:
        supernet: What to train; its weights are overwritten if there is a checkpoint.
        data: Trained on its train split; kinds are chosen on its choice split.
        config: How.
        folder: Holds `step-N.safetensors`, `step-N.json` and `losses.jsonl`, the loss of the
            largest, smallest and random paths apart. One process at a time.
        teacher: A trained network with the data's classes that scores images as they are given to
            the supernet, for `distill_from` "teacher".
        progress: Told (steps done, steps in all, loss and time left).

    Raises:
        ConfigError: data and space do not fit, a teacher is asked for and not given, or the
            folder belongs to another training; the message names the difference.
        CorruptFile: every checkpoint there is damaged.
        TrainingDiverged: a loss is NaN or infinite; the last checkpoint is intact.
        StorageError: a checkpoint cannot be written; the one before it is intact.
    """
    if config.workers > 1:
        return train_with_workers(
            supernet, data, config, Path(folder), teacher=teacher, progress=progress
        )
    run = Training(supernet, data, config, Path(folder), teacher=teacher)
    run.resume()
    run.go(progress)
    return run.trained()

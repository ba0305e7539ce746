"""Images as four disjoint splits in memory, and batches of them, augmented reproducibly.

    data = nas.data.load("folder:photos", image_size=64)
    train = data.split("train")
    for images, labels in nas.data.batches(
        train, data, batch_size=64, seed=0, epoch=0, augment=data.augment
    ):
        ...

`load` gives train, choice and search. The test split has one door, `load_test`, and only the
verification of a finished winner goes through it.
"""

from nas.data.augment import Augment
from nas.data.batches import batches, eval_batches, steps_per_epoch
from nas.data.load import load, load_test
from nas.data.sources import Progress
from nas.data.splits import Data, Normalised, Split

__all__ = [
    "Augment",
    "Data",
    "Normalised",
    "Progress",
    "Split",
    "batches",
    "eval_batches",
    "load",
    "load_test",
    "steps_per_epoch",
]

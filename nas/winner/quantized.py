"""The int8 file of a winner: made from its ONNX file on images it was trained on, and scored.

It has the nodes and types of what the latency code quantizes as it is loaded; only the ranges
differ, which are random inputs' there.
"""

from collections.abc import Callable, Iterable
from pathlib import Path

from nas.data import Data, Normalised, Split, batches, eval_batches
from nas.errors import ConfigError
from nas.latency.quantize import quantize_onnx
from nas.target import Device, Target
from nas.winner.compare import onnx_scorer

INT8 = "model.int8.onnx"
CALIBRATION_IMAGES = 128
BATCH_SIZE = 256

Progress = Callable[[int, int, str], None]


def takes_int8(target: Target) -> bool:
    """Return whether a target runs the int8 file: ONNX Runtime does, and no other runtime."""
    return target.runtime == "onnxruntime" and target.precision == "int8"


def int8_device(targets: Iterable[str]) -> Device | None:
    """Return the device of the first target, by its id, that runs an int8 file; None: none does."""
    for name in targets:
        try:
            target = Target.from_id(name)
        except ConfigError:
            continue  # a name that is no id is of no runtime we know
        if takes_int8(target):
            return target.device
    return None


def write_int8(onnx: Path, destination: Path, data: Data, device: Device) -> Path:
    """Write an ONNX file of batch 1 in int8 as a device runs it best, and return its path.

    Ranges are those that training images, as they are, reach: always the same ones.

    Raises:
        CorruptFile: it is not an ONNX file.
        DeviceError: ONNX Runtime cannot quantize it.
        StorageError: the file cannot be written.
    """
    split = data.split("train")
    size = min(CALIBRATION_IMAGES, len(split))
    images, _ = next(batches(split, data, batch_size=size, seed=0, epoch=0, augment=None))
    samples = (image[None].numpy() for image in images.contiguous())
    return quantize_onnx(onnx, destination, samples=samples, device=device)


def onnx_accuracy(
    path: Path,
    split: Split,
    data: Normalised,
    progress: Progress = lambda done, total, text: None,
) -> float:
    """Return the share (0 to 1) of a split's images that an ONNX file of batch 1 gets right.

    Raises:
        CorruptFile: it is not an ONNX file that can be run.
        DeviceError: ONNX Runtime is not installed.
    """
    scores = onnx_scorer(path)
    right = done = 0
    for images, labels in eval_batches(split, data, batch_size=BATCH_SIZE):
        right += int((scores(images).argmax(dim=1) == labels).sum())
        done += len(labels)
        progress(done, len(split), f"scoring images with {path.name}")
    return right / len(split)

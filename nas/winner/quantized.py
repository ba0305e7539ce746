"""The int8 files of a winner: made from its ONNX file on images it was trained on, and scored.

They have the nodes and types of what the latency code quantizes as it is loaded; only the ranges
differ, which are random inputs' there.
"""

from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nas.data import Data, Normalised, Split, batches, eval_batches
from nas.errors import ConfigError
from nas.latency.quantize import quantize_onnx, write_openvino
from nas.latency.runtimes.protocol import Values
from nas.manifest import Winner
from nas.target import Device, Target
from nas.winner.compare import Scorer, onnx_scorer, openvino_scorer

ONNX = "model.onnx"  # the network in fp32, batch 1
CALIBRATION_IMAGES = 128
BATCH_SIZE = 256

Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Kind:
    """How a runtime's int8 network is kept.

    Attributes:
        files: Names in a winner's folder; the first is the one that is loaded.
        write: Makes the first file, and those that belong to it, of an fp32 ONNX file and inputs
            of its shape, as a device runs it best.
        scorer: Loads the first file.
    """

    files: tuple[str, ...]
    write: Callable[[Path, Path, Sequence[Values], Device], Path]
    scorer: Callable[[Path], Scorer]


def _write_onnx(onnx: Path, path: Path, samples: Sequence[Values], device: Device) -> Path:
    return quantize_onnx(onnx, path, samples=samples, device=device)


def _write_openvino(onnx: Path, path: Path, samples: Sequence[Values], device: Device) -> Path:
    return write_openvino(onnx, path, samples=samples)  # the same one for every processor


INT8_KINDS = {
    "onnxruntime": Int8Kind(files=("model.int8.onnx",), write=_write_onnx, scorer=onnx_scorer),
    "openvino": Int8Kind(
        files=("model.int8.xml", "model.int8.bin"),
        write=_write_openvino,
        scorer=openvino_scorer,
    ),
}
INT8_FILES = tuple(name for kind in INT8_KINDS.values() for name in kind.files)


def int8_file(target: Target) -> str | None:
    """Return the name of the int8 file that a target runs; None for one that runs none."""
    kind = INT8_KINDS.get(target.runtime) if target.precision == "int8" else None
    return None if kind is None else kind.files[0]


def timed_file(folder: Path, target: Target, *, elsewhere: bool = False) -> Path:
    """Return the file of a winner's folder that a target of batch 1 runs.

    That is its int8 file where there is one. A device `elsewhere` is given ONNX alone: what it runs
    as something else it makes itself.
    """
    name = int8_file(target)
    if name is None or (elsewhere and not name.endswith(".onnx")):
        return folder / ONNX
    return folder / (name if name in Winner.load(folder).files else ONNX)


def int8_devices(targets: Iterable[str]) -> dict[str, Device]:
    """Return the runtimes of targets, by their ids, that run an int8 file; for which device each.

    Of several devices of a runtime it is the first one's.
    """
    devices: dict[str, Device] = {}
    for name in targets:
        try:
            target = Target.from_id(name)
        except ConfigError:
            continue  # a name that is no id is of no runtime we know
        if int8_file(target) is not None:
            devices.setdefault(target.runtime, target.device)
    return devices


def int8_runtimes(files: Collection[str]) -> list[str]:
    """Return the runtimes that have an int8 file among the names."""
    return [runtime for runtime, kind in INT8_KINDS.items() if kind.files[0] in files]


def write_int8(runtime: str, onnx: Path, folder: Path, data: Data, device: Device) -> Path:
    """Write an ONNX file of batch 1 in int8 as a runtime takes it; return the file it loads.

    Ranges are those that training images, as they are, reach: always the same ones.

    Raises:
        CorruptFile: it is not an ONNX file.
        DeviceError: the runtime is not installed, or cannot quantize it.
        StorageError: the file cannot be written.
    """
    split = data.split("train")
    size = min(CALIBRATION_IMAGES, len(split))
    images, _ = next(batches(split, data, batch_size=size, seed=0, epoch=0, augment=None))
    samples = [image[None].numpy() for image in images.contiguous()]
    kind = INT8_KINDS[runtime]
    return kind.write(onnx, folder / kind.files[0], samples, device)


def int8_accuracy(
    runtime: str,
    folder: Path,
    split: Split,
    data: Normalised,
    progress: Progress = lambda done, total, text: None,
) -> float:
    """Return the share (0 to 1) of a split's images that a folder's int8 file gets right.

    Raises:
        CorruptFile: it is not a file that the runtime can run.
        DeviceError: the runtime is not installed.
    """
    kind = INT8_KINDS[runtime]
    scores = kind.scorer(folder / kind.files[0])
    right = done = 0
    for images, labels in eval_batches(split, data, batch_size=BATCH_SIZE):
        right += int((scores(images).argmax(dim=1) == labels).sum())
        done += len(labels)
        progress(done, len(split), f"scoring images with {kind.files[0]}")
    return right / len(split)

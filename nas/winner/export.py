"""A trained network as a folder that timm, ONNX Runtime and a stranger can read."""

import errno
import logging
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
from safetensors import SafetensorError
from torch import nn

from nas import network
from nas.block import parse_network
from nas.data import Data, eval_batches
from nas.errors import ConfigError, DeviceError, NasError, StorageError, TrainingDiverged
from nas.files import digest_file, read_json, storage_error, write_atomic
from nas.manifest import FILE, Int8Accuracy, Winner
from nas.network import NasHybrid, stock
from nas.target import installed_version
from nas.winner import card
from nas.winner.compare import network_scores, onnx_scores, relative_error
from nas.winner.promise import ONNX_TOLERANCE
from nas.winner.quantized import INT8_FILES, ONNX, int8_accuracy, int8_devices, write_int8

CONFIG, WEIGHTS, CARD = "config.json", "model.safetensors", "README.md"
PROMISED = (CONFIG, WEIGHTS, ONNX, *INT8_FILES)
LICENSE = "apache-2.0"
COMPARED_IMAGES = 8

log = logging.getLogger(__name__)


def export(model: NasHybrid, *, folder: Path | str, winner: Winner, data: Data) -> Winner:
    """Write a winner's folder: timm's two files, model.onnx, README.md and, last, winner.json.

    A network that a stock timm class can be is saved as that class, so that timm alone loads it;
    any other as `nas_hybrid`. The folder appears whole or not at all: it is written beside its
    place and renamed. The same network gives the same bytes. One process at a time may export to
    a folder.

    For a target that is ONNX Runtime in int8 the folder also has model.int8.onnx, for one that is
    OpenVINO model.int8.xml and .bin, calibrated on training images; `accuracy.int8` is what they
    score. The latter are not made where OpenVINO is not installed, which is said.

    Args:
        model: The trained network, on any device; it is not changed.
        folder: Where to; a winner that stands there is replaced.
        winner: What is promised; its `files` and accuracy in int8 are filled in.
        data: What it was trained on: normalisation, class names, image size.

    Returns:
        The winner as it stands in winner.json.

    Raises:
        ConfigError: model, winner and data do not fit, or the folder holds other files.
        StorageError: the disk is full or the path is impossible; what stood there is intact.
        TrainingDiverged: a weight is NaN or infinite.
        NasError: the ONNX file would compute something else than the network.
        DeviceError: a runtime cannot quantize it.
    """
    _check(model, winner, data)
    ours = _copy(model)
    with _staged(Path(folder)) as stage:
        theirs = _as_stock(ours)
        _write_timm(theirs, stage, winner, data)
        network.to_onnx(ours, stage / ONNX, batch=1)
        _compare(theirs, stage / ONNX, data)
        winner = _with_int8(winner, stage, data)
        written = [stage / name for name in PROMISED if (stage / name).is_file()]
        digests = {path.name: digest_file(path) for path in written}
        winner = replace(winner, files=digests)
        write_atomic(stage / CARD, card.render(winner, read_json(stage / CONFIG)))
        winner.save(stage)
    return winner


def _check(model: NasHybrid, winner: Winner, data: Data) -> None:
    blocks = model.blocks_spec
    if blocks != parse_network(winner.blocks):
        raise ConfigError(
            f"the model must be the winner's network, but the model is {' '.join(map(str, blocks))}"
            f" and the winner {' '.join(winner.blocks)}."
        )
    shown = (data.in_chans, data.image_size, data.num_classes)
    built = (blocks[0].in_channels, blocks[0].resolution, model.num_classes)
    if shown != built:
        raise ConfigError(
            f"the network takes {built[0]} channels of side {built[1]} and knows {built[2]} "
            f"classes, but {data.name} has {shown[0]}, {shown[1]} and {shown[2]}."
        )


def _copy(model: NasHybrid) -> NasHybrid:
    """Return the network anew on the CPU in float32: plain memory, no drop rates, eval mode."""
    for name, value in model.state_dict().items():
        if not value.isfinite().all():
            raise TrainingDiverged(
                f"weights must be finite, but {name} is not. Train the network again with a lower "
                "learning rate; nothing was exported."
            )
    copy = network.build(model.blocks_spec)
    copy.load_state_dict(model.state_dict())
    return copy.eval()


def _as_stock(ours: NasHybrid) -> nn.Module:
    """Return the network as a stock timm model if one can be it, else as it is."""
    if stock.stock_args(ours.blocks_spec) is None:
        return ours
    return stock.to_timm(ours).eval()


def _write_timm(model: nn.Module, stage: Path, winner: Winner, data: Data) -> None:
    size = (data.in_chans, data.image_size, data.image_size)
    # How nas.data makes an image: short side to the size, bicubic, centre cut out.
    shown: dict[str, Any] = {"input_size": size, "mean": data.mean, "std": data.std}
    shown |= {"interpolation": "bicubic", "crop_pct": 1.0, "crop_mode": "center"}
    about = {"tag": f"nas_{winner.id}", "license": LICENSE}
    timm.models.save_for_hf(
        model,
        str(stage),
        model_config={"label_names": list(data.class_names), "pretrained_cfg": about},
        safe_serialization=True,
        data_config=shown,
    )


def _compare(model: nn.Module, onnx: Path, data: Data) -> None:
    """Raise NasError unless the ONNX file scores images as the network does."""
    images, _ = next(eval_batches(data.split("search"), data, batch_size=COMPARED_IMAGES))
    error = relative_error(onnx_scores(onnx, images), network_scores(model, images))
    log.info("ONNX and torch differ by %.1e", error)
    if not error <= ONNX_TOLERANCE:  # NaN too
        raise NasError(
            f"scores of the ONNX file must be within {ONNX_TOLERANCE:.0e} of the network's, but "
            f"differ by {error:.1e}. Nothing was exported. An exporter that does not fit this "
            "torch is the usual reason: install the versions pyproject.toml asks for."
        )


def _with_int8(winner: Winner, stage: Path, data: Data) -> Winner:
    """Write int8 files for targets that run them; return the winner with their scores on search."""
    int8 = {}
    for runtime, device in int8_devices(row.target for row in winner.targets).items():
        try:
            installed_version(runtime, "int8")
        except DeviceError as error:  # the target is elsewhere
            log.warning("no int8 file is made, and fp32 is all that is scored: %s", error)
            continue
        write_int8(runtime, stage / ONNX, stage, data, device)
        share = int8_accuracy(runtime, stage, data.split("search"), data)
        log.info("in int8 %.4f of the search split are right by %s", share, runtime)
        int8[runtime] = Int8Accuracy(search=share)
    return replace(winner, accuracy=replace(winner.accuracy, int8=int8))


# ---------------------------------------------------------------- the folder
@contextmanager
def _staged(folder: Path) -> Iterator[Path]:
    """Give a folder beside `folder` to write into; at the end it takes its place, whole."""
    folder = Path(os.path.abspath(folder))
    stage = folder.with_name(f".{folder.name}.exporting")
    try:
        _refuse_strangers(folder)
        shutil.rmtree(stage, ignore_errors=True)  # what a killed export left
        stage.mkdir(parents=True)
        yield stage
        for path in sorted(stage.iterdir()):
            path.chmod(0o644)  # safetensors writes for the owner alone
            _sync(path)
        _sync(stage)
        _take_place(stage, folder)
    except OSError as error:
        raise error if isinstance(error, StorageError) else storage_error(folder, error) from error
    except SafetensorError as error:
        raise StorageError(
            f"cannot write {folder / WEIGHTS}: {error}. Free space there, or choose another "
            "folder; nothing that was there before has changed."
        ) from error
    finally:
        shutil.rmtree(stage, ignore_errors=True)


def _refuse_strangers(folder: Path) -> None:
    """Raise ConfigError if exporting would replace a folder that holds more than a winner."""
    if folder.is_dir():
        strangers = sorted({path.name for path in folder.iterdir()} - {*PROMISED, CARD, FILE})
        if strangers:
            raise ConfigError(
                f"a winner's folder is replaced as a whole, but {folder} also holds "
                f"{', '.join(strangers[:5])}. Choose another folder, or move them."
            )
    elif folder.exists():
        raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))


def _sync(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _take_place(stage: Path, folder: Path) -> None:
    """Rename; a folder that is replaced is moved aside first and deleted afterwards."""
    old = folder.with_name(f".{folder.name}.replaced")
    shutil.rmtree(old, ignore_errors=True)
    if folder.exists():
        folder.rename(old)
    stage.rename(folder)
    _sync(folder.parent)
    shutil.rmtree(old, ignore_errors=True)

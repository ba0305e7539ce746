"""Teachers: any timm network, trained or fine-tuned on the train split, kept as a timm folder."""

import json
import logging
from pathlib import Path
from typing import Any

import torch
from safetensors import torch as safetensors_torch
from timm.models._hub import save_config_for_hf

from nas import checkpoint, files
from nas.data import Data, Progress
from nas.errors import ConfigError, CorruptFile
from nas.network import timm_models
from nas.network.timm_models import LOCAL
from nas.winner.distill import DistillConfig, TrainResult, train
from nas.winner.objective import Teacher
from nas.winner.score import Score, evaluate

RECORD, WEIGHTS, CONFIG = "teacher.json", "model.safetensors", "config.json"

log = logging.getLogger(__name__)


def make_teacher(
    name: str,
    data: Data,
    config: DistillConfig,
    *,
    folder: Path | str,
    device: torch.device | str = "cpu",
    progress: Progress | None = None,
) -> TrainResult:
    """Return a teacher for `data`: made once, then read back from `folder`.

    Args:
        name: One of
            `resnet10t`, a timm architecture: trained from random weights;
            `resnet18.a1_in1k`, a timm architecture with a tag: that tag's weights are fetched and
            fine-tuned on the train split;
            `local-dir:DIR`, a timm folder with config.json and model.safetensors: used as it is
            if it has the classes of `data`, else fine-tuned.
        data: What it is taught. A network that is trained here keeps the data's mean, standard
            deviation and image size as its own.
        config: How it is trained; its seed also draws the starting weights.
        folder: Gets `config.json` and `model.safetensors`, so that
            `timm.create_model("local-dir:FOLDER", pretrained=True)` gives the teacher, its
            record `teacher.json`, and the checkpoints of its training.
        device: Where it is trained, and where it is left.
        progress: Told after every step.

    Raises:
        ConfigError: timm knows no such network, the weights cannot be had, or the folder holds
            the training of another teacher.
        TrainingDiverged, StorageError, CorruptFile: as `train`.
    """
    folder = Path(folder)
    identity = _identity(name, data, config)
    found = _read(folder, identity)
    if found is not None:
        found.model.to(device)
        return found
    model = _create(name, data, config)
    if model.num_classes == data.num_classes and name.startswith(LOCAL):
        model.to(device)
        score = evaluate(Teacher(model, data), data.split("search"), data)
        digest = checkpoint.digest_tensors(model.state_dict())
        result = TrainResult(model=model.eval(), steps=0, score=score, losses=(), digest=digest)
    else:
        if model.num_classes != data.num_classes:
            model.reset_classifier(data.num_classes)
        model.to(device)
        model.pretrained_cfg = model.pretrained_cfg | _shown(data)
        result = train(model, data, config, folder=folder, progress=progress)
    _write(folder, result, identity)
    return result


def _identity(name: str, data: Data, config: DistillConfig) -> dict[str, Any]:
    """Return what the teacher in a folder was made from; plain JSON."""
    settings = files.to_plain(config)
    del settings["checkpoint_steps"]
    return {"name": name, "config": settings, "data": data.digest}


def _create(name: str, data: Data, config: DistillConfig) -> Any:  # Any: a timm model
    """Return the network that is to become the teacher, from the seed or with its own weights."""
    if name.startswith(LOCAL):
        source = Path(name.removeprefix(LOCAL))
        for needed in (CONFIG, WEIGHTS):
            if not (source / needed).is_file():
                raise ConfigError(
                    f"{name} needs {CONFIG} and {WEIGHTS}, but {source / needed} is not there. "
                    "timm.models.save_for_hf(model, DIR) writes both."
                )
        return timm_models.create(name, pretrained=True)
    options = {"num_classes": data.num_classes, "in_chans": data.in_chans}
    overlay = {"input_size": (data.in_chans, data.image_size, data.image_size)}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(config.seed)
        return timm_models.create(
            name, pretrained="." in name, pretrained_cfg_overlay=overlay, **options
        )


def _shown(data: Data) -> dict[str, Any]:
    """Return the part of a timm configuration that says how images are shown to a network."""
    return {
        "input_size": (data.in_chans, data.image_size, data.image_size),
        "mean": data.mean,
        "std": data.std,
        "crop_pct": 1.0,
        "interpolation": "bicubic",
    }


# ---------------------------------------------------------------- the folder
def _write(folder: Path, result: TrainResult, identity: dict[str, Any]) -> None:
    """Write the teacher as a folder that timm loads; the record comes last and vouches for it."""
    model: Any = result.model  # Any: a timm model
    tensors = {name: value.contiguous() for name, value in model.state_dict().items()}
    raw = safetensors_torch.save(tensors)
    files.write_atomic(folder / WEIGHTS, raw)
    own = {"tag": "nas_teacher", "url": "", "hf_hub_id": None, "origin_url": None}
    shown = {key: model.pretrained_cfg[key] for key in ("input_size", "mean", "std", "crop_pct")}
    try:
        save_config_for_hf(
            model, str(folder / CONFIG), model_config={"pretrained_cfg": own}, data_config=shown
        )
    except OSError as error:
        raise files.storage_error(folder / CONFIG, error) from error
    record = {
        "made_from": identity,
        "steps": result.steps,
        "score": result.score,
        "losses": result.losses,
        "digest": result.digest,
        "sha256": {name: files.digest_file(folder / name) for name in (WEIGHTS, CONFIG)},
    }
    files.write_json(folder / RECORD, record)


def _read(folder: Path, identity: dict[str, Any]) -> TrainResult | None:
    """Return the teacher in `folder`, or None if it is not this one, whole."""
    if not (folder / RECORD).exists():
        return None
    try:
        record = files.read_json(folder / RECORD)
        if record["made_from"] != json.loads(files.canonical_json(identity)):
            return None
        for name, sha256 in record["sha256"].items():
            if files.digest_file(folder / name) != sha256:
                raise CorruptFile(f"{folder / name} does not have the sha256 of {RECORD}.")
        score = Score(**record["score"])
        steps, losses, digest = record["steps"], tuple(record["losses"]), record["digest"]
    except (CorruptFile, OSError, KeyError, TypeError, AttributeError) as error:
        log.warning("the teacher in %s is damaged (%s); it is made again.", folder, error)
        return None
    model = timm_models.create(f"{LOCAL}{folder}", pretrained=True)
    return TrainResult(model=model.eval(), steps=steps, score=score, losses=losses, digest=digest)

"""Checkpoints of any training loop: tensors in safetensors, the rest in JSON, all under digests.

A checkpoint is a pair `step-N.safetensors` and `step-N.json`. The JSON is written last and holds
the sha256 of the tensor file and a digest of its own content, so a pair is whole or not counted.
The newest whole pair counts and two are kept. No pickle is written or read.

`pack` and `unpack` turn any nest of dicts, lists, numbers and tensors (an optimizer's state, say)
into tensors by name and plain JSON, and back, bit for bit.
"""

import hashlib
import json
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors import torch as safetensors_torch
from torch import Tensor

from nas import files
from nas.errors import CorruptFile, StorageError

SCHEMA = 1
KEPT = 2

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Checkpoint:
    """One whole checkpoint: the step it was taken after, tensors on the CPU, plain JSON state."""

    step: int
    tensors: dict[str, Tensor]
    state: dict[str, Any]  # Any: plain JSON values


# ---------------------------------------------------------------- saving
def save(folder: Path | str, step: int, tensors: Mapping[str, Tensor], state: Any) -> Path:
    """Write the checkpoint of `step`, then delete all but the newest two.

    Args:
        folder: Made if missing. One process at a time writes there.
        step: Steps done, at least 0; part of the file names.
        tensors: Of any device, dtype, layout; each is copied.
        state: A dict of plain JSON values; `pack` makes them.

    Returns:
        The path of the JSON file.

    Raises:
        StorageError: the disk is full or the folder cannot be written; the checkpoints that were
            there are intact.
    """
    folder = Path(folder)
    weights, record = _paths(folder, step)
    raw = safetensors_torch.save({name: _portable(value) for name, value in tensors.items()})
    content = {"schema": SCHEMA, "step": step, "tensors": hashlib.sha256(raw).hexdigest()}
    content |= {"state": state, "digest": files.digest_json([content, state])}
    files.write_atomic(weights, raw)
    try:
        files.write_json(record, content)
    except StorageError:
        if not record.exists():
            weights.unlink(missing_ok=True)
        raise
    _prune(folder)
    return record


def _portable(value: Tensor) -> Tensor:
    """Return a copy on the CPU that shares its memory with nothing, as safetensors demands."""
    return value.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)


def _paths(folder: Path, step: int) -> tuple[Path, Path]:
    return folder / f"step-{step}.safetensors", folder / f"step-{step}.json"


def _steps(folder: Path, suffix: str) -> list[int]:
    """Return the steps that have a file with `suffix`, newest first."""
    names = [path.stem.removeprefix("step-") for path in folder.glob(f"step-*{suffix}")]
    return sorted((int(name) for name in names if name.isdecimal()), reverse=True)


def _prune(folder: Path) -> None:
    """Delete all but the newest two checkpoints, and what a killed process left half-written."""
    kept = _steps(folder, ".json")[:KEPT]
    for suffix in (".json", ".safetensors"):
        for step in set(_steps(folder, suffix)) - set(kept):
            (folder / f"step-{step}{suffix}").unlink(missing_ok=True)
    for leftover in folder.glob(".step-*"):
        leftover.unlink(missing_ok=True)


# ---------------------------------------------------------------- loading
def load(folder: Path | str) -> Checkpoint | None:
    """Return the newest whole checkpoint, or None where none was ever finished.

    A damaged newest one is passed over with a warning in the log.

    Raises:
        CorruptFile: there are checkpoints, and every one of them is damaged.
    """
    folder = Path(folder)
    problem: CorruptFile | None = None
    for step in _steps(folder, ".json"):
        try:
            found = _read(folder, step)
        except CorruptFile as error:
            log.warning("%s The checkpoint before it is used, if there is one.", error)
            problem = error
        else:
            return found
    if problem is not None:
        raise CorruptFile(
            f"every checkpoint in {folder} is damaged (the oldest: {problem}). "
            "Restore the folder from a copy, or delete it to start this stage again."
        ) from problem
    return None


def _read(folder: Path, step: int) -> Checkpoint:
    """Return the checkpoint of `step`; CorruptFile unless both files are as they were written."""
    weights, record = _paths(folder, step)
    content = files.read_json(record)
    keys = {"schema", "step", "tensors", "state", "digest"}
    if not isinstance(content, dict) or set(content) != keys:
        raise CorruptFile(f"{record} is damaged: it is not the record of a checkpoint.")
    if content["schema"] != SCHEMA:
        raise CorruptFile(
            f"{record} has schema {content['schema']!r}; this version reads {SCHEMA}."
        )
    head = {key: content[key] for key in ("schema", "step", "tensors")}
    if content["step"] != step or files.digest_json([head, content["state"]]) != content["digest"]:
        raise CorruptFile(f"{record} is damaged: its content does not have the digest it names.")
    try:
        raw = weights.read_bytes()
    except OSError as error:
        raise CorruptFile(f"{weights} cannot be read: {error.strerror}.") from error
    if hashlib.sha256(raw).hexdigest() != content["tensors"]:
        raise CorruptFile(f"{weights} is damaged: it does not have the sha256 that {record} names.")
    try:
        tensors = safetensors_torch.load(raw)
    except SafetensorError as error:
        raise CorruptFile(f"{weights} is not a safetensors file: {error}.") from error
    return Checkpoint(step=step, tensors=tensors, state=content["state"])


# ---------------------------------------------------------------- any state as tensors and JSON
def pack(value: Any, prefix: str) -> tuple[dict[str, Tensor], Any]:
    """Split a nest of dicts, lists, tuples, scalars and tensors into tensors by name and JSON.

    Args:
        value: The nest. Keys of dicts are strings or whole numbers.
        prefix: What the names of its tensors start with.

    Returns:
        The tensors, named `prefix.path.in.the.nest`, and plain JSON that refers to them.
    """
    tensors: dict[str, Tensor] = {}

    def plain(item: Any, name: str) -> Any:
        if isinstance(item, Tensor):
            tensors[name] = item
            return {"tensor": name}
        if isinstance(item, dict):
            return {"dict": [[key, plain(inner, f"{name}.{key}")] for key, inner in item.items()]}
        if isinstance(item, list | tuple):
            rows = [plain(inner, f"{name}.{index}") for index, inner in enumerate(item)]
            return {"list" if isinstance(item, list) else "tuple": rows}
        if item is None or isinstance(item, bool | int | float | str):
            return item
        raise TypeError(f"{name} is of {type(item)}, which no checkpoint holds.")

    return tensors, plain(value, prefix)


def unpack(plain: Any, tensors: Mapping[str, Tensor]) -> Any:
    """Return what `pack` was given, from the JSON and the tensors it made."""
    if isinstance(plain, dict):
        ((kind, inner),) = plain.items()
        if kind == "tensor":
            return tensors[inner]
        if kind == "dict":
            return {key: unpack(item, tensors) for key, item in inner}
        rows = [unpack(item, tensors) for item in inner]
        return rows if kind == "list" else tuple(rows)
    return plain


def restore_optimizer(optimizer: torch.optim.Optimizer, state: dict[str, Any]) -> None:
    """Load an optimizer's state dict, each tensor in the memory layout of its parameter.

    A file keeps values but not strides; torch would keep the file's strides, and go on through
    other kernels than the run that was interrupted.
    """
    optimizer.load_state_dict(state)
    for parameter, values in optimizer.state.items():
        for name, value in values.items():
            if isinstance(value, Tensor) and value.shape == parameter.shape:
                values[name] = torch.empty_like(parameter, dtype=value.dtype).copy_(value)


# ---------------------------------------------------------------- random state
def random_state() -> dict[str, Tensor]:
    """Return the states of torch's own generators: "cpu", and "cuda.N" for each GPU in use."""
    states = {"cpu": torch.get_rng_state()}
    if torch.cuda.is_available():
        states |= {f"cuda.{i}": state for i, state in enumerate(torch.cuda.get_rng_state_all())}
    return states


def restore_random_state(states: Mapping[str, Tensor]) -> None:
    """Set torch's generators to what `random_state` returned, on the GPUs that are there."""
    torch.set_rng_state(states["cpu"])
    for name, state in states.items():
        device, _, index = name.partition(".")
        if device == "cuda" and int(index) < torch.cuda.device_count():
            torch.cuda.set_rng_state(state, int(index))


def digest_tensors(tensors: Mapping[str, Tensor]) -> str:
    """Return the sha256 (hex) of names, dtypes, shapes and values, whatever device and layout."""
    total = hashlib.sha256()
    for name in sorted(tensors):
        value = _portable(tensors[name])
        total.update(json.dumps([name, str(value.dtype), list(value.shape)]).encode())
        total.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return total.hexdigest()

"""A training as a checkpoint and back: what must be equal to go on, and what is restored."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nas import checkpoint, files
from nas.checkpoint import Checkpoint
from nas.errors import ConfigError, CorruptFile
from nas.space import SearchSpace
from nas.supernet.choice import Choice
from nas.supernet.model import SuperNet

Plain = dict[str, Any]  # Any: plain JSON


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trained:
    """What a training leaves behind.

    Attributes:
        supernet: With its final weights.
        choice: The logits of the kinds.
        history: Rows {"step", "lr", "largest", "smallest", "random", "choice"}: mean losses since
            the row before, of the roles that ran.
        is_averaged: Whether the weights are the moving average of those of the steps.
    """

    supernet: SuperNet
    choice: Choice
    history: tuple[Plain, ...]
    is_averaged: bool = False


def stored(identity: Plain, parts: Mapping[str, Any]) -> tuple[dict[str, Tensor], Plain]:
    """Return the tensors and the plain state of a training.

    Args:
        identity: Plain JSON that must be equal for the training to be gone on with.
        parts: What has a `state_dict`, by name.
    """
    tensors: dict[str, Tensor] = {}
    state: Plain = {"identity": identity}
    for name, part in parts.items():
        own, state[name] = checkpoint.pack(dict(part.state_dict()), name)
        tensors |= own
    return tensors, state


def restored(found: Checkpoint, identity: Plain, parts: Mapping[str, Any], *, source: Path) -> None:
    """Put a checkpoint back into the parts, in the memory layouts they have.

    Raises:
        ConfigError: it belongs to another training; the message names what differs.
        CorruptFile: it is whole, but not a supernet's.
    """
    state = found.state
    if "identity" not in state or not parts.keys() <= state.keys():
        raise CorruptFile(f"{source} holds checkpoints, but not those of a supernet.")
    different = _differences(state["identity"], identity)
    if different:
        raise ConfigError(
            f"{source} holds a training that differs in {'; '.join(different[:4])}. "
            "Ask for the same again to go on with it, or choose another folder."
        )
    for name, part in parts.items():
        values = checkpoint.unpack(state[name], found.tensors)
        if isinstance(part, torch.optim.Optimizer):
            checkpoint.restore_optimizer(part, values)
        else:
            part.load_state_dict(values)


def _differences(there: Any, asked: Any, name: str = "") -> list[str]:
    """Return "name: value there, value asked for" of every leaf that differs."""
    if isinstance(there, dict) and isinstance(asked, dict):
        keys = dict.fromkeys([*there, *asked])
        return [
            line
            for key in keys
            for line in _differences(there.get(key), asked.get(key), f"{name}.{key}".lstrip("."))
        ]
    if isinstance(there, list) and isinstance(asked, list) and len(there) == len(asked):
        pairs = enumerate(zip(there, asked, strict=True))
        return [line for n, (a, b) in pairs for line in _differences(a, b, f"{name}.{n}")]
    if there == asked:
        return []
    return [f"{name} ({there!r:.60} there, {asked!r:.60} asked for)"]


def load(folder: Path | str) -> Trained:
    """Return what a training left in a folder, on the CPU; an unfinished one as far as it came.

    Raises:
        ConfigError: there is no checkpoint.
        CorruptFile: every checkpoint is damaged, or is not a supernet's.
    """
    found = checkpoint.load(folder)
    if found is None:
        raise ConfigError(f"{folder} holds no trained supernet. Train one there: nas train.")
    try:
        plain = found.state["identity"]
        source = f"the space in {folder}"
        space = files.into(SearchSpace, plain["space"], source=source, error=CorruptFile)
        supernet = SuperNet(space, seed=plain["supernet_seed"])
        choice = Choice(space)
        for name, part in (("supernet", supernet), ("choice", choice)):
            part.load_state_dict(checkpoint.unpack(found.state[name], found.tensors))
        return Trained(
            supernet=supernet,
            choice=choice,
            history=tuple(found.state["history"]),
            is_averaged=found.state.get("is_averaged", False),  # older ones have no average
        )
    except (KeyError, TypeError) as error:
        raise CorruptFile(f"{folder} holds checkpoints, but not those of a supernet.") from error

"""Any model of timm's by its name, with an error that helps where there is none."""

import difflib
from pathlib import Path
from typing import Any

import timm
from safetensors import SafetensorError
from timm.models import save_for_hf

from nas.errors import ConfigError
from nas.files import storage_error

LOCAL = "local-dir:"


def create(name: str, **options: Any) -> Any:
    """Return `timm.create_model(name, **options)`, a module with timm's methods.

    Args:
        name: A timm name, with a tag or without, or local-dir:DIR.
        options: As timm takes them.

    Raises:
        ConfigError: timm knows no such model, or cannot make it so; the message names close ones.
    """
    if not name.startswith(LOCAL) and not timm.is_model(name.partition(".")[0]):
        near = difflib.get_close_matches(name, timm.list_models(), n=3, cutoff=0.8)
        hint = f"did you mean {' or '.join(near)}?" if near else "see timm.list_models()."
        raise ConfigError(f"timm knows no network {name!r}; {hint}")
    try:
        return timm.create_model(name, **options)
    except (OSError, RuntimeError, ValueError, TypeError, SafetensorError) as error:
        raise ConfigError(
            f"the network {name} cannot be made ({type(error).__name__}: {error}). Published "
            f"weights come from the internet; without it use {LOCAL}DIR, or, where random weights "
            "will do, the name without its tag."
        ) from error


def save(model: Any, folder: Path) -> Path:
    """Write a model as a folder that `local-dir:` loads, and return the folder.

    Raises:
        StorageError: it cannot be written.
    """
    try:
        save_for_hf(model, str(folder), safe_serialization=True)
    except OSError as error:
        raise storage_error(folder, error) from error
    return folder

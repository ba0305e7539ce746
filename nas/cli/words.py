"""From flags to settings: `key=value` words, and the command that goes on after a stop."""

import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from nas.environment import program


def changes(flagged: Mapping[str, Any], overrides: Sequence[str] | None) -> list[str]:
    """Return flags that were given, then overrides, as `key=value` words."""
    given = [f"{key}={json.dumps(value)}" for key, value in flagged.items() if value is not None]
    return [*given, *(overrides or ())]


def targets(given: Sequence[str] | None) -> dict[str, Any]:
    """Return the settings of `--target`, given once or more; nothing where it is not given."""
    if not given:
        return {}
    return {"target": given[0], "other_targets": list(given[1:])}


def go_on(verb: str, run: Path) -> list[str]:
    """Return the command that continues this one: the same words with --resume.

    It is printed, so a password in a URL is not in it.
    """
    from nas.study import mask_url

    words = [mask_url(word) for word in sys.argv[1:]] or [verb, "--run", str(run)]
    return [program("nas"), *words, *([] if "--resume" in words else ["--resume"])]

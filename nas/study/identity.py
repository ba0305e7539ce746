"""What makes two searches the same one: attributes that may not change when a study goes on."""

from collections.abc import Mapping
from typing import Any

from nas.errors import ConfigError

SCHEMA = 1  # of the attributes and rows of a study

# Facts about a run, not about what is searched.
MAY_DIFFER = ("schema", "version", "ended")
_DIGEST_SHOWN = 12


def check(name: str, *, before: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Refuse to go on with a study that was begun with other attributes.

    Raises:
        ConfigError: an attribute has changed; the message shows each with both values.
    """
    differences = [
        _difference(key, before[key], value)
        for key, value in now.items()
        if key in before and key not in MAY_DIFFER and before[key] != value
    ]
    if differences:
        raise ConfigError(
            f"the study {name!r} was begun otherwise: {'; '.join(differences)}. "
            "Repeat the settings it was begun with, or choose another --name."
        )


def check_schema(name: str, schema: int | None) -> None:
    """Raise ConfigError for a study that is not ours, or one of a newer version."""
    if schema is None:
        raise ConfigError(f"the study {name!r} was not made by nas: it has no nas.schema.")
    if schema > SCHEMA:
        raise ConfigError(
            f"the study {name!r} has schema {schema}, but this version knows {SCHEMA}; "
            "install a newer hybrid-nas."
        )


def _difference(key: str, before: Any, now: Any) -> str:  # Any: plain JSON
    """Return one changed attribute in words; of two dicts only the entries that differ."""
    if isinstance(before, dict) and isinstance(now, dict):
        changed = [name for name in {**before, **now} if before.get(name) != now.get(name)]
        before = {name: before[name] for name in changed if name in before}
        now = {name: now[name] for name in changed if name in now}
    if key.endswith("_digest") and isinstance(before, str) and isinstance(now, str):
        before, now = before[:_DIGEST_SHOWN], now[:_DIGEST_SHOWN]
    return f"{key} was {before!r} and is now {now!r}"

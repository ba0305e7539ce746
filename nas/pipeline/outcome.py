"""Outcome: what a stage leaves to say, for programs and for people."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from nas.errors import NasError


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """Plain values (one JSON object) and lines of text; `problem` is what was promised in vain."""

    values: Mapping[str, Any]
    lines: tuple[str, ...]
    problem: NasError | None = None

    def to_json(self) -> dict[str, Any]:
        """Return the values for --json."""
        return dict(self.values)

    def text(self) -> str:
        """Return the lines for a terminal."""
        return "\n".join(self.lines)

    def joined(self, name: str, other: "Outcome") -> "Outcome":
        """Return this outcome with another's lines below, and its values under a name."""
        return replace(
            self, values={**self.values, name: other.values}, lines=self.lines + other.lines
        )

    def raise_if_broken(self) -> None:
        """Raise what was found wrong, if anything was."""
        if self.problem is not None:
            raise self.problem


def rows(pairs: Mapping[str, str]) -> tuple[str, ...]:
    """Return "name   value" lines with the values below each other."""
    width = max(map(len, pairs), default=0)
    return tuple(f"{name.ljust(width)}  {value}" for name, value in pairs.items())

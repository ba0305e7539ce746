"""LossTable: what each inner number of each place in a supernet costs in loss, as a JSON file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nas.errors import ConfigError, CorruptFile
from nas.files import digest_json, into, read_json, to_plain, write_json

SCHEMA = 1
METHODS = ("taylor", "sensitivity")


@dataclass(frozen=True, slots=True, kw_only=True)
class DimLoss:
    """One inner dimension of one place.

    Attributes:
        kind: The kind of part and dimension, "ffn.hidden"; what scales are for.
        kept: Number of heads ("0" where heads share their channels or there are none) -> number
            of channels -> how much of what matters the first so many channels keep.
    """

    kind: str
    kept: dict[str, dict[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class LossTable:
    """What inner numbers cost in loss, for all places of one supernet.

    Attributes:
        space: Name of the space.
        method: "taylor": sums of importance, made nats by scales; "sensitivity": measured nats.
        supernet: Digest of the weights it was measured on.
        scales: Nats a unit of what `kept` counts, by kind; a kind that is absent has 1.
        fit: How well scales predict: `r2`, `r2_fitted`, `spearman` on `networks` networks.
        dims: "SLOT.FIELD" -> its numbers.
    """

    schema: int = SCHEMA
    space: str
    method: str
    supernet: str = ""
    scales: dict[str, float] = field(default_factory=dict)
    fit: dict[str, float] = field(default_factory=dict)
    dims: dict[str, DimLoss]

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ConfigError(f"loss table schema must be {SCHEMA}, but is {self.schema}.")
        if self.method not in METHODS:
            raise ConfigError(f"method must be one of {', '.join(METHODS)}, not {self.method!r}.")
        if any(not scale >= 0 for scale in self.scales.values()):
            raise ConfigError(f"scales must be at least 0, but are {self.scales}.")

    def lost(self, name: str, number: int, *, most: int, heads: int = 0) -> float:
        """Return the predicted increase of the loss in nats when a dimension is made smaller.

        Args:
            name: "SLOT.FIELD".
            number: What it becomes.
            most: What it is made smaller from.
            heads: Those of the block; counts where each head has channels of its own.

        Raises:
            ConfigError: the table does not know the dimension, or the number there.
        """
        dim = self.dims.get(name)
        kept: Mapping[str, float] = {}
        if dim is not None:
            kept = dim.kept.get(str(heads), dim.kept.get("0", {}))
        for wanted in (number, most):
            if str(wanted) not in kept:
                raise ConfigError(
                    f"the loss table of {self.space} does not know {name} at {wanted}. Measure it "
                    "again: it is of another space."
                )
        assert dim is not None
        return self.scales.get(dim.kind, 1.0) * (kept[str(most)] - kept[str(number)])

    @property
    def digest(self) -> str:
        """Sha256 (hex) of everything in the table."""
        return digest_json(to_plain(self))

    @classmethod
    def load(cls, path: Path | str) -> "LossTable":
        """Return the table in a file.

        Raises:
            CorruptFile: missing, damaged, or of another schema.
        """
        plain: Any = read_json(path)
        return into(cls, plain, source=str(path), error=CorruptFile)

    def save(self, path: Path | str) -> Path:
        """Write it atomically and return the path."""
        return write_json(path, to_plain(self))

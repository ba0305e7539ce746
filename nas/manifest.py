"""Winner: what winner.json says of an exported network - promises, measurements, ancestry."""

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nas.block import parse_network
from nas.errors import ConfigError, CorruptFile
from nas.files import digest_file, into, read_json, to_plain, write_json
from nas.space import Architecture

SCHEMA = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Top-1 accuracy, 0 to 1: on the search split, and on test once `verify` has opened it."""

    search: float
    test: float | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetResult:
    """Latency of the whole network on one Target, in milliseconds."""

    target: str
    predicted_ms: float
    measured_ms: float | None = None
    ci_high_ms: float | None = None
    p95_ms: float | None = None
    grade: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Ancestry:
    """Where a winner comes from: names and digests that let anyone repeat it."""

    study: str
    trial: int
    supernet: str = ""
    tables: dict[str, str] = field(default_factory=dict)
    teacher: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Winner:
    """The value in winner.json. `files` maps each exported file to its sha256."""

    schema: int = SCHEMA
    architecture: dict[str, Any]
    blocks: tuple[str, ...]
    accuracy: Accuracy
    budgets: dict[str, float]
    targets: tuple[TargetResult, ...]
    ancestry: Ancestry
    data: str = ""
    files: dict[str, str] = field(default_factory=dict)
    command: str = ""

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ConfigError(f"winner schema {self.schema} is not known; this is {SCHEMA}.")
        parse_network(self.blocks)
        Architecture.from_json(self.architecture)

    @property
    def id(self) -> str:
        """The architecture's id, 12 hex digits; also the name of the winner's folder."""
        return Architecture.from_json(self.architecture).id

    @classmethod
    def load(cls, folder: Path | str) -> "Winner":
        """Read FOLDER/winner.json.

        Raises:
            CorruptFile: missing, damaged, or it breaks the schema.
        """
        path = Path(folder) / "winner.json"
        return into(cls, read_json(path), source=str(path), error=CorruptFile)

    def save(self, folder: Path | str) -> Path:
        """Write FOLDER/winner.json atomically; the last file of a winner to be written."""
        return write_json(Path(folder) / "winner.json", to_plain(self))

    def check_files(self, folder: Path | str) -> None:
        """Raise CorruptFile unless every exported file has the bytes it was exported with."""
        for name, digest in self.files.items():
            path = Path(folder) / name
            if not path.is_file():
                raise CorruptFile(f"{path} is missing; export the winner again.")
            if digest_file(path) != digest:
                raise CorruptFile(f"{path} is not the file that was exported; export it again.")

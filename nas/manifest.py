"""Winner: what winner.json says of an exported network - promises, measurements, ancestry."""

import re
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nas.block import parse_network
from nas.errors import ConfigError, CorruptFile
from nas.files import digest_file, into, read_json, to_plain, write_json
from nas.space import Architecture, architecture_of

SCHEMA = 3  # in 2 nobody noted the machine's speed; in 1 there was one int8 file, ONNX Runtime's
FILE = "winner.json"
LATENCY = "latency_ms"
STATISTICS = ("median", "p95")  # what of a measurement a budget is compared with


@dataclass(frozen=True, slots=True, kw_only=True)
class Int8Accuracy:
    """Top-1 accuracy, 0 to 1, of a runtime's int8 file, on the images of Accuracy's."""

    search: float
    test: float | None = None

    def __post_init__(self) -> None:
        _refuse_no_share("accuracy.int8.search", self.search)
        _refuse_no_share("accuracy.int8.test", self.test)


@dataclass(frozen=True, slots=True, kw_only=True)
class Accuracy:
    """Top-1 accuracy, 0 to 1: on the search split, and on test once `verify` has opened it.

    `search_images` is how many images the first was counted on, 0 where nobody noted it. `int8` has
    those of the int8 files, by the runtime each is for; they are made where a target runs them.
    """

    search: float
    search_images: int = 0
    test: float | None = None
    test_images: int = 0
    int8: dict[str, Int8Accuracy] = field(default_factory=dict)

    def __post_init__(self) -> None:
        _refuse_no_share("accuracy.search", self.search)
        _refuse_no_share("accuracy.test", self.test)


def _refuse_no_share(name: str, value: float | None) -> None:
    if value is not None and not 0 <= value <= 1:
        raise ConfigError(f"{name} must be from 0 to 1, but is {value}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class TargetResult:
    """Latency of the whole network on one Target, in milliseconds.

    `predicted_ms` is the latency table's; None for a target nobody priced it on. The others come
    from `verify`: median, upper end of its 95 % interval, 95th percentile of all runs, grade.

    `reference_promised_ms` is what the reference kernel took at the speed the promise is for (the
    table's, or the machine's when it was searched, if that was slower), `reference_measured_ms`
    what it took when `verify` measured; None where none was beside the network.
    """

    target: str
    predicted_ms: float | None = None
    measured_ms: float | None = None
    ci_high_ms: float | None = None
    p95_ms: float | None = None
    grade: str | None = None
    reference_promised_ms: float | None = None
    reference_measured_ms: float | None = None

    def __post_init__(self) -> None:
        measured = ("predicted_ms", "measured_ms", "ci_high_ms", "p95_ms")
        for name in (*measured, "reference_promised_ms", "reference_measured_ms"):
            value = getattr(self, name)
            if value is not None and not value > 0:
                raise ConfigError(f"{name} must be above 0, but is {value} on {self.target}.")

    @property
    def upper_ms(self) -> float | None:
        """The upper end of the median's interval; None if not measured."""
        return self.measured_ms if self.ci_high_ms is None else self.ci_high_ms

    @property
    def slower(self) -> float | None:
        """How many times as long the machine took when it was measured as where it was promised.

        None where that is not known.
        """
        if self.reference_measured_ms is None or self.reference_promised_ms is None:
            return None
        return self.reference_measured_ms / self.reference_promised_ms

    def promised_as(self, promised: "TargetResult | None") -> "TargetResult":
        """Return what is measured beside what was predicted and promised, if anything was."""
        if promised is None:
            return self
        return replace(
            self,
            predicted_ms=promised.predicted_ms,
            reference_promised_ms=promised.reference_promised_ms,
        )

    def judged_ms(self, statistic: str) -> float | None:
        """Return what a budget is compared with; None if it was not measured.

        Args:
            statistic: "median" for the upper end of its interval, "p95" for the 95th percentile.
        """
        return self.p95_ms if statistic == "p95" else self.upper_ms


@dataclass(frozen=True, slots=True, kw_only=True)
class Ancestry:
    """Where a winner comes from: names and digests that let anyone repeat it.

    `pruned_from` is the digest of the weights it was cut out of, "" where it was not.
    """

    study: str
    trial: int
    supernet: str = ""
    tables: dict[str, str] = field(default_factory=dict)
    teacher: str = ""
    pruned_from: str = ""


@dataclass(frozen=True, slots=True, kw_only=True)
class Winner:
    """The value in winner.json. `files` maps the exported files a promise is about to sha256.

    The model card (README.md) is not among them: its words may be edited. `statistic` is one of
    STATISTICS: what of a measured latency its budget is compared with.
    """

    schema: int = SCHEMA
    architecture: dict[str, Any]
    blocks: tuple[str, ...]
    accuracy: Accuracy
    budgets: dict[str, float]
    targets: tuple[TargetResult, ...]
    ancestry: Ancestry
    data: str = ""
    files: dict[str, str] = field(default_factory=dict)
    statistic: str = "median"
    command: str = ""

    def __post_init__(self) -> None:
        if self.schema != SCHEMA:
            raise ConfigError(f"winner schema {self.schema} is not known; this is {SCHEMA}.")
        if self.statistic not in STATISTICS:
            raise ConfigError(
                f"statistic must be one of {', '.join(STATISTICS)}, but is {self.statistic!r}."
            )
        architecture = Architecture.from_json(self.architecture)
        if architecture_of(parse_network(self.blocks), space=architecture.space) != architecture:
            raise ConfigError("blocks and architecture must describe the same network.")
        for metric, budget in self.budgets.items():
            if not budget > 0:
                raise ConfigError(f"the budget of {metric} must be above 0, but is {budget}.")
        for name in self.files:
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
                raise ConfigError(f"files are plain names in the winner's folder, not {name!r}.")
        targets = [row.target for row in self.targets]
        if len(set(targets)) != len(targets):
            raise ConfigError(f"each target stands once, but they are {', '.join(targets)}.")

    @property
    def id(self) -> str:
        """The architecture's id, 12 hex digits; also the name of the winner's folder."""
        return Architecture.from_json(self.architecture).id

    def on(self, target: str) -> TargetResult | None:
        """Return what is known of its latency on a target, by the target's id."""
        return next((row for row in self.targets if row.target == target), None)

    def latency_budget_ms(self, target: str) -> float | None:
        """Return the latency promised on a target, None if nothing was.

        A budget named `latency_ms` alone is that of the only target.
        """
        budget = self.budgets.get(f"{LATENCY}:{target}")
        if budget is None and [row.target for row in self.targets] == [target]:
            budget = self.budgets.get(LATENCY)
        return budget

    @classmethod
    def load(cls, folder: Path | str) -> "Winner":
        """Read FOLDER/winner.json.

        Raises:
            CorruptFile: missing, damaged, or it breaks the schema.
        """
        path = Path(folder) / FILE
        return into(cls, _upgraded(read_json(path)), source=str(path), error=CorruptFile)

    def save(self, folder: Path | str) -> Path:
        """Write FOLDER/winner.json atomically; the last file of a winner to be written."""
        return write_json(Path(folder) / FILE, to_plain(self))

    def changed_files(self, folder: Path | str) -> tuple[str, ...]:
        """Return the names of exported files that are missing or have other bytes now."""
        changed = []
        for name, digest in self.files.items():
            path = Path(folder) / name
            if not path.is_file() or digest_file(path) != digest:
                changed.append(name)
        return tuple(changed)

    def check_files(self, folder: Path | str) -> None:
        """Raise CorruptFile unless every exported file has the bytes it was exported with."""
        changed = self.changed_files(folder)
        if changed:
            raise CorruptFile(
                f"{Path(folder) / changed[0]} is missing or is not the file that was exported. "
                "Restore it, or export the winner again."
            )


def _upgraded(value: Any) -> Any:
    """Return what schemas 1 and 2 say as this one says it; anything else as it is."""
    if not (isinstance(value, dict) and value.get("schema") in (1, 2)):
        return value
    accuracy = value.get("accuracy")
    if value["schema"] == 1 and isinstance(accuracy, dict):
        rest = {key: item for key, item in accuracy.items() if not key.endswith("_int8")}
        shares = {split: accuracy.get(f"{split}_int8") for split in ("search", "test")}
        int8 = {} if shares["search"] is None else {"onnxruntime": shares}
        value = {**value, "accuracy": {**rest, "int8": int8}}
    return {**value, "schema": SCHEMA}

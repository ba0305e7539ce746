"""The whole networks of a fit that is not made yet, kept beside the table while they are timed.

    {"schema": 1, "made_for": DIGEST, "measured_ms": {ARCHITECTURE ID: MS, ...}}

At 224 pixels they take many minutes: a profile that was ended goes on with those that lack.
"""

import logging
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from nas.errors import CorruptFile
from nas.files import digest_json, read_json, write_json
from nas.latency.profile_config import ProfileConfig
from nas.latency.table import LatencyTable
from nas.latency.timing import Series
from nas.space import SearchSpace

logger = logging.getLogger(__name__)

SCHEMA = 1


@dataclass(slots=True, kw_only=True)
class TimedNetworks:
    """Medians of networks by id, in the file at `path`: of one space, measured in one way, beside
    one table as it was.

    Attributes:
        path: `<table>.networks`.
        made_for: Digest of the space, of how carefully it is measured and of the table's entries.
        measured_ms: What is known; grows.
    """

    path: Path
    made_for: str
    measured_ms: dict[str, float]

    @classmethod
    def beside(
        cls, table: LatencyTable, space: SearchSpace, config: ProfileConfig
    ) -> "TimedNetworks":
        """Return what an earlier profile of this space left beside a table, if it did.

        Raises:
            CorruptFile: the file that is there cannot be read.
        """
        plain = asdict(replace(config, calibrate_on=0))
        entries = {name: entry.ms for name, entry in table.entries.items()}
        made_for = digest_json([space.digest, plain, entries])
        path = Path(f"{table.path}.networks")
        value = read_json(path) if path.is_file() else {}
        if not isinstance(value, dict):
            raise CorruptFile(f"{path} must hold an object, and does not. Delete it.")
        measured_ms: dict[str, float] = {}
        if value.get("schema") == SCHEMA and value.get("made_for") == made_for:
            measured_ms = value["measured_ms"]
            logger.info("%d whole networks were timed before", len(measured_ms))
        return cls(path=path, made_for=made_for, measured_ms=measured_ms)

    def keep(self, table: LatencyTable, series: Mapping[str, Series]) -> None:
        """Write down what was timed, and the table with what it learnt meanwhile.

        Raises:
            StorageError: the folder is full or cannot be written.
        """
        self.measured_ms.update({name: item.median_ms for name, item in series.items()})
        value = {"schema": SCHEMA, "made_for": self.made_for, "measured_ms": self.measured_ms}
        write_json(self.path, value)
        table.save(table.path)

    def forget(self) -> None:
        """Remove the file: the fit is made and knows what it rests on."""
        self.path.unlink(missing_ok=True)

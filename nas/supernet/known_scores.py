"""KnownScores: what sub-networks scored, kept in files, for exactly these weights and images."""

import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nas import files
from nas.errors import CorruptFile, StorageError

SCHEMA = 1

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class Quality:
    """What sub-networks are ranked by: share of right answers, and mean cross-entropy in nats."""

    accuracy: float
    loss: float


class KnownScores:
    """One JSON file an architecture, in a folder for all that a score depends on.

    Several processes may write: a file is whole or not there, and any two of them are equal. A
    damaged one counts as not there, and one that cannot be written is done without.

    Args:
        folder: Where the folders stand.
        of: What the scores are of, as plain values: digests of weights and images, settings.
    """

    def __init__(self, folder: Path | str, of: Mapping[str, Any]) -> None:
        self._of = dict(of)
        self._folder = Path(folder) / files.digest_json(self._of)[:16]

    def get(self, architecture_id: str) -> Quality | None:
        """Return what an architecture scored, None if that is not known."""
        path = self._path(architecture_id)
        if not path.is_file():
            return None
        try:
            entry = files.read_json(path)
            if not isinstance(entry, dict) or {
                key: entry.get(key) for key in ("schema", "architecture_id", "of")
            } != self._head(architecture_id):
                raise CorruptFile(f"{path} is not the score of that architecture.")
            found = {key: entry.get(key) for key in ("accuracy", "loss")}
            return files.into(Quality, found, source=str(path), error=CorruptFile)
        except CorruptFile as error:
            log.warning("%s The network is scored again.", error)
            return None

    def put(self, architecture_id: str, quality: Quality) -> None:
        """Keep what an architecture scored."""
        entry = {**self._head(architecture_id), **files.to_plain(quality)}
        try:
            files.write_json(self._path(architecture_id), entry)
        except StorageError as error:
            log.warning("the score of %s is not kept: %s", architecture_id, error)

    def _head(self, architecture_id: str) -> dict[str, Any]:
        return {"schema": SCHEMA, "architecture_id": architecture_id, "of": self._of}

    def _path(self, architecture_id: str) -> Path:
        return self._folder / f"{architecture_id}.json"

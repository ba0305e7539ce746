"""LatencyTable: what each part costs on one Target, as a JSON file and as prices of networks."""

import json
import logging
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, Self

import numpy as np
import numpy.typing as npt

from nas.block import Block, parse
from nas.errors import ConfigError, CorruptFile, NasError
from nas.files import digest_json, into, packaged_folder, read_json, to_plain, write_atomic
from nas.latency.calibration import (
    MAX_MS,
    Calibration,
    Costs,
    calibration_name,
    footprint_mb,
)
from nas.latency.judge import GUARD_KNOWN, Known
from nas.latency.older_tables import with_sizes, without_knees
from nas.space import SearchSpace
from nas.target import Target

logger = logging.getLogger(__name__)

SCHEMA = 4
UNIT = "ms"
GRADES = ("A", "B", "C")
TABLES = Path("runs/tables")
BEGUN = "reference_begun_ms"  # in `provenance`: what the reference took when it was begun

Codes = npt.NDArray[np.int64]
Fitted = SearchSpace | Calibration | str | None


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """The price of one part or block, and how well it is known.

    `ms` is what it adds to a network (see nas/latency/recipes.py), `cold_ms` what it adds where
    the processor's own caches hold nothing of it (None: not measured), `isolated_ms` what it takes
    as a network of its own; p10 and p90 are of samples of `ms`; `clean` of `taken` samples counted.
    `interpolated` is None where it was measured; else `ms` lies between measured neighbours, and
    this is the mean relative error of that on entries of its kind that were measured.
    """

    ms: float
    isolated_ms: float
    p10: float
    p90: float
    clean: int
    taken: int
    grade: str
    by: str
    cold_ms: float | None = None
    interpolated: float | None = None

    def __post_init__(self) -> None:
        for name in ("ms", "isolated_ms", "cold_ms"):
            value = getattr(self, name)
            if (value is not None or name != "cold_ms") and not 0 < value <= MAX_MS:
                raise ValueError(
                    f"{name} must be above 0 and at most {MAX_MS:,.0f}, but is {value}."
                )
        if not (math.isfinite(self.p10) and math.isfinite(self.p90)):
            raise ValueError(f"p10 and p90 must be numbers, but are {self.p10} and {self.p90}.")
        if not 0 <= self.clean <= self.taken:
            raise ValueError(f"clean must be 0 to taken, but is {self.clean} of {self.taken}.")
        if self.grade not in GRADES:
            raise ValueError(f"grade must be one of {', '.join(GRADES)}, but is {self.grade!r}.")
        if self.interpolated is not None and not 0 <= self.interpolated < math.inf:
            raise ValueError(f"interpolated must be 0 or above, but is {self.interpolated}.")

    def scaled(self, factor: float) -> Self:
        """Return it with every time multiplied by a factor."""
        times = {name: factor * getattr(self, name) for name in ("ms", "isolated_ms", "p10", "p90")}
        cold_ms = None if self.cold_ms is None else factor * self.cold_ms
        return replace(self, **times, cold_ms=cold_ms)


@dataclass(frozen=True, slots=True, kw_only=True)
class LatencyTable:
    """Prices of parts and blocks on one Target; add up to the latency of a network.

    `protocol` is how it was measured, `provenance` with what; neither changes an estimate.
    """

    target: Target
    entries: Mapping[str, Entry]
    calibrations: Mapping[str, Calibration] = field(default_factory=dict)
    protocol: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    path: str = ""

    # ------------------------------------------------------------ files
    @classmethod
    def load(cls, path: Path | str) -> Self:
        """Return the table in a file of this schema or an older one.

        Raises:
            CorruptFile: missing, truncated, of another schema, or with a value no device takes.
        """
        plain = read_json(path)
        known = {"schema", "unit", "target", "protocol", "provenance", "entries", "calibrations"}
        if not isinstance(plain, dict) or set(plain) != known:
            raise CorruptFile(
                f"{path} is not a latency table: it must have the keys {', '.join(sorted(known))}. "
                "Delete it and run `nas profile` again, or choose another --table."
            )
        if plain["schema"] not in range(1, SCHEMA + 1) or plain["unit"] != UNIT:
            raise CorruptFile(
                f"{path} has schema {plain['schema']!r} in {plain['unit']!r}; schemas up to "
                f"{SCHEMA} in {UNIT} are read here. Make the table again with `nas profile`."
            )
        for name in ("entries", "calibrations", "protocol", "provenance"):
            if not isinstance(plain[name], dict):
                raise CorruptFile(f"{path}: {name} must be a mapping, but is {plain[name]!r:.60}.")
        for name in plain["entries"]:
            try:
                parse(name)
            except NasError as error:
                raise CorruptFile(f"{path}: entries: {error}") from error
        if plain["schema"] == 1:
            plain["calibrations"] = without_knees(plain["calibrations"], path)
        if plain["schema"] < 3:
            plain["calibrations"] = with_sizes(plain["calibrations"])
        return cls(
            target=Target.from_json(plain["target"], source=f"{path}: target"),
            entries=into(
                dict[str, Entry], plain["entries"], source=f"{path}: entries", error=CorruptFile
            ),
            calibrations=into(
                dict[str, Calibration],
                plain["calibrations"],
                source=f"{path}: calibrations",
                error=CorruptFile,
            ),
            protocol=plain["protocol"],
            provenance=plain["provenance"],
            path=str(path),
        )

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values, without its path."""
        is_new = any(fit.counts_shared_cache for fit in self.calibrations.values())
        return {
            "schema": SCHEMA if is_new else 3,  # what says the same to older versions is theirs
            "unit": UNIT,
            "target": self.target.to_json(),
            "protocol": to_plain(self.protocol),
            "provenance": to_plain(self.provenance),
            "entries": to_plain(self.entries),
            "calibrations": to_plain(self.calibrations),
        }

    def save(self, path: Path | str) -> Self:
        """Write it, one entry a line and keys sorted, and return it with that path."""
        lines = []
        for name, value in self.to_json().items():
            if name in ("entries", "calibrations"):
                rows = [f"  {_line(key)}: {_line(value[key])}" for key in sorted(value)]
                text = "{\n" + ",\n".join(rows) + "\n }" if rows else "{}"
            else:
                text = _line(value)
            lines.append(f" {_line(name)}: {text}")
        write_atomic(path, "{\n" + ",\n".join(lines) + "\n}\n")
        return replace(self, path=str(path))

    @property
    def digest(self) -> str:
        """Sha256 (hex) of everything in the table."""
        return digest_json(self.to_json())

    @property
    def known(self) -> Known:
        """Its machine at its best, and when it was begun: an older table does not note that."""
        names = ("reference_ms", GUARD_KNOWN, BEGUN)
        found = [self.provenance.get(name) for name in names]
        best_ms, guard, begun_ms = (float(v) if isinstance(v, int | float) else None for v in found)
        begun_ms = best_ms if begun_ms is None else begun_ms
        return Known(reference_ms=best_ms, guard_by_reference=guard, begun_ms=begun_ms)

    def scaled(self, factor: float) -> Self:
        """Return it with every price multiplied by a factor: a machine that is slower or faster
        throughout than when it was measured."""
        return replace(
            self,
            entries={name: entry.scaled(factor) for name, entry in self.entries.items()},
            calibrations={name: fit.scaled(factor) for name, fit in self.calibrations.items()},
        )

    # ------------------------------------------------------------ prices
    def calibration(self, space: Fitted, blocks: Sequence[Block] = ()) -> Calibration | None:
        """Return what was fitted for a space at its image size, None if nothing was.

        Args:
            space: A space, `NAME@SIDE`, or NAME where `blocks` tell the side. What is one already
                is given back.
            blocks: A network of the space, beginning with its stem.
        """
        if space is None or isinstance(space, Calibration):
            return space
        if isinstance(space, SearchSpace):
            fit = self.calibrations.get(calibration_name(space.name, space.image_size))
            older = self.calibrations.get(space.name)  # of a table that did not note the size
            is_ours = older is not None and space.largest().id in older.fitted_on
            return older if fit is None and is_ours else fit
        sides = [block.resolution for block in blocks if block.kind == "stem"]
        names = [*(calibration_name(space, side) for side in sides), space]
        return next((self.calibrations[name] for name in names if name in self.calibrations), None)

    def missing(self, blocks: Iterable[Block], space: Fitted = None) -> list[str]:
        """Return, sorted, the entries that these blocks need and the table lacks."""
        fit = self.calibration(space)
        names = {name for block in blocks for name in self._names(block, fit)}
        return sorted(names - self.entries.keys())

    def entries_of(self, block: Block, space: Fitted = None) -> list[tuple[str, Entry]]:
        """Return the entries that price one block, with their names: its parts' or its own.

        Its own counts where the space's calibration is by whole blocks for its kind; without a
        calibration, wherever there is one.

        Raises:
            ConfigError: an entry is missing; the message names it and the command to measure it.
        """
        try:
            names = self._names(block, self.calibration(space))
            return [(name, self.entries[name]) for name in names]
        except KeyError as error:
            raise self._incomplete([block], space) from error

    def block_ms(self, block: Block, space: Fitted = None) -> float:
        """Return the price of one block: its own entry, or the sum of its parts'.

        With a space, entries are scaled as its calibration says. What the calibration adds to a
        whole network (a constant, a price for weights) is no block's.

        Raises:
            ConfigError: as `entries_of`.
        """
        return sum(self.entry_ms(block, space).values())

    def entry_ms(self, block: Block, space: Fitted = None) -> dict[str, float]:
        """Return a block's price by entry; see `block_ms`."""
        fit = self.calibration(space)
        found: dict[str, float] = {}
        for name, entry in self.entries_of(block, fit):
            scale = 1.0 if fit is None else fit.scale(name)
            found[name] = found.get(name, 0.0) + scale * entry.ms
        return found

    def estimate(self, blocks: Sequence[Block | str], space: Fitted = None) -> float:
        """Return the latency in ms of a network, or of any blocks.

        Args:
            blocks: Blocks or their strings.
            space: The search space a network is from: its calibration is used if there is one.

        Raises:
            ConfigError: an entry is missing; a price is never guessed.
        """
        parsed = [parse(block) if isinstance(block, str) else block for block in blocks]
        fit = self.calibration(space, parsed)
        if self.missing(parsed, fit):
            raise self._incomplete(parsed, fit)
        total_ms = sum(self.block_ms(block, fit) for block in parsed)
        if fit is None:
            return total_ms
        extra_ms = sum(self._extra_ms(block, fit) for block in parsed)
        footprint = sum(map(footprint_mb, parsed))
        return float(fit.total(np.array(total_ms), np.array(extra_ms), np.array(footprint)))

    def cold_ms(self, block: Block, space: Fitted = None) -> float | None:
        """Return what cold caches add to a block's price; None if it was not measured."""
        entries = [self.entries[name] for name in self._names(block, self.calibration(space))]
        if any(entry.cold_ms is None for entry in entries):
            return None
        return sum(entry.cold_ms - entry.ms for entry in entries if entry.cold_ms is not None)

    def isolated(self, blocks: Sequence[Block]) -> float:
        """Return the sum in ms of the blocks' parts each timed alone: the naive estimate."""
        total_ms = 0.0
        for block in blocks:
            parts = tuple(map(str, block.parts()))
            is_whole = not all(part in self.entries for part in parts)
            total_ms += sum(
                self.entries[name].isolated_ms for name in ((str(block),) if is_whole else parts)
            )
        return total_ms

    def pricer(self, space: SearchSpace) -> Callable[[Codes], Costs]:
        """Return a function from codes (n, genes) of a space to latencies (n,) in ms.

        Raises:
            ConfigError: an entry that the space needs is missing.
        """
        blocks, fit = space.every_block(), self.calibration(space)
        if self.missing(blocks, fit):
            raise self._incomplete(blocks, fit, command_for=space.name)
        additive = space.pricer(lambda block: self.block_ms(block, fit))
        if fit is None:
            return additive
        if not fit.counts_memory:
            return lambda codes: additive(codes) + fit.coefficients["constant"]
        extra = space.pricer(lambda block: self._extra_ms(block, fit))
        footprint = space.pricer(footprint_mb)
        return lambda codes: fit.total(additive(codes), extra(codes), footprint(codes))

    def _extra_ms(self, block: Block, fit: Calibration) -> float:
        cold_ms = self.cold_ms(block, fit) if fit.counts_cold else 0.0
        if cold_ms is None:
            raise ConfigError(
                f"the latency table {self.path or self.target.id} does not say what {block} costs "
                "with cold caches, which its calibration counts. Delete it and run `nas profile` "
                "again."
            )
        return float(fit.extra_ms(np.array(cold_ms), np.array(block.bytes / 1e6)))

    def _names(self, block: Block, fit: Calibration | None) -> tuple[str, ...]:
        whole, parts = str(block), tuple(map(str, block.parts()))
        if fit is not None and block.kind in fit.by_block:
            return (whole,)
        has_parts = fit is not None and all(part in self.entries for part in parts)
        return (whole,) if whole in self.entries and not has_parts else parts

    def _incomplete(
        self, blocks: Iterable[Block], space: Fitted, *, command_for: str = "SPACE"
    ) -> ConfigError:
        missing = self.missing(blocks, space)
        target = self.target
        words = f"{target.runtime},{target.precision},b{target.batch},t{target.threads}"
        words = words if target.is_here() else target.id
        others = f" and {len(missing) - 1} others" if len(missing) > 1 else ""
        command = f"nas profile --space {command_for} --target {words}"
        if self.path:
            command += f" --table {self.path}"
        return ConfigError(
            f"the latency table {self.path or target.id} has no entry for {missing[0]}{others}. "
            f"Measure what is missing with `{command}`."
        )


def _line(value: Any) -> str:
    return json.dumps(value, sort_keys=True, ensure_ascii=False)


def table_folders() -> tuple[Path, ...]:
    """Return where tables are looked for: a run's, this folder's, and those that are shipped."""
    return TABLES, Path("latency_tables"), packaged_folder("latency_tables")


def find_table(
    target: Target, path: Path | str | None = None, folders: Sequence[Path | str] | None = None
) -> Path | None:
    """Return the first table of this very target, or None.

    Args:
        target: What the table must be of; another device's is never used.
        path: A table to use and no other.
        folders: Where to look, each for `<id>.json` and `<device>/<id>.json`; those of
            `table_folders` if not given.

    Raises:
        CorruptFile: `path` or a file of that name cannot be read as a table.
        ConfigError: `path` is of another target.
    """
    if path is not None:
        found = LatencyTable.load(path).target
        if not found.matches(target):
            raise ConfigError(
                f"the table {path} is of {found}, but latencies of {target} are asked for. "
                "Leave --table out, or choose the target it is of."
            )
        return Path(path)
    for folder in table_folders() if folders is None else folders:
        for place in (Path(folder), Path(folder) / target.device.slug):
            file = place / f"{target.id}.json"
            if file.is_file() and LatencyTable.load(file).target.matches(target):
                return file
    return None

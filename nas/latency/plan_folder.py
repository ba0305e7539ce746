"""A plan as a folder: every file to time on a device that runs no Python, and what each is for.

`nas.latency.results` turns the times that come back into a table.
"""

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

from nas.block import Block, parse
from nas.errors import ConfigError, CorruptFile, NasError
from nas.files import (
    digest_file,
    digest_json,
    into,
    read_json,
    storage_error,
    to_plain,
    write_atomic,
    write_json,
)
from nas.latency.calibrate import draw
from nas.latency.compose import Export, Workshop
from nas.latency.measure import Progress
from nas.latency.plan import chains_of
from nas.latency.profile_config import ProfileConfig
from nas.latency.recipes import Chain, Recipe, chain_name, parts_of, recipe, recipes
from nas.space import Architecture, SearchSpace
from nas.target import EXPORTER, OPSET

SCHEMA = 1
MANIFEST, README = "manifest.json", "README.md"
KINDS = ("reference", "chain", "calibration", "check")
REFERENCE = ("stem_r64_i3_c16-32_b1_a1", "mb4d_r16_c32_h64_p3")
EXPORTED = 0.5  # share of the work by then


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanFile:
    """One file to time.

    `kind` says what its time is for: the device's steadiness, prices of parts, the fit on whole
    networks, or the check on others. `chain` are its parts in order; `recipes` the entries whose
    price a chain is used for; `architecture` and `blocks` are a whole network's.
    """

    kind: str
    sha256: str
    bytes: int
    input_shape: tuple[int, ...]
    chain: str
    recipes: tuple[str, ...] = ()
    architecture: str | None = None
    blocks: tuple[str, ...] = ()

    def __post_init__(self) -> None:
        if self.kind not in KINDS:
            raise ValueError(f"kind must be one of {', '.join(KINDS)}, but is {self.kind!r}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class PlanManifest:
    """What a plan's folder holds. `digest` is of all the rest, so that a changed plan is noticed.

    `entries` are the table's entries in the order of their recipes, read off chains of 1 and
    `copies`; `files` is by name, in the order to time them.
    """

    schema: int = SCHEMA
    package: str
    space: str
    batch: int
    exporter: str
    opset: int
    seed: int
    copies: int
    entries: tuple[str, ...]
    files: dict[str, PlanFile]
    digest: str = ""

    def sealed(self) -> "PlanManifest":
        """Return it with its digest."""
        return replace(self, digest=digest_json(to_plain(replace(self, digest=""))))

    @property
    def image_size(self) -> int:
        """The side of the images of the space that was planned for."""
        sides = [parse(name).resolution for name in self.entries if name.startswith("stem_")]
        return max(sides, default=0)

    def of_kind(self, kind: str) -> dict[str, PlanFile]:
        """Return the files of one kind by name."""
        return {name: file for name, file in self.files.items() if file.kind == kind}

    def recipes(self) -> tuple[Recipe, ...]:
        """Return how each entry is made of the chains' times."""
        return tuple(recipe(parse(entry), copies=self.copies) for entry in self.entries)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Item:
    kind: str
    chain: Chain
    recipes: tuple[str, ...] = ()
    architecture: str | None = None
    blocks: tuple[str, ...] = ()
    given: Path | None = None


def write_plan(
    space: SearchSpace,
    folder: Path | str,
    config: ProfileConfig,
    *,
    batch: int = 1,
    check_networks: int = 20,
    export: Export | None = None,
    progress: Progress = lambda done, total, text: None,
) -> PlanManifest:
    """Write everything a space's table needs as ONNX files into a new folder.

    The folder appears whole or not at all.

    Args:
        space: What to price.
        folder: Where to; must not be there yet.
        config: `copies`, `calibrate_on` and `seed` count; how to time is for the device to say.
        batch: Images in a batch.
        check_networks: Whole networks beside those to fit on, to check the table with; 0 for none.
        export: Writes ONNX files of parts; `nas.network.onnx.parts_to_onnx` by default.
        progress: Told (files done, files in all, text).

    Raises:
        ConfigError: the folder is there, or a number is out of its range.
        StorageError: the disk is full, or the folder cannot be made.
    """
    if config.every != 1:
        raise ConfigError(f"a plan has every size, but every is {config.every}. Leave it out.")
    if check_networks != 0 and check_networks < 3:
        raise ConfigError(f"check_networks must be 0 or at least 3, but is {check_networks}.")
    needed = recipes(space.every_block(), copies=config.copies)
    manifest = PlanManifest(
        package=_package(),
        space=space.name,
        batch=batch,
        exporter=EXPORTER,
        opset=OPSET,
        seed=config.seed,
        copies=config.copies,
        entries=tuple(item.entry for item in needed),
        files={},
    )
    items = _items(space, needed, config, check_networks)
    words = {
        "WHAT": f"the latency table of {space.name}",
        "CHECKED": "the finished table is checked with",
        "COMMAND": "nas profile --plan THIS_FOLDER --results times.csv --target TARGET",
    }
    return _write(Path(folder), manifest, items, words, export, progress)


def write_networks(
    networks: Mapping[str, Sequence[Block]],
    folder: Path | str,
    *,
    space: str,
    command: str,
    batch: int = 1,
    export: Export | None = None,
    given: Mapping[str, Path] | None = None,
    progress: Progress = lambda done, total, text: None,
) -> PlanManifest:
    """Write whole networks to time into a new folder, each as `check-<name>.onnx`.

    Args:
        networks: Name to blocks; they are of random weights unless they are `given`.
        folder: Where to; must not be there yet.
        space: The name of the space they are from.
        command: What to run with the times; THIS_FOLDER and TARGET are for the reader.
        batch: Images in a batch.
        export: Writes ONNX files of parts; `nas.network.onnx.parts_to_onnx` by default.
        given: ONNX files to copy, by the networks' names.
        progress: Told (files done, files in all, text).

    Raises:
        ConfigError: the folder is there.
        StorageError: the disk is full, or the folder cannot be made.
    """
    reference = parts_of(parse(text) for text in REFERENCE)
    items = {"reference.onnx": _Item(kind="reference", chain=reference)}
    for name, blocks in networks.items():
        items[_file_of(name)] = _Item(
            kind="check",
            chain=parts_of(blocks),
            architecture=name,
            blocks=tuple(map(str, blocks)),
            given=(given or {}).get(name),
        )
    manifest = PlanManifest(
        package=_package(),
        space=space,
        batch=batch,
        exporter=EXPORTER,
        opset=OPSET,
        seed=0,
        copies=2,
        entries=(),
        files={},
    )
    words = {"WHAT": f"a choice in {space}", "CHECKED": "to choose from", "COMMAND": command}
    return _write(Path(folder), manifest, items, words, export, progress)


def _file_of(name: str) -> str:
    return f"check-{name}.onnx"


def _write(
    folder: Path,
    manifest: PlanManifest,
    items: Mapping[str, "_Item"],
    words: Mapping[str, str],
    export: Export | None,
    progress: Progress,
) -> PlanManifest:
    """Write a new folder of these files, its README and its manifest, which is returned."""
    if folder.exists():
        raise ConfigError(f"--plan must be a new folder, but {folder} is there. Choose another.")
    with tempfile.TemporaryDirectory() as scratch, _new_folder(folder) as place:
        progress(0, len(items), "exporting parts")
        workshop = Workshop(Path(scratch), export, batch=manifest.batch)
        workshop.export([item.chain for item in items.values() if item.given is None])
        files = _write_files(items, workshop, place, manifest.batch, progress)
        manifest = replace(manifest, files=files).sealed()
        write_atomic(place / README, _readme(manifest, words))
        write_json(place / MANIFEST, manifest)
    return manifest


def read_plan(folder: Path | str) -> PlanManifest:
    """Return the manifest of a plan's folder, whose files are those it was written with.

    Raises:
        CorruptFile: the manifest is damaged or changed, a file is missing or another one.
    """
    path = Path(folder) / MANIFEST
    plain = read_json(path)
    if not isinstance(plain, dict) or plain.get("schema") != SCHEMA:
        raise CorruptFile(
            f"{path} is not a plan of schema {SCHEMA}. Make a new one with `nas profile --plan`."
        )
    manifest = into(PlanManifest, plain, source=str(path), error=CorruptFile)
    if manifest.sealed().digest != manifest.digest:
        raise CorruptFile(f"{path} was changed after it was written. Restore it from a copy.")
    for name, file in manifest.files.items():
        if Path(name).name != name or digest_file(path.with_name(name)) != file.sha256:
            raise CorruptFile(
                f"{path.with_name(name)} is not the file of sha256 {file.sha256} that the "
                "manifest names, so its times are of another network. Restore it from a copy."
            )
    _check_recipes(manifest, path)
    return manifest


def _check_recipes(manifest: PlanManifest, path: Path) -> None:
    """Raise CorruptFile if the recipes of this version need chains that the plan has not."""
    there = {file.chain for file in manifest.of_kind("chain").values()}
    try:
        lacking = [name for name in chains_of(manifest.recipes()) if name not in there]
    except NasError as error:
        raise CorruptFile(f"{path}: entries: {error}") from error
    if lacking:
        raise CorruptFile(
            f"{path} was written by {manifest.package}, whose recipes are others: there is no "
            f"file of {lacking[0]}. Read it with that version, or make a new plan."
        )


# ---------------------------------------------------------------- what to write
def _items(
    space: SearchSpace, needed: tuple[Recipe, ...], config: ProfileConfig, check_networks: int
) -> dict[str, _Item]:
    """Return what to write by file name: reference, chains, networks to fit on and to check."""
    reference = parts_of(parse(text) for text in REFERENCE)
    items = {"reference.onnx": _Item(kind="reference", chain=reference)}
    users: dict[str, list[str]] = {}
    for item in needed:
        for name in chains_of([item]):
            users.setdefault(name, []).append(item.entry)
    for number, (name, chain) in enumerate(chains_of(needed).items(), start=1):
        items[f"chain-{number:04}.onnx"] = _Item(
            kind="chain", chain=chain, recipes=tuple(users[name])
        )
    fitted: list[Architecture] = []
    if config.calibrate_on:
        largest = space.largest()
        others = draw(space, config.calibrate_on - 1, seed=config.seed, avoid=[largest.id])
        fitted = [largest, *others]
    unseen = draw(space, check_networks, seed=config.seed + 1, avoid=[a.id for a in fitted])
    for kind, drawn in (("calibration", fitted), ("check", unseen)):
        for architecture in drawn:
            blocks = space.blocks(architecture)
            items[f"{kind}-{architecture.id}.onnx"] = _Item(
                kind=kind,
                chain=parts_of(blocks),
                architecture=architecture.id,
                blocks=tuple(map(str, blocks)),
            )
    return items


def _write_files(
    items: Mapping[str, _Item], workshop: Workshop, place: Path, batch: int, progress: Progress
) -> dict[str, PlanFile]:
    files = {}
    for number, (name, item) in enumerate(items.items()):
        with tempfile.TemporaryDirectory() as scratch:
            file = item.given
            if file is None:
                file = workshop.join({name: item.chain}, Path(scratch))[name]
            raw = file.read_bytes()
        path = write_atomic(place / name, raw)
        files[name] = PlanFile(
            kind=item.kind,
            sha256=digest_file(path),
            bytes=len(raw),
            input_shape=_input_shape(item.chain[0], batch),
            chain=chain_name(item.chain),
            recipes=item.recipes,
            architecture=item.architecture,
            blocks=item.blocks,
        )
        progress(number + 1, len(items), "files written")
    return files


def _input_shape(first: Block, batch: int) -> tuple[int, ...]:
    return batch, first.in_channels, first.resolution, first.resolution


def _package() -> str:
    from nas import __version__

    return f"hybrid-nas {__version__}"


def _readme(manifest: PlanManifest, about: Mapping[str, str]) -> str:
    text = Path(__file__).with_name("plan_readme.md").read_text()
    counts = {kind: len(manifest.of_kind(kind)) for kind in KINDS}
    words = {
        **about,
        "BATCH": str(manifest.batch),
        "FILES": str(len(manifest.files)),
        "MEGABYTES": f"{sum(file.bytes for file in manifest.files.values()) / 1e6:,.0f}",
        **{kind.upper(): str(count) for kind, count in counts.items()},
    }
    for word, value in words.items():
        text = text.replace(f"@{word}@", value)
    return text


@contextmanager
def _new_folder(folder: Path) -> Iterator[Path]:
    """Give a folder to fill; it gets its name when it is whole and is gone otherwise."""
    place: Path | None = None
    try:
        folder.parent.mkdir(parents=True, exist_ok=True)
        place = Path(tempfile.mkdtemp(dir=folder.parent, prefix=f".{folder.name}."))
        yield place
        place.chmod(0o755)
        place.rename(folder)
        place = None
    except OSError as error:
        raise _as_storage_error(folder, error) from error
    finally:
        if place is not None:
            shutil.rmtree(place, ignore_errors=True)


def _as_storage_error(folder: Path, error: OSError) -> NasError:
    return error if isinstance(error, NasError) else storage_error(folder, error)

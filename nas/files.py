"""Reading and writing files so that nothing half-written, oversized or executable is trusted."""

import dataclasses
import difflib
import hashlib
import json
import os
import socket
import tempfile
import types
import typing
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from nas.errors import ConfigError, CorruptFile, NasError, StorageError, TryAgain

T = TypeVar("T")

MAX_CONFIG_BYTES = 256 * 1024
MAX_JSON_BYTES = 64 * 1024 * 1024
MAX_DEPTH = 32


# ---------------------------------------------------------------- writing
def write_atomic(path: Path | str, data: bytes | str) -> Path:
    """Write `data` under a temporary name, fsync, rename; a reader never sees half a file.

    Raises:
        StorageError: the folder cannot be made or the disk is full; the old file is intact.
    """
    path = Path(path)
    raw = data.encode() if isinstance(data, str) else data
    temporary: str | None = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor, temporary = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
        with os.fdopen(descriptor, "wb") as stream:
            stream.write(raw)
            stream.flush()
            os.fsync(stream.fileno())
        os.chmod(temporary, 0o644)
        os.replace(temporary, path)
        temporary = None
        _fsync_folder(path.parent)
    except OSError as error:
        raise storage_error(path, error, needed_bytes=len(raw)) from error
    finally:
        if temporary is not None:
            Path(temporary).unlink(missing_ok=True)
    return path


def storage_error(path: Path, error: OSError, *, needed_bytes: int = 0) -> StorageError:
    """Turn an operating system error about `path` into one that says the way out."""
    need = f" ({needed_bytes:,} bytes)" if needed_bytes else ""
    return StorageError(
        f"cannot write {path}{need}: {error.strerror or error}. "
        "Free space there or choose another folder; nothing that was there before has changed."
    )


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def to_plain(value: Any) -> Any:
    """Return dataclasses, tuples and paths as plain JSON values."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {f.name: to_plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
    if isinstance(value, dict):
        return {str(key): to_plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [to_plain(item) for item in value]
    return str(value) if isinstance(value, Path) else value


def write_json(path: Path | str, value: Any) -> Path:
    """Write `value` (plain or dataclasses) as indented JSON, atomically."""
    return write_atomic(path, json.dumps(to_plain(value), indent=1, ensure_ascii=False) + "\n")


def write_yaml(path: Path | str, value: Any) -> Path:
    """Write `value` (plain or dataclasses) as YAML in field order, atomically."""
    import yaml

    return write_atomic(path, yaml.safe_dump(to_plain(value), sort_keys=False, allow_unicode=True))


# ---------------------------------------------------------------- digests
def canonical_json(value: Any) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces, ASCII."""
    return json.dumps(to_plain(value), sort_keys=True, separators=(",", ":"))


def digest_json(value: Any) -> str:
    """Return the sha256 (hex) of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def digest_file(path: Path | str) -> str:
    """Return the sha256 (hex) of a file's bytes."""
    with open(path, "rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


# ---------------------------------------------------------------- reading
def read_json(path: Path | str) -> Any:
    """Read JSON that this project wrote.

    Raises:
        CorruptFile: missing, too large, truncated or not JSON.
    """
    path = Path(path)
    text = _read_text(path, MAX_JSON_BYTES)
    try:
        return json.loads(text)
    except (json.JSONDecodeError, RecursionError) as error:
        raise CorruptFile(
            f"{path} is not whole JSON ({error}). Restore it from a copy, or delete it and run "
            "the command that wrote it again."
        ) from error


def read_yaml(path: Path | str) -> Any:
    """Read YAML as plain values: safe types, no aliases, at most 256 KB and 32 levels deep.

    Raises:
        ConfigError: one of those rules is broken, or it is not YAML.
    """
    path = Path(path)
    if not path.is_file():
        raise ConfigError(f"{path} is not a file; give the path of a YAML file.")
    size_bytes = path.stat().st_size
    if size_bytes > MAX_CONFIG_BYTES:
        raise ConfigError(
            f"a configuration file may have {MAX_CONFIG_BYTES:,} bytes, "
            f"but {path} has {size_bytes:,}."
        )
    return parse_yaml(_read_text(path, MAX_CONFIG_BYTES), source=str(path))


def parse_yaml(text: str, *, source: str) -> Any:
    """Parse YAML text under the rules of `read_yaml`; `source` names it in errors."""
    import yaml

    try:
        depth = 0
        for event in yaml.parse(text, Loader=yaml.SafeLoader):
            if isinstance(event, yaml.AliasEvent):
                raise ConfigError(
                    f"{source}: aliases (*{event.anchor}) are not accepted; write the value out."
                )
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise ConfigError(f"{source}: nested deeper than {MAX_DEPTH} levels.")
        return yaml.load(text, Loader=_strict_loader())  # noqa: S506 (a SafeLoader subclass)
    except yaml.YAMLError as error:
        raise ConfigError(f"{source} is not YAML: {error}") from error
    except RecursionError as error:
        raise ConfigError(f"{source}: nested deeper than {MAX_DEPTH} levels.") from error


def _strict_loader() -> Any:
    """Return a SafeLoader that refuses a key given twice (plain YAML keeps the last silently)."""
    import yaml

    class StrictLoader(yaml.SafeLoader):
        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen: set[str] = set()
            for key_node, _ in node.value:
                if key_node.value in seen:
                    raise yaml.constructor.ConstructorError(
                        None, None, f"the key {key_node.value!r} stands twice", key_node.start_mark
                    )
                seen.add(key_node.value)
            return super().construct_mapping(node, deep=deep)

    return StrictLoader


def _read_text(path: Path, limit_bytes: int) -> str:
    try:
        with open(path, "rb") as stream:
            raw = stream.read(limit_bytes + 1)
        if len(raw) > limit_bytes:
            raise CorruptFile(f"{path} is larger than {limit_bytes:,} bytes; it is not read.")
        return raw.decode()
    except UnicodeDecodeError as error:
        raise CorruptFile(f"{path} is not UTF-8 text: {error}.") from error
    except OSError as error:
        raise CorruptFile(f"{path} cannot be read: {error.strerror}.") from error


def into(cls: type[T], value: Any, *, source: str, error: type[NasError] = ConfigError) -> T:
    """Turn plain values into the dataclass `cls`, strictly: known keys, exact types, its own rules.

    Args:
        cls: A (frozen) dataclass; its `__post_init__` may raise ValueError.
        value: Plain JSON or YAML values.
        source: What to call the value in an error, usually a path.
        error: The NasError to raise.
    """
    from pydantic import TypeAdapter, ValidationError

    try:
        _refuse_unknown_keys(cls, value, where="")
        # JSON, because strict mode takes lists for tuples from JSON only.
        return TypeAdapter(cls).validate_json(json.dumps(value), strict=True)
    except ValidationError as problem:
        raise error(f"{source}: {_explain(problem)}") from problem
    except (ValueError, TypeError, RecursionError) as problem:
        raise error(f"{source}: {problem}") from problem


def _refuse_unknown_keys(kind: Any, value: Any, *, where: str) -> None:
    """Raise ConfigError at the first key, at any depth, that is no field of its dataclass."""
    inner = typing.get_args(kind)
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        for option in inner:
            _refuse_unknown_keys(option, value, where=where)
    elif dataclasses.is_dataclass(kind) and isinstance(value, dict):
        hints = typing.get_type_hints(kind)
        known = [item.name for item in dataclasses.fields(kind)]
        for key, item in value.items():
            if key not in known:
                raise ConfigError(unknown_key(f"{where}{key}", known))
            _refuse_unknown_keys(hints[key], item, where=f"{where}{key}.")
    elif inner and isinstance(value, dict | list):
        items = value.items() if isinstance(value, dict) else enumerate(value)
        for key, item in items:
            _refuse_unknown_keys(
                inner[-1 if isinstance(value, dict) else 0], item, where=f"{where}{key}."
            )


def _explain(problem: Any) -> str:
    """Return the first problem of a pydantic report in one plain sentence."""
    first = problem.errors()[0]
    where = ".".join(str(step) for step in first["loc"]) or "the whole file"
    message = str(first["msg"]).removeprefix("Value error, ")
    if first["type"] == "value_error":
        return f"{where}: {message}"
    given = "" if first["type"] == "missing" else f", but is {first['input']!r:.80}"
    return f"{where}: {message[:1].lower()}{message[1:]}{given}"


def unknown_key(key: str, known: list[str], *, what: str = "key") -> str:
    """Return the sentence for a name nobody knows, with the nearest spelling.

    Args:
        key: The name as it was written, with its place ("stages.1.widht").
        known: Every name there is at that place.
        what: What kind of name it is.
    """
    near = difflib.get_close_matches(key.rpartition(".")[2], known, n=1, cutoff=0.5)
    near = near or difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]!r}?" if near else f"known: {', '.join(sorted(set(known)))}."
    return f"unknown {what} {key!r}; {hint}"


def packaged_folder(name: str) -> Path:
    """Return a folder of shipped files: inside an installed wheel, or beside `nas/`."""
    here = Path(__file__).resolve().parent
    installed = here / "_packaged" / name
    return installed if installed.is_dir() else here.parent / name


# ---------------------------------------------------------------- locks
@contextmanager
def lock(path: Path | str) -> Iterator[None]:
    """Hold a file lock while the body runs; the system frees it even after kill -9.

    Raises:
        TryAgain: another process holds it; the message names its pid and host.
    """
    from filelock import FileLock, Timeout

    path = Path(path)
    owner = path.with_name(path.name + ".owner")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        held = FileLock(path, timeout=0)
        held.acquire()
    except Timeout as error:
        who = owner.read_text().strip() if owner.is_file() else "another process"
        raise TryAgain(
            f"{path.parent} is in use by {who}. Wait for it to end, or choose another --run."
        ) from error
    except OSError as error:
        raise storage_error(path, error) from error
    try:
        write_atomic(owner, f"pid {os.getpid()} on {socket.gethostname()}\n")
        yield
    finally:
        owner.unlink(missing_ok=True)
        held.release()

"""Reading and writing files so that nothing half-written, oversized or executable is trusted."""

import dataclasses
import difflib
import errno
import functools
import hashlib
import json
import os
import re
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
TEMPORARY = ".partial"  # how the names of half-written files end


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
        descriptor, temporary = tempfile.mkstemp(
            dir=path.parent, prefix=f".{path.name[:200]}.", suffix=TEMPORARY
        )
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
    if error.errno in (errno.ENOTDIR, errno.EEXIST, errno.EISDIR):
        way_out = "A part of that path is a file, or the path is a folder; choose another"
    elif error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        way_out = "Free space there, or choose another folder"
    else:
        way_out = "Choose another folder"
    return StorageError(
        f"cannot write {path}{need}: {error.strerror or error}. "
        f"{way_out}; nothing that was there before has changed."
    )


def _fsync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sweep(folder: Path | str) -> list[Path]:
    """Delete what a killed `write_atomic` left, at any depth; only for the holder of the lock."""
    leftovers = sorted(Path(folder).rglob(f".*{TEMPORARY}"))
    for leftover in leftovers:
        leftover.unlink(missing_ok=True)
    return leftovers


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
    """Write `value` (plain or dataclasses, every number finite) as indented JSON, atomically."""
    text = json.dumps(to_plain(value), indent=1, ensure_ascii=False, allow_nan=False)
    # a file name that is not UTF-8 reaches us as lone surrogates, which JSON can escape
    return write_atomic(path, text.encode(errors="backslashreplace") + b"\n")


def write_yaml(path: Path | str, value: Any) -> Path:
    """Write `value` (plain or dataclasses) as YAML in field order, atomically."""
    import yaml

    text = yaml.dump(to_plain(value), Dumper=_yaml()[1], sort_keys=False, allow_unicode=True)
    return write_atomic(path, text)


# ---------------------------------------------------------------- digests
def canonical_json(value: Any) -> str:
    """Return the one JSON text of a value: sorted keys, no spaces, ASCII."""
    return json.dumps(to_plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def digest_json(value: Any) -> str:
    """Return the sha256 (hex) of a value's canonical JSON."""
    return hashlib.sha256(canonical_json(value).encode()).hexdigest()


def digest_file(path: Path | str) -> str:
    """Return the sha256 (hex) of a file's bytes.

    Raises:
        CorruptFile: missing or unreadable.
    """
    try:
        with open(path, "rb") as stream:
            return hashlib.file_digest(stream, "sha256").hexdigest()
    except OSError as error:
        raise CorruptFile(f"{path} cannot be read: {error.strerror}.") from error


# ---------------------------------------------------------------- reading
def read_json(path: Path | str) -> Any:
    """Read JSON that this project wrote.

    Raises:
        CorruptFile: missing, too large, truncated or not JSON (which has no NaN and no Infinity).
    """
    path = Path(path)
    text = _read_text(path, MAX_JSON_BYTES)
    try:
        return json.loads(text, parse_constant=_refuse_constant)
    except (ValueError, RecursionError) as error:  # ValueError: also an integer of 4,301 digits
        raise CorruptFile(
            f"{path} is not whole JSON ({error}). Restore it from a copy, or delete it and run "
            "the command that wrote it again."
        ) from error


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no JSON number")


def read_yaml(path: Path | str) -> Any:
    """Read YAML 1.2 as plain values: no tags, no aliases, at most 256 KB and 32 levels deep.

    Raises:
        ConfigError: one of those rules is broken, or it is not YAML.
    """
    try:
        return parse_yaml(_read_text(Path(path), MAX_CONFIG_BYTES), source=str(path))
    except CorruptFile as error:
        raise ConfigError(f"{str(error).rstrip('.')}; give the path of a YAML file.") from error


def parse_yaml(text: str, *, source: str) -> Any:
    """Parse YAML text under the rules of `read_yaml`; `source` names it in errors."""
    import yaml

    try:
        depth = 0
        events: Iterator[Any] = yaml.parse(text, Loader=yaml.SafeLoader)
        for event in events:
            place = f"{source}, line {event.start_mark.line + 1}"
            if isinstance(event, yaml.AliasEvent):
                raise ConfigError(
                    f"{place}: aliases (*{event.anchor}) are not accepted; write the value out."
                )
            if getattr(event, "tag", None) is not None:
                raise ConfigError(f"{place}: tags ({event.tag}) are not accepted; leave it out.")
            depth += isinstance(event, yaml.CollectionStartEvent)
            depth -= isinstance(event, yaml.CollectionEndEvent)
            if depth > MAX_DEPTH:
                raise ConfigError(f"{place}: nested deeper than {MAX_DEPTH} levels.")
        return yaml.load(text, Loader=_yaml()[0])
    except (yaml.YAMLError, ValueError) as error:
        if isinstance(error, ConfigError):
            raise
        raise ConfigError(f"{source} is not YAML: {error}") from error


@functools.cache
def _yaml() -> tuple[Any, Any]:
    """Return a loader and a dumper for the core schema of YAML 1.2.

    PyYAML speaks 1.1, in which `1e-3` is text, `no` is False, `1:30` is 90, `010` is 8 and a date
    is no plain value. The loader also refuses a key given twice (PyYAML keeps the last silently).
    """
    import yaml

    core = {
        "null": (r"^(?:~|null|Null|NULL|)$", ["~", "n", "N", ""]),
        "bool": (r"^(?:true|True|TRUE|false|False|FALSE)$", list("tTfF")),
        "int": (r"^[-+]?(?:0|[1-9][0-9]*)$", list("-+0123456789")),
        "float": (
            r"^[-+]?(?:\.[0-9]+|(?:0|[1-9][0-9]*)(?:\.[0-9]*)?)(?:[eE][-+]?[0-9]+)?$",
            list("-+.0123456789"),
        ),
    }

    class Loader(yaml.SafeLoader):
        def construct_scalar(self, node: Any) -> Any:
            text = super().construct_scalar(node)
            # a pair of surrogates is one character, as in JSON, which YAML 1.2 contains
            return text.encode("utf-16", "surrogatepass").decode("utf-16", "surrogatepass")

        def construct_mapping(self, node: Any, deep: bool = False) -> Any:
            seen: set[str] = set()
            for key_node, _ in node.value:
                key = self.construct_object(key_node, deep=True)
                if not isinstance(key, str):
                    problem = f"a key must be a word, but is {key!r:.40}; quote it"
                elif key in seen:
                    problem = f"the key {key!r} stands twice"
                else:
                    seen.add(key)
                    continue
                raise yaml.constructor.ConstructorError(None, None, problem, key_node.start_mark)
            return super().construct_mapping(node, deep=deep)

    class Dumper(yaml.SafeDumper):  # keeps the rules of 1.1 too, so that either reader agrees
        def analyze_scalar(self, scalar: str) -> Any:
            analysis = super().analyze_scalar(scalar)
            if re.search("[\x85\u2028\u2029]", scalar):  # written as they are, they fold to a space
                analysis.allow_single_quoted = analysis.allow_block = False
                analysis.allow_flow_plain = analysis.allow_block_plain = False
            return analysis

    Loader.yaml_implicit_resolvers = {}
    for kind, (pattern, first) in core.items():
        for speaker in (Loader, Dumper):
            speaker.add_implicit_resolver(f"tag:yaml.org,2002:{kind}", re.compile(pattern), first)
    return Loader, Dumper


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
        return TypeAdapter(cls).validate_json(json.dumps(value, allow_nan=False), strict=True)
    except ValidationError as problem:
        raise error(f"{source}: {_explain(problem)}") from problem
    except (ValueError, TypeError, RecursionError) as problem:
        raise error(f"{source}: {problem}") from problem


def _refuse_unknown_keys(kind: Any, value: Any, *, where: str) -> None:
    """Raise ConfigError at the first key, at any depth, that is no field of its dataclass."""
    inner = typing.get_args(kind)
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        _refuse_by_all([option for option in inner if option is not type(None)], value, where=where)
    elif dataclasses.is_dataclass(kind) and isinstance(value, dict):
        hints = typing.get_type_hints(kind)
        known = [item.name for item in dataclasses.fields(kind)]
        for key, item in value.items():
            if key not in known:
                raise ConfigError(unknown_key(f"{where}{key}", known))
            _refuse_unknown_keys(hints[key], item, where=f"{where}{key}.")
    elif isinstance(value, dict) and len(inner) == 2:
        for key, item in value.items():
            _refuse_unknown_keys(inner[1], item, where=f"{where}{key}.")
    elif isinstance(value, list) and inner:
        each = inner if len(inner) == len(value) and ... not in inner else inner[:1] * len(value)
        for index, item in enumerate(value):
            _refuse_unknown_keys(each[index], item, where=f"{where}{index}.")


def _refuse_by_all(options: list[Any], value: Any, *, where: str) -> None:
    """Raise the last option's ConfigError if no option of a union knows every key."""
    problem: ConfigError | None = None
    for option in options:
        try:
            return _refuse_unknown_keys(option, value, where=where)
        except ConfigError as error:
            problem = error
    if problem is not None:
        raise problem


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
    near = difflib.get_close_matches(key, known, n=1, cutoff=0.5)
    near = near or difflib.get_close_matches(key.rpartition(".")[2], known, n=1, cutoff=0.5)
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

"""ONNX files by the sha256 of their bytes: nothing else is taken in, the least used leave first."""

import hashlib
import os
import threading
from pathlib import Path
from typing import Any

from nas.errors import ConfigError
from nas.files import digest_file, sweep, write_atomic
from nas.latency.protocol import SHA256, Refusal

MAX_FILE_BYTES = 512 * 1024 * 1024
MAX_STORE_BYTES = 8 * 1024 * 1024 * 1024


class FileStore:
    """A folder of ONNX files named by content; its user never names a path.

    Args:
        folder: Where they are kept; the caller holds its lock.
        max_file_bytes: No larger file is taken.
        max_store_bytes: Above that the files used longest ago are deleted.
    """

    def __init__(
        self,
        folder: Path,
        *,
        max_file_bytes: int = MAX_FILE_BYTES,
        max_store_bytes: int = MAX_STORE_BYTES,
    ) -> None:
        self._folder = folder
        self.max_file_bytes = min(max_file_bytes, max_store_bytes)
        self._max_store_bytes = max_store_bytes
        self._lock = threading.Lock()
        folder.mkdir(parents=True, exist_ok=True)
        sweep(folder)

    def put(self, sha256: str, raw: bytes) -> None:
        """Take a file in.

        Raises:
            Refusal: it is too large.
            ConfigError: its bytes have another hash, or are not one plain ONNX network.
            StorageError: the disk is full.
        """
        path = self._path(sha256)
        if len(raw) > self.max_file_bytes:
            raise too_large(len(raw), self.max_file_bytes)
        found = hashlib.sha256(raw).hexdigest()
        if found != sha256:
            raise ConfigError(f"the file's sha256 must be {sha256}, but is {found}; send it again.")
        check_onnx(raw)
        with self._lock:
            self._make_room(len(raw))
            write_atomic(path, raw)

    def get(self, sha256: str) -> Path:
        """Return the path of a file, whole.

        Raises:
            Refusal: it is not there (any more).
        """
        path = self._path(sha256)
        with self._lock:
            if path.is_file() and digest_file(path) == sha256:
                os.utime(path)
                return path
            path.unlink(missing_ok=True)
        raise Refusal("NoFile", f"there is no file {sha256} here; send it first.")

    def _path(self, sha256: str) -> Path:
        if not SHA256.fullmatch(sha256):
            raise ConfigError(f"a file is named by 64 hex digits of sha256, not {sha256[:80]!r}.")
        return self._folder / f"{sha256}.onnx"

    def _make_room(self, needed_bytes: int) -> None:
        files = [(path.stat().st_mtime_ns, path) for path in self._folder.glob("*.onnx")]
        total = needed_bytes + sum(path.stat().st_size for _, path in files)
        for _, path in sorted(files):
            if total <= self._max_store_bytes:
                return
            total -= path.stat().st_size
            path.unlink()


def too_large(size_bytes: int, limit_bytes: int) -> Refusal:
    """Return the answer to a body that is over its limit."""
    return Refusal(
        "TooLarge", f"a body may have {limit_bytes:,} bytes, but this one has {size_bytes:,}."
    )


def check_onnx(raw: bytes) -> None:
    """Raise ConfigError unless the bytes are one ONNX network that has all its weights inside.

    A tensor may name another file, by any path, to be read in its place: such files are refused.
    """
    import onnx

    try:
        model = onnx.ModelProto.FromString(raw)
    except Exception as error:  # of protobuf, whose errors have no types here
        raise ConfigError(f"the file is not ONNX ({type(error).__name__}).") from error
    if not model.graph.node:
        raise ConfigError("the file is not ONNX with a network in it.")
    nodes = [*model.graph.node, *(node for item in model.functions for node in item.node)]
    tensors = list(model.graph.initializer)
    sparse = list(model.graph.sparse_initializer)
    while nodes:
        for attribute in nodes.pop().attribute:
            inner = [attribute.g, *attribute.graphs]
            nodes += [node for graph in inner for node in graph.node]
            tensors += [attribute.t, *attribute.tensors]
            tensors += [tensor for graph in inner for tensor in graph.initializer]
            sparse += [attribute.sparse_tensor, *attribute.sparse_tensors]
            sparse += [tensor for graph in inner for tensor in graph.sparse_initializer]
    tensors += [part for tensor in sparse for part in (tensor.values, tensor.indices)]
    if any(_is_outside(tensor) for tensor in tensors):
        raise ConfigError("the file has weights outside of itself; save it with all of them in it.")


def _is_outside(tensor: Any) -> bool:
    import onnx

    return tensor.data_location == onnx.TensorProto.EXTERNAL or len(tensor.external_data) > 0

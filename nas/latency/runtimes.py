"""The runtimes that can be timed, behind one small protocol; they live in the child process only.

A new runtime is one class here and one row in `nas.target.RUNTIMES`. No other module imports an
inference library, and none of a library's own errors leaves this one.
"""

from collections.abc import Callable
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from nas.errors import DeviceError
from nas.target import Target, runtime_facts


class Runner(Protocol):
    """One loaded network with its inputs in place."""

    def run(self) -> None:
        """Do one inference and return when its result is there; allocate nothing that stays."""


class Runtime(Protocol):
    """One inference library, set up for one Target (its threads, its precision).

    A runtime loads the files the target's exporter wrote and no others. Whatever goes wrong in
    the library comes out as DeviceError, from `load` and from `run` alike.
    """

    version: str

    def load(self, path: Path) -> Runner:
        """Return the network in the file, ready to run on random inputs of its own shape."""


class OnnxRuntime:
    """ONNX Runtime on the CPU: sequential, threads as told, no spinning, inputs bound once."""

    def __init__(self, target: Target) -> None:
        try:
            import onnxruntime
        except ImportError as error:
            raise DeviceError(
                f"onnxruntime cannot be loaded ({error}). Install it with `pip install onnxruntime`"
            ) from error
        self.version = str(onnxruntime.__version__)
        self._library: Any = onnxruntime
        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = target.threads
        self._options.inter_op_num_threads = 1
        self._options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        self._options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._options.log_severity_level = 3

    def load(self, path: Path) -> Runner:
        """Return a session of the file whose input and output memory is bound once."""
        try:
            session = self._library.InferenceSession(
                str(path), self._options, providers=["CPUExecutionProvider"]
            )
            return _OnnxRunner(self._library, session)
        except Exception as error:  # the library has no public root of its errors
            raise DeviceError(
                f"onnxruntime cannot load {path.name}: {_first_line(error)}"
            ) from error


class _OnnxRunner:
    def __init__(self, library: Any, session: Any) -> None:
        self._session = session
        self._binding = session.io_binding()
        generator = np.random.default_rng(0)
        for item in session.get_inputs():
            if item.type != "tensor(float)" or not all(type(side) is int for side in item.shape):
                raise ValueError(f"the input {item.name} must be float of fixed shape, is {item}")
            values = generator.standard_normal(item.shape, dtype=np.float32)
            self._binding.bind_ortvalue_input(
                item.name, library.OrtValue.ortvalue_from_numpy(values)
            )
        for item in session.get_outputs():
            if item.type != "tensor(float)" or not all(type(side) is int for side in item.shape):
                raise ValueError(f"the output {item.name} must be float of fixed shape, is {item}")
            memory = library.OrtValue.ortvalue_from_shape_and_type(item.shape, np.float32, "cpu")
            self._binding.bind_ortvalue_output(item.name, memory)

    def run(self) -> None:
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # the library has no public root of its errors
            raise DeviceError(f"onnxruntime failed while running: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


RUNTIMES: dict[str, Callable[[Target], Runtime]] = {"onnxruntime": OnnxRuntime}


def create(target: Target) -> Runtime:
    """Return the target's runtime in this process.

    Raises:
        DeviceError: unknown, not installed, or of another version than the target's.
    """
    runtime_facts(target.runtime)
    runtime = RUNTIMES[target.runtime](target)
    if runtime.version != target.version:
        raise DeviceError(
            f"the target is {target.runtime} {target.version}, but {runtime.version} is installed. "
            f"Install that version, or make a table for `{target.runtime}` as it is here."
        )
    return runtime

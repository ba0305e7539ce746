"""The runtimes that can be timed, behind one small protocol; they live in the child process only.

A new runtime is one module here and one row in `nas.target.RUNTIMES` (docs/runtimes.md). A
runtime's module is imported when it is asked for, no other module imports its library, and none
of the library's own errors leaves it.
"""

from collections.abc import Callable
from pathlib import Path

from nas.errors import DeviceError
from nas.latency.runtimes.protocol import Runner, Runtime
from nas.target import Target, installed_version, runtime_facts

__all__ = ["RUNTIMES", "Runner", "Runtime", "create"]


def _onnxruntime(target: Target, cache: Path | None) -> Runtime:
    from nas.latency.runtimes.onnx_runtime import OnnxRuntime

    return OnnxRuntime(target, cache)


def _openvino(target: Target, cache: Path | None) -> Runtime:
    from nas.latency.runtimes.openvino_cpu import OpenVino

    return OpenVino(target, cache)


def _torch(target: Target, cache: Path | None) -> Runtime:
    from nas.latency.runtimes.torch_eager import TorchEager

    return TorchEager(target)


RUNTIMES: dict[str, Callable[[Target, Path | None], Runtime]] = {
    "onnxruntime": _onnxruntime,
    "openvino": _openvino,
    "torch": _torch,
    "torch-cuda": _torch,
    "torch-mps": _torch,
}


def create(target: Target, cache: Path | None = None) -> Runtime:
    """Return the target's runtime in this process.

    Args:
        target: What it is set up for.
        cache: A folder in which what takes long to make of a file (its int8) is kept for other
            processes that load the same one; None keeps nothing.

    Raises:
        DeviceError: unknown, not installed, of another version than the target's, or without the
            GPU or package that the target takes.
    """
    facts = runtime_facts(target.runtime)
    found = installed_version(target.runtime, target.precision)
    if found != target.version:
        raise DeviceError(
            f"the target is {target.runtime} {target.version}, but {found} is installed. "
            f"Install that version, or make a table for `{target.runtime}` as it is here."
        )
    try:
        return RUNTIMES[target.runtime](target, cache)
    except ImportError as error:
        raise DeviceError(
            f"{target.runtime} cannot be loaded ({error}). Install it with `{facts.install}`."
        ) from error

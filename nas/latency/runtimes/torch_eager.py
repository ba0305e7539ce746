"""torch as it is, operator by operator (eager), on the processor or on a GPU.

The GPU runtimes `torch-cuda` and `torch-mps` were written without such a GPU at hand: nobody has
run them yet. A run of theirs ends when the GPU has ended it, as for somebody who waits for the
result; the time is taken by the processor's clock, launching included.
"""

import contextlib
import copy
import os
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
import torch.nn as nn

import nas.network
from nas.errors import ConfigError, DeviceError
from nas.latency.compose import is_network, read_parts
from nas.latency.runtimes.protocol import Runner, Values, first_line, sample_input
from nas.network.fold import fold_norms
from nas.network.onnx import input_shape, sample_module
from nas.target import Target, runtime_facts, slug

Wait = Callable[[], None]


class TorchEager:
    """torch with BatchNorm folded into convolutions, channels last, in inference mode.

    It takes a JSON file of parts or of a network's blocks (see `nas.latency.compose`), or the
    folder of a timm model. A network keeps its tokens from one part of a block to the next, and
    has timm's modules around its blocks: a row of its parts is not the same.
    """

    def __init__(self, target: Target) -> None:
        torch.set_num_threads(target.threads)
        with contextlib.suppress(RuntimeError):  # once a process; eager operators take turns anyway
            torch.set_num_interop_threads(1)
        self._name, self._batch = target.runtime, target.batch
        self._wait = _set_up(target)
        self._device = torch.device(runtime_facts(target.runtime).accelerator or "cpu")
        self._dtype = torch.float16 if target.precision == "fp16" else torch.float32

    def load(self, path: Path, times: int = 1) -> list[Runner]:
        """Return the network that the file's parts make, or the one in a timm folder."""
        try:
            model, shape = _folder(path) if path.is_dir() else chain_module(path)
            model = fold_norms(model.eval()).requires_grad_(False)
            place = {"device": self._device, "memory_format": torch.channels_last}
            x = torch.from_numpy(sample_input((self._batch, *shape)))
            x = x.to(dtype=self._dtype, **place)  # type: ignore[call-overload]
            models = [
                copy.deepcopy(model).to(dtype=self._dtype, **place)  # type: ignore[call-overload]
                for _ in range(times)
            ]
            return [_TorchRunner(self._name, item, x.clone(), self._wait) for item in models]
        except Exception as error:  # torch, timm and safetensors each have their own
            raise DeviceError(
                f"{self._name} cannot load {path.name}: {first_line(error)}"
            ) from error


class _TorchRunner:
    def __init__(self, name: str, model: nn.Module, x: torch.Tensor, wait: Wait) -> None:
        self._name, self.model, self._x, self._wait = name, model, x, wait

    @torch.inference_mode()
    def run(self) -> None:
        try:
            self.model(self._x)
            self._wait()
        except Exception as error:  # torch raises RuntimeError and others
            raise DeviceError(f"{self._name} failed while running: {first_line(error)}") from error

    @torch.inference_mode()
    def output(self) -> Values:
        values: Values = self.model(self._x).float().cpu().numpy()
        return values


def chain_module(path: Path) -> tuple[nn.Module, tuple[int, int, int]]:
    """Return what a file of parts or blocks stands for, and its input's (channels, side, side).

    For every runtime that is given torch modules: a whole network is timm's, not a row of parts.
    """
    chain = read_parts(path)
    first = chain[0]
    shape = (first.in_channels, first.resolution, first.resolution)
    if is_network(chain):
        return nas.network.NasHybrid(chain), shape
    return nn.Sequential(*map(sample_module, chain)), shape


def _folder(path: Path) -> tuple[nn.Module, tuple[int, int, int]]:
    """Return a timm folder's network; a stock one as ours, whose convolutions can be folded."""
    model = nas.network.load_folder(path)
    shape = input_shape(model)
    with contextlib.suppress(ConfigError):  # ours already, or of another family
        model = nas.network.stock.from_timm(model)
    return model, shape


# ---------------------------------------------------------------- GPUs: not run by anybody yet
def _set_up(target: Target) -> Wait:
    """Prepare the target's GPU, if it has one; return what waits for its work to be done.

    Raises:
        DeviceError: there is no such GPU, or it is another one than the target's.
    """
    kind = runtime_facts(target.runtime).accelerator
    if kind == "cuda":
        os.environ.setdefault("CUDA_DEVICE_ORDER", "PCI_BUS_ID")  # as nvidia-smi counts
        if not torch.cuda.is_available():
            raise _absent(target, "NVIDIA's driver and a CUDA build of torch")
        name = slug(torch.cuda.get_device_name(0))
        if not target.device.cpu.endswith(f"-{name}"):
            raise DeviceError(
                f"the target is of {target.device.slug}, but torch would use {name}. Leave "
                "CUDA_VISIBLE_DEVICES unset, or set it to the first GPU that nvidia-smi lists."
            )
        torch.backends.cuda.matmul.fp32_precision = "ieee"  # no TF32 where the target says fp32
        torch.backends.cudnn.conv.fp32_precision = "ieee"  # type: ignore[attr-defined]
        torch.backends.cudnn.benchmark = True  # shapes are fixed: the fastest kernels are sought
        return partial(_wait_for_event, torch.cuda.Event())  # type: ignore[no-untyped-call]
    if kind == "mps":
        if not torch.backends.mps.is_available():
            raise _absent(target, "a Mac with Apple silicon and macOS 14 or newer")
        return torch.mps.synchronize
    return _no_wait


def _absent(target: Target, what: str) -> DeviceError:
    return DeviceError(
        f"torch finds no device for {target.runtime}: it takes {what}. To measure on the "
        "processor, choose the runtime torch."
    )


def _wait_for_event(event: "torch.cuda.Event") -> None:
    event.record()
    event.synchronize()


def _no_wait() -> None:
    """Return: an operator on the processor is done when it returns."""

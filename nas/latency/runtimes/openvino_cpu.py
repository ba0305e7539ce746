"""OpenVINO on the CPU: one stream, threads as told, fp32 where the target says fp32."""

from pathlib import Path
from typing import Any

from nas.errors import DeviceError
from nas.files import digest_file
from nas.latency.openvino_import import import_openvino
from nas.latency.quantize import is_quantized_openvino, quantize_openvino, save_openvino
from nas.latency.runtimes.protocol import Runner, Values, first_line, sample_input
from nas.target import Target

openvino = import_openvino()


class OpenVino:
    """OpenVINO's CPU plugin; for int8, a network in fp32 is quantized by NNCF as it is loaded.

    On processors with bf16 or fp16 units the plugin would compute in these unasked, so precision
    is pinned: to f32, which leaves what was quantized in int8. Threads are not pinned to cores: a
    core that somebody else keeps busy would be waited for although another one is free.
    """

    def __init__(self, target: Target, cache: Path | None = None) -> None:
        self._cache = cache
        self._is_int8 = target.precision == "int8"
        self._core = openvino.Core()
        self._options = {
            "PERFORMANCE_HINT": "LATENCY",
            "NUM_STREAMS": 1,
            "INFERENCE_NUM_THREADS": target.threads,
            "INFERENCE_PRECISION_HINT": "f32",
            "ENABLE_CPU_PINNING": False,
            "ENABLE_HYPER_THREADING": True,  # a thread a logical core, as the target counts them
        }

    def load(self, path: Path, times: int = 1) -> list[Runner]:
        """Return infer requests of the file, compiled each, whose input is set once."""
        try:
            model = self._core.read_model(str(path))
            for item in [*model.inputs, *model.outputs]:
                if item.partial_shape.is_dynamic or item.element_type != openvino.Type.f32:
                    raise ValueError(f"{item.any_name} must be float of fixed shape, is {item}")
            if self._is_int8 and not is_quantized_openvino(model):
                model = self._quantized(model, path)
            compiled = [self._core.compile_model(model, "CPU", self._options) for _ in range(times)]
            return [_OpenVinoRunner(item) for item in compiled]
        except ImportError:
            raise
        except Exception as error:  # the library raises RuntimeError and others
            raise DeviceError(f"openvino cannot load {path.name}: {first_line(error)}") from error

    def _quantized(self, model: Any, path: Path) -> Any:  # Any: models, a binding without types
        """Return the model in int8; where there is a cache, the one that the first process made."""
        if self._cache is None:
            return quantize_openvino(model)
        kept = self._cache / f"{digest_file(path)}.xml"
        if not kept.is_file():
            save_openvino(quantize_openvino(model), kept)
        return self._core.read_model(str(kept))


class _OpenVinoRunner:
    def __init__(self, compiled: Any) -> None:  # Any: a CompiledModel, a binding without types
        self.compiled = compiled
        self._request = compiled.create_infer_request()
        for item in compiled.inputs:
            tensor = openvino.Tensor(sample_input(item.shape))
            self._request.set_tensor(item, tensor)

    def run(self) -> None:
        try:
            self._request.infer(share_outputs=True)
        except Exception as error:  # the library raises RuntimeError and others
            raise DeviceError(f"openvino failed while running: {first_line(error)}") from error

    def output(self) -> Values:
        self.run()
        values: Values = self._request.get_output_tensor(0).data.copy()
        return values

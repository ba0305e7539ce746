"""ONNX Runtime on the CPU: sequential, threads as told, no spinning, memory bound once."""

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime

from nas.errors import DeviceError
from nas.files import digest_file
from nas.latency.quantize import is_quantized, quantize_onnx
from nas.latency.runtimes.protocol import Runner, Values, first_line, sample_input
from nas.target import Target


class OnnxRuntime:
    """ONNX Runtime with its CPU provider; for int8, a file is quantized as it is loaded.

    One that is quantized already, as a winner's is, runs as it is.
    """

    def __init__(self, target: Target, cache: Path | None = None) -> None:
        self._cache = cache
        self._is_int8 = target.precision == "int8"
        self._options = onnxruntime.SessionOptions()
        self._options.intra_op_num_threads = target.threads
        self._options.inter_op_num_threads = 1
        self._options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
        self._options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        self._options.log_severity_level = 3

    def load(self, path: Path, times: int = 1) -> list[Runner]:
        """Return sessions of the file whose input and output memory is bound once."""
        try:
            if not self._is_int8 or is_quantized(path):
                return [_OnnxRunner(self._session(path)) for _ in range(times)]
            with tempfile.TemporaryDirectory() as folder:
                quantized = (self._cache or Path(folder)) / f"{digest_file(path)}.onnx"
                if not quantized.is_file():
                    quantize_onnx(path, quantized)
                return [_OnnxRunner(self._session(quantized)) for _ in range(times)]
        except Exception as error:  # the library has no public root of its errors
            raise DeviceError(
                f"onnxruntime cannot load {path.name}: {first_line(error)}"
            ) from error

    def _session(self, path: Path) -> Any:
        return onnxruntime.InferenceSession(
            str(path), self._options, providers=["CPUExecutionProvider"]
        )


class _OnnxRunner:
    def __init__(self, session: Any) -> None:
        self._session = session
        self._binding = session.io_binding()
        for item in session.get_inputs():
            if item.type != "tensor(float)" or not all(type(side) is int for side in item.shape):
                raise ValueError(f"the input {item.name} must be float of fixed shape, is {item}")
            self._binding.bind_ortvalue_input(
                item.name, onnxruntime.OrtValue.ortvalue_from_numpy(sample_input(item.shape))
            )
        for item in session.get_outputs():
            if item.type != "tensor(float)" or not all(type(side) is int for side in item.shape):
                raise ValueError(f"the output {item.name} must be float of fixed shape, is {item}")
            memory = onnxruntime.OrtValue.ortvalue_from_shape_and_type(
                item.shape, np.float32, "cpu"
            )
            self._binding.bind_ortvalue_output(item.name, memory)

    def run(self) -> None:
        try:
            self._session.run_with_iobinding(self._binding)
        except Exception as error:  # the library has no public root of its errors
            raise DeviceError(f"onnxruntime failed while running: {first_line(error)}") from error

    def output(self) -> Values:
        self.run()
        values: Values = self._binding.copy_outputs_to_cpu()[0]
        return values

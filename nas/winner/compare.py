"""Whether an exported file computes what the network computes."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch import Tensor, nn

from nas.errors import CorruptFile, DeviceError
from nas.latency.openvino_import import import_openvino
from nas.latency.runtimes.protocol import Values, first_line
from nas.target import installed_version

Scorer = Callable[[Tensor], Tensor]  # images (n, c, h, w) to scores (n, classes)


def onnx_scores(path: Path | str, images: Tensor) -> Tensor:
    """Return the scores (n, classes) that ONNX Runtime's CPU gives images (n, c, h, w) one by one.

    Errors are those of `onnx_scorer`.
    """
    return onnx_scorer(path)(images)


def onnx_scorer(path: Path | str) -> Scorer:
    """Load a file of batch 1 for ONNX Runtime's CPU, one thread; return what scores images by it.

    Raises:
        CorruptFile: it is not an ONNX file that can be run.
        DeviceError: ONNX Runtime is not installed.
    """
    try:
        import onnxruntime
    except ImportError as error:
        raise DeviceError(
            f"onnxruntime cannot be loaded ({error}). Install it with `pip install onnxruntime`."
        ) from error
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 3
    try:
        session = onnxruntime.InferenceSession(
            str(path), options, providers=["CPUExecutionProvider"]
        )
        name = session.get_inputs()[0].name
    except Exception as error:  # the library has no public root of its errors
        raise _unusable(path, "ONNX Runtime", error) from error

    def score(image: Values) -> Values:
        try:
            found: Values = session.run(None, {name: image})[0]
            return found
        except Exception as error:  # the library has no public root of its errors
            raise _unusable(path, "ONNX Runtime", error) from error

    return partial(_one_by_one, score)


def openvino_scorer(path: Path | str) -> Scorer:
    """Load a file of batch 1 for OpenVINO's CPU plugin, one thread; return what scores by it.

    Raises:
        CorruptFile: it is not a file that OpenVINO can run.
        DeviceError: OpenVINO is not installed.
    """
    installed_version("openvino")
    options = {"INFERENCE_NUM_THREADS": 1, "INFERENCE_PRECISION_HINT": "f32"}
    try:
        core = import_openvino().Core()
        compiled = core.compile_model(core.read_model(str(path)), "CPU", options)
    except Exception as error:  # the library raises RuntimeError and others
        raise _unusable(path, "OpenVINO", error) from error

    def score(image: Values) -> Values:
        try:
            found: Values = compiled([image])[0]
            return found
        except Exception as error:  # the library raises RuntimeError and others
            raise _unusable(path, "OpenVINO", error) from error

    return partial(_one_by_one, score)


def _one_by_one(score: Callable[[Values], Values], images: Tensor) -> Tensor:
    rows = [score(image[None].numpy()) for image in images.contiguous()]
    return torch.cat([torch.from_numpy(row) for row in rows])


def _unusable(path: Path | str, runtime: str, error: Exception) -> CorruptFile:
    reason = first_line(error)
    return CorruptFile(f"{path} cannot be run by {runtime}: {reason}. Export the winner again.")


@torch.no_grad()
def network_scores(model: nn.Module, images: Tensor) -> Tensor:
    """Return the scores (n, classes) a network in eval mode gives images (n, c, h, w)."""
    scores: Tensor = model(images)
    return scores.float()


def relative_error(scores: Tensor, reference: Tensor) -> float:
    """Return the largest difference by the largest score of the reference; NaN stays NaN."""
    if scores.shape != reference.shape:
        return float("inf")
    return float((scores - reference).abs().max() / reference.abs().max())

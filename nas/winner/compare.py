"""Whether an exported file computes what the network computes."""

from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor, nn

from nas.errors import CorruptFile, DeviceError


def onnx_scores(path: Path | str, images: Tensor) -> Tensor:
    """Return the scores (n, classes) that ONNX Runtime's CPU gives images (n, c, h, w) one by one.

    Errors are those of `onnx_scorer`.
    """
    return onnx_scorer(path)(images)


def onnx_scorer(path: Path | str) -> Callable[[Tensor], Tensor]:
    """Load a file for ONNX Runtime's CPU, one thread; return what scores images as `onnx_scores`.

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
        raise _unusable(path, error) from error

    def scores(images: Tensor) -> Tensor:
        try:
            rows = [session.run(None, {name: one[None].numpy()})[0] for one in images.contiguous()]
        except Exception as error:  # the library has no public root of its errors
            raise _unusable(path, error) from error
        return torch.cat([torch.from_numpy(row) for row in rows])

    return scores


def _unusable(path: Path | str, error: Exception) -> CorruptFile:
    first = (str(error).splitlines() or [type(error).__name__])[0]
    return CorruptFile(f"{path} cannot be run by ONNX Runtime: {first}. Export the winner again.")


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

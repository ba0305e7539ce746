"""Networks in int8, by the tools of the runtimes themselves: post-training, static, calibrated.

What is timed is calibrated on a few random inputs: ranges change results, and no latency. What is
shipped needs real ones (`samples`).
"""

import contextlib
import io
import logging
import tempfile
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from nas.errors import CorruptFile, DeviceError
from nas.files import write_atomic
from nas.latency.openvino_import import import_openvino
from nas.latency.runtimes.protocol import Values, first_line, sample_input
from nas.target import Device, installed_version

RANDOM_SAMPLES = 4
# Any: protobuf messages of onnx, models of openvino and nncf, which have no types.


def quantize_onnx(
    source: Path,
    destination: Path,
    *,
    samples: Iterable[Values] | None = None,
    device: Device | None = None,
) -> Path:
    """Write an ONNX file in int8 as ONNX Runtime runs it best, and return its path.

    Weights get a scale a channel, activations one from the lowest and highest value seen; both
    stand in the graph as pairs of QuantizeLinear and DequantizeLinear.

    Args:
        source: An fp32 file of one input of fixed shape.
        destination: Where to write; replaced atomically.
        samples: Inputs to calibrate on, each of the input's shape; by default random ones, which
            are enough to time it and not to use it.
        device: What will run it; this machine by default. Types of activations are those its
            instructions are fastest with, weights of an x86 one that is elsewhere have 7 bits.

    Raises:
        CorruptFile: `source` is not an ONNX file.
        DeviceError: ONNX Runtime cannot quantize it; the message says why.
        StorageError: the file cannot be written.
    """
    import onnx
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_static
    from onnxruntime.quantization.shape_inference import quant_pre_process

    try:
        model = onnx.load(str(source))
        name, shape = _input_of(model)
    except Exception as error:  # onnx and protobuf each have their own
        raise CorruptFile(f"{source.name} cannot be quantized: {first_line(error)}") from error
    here = Device.here()
    device = device or here
    is_x86 = device.arch == "x86_64"
    has_vnni = device.slug == here.slug and _has_vnni()  # of another machine nobody knows
    with tempfile.TemporaryDirectory() as folder, _quiet():
        prepared, written = Path(folder) / "prepared.onnx", Path(folder) / "int8.onnx"
        try:
            quant_pre_process(str(source), prepared, skip_symbolic_shape=True)
            quantize_static(
                prepared,
                written,
                _Samples(name, random_samples(shape) if samples is None else samples),
                quant_format=QuantFormat.QDQ,
                per_channel=True,
                reduce_range=is_x86 and not has_vnni,
                activation_type=QuantType.QUInt8 if is_x86 else QuantType.QInt8,
                weight_type=QuantType.QInt8,
            )
        except Exception as error:  # the library has no public root of its errors
            raise DeviceError(
                f"onnxruntime cannot quantize {source.name}: {first_line(error)}"
            ) from error
        return write_atomic(destination, written.read_bytes())


def is_quantized(source: Path) -> bool:
    """Return whether an ONNX file is in int8 already: whether its graph has quantized values.

    Raises:
        Exception: onnx's or protobuf's own, where it is not an ONNX file.
    """
    import onnx

    nodes = onnx.load(str(source), load_external_data=False).graph.node
    return any(node.op_type == "DequantizeLinear" for node in nodes)


def is_quantized_openvino(model: Any) -> bool:
    """Return whether an OpenVINO model is in int8 already."""
    return any(node.get_type_name() == "FakeQuantize" for node in model.get_ops())


def quantize_openvino(
    model: Any, *, samples: Sequence[Values] | None = None, corrects_bias: bool = False
) -> Any:
    """Return an OpenVINO model in int8, by NNCF with the settings for networks with attention.

    Args:
        model: An fp32 `openvino.Model` of one input of fixed shape.
        samples: Inputs to calibrate on; by default random ones.
        corrects_bias: Whether biases make up for what rounding shifts: better results and much
            more work, without an effect on latency.

    Raises:
        ImportError: NNCF is not installed.
    """
    import_openvino()  # first, so that NNCF finds no telemetry either
    import nncf

    logging.getLogger("nncf").setLevel(logging.ERROR)  # its own way also sets others' handlers
    values = random_samples(model.inputs[0].shape) if samples is None else list(samples)
    with _quiet():
        return nncf.quantize(
            model,
            nncf.Dataset(values),
            preset=nncf.QuantizationPreset.MIXED,
            model_type=nncf.ModelType.TRANSFORMER,
            subset_size=len(values),
            advanced_parameters=nncf.AdvancedQuantizationParameters(
                disable_bias_correction=not corrects_bias
            ),
        )


def write_openvino(
    source: Path, destination: Path, *, samples: Sequence[Values] | None = None
) -> Path:
    """Write an ONNX file in int8 as OpenVINO runs it, .xml and .bin; return the .xml's path.

    Args:
        source: An fp32 file of one input of fixed shape.
        destination: Ends with .xml; the .bin of that name is written too, before it.
        samples: Inputs to calibrate on; by default random ones, as for `quantize_openvino`.

    Raises:
        CorruptFile: `source` cannot be read.
        DeviceError: OpenVINO or NNCF is not installed, or cannot quantize it.
        StorageError: the files cannot be written.
    """
    installed_version("openvino", "int8")
    try:
        model = import_openvino().Core().read_model(str(source))
    except Exception as error:  # the library raises RuntimeError and others
        raise CorruptFile(f"{source.name} cannot be quantized: {first_line(error)}") from error
    try:
        made = quantize_openvino(model, samples=samples, corrects_bias=True)
    except Exception as error:  # NNCF has no public root of its errors
        raise DeviceError(f"nncf cannot quantize {source.name}: {first_line(error)}") from error
    return save_openvino(made, destination)


def save_openvino(model: Any, destination: Path) -> Path:
    """Write an OpenVINO model to an .xml and, before it, the .bin beside it; return the former.

    The library numbers operations through all models of a process; here they get their place in
    this one, so that the same model gives the same bytes.
    """
    for place, node in enumerate(model.get_ordered_ops()):
        if node.get_type_name() not in ("Parameter", "Result"):
            node.set_friendly_name(f"{node.get_type_name()}_{place}")
    with tempfile.TemporaryDirectory() as folder:
        made = Path(folder) / destination.name
        import_openvino().save_model(model, str(made), compress_to_fp16=False)
        weights = made.with_suffix(".bin")
        write_atomic(destination.with_suffix(".bin"), weights.read_bytes())
        return write_atomic(destination, made.read_bytes())


def random_samples(shape: Sequence[int]) -> list[Values]:
    """Return a few inputs of this shape, the same ones each time."""
    return [sample_input(shape, seed=seed) for seed in range(RANDOM_SAMPLES)]


class _Samples:
    """Inputs in the form in which ONNX Runtime's calibration asks for them."""

    def __init__(self, name: str, values: Iterable[Values]) -> None:
        self._left: Iterator[Values] = iter(values)
        self._name = name

    def get_next(self) -> dict[str, Values] | None:
        """Return the next input by its name, or None after the last."""
        value = next(self._left, None)
        return None if value is None else {self._name: value}


def _input_of(model: Any) -> tuple[str, list[int]]:
    """Return the name and shape of the one input, or raise ValueError."""
    weights = {tensor.name for tensor in model.graph.initializer}
    inputs = [item for item in model.graph.input if item.name not in weights]
    if len(inputs) != 1:
        raise ValueError(f"it must have one input, but has {len(inputs)}")
    (item,) = inputs
    shape = [side.dim_value for side in item.type.tensor_type.shape.dim]
    if not shape or not all(side > 0 for side in shape):
        raise ValueError(f"the input {item.name} must be float of fixed shape, is {shape}")
    return str(item.name), shape


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Keep what the tools print and log to themselves; their failures are raised anyway."""
    root = logging.getLogger()
    level = root.level
    root.setLevel(logging.CRITICAL)  # ONNX Runtime's tool logs there
    try:
        with contextlib.redirect_stdout(io.StringIO()):
            yield
    finally:
        root.setLevel(level)


def _has_vnni(cpuinfo: Path = Path("/proc/cpuinfo")) -> bool:
    """Return whether the processor sums products of bytes without overflow, as far as is known."""
    try:
        return "vnni" in cpuinfo.read_text(errors="replace")
    except OSError:
        return False

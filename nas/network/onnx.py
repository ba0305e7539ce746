"""The one way from a torch module to an ONNX file: for profiling, checking and shipping alike.

torch has two exporters. The older one, by TorchScript, is deprecated and decomposes LayerNorm,
GELU and every reshape (1056 nodes for `nas_hybrid`; 347 here). The newer one takes 1-2 seconds a
call before it looks at the module, so `parts_to_onnx` puts many modules with inputs of their own
into one call and takes the graph apart again: on two busy cores 13 parts took 23 s one by one
and 2.9 s together. What is timed part by part and what is shipped whole come from the same
exporter at the same opset; a Target carries both.
"""

import copy
import re
import warnings
from collections.abc import Callable, Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import torch.nn as nn
from timm.models._input import get_model_input_config

from nas.block import Block
from nas.errors import ConfigError, NasError
from nas.files import write_atomic
from nas.network.kinds import build_block, build_part
from nas.network.mb4d import PoolMixer
from nas.network.residual import scale_residuals
from nas.seeds import stage_seed

EXPORTER = "dynamo"
OPSET = 20
PARTS_AT_ONCE = 64
INPUT, OUTPUT = "input", "output"

Progress = Callable[[int, int, str], None]
# `Any` below: protobuf messages of onnx, which has no types.


def to_onnx(
    model: nn.Module,
    path: Path | str,
    *,
    batch: int = 1,
    shape: tuple[int, int, int] | None = None,
) -> Path:
    """Write a model as one ONNX file: fp32, evaluation mode, fixed shapes, weights inside.

    The model itself is not touched. The file has one input "input" and one output "output", and
    nothing of this machine (torch notes source paths at every node; they are taken out).

    Args:
        model: A timm model, or a block or part as a module.
        path: Where to write; replaced atomically.
        batch: Images in a batch.
        shape: (channels, height, width) of the input. Default: what timm knows of the model.

    Raises:
        ConfigError: the input's shape is not known, or the batch is not positive.
        NasError: torch cannot export the model.
        StorageError: the file cannot be written.
    """
    if shape is None:
        if not hasattr(model, "pretrained_cfg"):
            raise ConfigError(
                f"a {type(model).__name__} does not say its input's shape; give shape=."
            )
        shape = input_shape(model)
    proto = _export(_frozen(model), [shape], batch)
    return write_atomic(path, _extract(proto, 0, path).SerializeToString())


def input_shape(model: nn.Module) -> tuple[int, int, int]:
    """Return (channels, height, width) of a timm model's images."""
    channels, height, width = get_model_input_config(model)["input_size"]
    return channels, height, width


def parts_to_onnx(
    parts: Sequence[Block],
    folder: Path | str,
    *,
    batch: int = 1,
    progress: Progress | None = None,
) -> dict[str, Path]:
    """Write each distinct part (or block) as `<its string>.onnx`, much faster than one by one.

    Weights are random, the same for the same part, with residual branches at scale 1.

    Args:
        parts: What to export; repetitions are written once.
        folder: Where to put the files.
        batch: Images in a batch.
        progress: Called as (done, total, text).

    Returns:
        The file of each part by its string.
    """
    distinct = {str(part): part for part in parts}
    names = list(distinct)
    paths: dict[str, Path] = {}
    for start in range(0, len(names), PARTS_AT_ONCE):
        group = names[start : start + PARTS_AT_ONCE]
        blocks = [distinct[name] for name in group]
        shapes = [(b.in_channels, b.resolution, b.resolution) for b in blocks]
        modules = [_with_convolved_pools(sample_module(block)) for block in blocks]
        proto = _export(_SideBySide(modules).eval(), shapes, batch)
        for index, name in enumerate(group):
            path = Path(folder) / f"{name}.onnx"
            paths[name] = write_atomic(path, _extract(proto, index, name).SerializeToString())
        if progress is not None:
            progress(len(paths), len(names), "parts exported")
    return paths


def sample_module(block: Block) -> nn.Module:
    """Return the module that `parts_to_onnx` writes for a part or block, in training mode.

    No two tensors are equal, within a block or between blocks: the exporter would merge them, and
    a part would have one weight less than it has in a trained network.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(stage_seed(0, str(block)))
        module = build_part(block) if block.parts() == (block,) else build_block(block)
        scale_residuals(module)
        with torch.no_grad():
            for name, value in module.state_dict().items():
                if value.is_floating_point() and not name.endswith("conv.weight"):
                    value += 0.02 + 0.01 * torch.rand_like(value)
    return module


def modules_to_onnx(
    modules: Mapping[str, tuple[nn.Module, tuple[int, int, int]]],
    folder: Path | str,
    *,
    batch: int = 1,
) -> dict[str, Path]:
    """Write each module as `<its name>.onnx`, as `to_onnx` does but much faster than one by one.

    Args:
        modules: Name to (module, (channels, height, width) of its input).
        folder: Where to put the files.
        batch: Images in a batch.

    Raises:
        NasError: torch cannot export one of them; none is written then.
    """
    names = list(modules)
    frozen = [_frozen(module) for module, _ in modules.values()]
    proto = _export(_SideBySide(frozen).eval(), [shape for _, shape in modules.values()], batch)
    return {
        name: write_atomic(
            Path(folder) / f"{name}.onnx", _extract(proto, index, name).SerializeToString()
        )
        for index, name in enumerate(names)
    }


class _SideBySide(nn.Module):
    """Modules that have nothing to do with each other, each with its own input and output."""

    def __init__(self, modules: Sequence[nn.Module]) -> None:
        super().__init__()
        self.inner = nn.ModuleList(modules)

    def forward(self, *inputs: torch.Tensor) -> tuple[torch.Tensor, ...]:
        """Return the output of each module for its input."""
        return tuple(module(x) for module, x in zip(self.inner, inputs, strict=True))


def _frozen(model: nn.Module) -> nn.Module:
    frozen = copy.deepcopy(model).to(device="cpu", dtype=torch.float32).eval()
    return _with_convolved_pools(frozen)


def _with_convolved_pools(module: nn.Module) -> nn.Module:
    """Replace every pool mixer inside by the same function as convolutions, in place."""
    if isinstance(module, PoolMixer):
        return _ConvolvedPool(module)
    for name, child in module.named_children():
        setattr(module, name, _with_convolved_pools(child))
    return module


class _ConvolvedPool(nn.Module):
    """x + scale * (pool(x) - x) as (1 - scale) * x + scale * pool(x), by depthwise convolutions.

    Runtimes keep convolutions, pools and their sums in a layout of their own; a subtraction or a
    multiplication makes them go back to plain NCHW, for the rest of the stage. In ONNX Runtime an
    mb4d block is 1.1 (large maps) to 1.5 times (small ones) faster this way.
    """

    def __init__(self, mixer: PoolMixer) -> None:
        super().__init__()
        scale = mixer.residual_scale().detach().reshape(-1, 1, 1, 1)
        channels = len(scale)
        self.pool = mixer.pool
        self.keep = nn.Conv2d(channels, channels, 1, groups=channels, bias=False)
        self.mix = nn.Conv2d(channels, channels, 1, groups=channels, bias=False)
        self.keep.weight = nn.Parameter(1 - scale)
        self.mix.weight = nn.Parameter(scale.clone())

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return a feature map of the same shape."""
        mixed: torch.Tensor = self.keep(x) + self.mix(self.pool(x))
        return mixed


def _export(module: nn.Module, shapes: Sequence[tuple[int, ...]], batch: int) -> Any:
    """Return the ModelProto of a module; input i is "input<i>" and output i "output<i>"."""
    if batch < 1:
        raise ConfigError(f"batch must be at least 1, but is {batch}.")
    numbers = range(len(shapes))
    module.requires_grad_(False)
    try:
        with warnings.catch_warnings():  # about torch's own inner workings
            warnings.simplefilter("ignore")
            program = torch.onnx.export(
                module,
                tuple(torch.zeros(batch, *shape) for shape in shapes),
                dynamo=True,
                opset_version=OPSET,
                input_names=[f"{INPUT}{number}" for number in numbers],
                output_names=[f"{OUTPUT}{number}" for number in numbers],
                verbose=False,
            )
    except torch.onnx.errors.OnnxExporterError as error:
        raise NasError(f"torch cannot export this {type(module).__name__}: {error}") from error
    assert program is not None
    proto = program.model_proto
    has_control_flow = any(a.HasField("g") for node in proto.graph.node for a in node.attribute)
    if has_control_flow or proto.functions:
        raise NasError(f"this {type(module).__name__} is no plain graph in ONNX: not exported.")
    return proto


def _extract(whole: Any, number: int, name: Path | str) -> Any:
    """Return what output `number` of a ModelProto needs, as a clean model of its own.

    Values are numbered afresh, so that a file does not depend on what else was exported with it.
    """
    import onnx

    given, made = f"{INPUT}{number}", f"{OUTPUT}{number}"
    nodes = _needed(whole.graph.node, made)
    model = onnx.ModelProto(ir_version=whole.ir_version, producer_name="hybrid-nas")
    domains = {node.domain for node in nodes} | {""}
    model.opset_import.extend(item for item in whole.opset_import if item.domain in domains)
    graph = model.graph
    graph.name = Path(name).stem
    names = {"": "", given: INPUT, made: OUTPUT}
    weights = {tensor.name: tensor for tensor in whole.graph.initializer}
    for place, node in enumerate(nodes):
        copied = graph.node.add(op_type=node.op_type, domain=node.domain)
        copied.name = f"{node.op_type}_{place}"
        copied.attribute.extend(node.attribute)
        for slot, value in enumerate(node.input):
            if value in weights and value not in names:
                names[value] = _weight_name(value, f"{copied.name}_{slot}", taken=names.values())
                weight = graph.initializer.add()
                weight.CopyFrom(weights[value])
                weight.ClearField("metadata_props")
                weight.name = names[value]
        copied.input.extend(names[value] for value in node.input)
        for slot, value in enumerate(node.output):
            names.setdefault(value, f"{copied.name}_out{slot}")
        copied.output.extend(names[value] for value in node.output)
    for ours, theirs in ((graph.input, whole.graph.input), (graph.output, whole.graph.output)):
        value = next(item for item in theirs if item.name in (given, made))
        ours.add(name=names[value.name]).type.CopyFrom(value.type)
    return model


def _needed(nodes: Sequence[Any], output: str) -> list[Any]:
    """Return the nodes that `output` is made by, in order."""
    wanted, needed = {output}, []
    for node in reversed(nodes):
        if wanted.intersection(node.output):
            wanted.update(node.input)
            needed.append(node)
    return needed[::-1]


def _weight_name(value: str, place: str, *, taken: Collection[str]) -> str:
    """Return a parameter's own name; the place of use for a constant that the exporter made.

    A name can be taken: equal tensors are merged, under the name that one of them has elsewhere.
    """
    own = re.sub(r"^inner\.[0-9]+\.", "", value)
    return own if "." in own and own not in taken else place

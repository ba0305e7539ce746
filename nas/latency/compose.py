"""Files of whole chains: ONNX joined from files of single parts, or the names of what is in them.

Exporting is slow, joining is not. Runtimes that take no ONNX get a chain as JSON:

    {"schema": 1, "parts": ["stem_r32_i3_c8_b1_a0", ...]}

A chain of blocks from stem to head is a whole network (`is_network`). Joined from its parts it is
node for node what an export gives; where there is nothing to join it has to be run as it is built.
"""

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from nas.block import BLOCKS, Block, parse
from nas.errors import ConfigError, CorruptFile
from nas.files import read_json, storage_error
from nas.latency.recipes import parts_of
from nas.target import ONNX, PARTS

SCHEMA = 1


class Export(Protocol):
    """How parts become ONNX files: `nas.network.onnx.parts_to_onnx`, or a fake in tests."""

    def __call__(self, parts: Sequence[Block], folder: Path, *, batch: int) -> Mapping[str, Path]:
        """Write each part into the folder and return {part string: file}."""


def join(models: Sequence[Any], *, name: str) -> Any:
    """Return one ONNX model that runs the models in order, each output the next one's input.

    Where one ends and the next begins with a reshape (a part on tokens behind another), the two are
    folded as the exporter folds them inside a network: the joined model is node for node what a
    whole export gives.

    Args:
        models: `onnx.ModelProto`s of one input and one output, of one opset, without local
            functions; a model may stand more than once and then has its own copy of the weights.
        name: What to call the graph.
    """
    import onnx

    first = models[0]
    joined = onnx.ModelProto(ir_version=first.ir_version, producer_name="hybrid-nas")
    opsets = {item.domain: item for model in models for item in model.opset_import}
    joined.opset_import.extend(opsets.values())
    graph = joined.graph
    graph.name = name
    graph.input.extend(first.graph.input[:1])
    given = first.graph.input[0].name
    for place, model in enumerate(models):
        _check(model, opsets)
        names = {model.graph.input[0].name: given, "": ""}
        rename = _Rename(names, prefix=f"{place}/")
        for tensor in model.graph.initializer:
            copy = graph.initializer.add()
            copy.CopyFrom(tensor)
            copy.name = rename(tensor.name)
        for node in model.graph.node:
            copy = graph.node.add()
            copy.CopyFrom(node)
            copy.name = f"{place}/{node.name}"
            copy.input[:] = [rename(value) for value in node.input]
            copy.output[:] = [rename(value) for value in node.output]
        given = rename(model.graph.output[0].name)
    last = graph.output.add()
    last.CopyFrom(models[-1].graph.output[0])
    last.name = given
    ends = [_op_making(model, model.graph.output[0].name) for model in models[:-1]]
    starts = [_op_taking(model, model.graph.input[0].name) for model in models[1:]]
    if ("Reshape", "Reshape") in zip(ends, starts, strict=True):
        from onnxscript.optimizer import optimize

        joined = optimize(joined)
    return joined


def _op_making(model: Any, value: str) -> str:
    return next((str(n.op_type) for n in model.graph.node if value in n.output), "")


def _op_taking(model: Any, value: str) -> str:
    return next((str(n.op_type) for n in model.graph.node if n.input[:1] == [value]), "")


class _Rename:
    def __init__(self, names: dict[str, str], *, prefix: str) -> None:
        self._names = names
        self._prefix = prefix

    def __call__(self, name: str) -> str:
        return self._names.setdefault(name, self._prefix + name)


def _check(model: Any, opsets: dict[str, Any]) -> None:
    """Raise CorruptFile where joining would change what the model means."""
    graph = model.graph
    names = [item.name for item in graph.initializer]
    inputs = {item.name for item in graph.input} - set(names)
    rules = {
        "one input": len(inputs) == 1,
        "one output": len(graph.output) == 1,
        "a name for each value": len(names) == len(set(names)),
        "no local functions": not model.functions,
        "the opset of the others": all(opsets[o.domain] == o for o in model.opset_import),
        "no graphs inside nodes": not any(
            attribute.HasField("g") for node in graph.node for attribute in node.attribute
        ),
    }
    for rule, holds in rules.items():
        if not holds:
            raise CorruptFile(f"an ONNX part needs {rule} to be joined, but {graph.name} has not.")


def read_parts(path: Path) -> tuple[Block, ...]:
    """Return the chain in a JSON file of parts.

    Raises:
        CorruptFile: the file is absent, or is no such file.
    """
    value = read_json(path)
    names = value.get("parts") if isinstance(value, dict) else None
    is_ours = isinstance(value, dict) and value.get("schema") == SCHEMA and bool(names)
    if not is_ours or not isinstance(names, list) or not all(type(n) is str for n in names):
        raise CorruptFile(
            f'{path} must be {{"schema": {SCHEMA}, "parts": ["...", ...]}}, it is not.'
        )
    try:
        return tuple(parse(name) for name in names)
    except ConfigError as error:
        raise CorruptFile(f"{path}: {error}") from error


def is_network(chain: Sequence[Block]) -> bool:
    """Return whether a chain is a whole network of blocks, not a row of parts."""
    kinds = [block.kind for block in chain]
    ends = (kinds[0], kinds[-1]) == ("stem", "head")
    return ends and len(kinds) > 2 and all(kind in BLOCKS for kind in kinds)


def weight_bytes(path: Path) -> int:
    """Return about how many bytes of weights a file or timm folder stands for."""
    if path.is_dir():
        return sum(file.stat().st_size for file in path.glob("*.safetensors"))
    if path.suffix == ".json":
        return sum(part.bytes for part in read_parts(path))
    if path.suffix == ".xml":
        path = path.with_suffix(".bin")
    return path.stat().st_size


class Workshop:
    """Makes files of chains; each distinct part is exported at most once.

    Args:
        folder: Where parts are put; the caller owns it.
        export: How parts become files; `nas.network.onnx.parts_to_onnx` by default.
        batch: Images in a batch.
        takes: The kind of file the runtime takes; nothing is exported for "parts".
    """

    def __init__(
        self, folder: Path, export: Export | None = None, *, batch: int = 1, takes: str = ONNX
    ) -> None:
        if export is None and takes == ONNX:
            from nas.network.onnx import parts_to_onnx

            export = parts_to_onnx
        self._folder = folder
        self._export = export
        self._batch = batch
        self._takes = takes
        self._parts: dict[str, Path] = {}

    def export(self, chains: Sequence[Sequence[Block]]) -> None:
        """Export the parts that these chains, of parts or blocks, lack."""
        if self._export is None or self._takes == PARTS:
            return
        parts = {str(part): part for chain in chains for part in parts_of(chain)}
        missing = [part for name, part in parts.items() if name not in self._parts]
        if missing:
            self._parts.update(self._export(missing, self._folder, batch=self._batch))

    def join(self, chains: Mapping[str, Sequence[Block]], folder: Path) -> dict[str, Path]:
        """Return {name: file} of chains whose parts are exported, written into `folder`.

        Raises:
            StorageError: the folder is full or cannot be written.
        """
        paths = {}
        for number, (name, content) in enumerate(self._contents(chains)):
            paths[name] = folder / f"{number}.{'json' if self._takes == PARTS else 'onnx'}"
            try:
                paths[name].write_bytes(content)
            except OSError as error:
                raise storage_error(paths[name], error) from error
        return paths

    def _contents(self, chains: Mapping[str, Sequence[Block]]) -> Iterator[tuple[str, bytes]]:
        """Yield the name and the file's content of each chain."""
        if self._takes == PARTS:
            for name, chain in chains.items():
                value = {"schema": SCHEMA, "parts": list(map(str, chain))}
                yield name, json.dumps(value).encode()
            return
        import onnx

        models = {
            str(part): onnx.load(self._parts[str(part)], load_external_data=False)
            for chain in chains.values()
            for part in parts_of(chain)
        }
        for name, chain in chains.items():
            joined = join([models[str(part)] for part in parts_of(chain)], name=name)
            yield name, joined.SerializeToString()

"""What an operation of a runtime does: moves numbers, or multiplies them."""

from collections import defaultdict
from collections.abc import Mapping

from nas.latency.device_study.observation import OpShare

# Names of ONNX operators, of those ONNX Runtime fuses them into, and of OpenVINO's nodes.
GROUPS: dict[str, tuple[str, ...]] = {
    "transposes and reshapes": (
        *("transpose", "reshape", "flatten", "squeeze", "unsqueeze", "split", "variadicsplit"),
        *("concat", "slice", "stridedslice", "gather", "expand", "reorder", "reorderinput"),
        *("reorderoutput", "permute", "pad"),
    ),
    "normalisation": (
        *("layernormalization", "skiplayernormalization", "batchnormalization", "mvn"),
        *("simplifiedlayernormalization", "instancenormalization", "groupnormalization"),
    ),
    "softmax": ("softmax", "logsoftmax"),
    "activations": (
        *("relu", "gelu", "biasgelu", "fastgelu", "quickgelu", "hardswish", "hswish", "swish"),
        *("silu", "sigmoid", "hardsigmoid", "erf", "tanh", "clip"),
    ),
    "elementwise": (
        *("add", "sub", "mul", "div", "pow", "sqrt", "eltwise", "subgraph", "math", "sum"),
        *("multiply", "subtract", "divide"),
    ),
}
PRODUCTS = "products"
_GROUP_OF = {op: group for group, ops in GROUPS.items() for op in ops}
_PRODUCTS = (
    *("matmul", "fusedmatmul", "gemm", "fusedgemm", "conv", "fusedconv", "convolution"),
    *("fullyconnected", "attention", "multiheadattention", "scaleddotproductattention"),
    *("groupconvolution", "nchwcconv", "mha"),
)
OTHER = "other"


def shares_of(op_ms: Mapping[str, float]) -> tuple[OpShare, ...]:
    """Return times by type of operation as shares by group, the largest first."""
    total_ms = sum(op_ms.values())
    if total_ms <= 0:
        return ()
    found: dict[str, float] = defaultdict(float)
    for name, ms in op_ms.items():
        found[group_of(name)] += ms
    return tuple(
        OpShare(group=group, ms=ms, share=ms / total_ms, is_memory_bound=group in GROUPS)
        for group, ms in sorted(found.items(), key=lambda item: -item[1])
    )


def group_of(op: str) -> str:
    """Return the group of an operation by its name, whatever its spelling; else `other`."""
    plain = op.lower().replace("_", "")
    return PRODUCTS if plain in _PRODUCTS else _GROUP_OF.get(plain, OTHER)

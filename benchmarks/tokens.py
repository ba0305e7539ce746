"""Whether keeping tokens between consecutive mb3d blocks pays, runtime by runtime.

python benchmarks/tokens.py [TARGET ...]

Every block maps NCHW to NCHW; two in a row restore the map and flatten it again. The same blocks
with one flatten in front and one restore behind are timed beside them, interleaved.
"""

import argparse
import tempfile
from collections.abc import Mapping

import torch.nn as nn
from record import Figure, record

from nas.block import parse
from nas.latency import ProfileConfig
from nas.latency.device_study.modules import chain, on_tokens
from nas.latency.measure import measure_networks
from nas.network.onnx import modules_to_onnx
from nas.target import ONNX, Target

BLOCKS = (
    "mb3d_r7_c448_n8_k32_v128_h1792",
    "mb3d_r7_c256_n8_k16_v64_h512",
    "mb3d_r14_c192_n8_k32_v64_h576",
    "mb3d_r2_c96_n4_k16_v32_h288",
)
COPIES, WORTH = 4, 0.03


def main() -> None:
    """Time both ways of each block on each target."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("targets", nargs="*", default=["onnxruntime", "openvino"])
    figures = []
    for words in parser.parse_args().targets:
        target = Target.parse(words)
        if target.takes != ONNX:
            raise SystemExit(f"{target.runtime} takes no ONNX files")
        gains = gains_on(target)
        mean = sum(gains.values()) / len(gains)
        figures.append(
            Figure(
                figure=f"{words}: what keeping tokens saves of {COPIES} mb3d blocks",
                asked=f"built in if it saves >= {WORTH:.0%} on average",
                measured=f"{mean:+.1%} ({', '.join(f'{t} {g:+.1%}' for t, g in gains.items())})",
                holds=mean < WORTH,  # it is not built in
            )
        )
    record("tokens", figures)


def gains_on(target: Target) -> Mapping[str, float]:
    """Return the share of time saved, by block."""
    modules: dict[str, tuple[nn.Module, tuple[int, int, int]]] = {}
    for text in BLOCKS:
        block = parse(text)
        shape = (block.in_channels, block.resolution, block.resolution)
        modules[f"{text} apart"] = chain(*[text] * COPIES), shape
        modules[f"{text} kept"] = on_tokens(text, COPIES), shape
    with tempfile.TemporaryDirectory() as folder:
        paths = modules_to_onnx(modules, folder)
        found = measure_networks(paths, target, ProfileConfig(samples=40, spread_s=3.0))
    return {
        text: 1 - found[f"{text} kept"].median_ms / found[f"{text} apart"].median_ms
        for text in BLOCKS
    }


if __name__ == "__main__":
    main()

"""How far apart the latencies of a space's smallest and largest networks are, measured whole.

python benchmarks/span.py [SPACE ...]
"""

import argparse
import tempfile
from pathlib import Path

from record import Figure, record

from nas.latency import ProfileConfig, measure_networks
from nas.network import build, to_onnx
from nas.space import SearchSpace
from nas.target import Target

ASKED = {"hybrid": 8.0}


def main() -> None:
    """Export both ends of each space, time them interleaved, record the ratio."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("spaces", nargs="*", default=["hybrid", "hybrid-64", "tiny"])
    options = parser.parse_args()
    target = Target.parse("onnxruntime,fp32,b1,t1")
    figures = []
    for name in options.spaces:
        space = SearchSpace.load(name)
        ends = {"smallest": space.smallest(), "largest": space.largest()}
        with tempfile.TemporaryDirectory() as folder:
            paths = {
                end: to_onnx(build(space.blocks(ends[end])).eval(), Path(folder) / f"{end}.onnx")
                for end in ends
            }
            timings = measure_networks(paths, target, ProfileConfig(samples=20, spread_s=5.0))
        low, high = timings["smallest"].median_ms, timings["largest"].median_ms
        asked = ASKED.get(name)
        figures.append(
            Figure(
                figure=f"{name}: largest by smallest latency, onnxruntime fp32, 1 thread",
                asked=f">= {asked:g}" if asked else "-",
                measured=f"{high:.3g} / {low:.3g} ms = {high / low:.1f}",
                holds=asked is None or high / low >= asked,
            )
        )
    record("span", figures)


if __name__ == "__main__":
    main()

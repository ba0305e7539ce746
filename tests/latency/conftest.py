"""A machine that is not there: known costs, a clock of its own, and disturbances on demand."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path

import numpy as np
import numpy.typing as npt
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from nas.block import Block, parse
from nas.latency.bench import Bench, Visit
from nas.latency.profile_config import ProfileConfig
from nas.target import Device, Target

SESSION_MS = 0.008
LARGE_BYTES = 2_000_000
REFERENCE_MS = 0.2


def part_ms(part: Block) -> float:
    """Return what a part costs on the fake machine: its work, and something for being there."""
    return 0.002 + part.macs / 3e7


def edge_ms(channels: int, side: int) -> float:
    """Return what it costs to begin or end a network at this shape."""
    return 1e-6 * channels * side * side


def chain_ms(parts: Sequence[Block]) -> float:
    """Return what a network of these parts takes."""
    first, last = parts[0], parts[-1]
    begin = 0.0 if first.kind == "stem" else edge_ms(first.in_channels, first.resolution)
    end = 0.0 if last.kind == "head" else edge_ms(last.out_channels, last.out_resolution)
    return SESSION_MS + begin + sum(map(part_ms, parts)) + end


def fake_export(parts: Sequence[Block], folder: Path, *, batch: int) -> Mapping[str, Path]:
    """Write each part as one ONNX node that carries the part's name."""
    paths = {}
    for part in parts:
        value = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [batch]) for n in "xy"]
        node = helper.make_node("Relu", ["x"], ["y"], name=str(part))
        graph = helper.make_graph([node], str(part), value[:1], value[1:])
        paths[str(part)] = Path(folder) / f"{part}.onnx"
        onnx.save(helper.make_model(graph), str(paths[str(part)]))
    return paths


class FakeBench(Bench):
    """A Bench of known costs whose clock moves only by its own work.

    Args:
        cost: Milliseconds of one run of a list of parts.
        busy: Share of the time in which others take turns on the processor: wall time grows.
        slow: Share of the time in which everything, the reference too, runs at 60 % speed.
        shared: Share of the time, seconds on end, in which others fill the shared cache: networks
            of more than `LARGE_BYTES` take 1.8 times as long, the reference does not.
        jitter: Relative spread of undisturbed samples.
        cpu_per_wall: Processor time of an undisturbed run, by its wall time (2 for two threads).
    """

    def __init__(
        self,
        *,
        cost: Callable[[Sequence[Block]], float] = chain_ms,
        busy: float = 0.0,
        slow: float = 0.0,
        shared: float = 0.0,
        jitter: float = 0.01,
        cpu_per_wall: float = 1.0,
        seed: int = 0,
    ) -> None:
        self.cost, self.busy, self.slow, self.jitter = cost, busy, slow, jitter
        self.cpu_per_wall, self.shared = cpu_per_wall, shared
        self.large: set[str] = set()
        self.true_ms: dict[str, float] = {}
        self.extra_ms: dict[str, float] = {}  # of cold caches
        self.loaded: list[str] = []
        self.rounds: list[list[Visit]] = []
        self._rng = np.random.default_rng(seed)
        self._now_s = 1000.0
        self._state, self._until_s = "quiet", 1000.0
        self._is_filled, self._filled_until_s = False, 1000.0

    def load(self, name: str, path: Path) -> float:
        nodes = onnx.load(str(path)).graph.node
        parts = [parse(node.name.rpartition("/")[2]) for node in nodes]
        self.true_ms[name] = self.cost(parts)
        if sum(part.bytes for part in parts) > LARGE_BYTES:
            self.large.add(name)
        self.extra_ms[name] = 0.2 * self.true_ms[name]
        self.loaded.append(name)
        self._now_s += 0.01
        return self.true_ms[name] * 1.3  # the first runs are cold

    def unload(self) -> None:
        self.true_ms.clear()

    @property
    def places(self) -> int:
        return 1

    def run(self, visits: Sequence[Visit], *, turn: int = 0) -> list[npt.NDArray[np.float64]]:
        self.rounds.append(list(visits))
        return [self._visit(visit) for visit in visits]

    def seconds(self) -> float:
        return self._now_s

    def _visit(self, visit: Visit) -> npt.NDArray[np.float64]:
        self._now_s += visit.prime * self.true_ms[visit.name] / 1e3
        rows = []
        for _ in range(visit.samples):
            state = self._machine()
            wall_ms = self.true_ms[visit.name] + visit.cold * self.extra_ms[visit.name]
            wall_ms *= 1 + self.jitter * abs(self._rng.normal())
            wall_ms *= 1 / 0.6 if state == "slow" else 1.0
            wall_ms *= 1.8 if self._cache_is_filled() and visit.name in self.large else 1.0
            cpu_ms = wall_ms * self.cpu_per_wall
            wall_ms *= self._rng.uniform(1.3, 4.0) if state == "busy" else 1.0
            self._now_s += wall_ms * visit.loops / 1e3
            reference_ms = REFERENCE_MS * (1 + self.jitter * abs(self._rng.normal()))
            reference_ms *= 1 / 0.6 if state == "slow" else 1.0
            rows.append((wall_ms, cpu_ms, reference_ms))
        return np.array(rows)

    def _cache_is_filled(self) -> bool:
        """Return whether others fill the shared cache; they do for 2 to 6 s at a time."""
        if self.shared and self._now_s >= self._filled_until_s:
            self._is_filled = bool(self._rng.random() < self.shared)
            self._filled_until_s = self._now_s + self._rng.uniform(2.0, 6.0)
        return self._is_filled

    def _machine(self) -> str:
        """Return what the machine is doing; it does that for 20 to 200 ms at a time."""
        if self._now_s >= self._until_s:
            shares = [self.busy, self.slow, 1 - self.busy - self.slow]
            self._state = str(self._rng.choice(["busy", "slow", "quiet"], p=shares))
            self._until_s = self._now_s + self._rng.uniform(0.02, 0.2)
        return self._state


@pytest.fixture
def target() -> Target:
    device = Device(cpu="made-up-cpu-1", arch="x86_64", cores=2)
    return Target(
        device=device, runtime="onnxruntime", version="1.0", precision="fp32", batch=1, threads=1
    )


@pytest.fixture
def config() -> ProfileConfig:
    return ProfileConfig(samples=12, spread_s=1.0, time_limit_s=60.0, batch=16)


@pytest.fixture
def make_bench() -> type[FakeBench]:
    return FakeBench


@pytest.fixture(scope="session")
def export() -> Callable[..., Mapping[str, Path]]:
    return fake_export


@pytest.fixture
def true_ms() -> Callable[[Sequence[Block]], float]:
    """What a network of these parts takes on the fake machine."""
    return chain_ms


@pytest.fixture
def on() -> Callable[[FakeBench], Callable[..., AbstractContextManager[FakeBench]]]:
    """Turn a bench into what `profile(benches=...)` takes."""
    return lambda bench: lambda target, config: nullcontext(bench)


@pytest.fixture
def write_conv() -> Callable[..., Path]:
    return _write_conv


def _write_conv(path: Path, side: int | str = 8) -> Path:
    """Write one 3x3 convolution on maps of this side."""
    x = helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, side, side])
    y = helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 4, side, side])
    weight = numpy_helper.from_array(np.ones((4, 3, 3, 3), dtype=np.float32), "w")
    node = helper.make_node("Conv", ["x", "w"], ["y"], pads=[1, 1, 1, 1])
    graph = helper.make_graph([node], "conv", [x], [y], [weight])
    opsets = [helper.make_opsetid("", 20)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), str(path))
    return path

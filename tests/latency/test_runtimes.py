"""The contract every runtime keeps; a new one is one more name in `nas.target.RUNTIMES`."""

from dataclasses import replace
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import pytest

from nas.errors import DeviceError
from nas.latency import runtimes
from nas.target import RUNTIMES, Target


def test_every_runtime_of_a_target_can_be_made_and_no_other() -> None:
    assert set(runtimes.RUNTIMES) == set(RUNTIMES)


@pytest.mark.parametrize("name", [n for n, row in RUNTIMES.items() if find_spec(row.package)])
class TestRuntimeContract:
    def test_a_network_runs_again_and_again(
        self, name: str, tmp_path: Path, write_conv: Any
    ) -> None:
        runner = runtimes.create(Target.parse(name)).load(write_conv(tmp_path / "n.onnx"))
        for _ in range(3):
            runner.run()

    def test_two_networks_live_side_by_side(
        self, name: str, tmp_path: Path, write_conv: Any
    ) -> None:
        runtime = runtimes.create(Target.parse(name))
        first = runtime.load(write_conv(tmp_path / "a.onnx", 8))
        second = runtime.load(write_conv(tmp_path / "b.onnx", 16))
        first.run()
        second.run()
        first.run()

    @pytest.mark.parametrize("content", [b"", b"not onnx", None])
    def test_what_cannot_be_loaded_is_a_device_error_that_names_the_file(
        self, name: str, content: bytes | None, tmp_path: Path
    ) -> None:
        if content is not None:
            (tmp_path / "bad.onnx").write_bytes(content)
        with pytest.raises(DeviceError, match=rf"{name} cannot load bad\.onnx"):
            runtimes.create(Target.parse(name)).load(tmp_path / "bad.onnx")

    def test_a_network_without_a_fixed_shape_is_refused(
        self, name: str, tmp_path: Path, write_conv: Any
    ) -> None:
        with pytest.raises(DeviceError, match="fixed shape"):
            runtimes.create(Target.parse(name)).load(write_conv(tmp_path / "n.onnx", "side"))

    def test_another_version_than_the_target_s_is_refused(self, name: str) -> None:
        with pytest.raises(DeviceError, match=r"0\.0\.1, but .* is installed"):
            runtimes.create(replace(Target.parse(name), version="0.0.1"))


def test_onnxruntime_gets_the_target_s_threads_and_never_spins() -> None:
    runtime = runtimes.OnnxRuntime(replace(Target.parse("onnxruntime"), threads=2))
    options = runtime._options
    assert options.intra_op_num_threads == 2
    assert options.get_session_config_entry("session.intra_op.allow_spinning") == "0"
    assert "SEQUENTIAL" in str(options.execution_mode)

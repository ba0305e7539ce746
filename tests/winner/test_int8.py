"""Winners for targets in int8: the file that is timed is the one that is scored."""

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import numpy_helper

from nas import data, network
from nas.data import Data
from nas.errors import BrokenPromise, CorruptFile, DeviceError
from nas.files import digest_file
from nas.latency import ProfileConfig, runtimes
from nas.latency.quantize import quantize_onnx
from nas.latency.runtimes.protocol import sample_input
from nas.manifest import TargetResult, Winner
from nas.target import Device, Target
from nas.winner import export as exporting
from nas.winner import verify as verifying
from nas.winner.export import export
from nas.winner.promise import judge
from nas.winner.quantized import INT8_KINDS, int8_devices, timed_file, write_int8
from nas.winner.verify import examine, verify

POINTS = 0.03  # that int8 may lose here
EPOCHS = 4
INT8 = "model.int8.onnx"
OPENVINO = ("model.int8.xml", "model.int8.bin")


@pytest.fixture(scope="module")
def digits() -> Data:
    return data.load("digits")


@pytest.fixture(scope="module")
def target() -> Target:
    return Target.parse("onnxruntime,int8")


@pytest.fixture(scope="module")
def exported(winner_for: Callable[..., Path], target: Target) -> Path:
    """Return the folder of a small network that knows digits, promised for an int8 target."""
    return winner_for(target, epochs=EPOCHS)


@pytest.fixture
def folder(exported: Path, tmp_path: Path) -> Path:
    return shutil.copytree(exported, tmp_path / "w")


def nodes(path: Path) -> list[tuple[str, int, dict[str, Any]]]:
    """Return a graph's operations in order: type, number of inputs, attributes."""
    return [
        (
            node.op_type,
            len(node.input),
            {item.name: onnx.helper.get_attribute_value(item) for item in node.attribute},
        )
        for node in onnx.load(path).graph.node
    ]


def types_of(path: Path) -> list[tuple[str, int]]:
    """Return the types and sizes of all constants: whether int8 or uint8, and the layout."""
    return sorted((str(t.dims), t.data_type) for t in onnx.load(path).graph.initializer)


# ---------------------------------------------------------------- what is exported
def test_the_int8_file_is_promised_and_nearly_as_accurate(exported: Path) -> None:
    winner = Winner.load(exported)
    assert INT8 in winner.files
    winner.check_files(exported)
    fp32, int8 = winner.accuracy.search, winner.accuracy.int8["onnxruntime"].search
    assert fp32 > 0.6, "the network knows nothing"
    assert abs(int8 - fp32) <= POINTS
    assert (exported / INT8).stat().st_size < (exported / "model.onnx").stat().st_size
    card = (exported / "README.md").read_text()
    name = "accuracy in int8 by onnxruntime, search split"
    assert f"| {name} | {100 * int8:.1f} % |" in card and f"| `{INT8}` |" in card
    assert "`model.int8.onnx` is run in the same way." in card and "openvino" not in card


def test_it_is_calibrated_on_the_images_the_network_was_trained_on(exported: Path) -> None:
    graph = onnx.load(exported / INT8).graph
    first = next(node for node in graph.node if node.input[0] == graph.input[0].name)
    assert first.op_type == "QuantizeLinear"
    constants = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    # digits normalised reach from -1 to 1; random inputs reach beyond 3 to both sides
    assert float(constants[first.input[1]]) * 255 == pytest.approx(2.0, rel=0.02)


def test_its_graph_is_the_one_the_latency_code_times(exported: Path, tmp_path: Path) -> None:
    timed = quantize_onnx(exported / "model.onnx", tmp_path / "timed.onnx")
    assert nodes(exported / INT8) == nodes(timed)
    assert types_of(exported / INT8) == types_of(timed)
    assert digest_file(exported / INT8) != digest_file(timed)  # the ranges differ


def test_the_same_images_give_the_same_bytes(
    exported: Path, digits: Data, target: Target, tmp_path: Path
) -> None:
    onnx_file = exported / "model.onnx"
    again = write_int8("onnxruntime", onnx_file, tmp_path, digits, target.device)
    assert digest_file(again) == Winner.load(exported).files[INT8]


def test_a_file_for_another_machine_has_the_types_its_instructions_want(
    exported: Path, digits: Data, tmp_path: Path
) -> None:
    board = Device(cpu="arm-cortex-a76", arch="aarch64", cores=4)
    file = write_int8("onnxruntime", exported / "model.onnx", tmp_path, digits, board)
    zeros = {t.data_type for t in onnx.load(file).graph.initializer if "zero_point" in t.name}
    assert onnx.TensorProto.UINT8 not in zeros and onnx.TensorProto.INT8 in zeros


def test_only_targets_in_int8_ask_for_such_a_file(target: Target) -> None:
    fp32 = Target.parse("onnxruntime").id
    openvino = target.id.replace("onnxruntime", "openvino")
    assert int8_devices([fp32, "a@here"]) == {}
    elsewhere = target.id.rpartition("@")[0] + "@arm-cortex-a76-aarch64"
    devices = int8_devices([fp32, target.id, elsewhere, openvino])
    assert list(devices) == ["onnxruntime", "openvino"]
    assert {device.slug for device in devices.values()} == {target.device.slug}


# ---------------------------------------------------------------- what is timed and scored
def test_the_file_in_the_folder_is_the_one_that_is_timed(exported: Path, target: Target) -> None:
    assert timed_file(exported, target) == exported / INT8
    assert timed_file(exported, Target.parse("onnxruntime")) == exported / "model.onnx"
    (runner,) = runtimes.create(target).load(exported / INT8)
    session = onnxruntime.InferenceSession(str(exported / INT8), providers=["CPUExecutionProvider"])
    (item,) = session.get_inputs()
    (plain,) = session.run(None, {item.name: sample_input(item.shape)})
    np.testing.assert_array_equal(runner.output(), plain)  # quantized again it would differ


def test_both_accuracies_are_seen_on_test_images_and_held_against_the_promise(
    exported: Path, target: Target
) -> None:
    seen = examine(exported, "digits")
    found = seen.test_int8["onnxruntime"]
    assert abs(found - seen.test) <= POINTS
    session = onnxruntime.InferenceSession(str(exported / INT8), providers=["CPUExecutionProvider"])
    name, test = session.get_inputs()[0].name, data.load_test("digits")
    images = (test.images.numpy().astype(np.float32) / 255 - 0.5) / 0.5
    right = [
        session.run(None, {name: image[None]})[0].argmax() == label
        for image, label in zip(images, test.labels.numpy(), strict=True)
    ]
    assert found == pytest.approx(np.mean(right), abs=1e-9)

    latency = TargetResult(target=target.id, measured_ms=0.02, ci_high_ms=0.021, grade="A")
    seen, winner = replace(seen, latency=latency), Winner.load(exported)
    result = judge(winner, seen, target.id)
    rows = {row.about: row for row in result.statements}
    about = "accuracy_int8:onnxruntime"
    assert rows[about].is_kept and "in int8 by onnxruntime" in rows[about].text
    assert "fp32" not in rows["accuracy"].text
    assert result.winner.accuracy.int8["onnxruntime"].test == found
    worse = judge(winner, replace(seen, test_int8={"onnxruntime": 0.2}), target.id)
    assert [row.about for row in worse.broken] == [about] and not worse.is_over_budget
    silent = judge(winner, replace(seen, test_int8={}), target.id)
    assert "was not scored" in silent.broken[0].text


def test_where_only_fp32_was_scored_for_an_int8_target_it_is_said(
    exported: Path, target: Target
) -> None:
    seen = examine(exported, "digits")
    winner = Winner.load(exported)
    without = replace(winner, accuracy=replace(winner.accuracy, int8={}))
    openvino = target.id.replace("onnxruntime", "openvino")
    for promise, name in ((without, target.id), (winner, openvino)):
        latency = TargetResult(target=name, measured_ms=0.02, ci_high_ms=0.021, grade="A")
        rows = judge(promise, replace(seen, latency=latency), name).statements
        (text,) = [row.text for row in rows if row.about == "accuracy"]
        assert "of the fp32 network" in text


# ---------------------------------------------------------------- what goes wrong
def test_a_changed_int8_file_breaks_the_promise_before_anything_is_run(
    folder: Path, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(verifying, "CHILD", "raise SystemExit('must not be run')")
    raw = bytearray((folder / INT8).read_bytes())
    raw[len(raw) // 2] ^= 1
    (folder / INT8).write_bytes(raw)
    with pytest.raises(BrokenPromise, match=r"model\.int8\.onnx: not the file that was exported"):
        verify(folder, target=target).raise_if_broken()
    (folder / INT8).unlink()
    with pytest.raises(BrokenPromise, match=r"model\.int8\.onnx"):
        verify(folder, target=target).raise_if_broken()


def test_a_cut_int8_file_with_a_fitting_digest_is_corrupt_and_no_traceback(folder: Path) -> None:
    path = folder / INT8
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CorruptFile, match=r"model\.int8\.onnx cannot be run.*Export the winner"):
        examine(folder, "digits")


def test_an_int8_file_with_other_weights_and_a_fitting_digest_is_noticed(
    folder: Path, target: Target
) -> None:
    model = onnx.load(folder / INT8)
    weight = max(model.graph.initializer, key=lambda tensor: len(tensor.raw_data))
    weight.raw_data = weight.raw_data[::-1]
    onnx.save(model, folder / INT8)
    latency = TargetResult(target=target.id, measured_ms=0.02, ci_high_ms=0.021, grade="A")
    seen = replace(examine(folder, "digits"), latency=latency)
    broken = judge(Winner.load(folder), seen, target.id).broken
    assert [row.about for row in broken] == ["accuracy_int8:onnxruntime"]


def test_a_winner_exported_again_for_fp32_has_no_int8_left(
    folder: Path, exported: Path, digits: Data, target: Target, monkeypatch: pytest.MonkeyPatch
) -> None:
    def copied(model: Any, path: Path, batch: int) -> Path:  # exporting again takes seconds
        return Path(shutil.copy(exported / "model.onnx", path))

    monkeypatch.setattr(network, "to_onnx", copied)
    model = network.load_folder(folder)
    fp32 = Target.parse("onnxruntime").id
    winner = replace(
        Winner.load(folder),
        budgets={f"latency_ms:{fp32}": 1000.0},
        targets=(TargetResult(target=fp32, predicted_ms=0.03),),
    )
    assert isinstance(model, network.NasHybrid)
    after = export(model, folder=folder, winner=winner, data=digits)
    assert INT8 not in after.files and not (folder / INT8).exists()
    assert after.accuracy.int8 == {}
    assert "int8" not in (folder / "README.md").read_text()
    assert examine(folder, "digits").test_int8 == {}
    assert timed_file(folder, target) == folder / "model.onnx"


# ---------------------------------------------------------------- all of it
@pytest.mark.slow
def test_a_fresh_process_scores_and_times_the_int8_file(folder: Path, target: Target) -> None:
    result = verify(
        folder,
        target=target,
        config=ProfileConfig(samples=3, spread_s=0.0, processes=1, winner_processes=1),
    )
    result.raise_if_broken()
    plain = json.loads((folder / "winner.json").read_text())
    own = plain["accuracy"]["int8"]["onnxruntime"]
    assert own["test"] == result.winner.accuracy.int8["onnxruntime"].test is not None
    assert "in int8 by onnxruntime, test split" in (folder / "README.md").read_text()


# ---------------------------------------------------------------- OpenVINO
@pytest.fixture(scope="module")
def openvino() -> Target:
    pytest.importorskip("nncf", reason="int8 on OpenVINO needs nncf")
    return Target.parse("openvino,int8")


@pytest.fixture(scope="module")
def for_openvino(winner_for: Callable[..., Path], openvino: Target) -> Path:
    """Return the folder of the same network, promised for OpenVINO in int8."""
    return winner_for(openvino, epochs=EPOCHS)


def types_in(model: Any) -> list[str]:
    """Return the sorted types of a model's operations."""
    return sorted(node.get_type_name() for node in model.get_ops())


def layers_of(compiled: Any) -> list[str]:
    """Return the sorted kinds of what a compiled model runs; zero points may add constants."""
    nodes = compiled.get_runtime_model().get_ops()
    kinds = (node.get_rt_info()["layerType"].astype(str) for node in nodes)
    return sorted(kind for kind in kinds if kind != "Const")


def test_openvino_has_files_of_its_own_that_are_promised_and_nearly_as_accurate(
    for_openvino: Path, openvino: Target
) -> None:
    winner = Winner.load(for_openvino)
    assert {*OPENVINO} <= winner.files.keys() and INT8 not in winner.files
    fp32, own = winner.accuracy.search, winner.accuracy.int8["openvino"]
    assert abs(own.search - fp32) <= 0.05  # of a network that is trained for four epochs
    weights = (for_openvino / OPENVINO[1]).stat().st_size
    assert weights < (for_openvino / "model.onnx").stat().st_size / 2
    card = (for_openvino / "README.md").read_text()
    assert f"| accuracy in int8 by openvino, search split | {100 * own.search:.1f} % |" in card
    assert "| `model.int8.xml`, `model.int8.bin` |" in card
    assert 'openvino.compile_model("path/to/this/folder/model.int8.xml", "CPU")' in card
    seen = examine(for_openvino, "digits")
    latency = TargetResult(target=openvino.id, measured_ms=0.02, ci_high_ms=0.021, grade="A")
    result = judge(winner, replace(seen, latency=latency), openvino.id)
    assert result.is_kept and result.winner.accuracy.int8["openvino"].test is not None
    assert "fp32" not in next(row for row in result.statements if row.about == "accuracy").text


def test_its_file_has_the_operations_the_latency_code_times_and_real_ranges(
    for_openvino: Path, openvino: Target
) -> None:
    from nas.latency.openvino_import import import_openvino
    from nas.latency.quantize import quantize_openvino

    core = import_openvino().Core()
    shipped = core.read_model(str(for_openvino / OPENVINO[0]))
    timed = quantize_openvino(core.read_model(str(for_openvino / "model.onnx")))
    assert types_in(shipped).count("FakeQuantize") > 0
    compiled = [core.compile_model(model, "CPU") for model in (shipped, timed)]
    layers, expected = map(layers_of, compiled)
    assert layers == expected
    (runner,) = runtimes.create(openvino).load(for_openvino / OPENVINO[0])
    image = sample_input(shipped.inputs[0].shape)
    again = core.compile_model(shipped, "CPU", {"INFERENCE_PRECISION_HINT": "f32"})
    np.testing.assert_allclose(runner.output(), again([image])[0], atol=1e-5)
    assert timed_file(for_openvino, openvino) == for_openvino / OPENVINO[0]
    assert timed_file(for_openvino, openvino, elsewhere=True) == for_openvino / "model.onnx"


def test_the_same_images_give_the_same_openvino_bytes(
    for_openvino: Path, digits: Data, openvino: Target, tmp_path: Path
) -> None:
    write_int8("openvino", for_openvino / "model.onnx", tmp_path, digits, openvino.device)
    promised = Winner.load(for_openvino).files
    assert {name: digest_file(tmp_path / name) for name in OPENVINO} == {
        name: promised[name] for name in OPENVINO
    }


@pytest.mark.parametrize("name", OPENVINO)
def test_cut_openvino_files_with_a_fitting_digest_are_corrupt(
    for_openvino: Path, tmp_path: Path, name: str
) -> None:
    folder = shutil.copytree(for_openvino, tmp_path / "w")
    path = folder / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(CorruptFile, match=r"model\.int8\.xml cannot be run.*Export the winner"):
        examine(folder, "digits")


def test_without_openvino_here_fp32_is_what_is_promised_and_that_is_said(
    winner_for: Callable[..., Path],
    openvino: Target,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def absent(runtime: str, precision: str) -> str:
        raise DeviceError(f"the runtime {runtime} is not installed.")

    monkeypatch.setattr(exporting, "installed_version", absent)
    winner = Winner.load(winner_for(openvino, epochs=0))
    assert winner.accuracy.int8 == {} and not {*OPENVINO} & winner.files.keys()
    assert "the runtime openvino is not installed" in caplog.text


@pytest.mark.parametrize("runtime", INT8_KINDS)
def test_what_is_no_network_cannot_be_quantized(
    digits: Data, target: Target, tmp_path: Path, runtime: str
) -> None:
    (tmp_path / "broken.onnx").write_bytes(b"nothing")
    with pytest.raises(CorruptFile, match=r"broken\.onnx cannot be quantized"):
        write_int8(runtime, tmp_path / "broken.onnx", tmp_path, digits, target.device)

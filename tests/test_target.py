from pathlib import Path

import pytest

from nas import environment
from nas import target as target_module
from nas.environment import allowed_cores
from nas.errors import ConfigError, CorruptFile, DeviceError
from nas.target import Device, Target

HERE = "onnxruntime,fp32,b1,t1"


@pytest.fixture
def elsewhere() -> Target:
    return Target(
        device=Device(cpu="amd-epyc-7763", arch="x86_64", cores=8),
        runtime="onnxruntime",
        version="1.31.1",
        precision="fp32",
        batch=1,
        threads=4,
    )


def test_the_id_names_everything_a_latency_depends_on(elsewhere: Target) -> None:
    assert elsewhere.id == "onnxruntime-1.31.1_fp32_nchw_b1_t4@amd-epyc-7763-x86_64"
    assert str(elsewhere) == elsewhere.id


def test_what_is_parsed_is_this_machine() -> None:
    target = Target.parse(HERE)
    assert target.is_here()
    assert target.device == Device.here()
    assert (target.precision, target.layout, target.batch, target.threads) == ("fp32", "nchw", 1, 1)


def test_left_out_words_mean_fp32_one_image_one_thread() -> None:
    assert Target.parse("onnxruntime") == Target.parse(HERE)
    assert Target.parse("onnxruntime,b8").batch == 8


def test_json_gives_the_same_target_back(elsewhere: Target) -> None:
    assert Target.from_json(elsewhere.to_json()) == elsewhere


@pytest.mark.parametrize("change", [{"threads": "4"}, {"batch": 0}, {"colour": 1}, {"device": {}}])
def test_json_that_is_no_target_is_refused(elsewhere: Target, change: dict[str, object]) -> None:
    with pytest.raises(CorruptFile, match="table.json"):
        Target.from_json(elsewhere.to_json() | change, source="table.json")


def test_another_machine_is_not_here(elsewhere: Target) -> None:
    assert not elsewhere.is_here()


def test_another_version_of_the_runtime_is_not_here() -> None:
    plain = Target.parse(HERE).to_json()
    assert not Target.from_json(plain | {"version": "0.9"}).is_here()


def test_only_the_number_of_cores_may_differ_between_matching_targets(elsewhere: Target) -> None:
    plain = elsewhere.to_json()
    assert elsewhere.matches(Target.from_json(plain | {"device": plain["device"] | {"cores": 64}}))
    for change in ({"threads": 1}, {"exporter": "other"}, {"opset": 9}, {"version": "1.0"}):
        assert not elsewhere.matches(Target.from_json(plain | change))


def test_an_unknown_runtime_says_which_there_are_and_how_to_install_them() -> None:
    with pytest.raises(DeviceError, match=r"'tensorlite'.*onnxruntime \(pip install onnxruntime\)"):
        Target.parse("tensorlite,fp32")


def test_a_runtime_that_is_not_installed_says_how_to(monkeypatch: pytest.MonkeyPatch) -> None:
    facts = target_module.RuntimeFacts(package="not-there-abc", precisions=("fp32",), layout="nchw")
    monkeypatch.setitem(target_module.RUNTIMES, "ghost", facts)
    with pytest.raises(DeviceError, match="pip install not-there-abc"):
        Target.parse("ghost")


@pytest.mark.parametrize("text", ["onnxruntime,x", "onnxruntime,b0", "onnxruntime,fp32 b1", ","])
def test_words_that_mean_nothing_are_refused_with_the_grammar(text: str) -> None:
    with pytest.raises((ConfigError, DeviceError), match=r"onnxruntime"):
        Target.parse(text)


@pytest.mark.parametrize("text", ["onnxruntime,fp16", "torch,int8", "torch-cuda,int8"])
def test_a_precision_the_runtime_is_not_timed_in_is_refused(text: str) -> None:
    with pytest.raises(ConfigError, match="is timed in fp32.*asks for"):
        Target.parse(text)


def test_a_runtime_on_a_gpu_has_the_gpu_in_its_id(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    program = tmp_path / "nvidia-smi"
    program.write_text("#!/bin/sh\necho 'NVIDIA A100-SXM4-40GB'\necho 'NVIDIA T4'\n")
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    target = Target.parse("torch-cuda,fp16")
    assert "_fp16_nhwc_b1_t1@" in target.id
    assert f"{Device.here().cpu}-nvidia-a100-sxm4-40gb-" in target.id
    assert target.is_here()
    program.write_text("#!/bin/sh\necho 'NVIDIA T4'\n")
    assert not target.is_here()


@pytest.mark.parametrize("answer", ["exit 9", "true"])
def test_without_a_gpu_its_runtime_is_a_device_error_that_says_what_to_do(
    answer: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("nvidia-smi", "sysctl"):
        (tmp_path / name).write_text(f"#!/bin/sh\n{answer}\n")
        (tmp_path / name).chmod(0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(DeviceError, match="no cuda device.*NVIDIA's driver.*onnxruntime or torch"):
        Target.parse("torch-cuda")
    with pytest.raises(DeviceError, match="no mps device.*Apple silicon"):
        Target.parse("torch-mps")


def test_a_target_that_takes_no_onnx_names_no_exporter() -> None:
    target = Target.parse("torch")
    assert (target.exporter, target.layout) == ("none", "nhwc")
    assert Target.parse(HERE).exporter == "dynamo"


def test_more_threads_than_cores_are_refused_with_the_number_there_is() -> None:
    with pytest.raises(ConfigError, match=f"at most the {allowed_cores()} cores.*asks for 9999"):
        Target.parse("onnxruntime,t9999")


@pytest.mark.parametrize(
    ("name", "slug"),
    [
        ("AMD EPYC 7763 64-Core Processor", "amd-epyc-7763-64-core"),
        ("Intel(R) Core(TM) i7-8700 CPU @ 3.20GHz", "intel-core-i7-8700"),
        ("Intel(R) Xeon(R) Processor", "intel-xeon-6-207"),
    ],
)
def test_a_processor_without_a_number_in_its_name_gets_family_and_model(
    tmp_path: Path, name: str, slug: str
) -> None:
    text = f"processor : 0\ncpu family\t: 6\nmodel\t\t: 207\nmodel name\t: {name}\n\n"
    file = tmp_path / "cpuinfo"
    file.write_text(text * 2)
    assert target_module._cpu_slug(file) == slug


def test_a_machine_without_cpuinfo_still_has_a_name(tmp_path: Path) -> None:
    assert target_module._cpu_slug(tmp_path / "none")


@pytest.mark.parametrize(
    ("files", "cores"),
    [
        ({"cpu.max": "150000 100000"}, 1.5),
        ({"cpu.max": "max 100000"}, 1e6),
        ({"cpu/cpu.cfs_quota_us": "400000", "cpu/cpu.cfs_period_us": "100000"}, 4.0),
        ({"cpu/cpu.cfs_quota_us": "-1", "cpu/cpu.cfs_period_us": "100000"}, 1e6),
        ({"cpu.max": "nonsense"}, 1e6),
        ({}, 1e6),
    ],
)
def test_a_container_s_quota_limits_the_cores(
    tmp_path: Path, files: dict[str, str], cores: float
) -> None:
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    assert environment._quota_cores(tmp_path) == cores


@pytest.mark.parametrize("field", ["cpu", "arch"])
def test_a_device_s_words_are_fit_for_file_names(field: str) -> None:
    with pytest.raises(ConfigError, match=field):
        Device(**{"cpu": "a", "arch": "b", "cores": 1, field: "../x"})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    "text",
    [
        "onnxruntime-1.31.1_fp32_nchw_b1_t4@amd-epyc-7763-x86_64",
        "tensorrt-10.3_fp16_nchw_b8_t1@jetson-orin-nano-aarch64",
        "tf-lite-2.17.0-rc1_int8_nhwc_b1_t2@pixel-9-arm64",
    ],
)
def test_an_id_names_a_device_that_is_elsewhere_and_comes_back(text: str) -> None:
    target = Target.parse(text)
    assert target.id == text and not target.is_here()
    assert target.device.slug == text.partition("@")[2]
    assert Target.from_json(target.to_json()) == target


def test_an_id_s_last_word_is_the_instruction_set_and_its_version_begins_with_a_digit() -> None:
    target = Target.from_id("tf-lite-2.17.0-rc1_int8_nhwc_b1_t2@pixel-9-arm64")
    assert (target.runtime, target.version) == ("tf-lite", "2.17.0-rc1")
    assert (target.device.cpu, target.device.arch) == ("pixel-9", "arm64")
    assert (target.precision, target.layout, target.batch, target.threads) == ("int8", "nhwc", 1, 2)


def test_this_machine_s_own_id_is_this_machine() -> None:
    here = Target.parse(HERE)
    assert Target.parse(here.id).matches(here) and Target.parse(here.id).is_here()


@pytest.mark.parametrize(
    "text",
    [
        "onnxruntime@cpu-x86_64", "onnxruntime-1_fp32_nchw_b1_t1@x86", "a-1_fp32_nchw_b0_t1@c-x",
        "a-1_fp32_nchw_b1_t1@../c-x", "a-1_fp32_b1_t1@c-x", "a_fp32_nchw_b1_t1@c-x",
        "a-1_fp32_nchw_b1_t1@C-x", "a-1_fp32_nchw_b1_t1@c-x\n@", "@",
    ],
)  # fmt: skip
def test_a_text_that_is_almost_an_id_is_refused_with_the_form(text: str) -> None:
    with pytest.raises(ConfigError, match="RUNTIME-VERSION_PRECISION_LAYOUT"):
        Target.parse(text)

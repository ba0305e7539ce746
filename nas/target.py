"""Device (a machine) and Target (a device with everything else a latency depends on)."""

import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any, Self

from nas.environment import accelerator_name, allowed_cores
from nas.errors import ConfigError, CorruptFile, DeviceError
from nas.files import into, to_plain

EXPORTER = "dynamo"
OPSET = 20
DEFAULT_TARGET = "onnxruntime,fp32,b1,t1"
GRAMMAR = "RUNTIME[,PRECISION][,bBATCH][,tTHREADS], for example onnxruntime,fp32,b1,t1"
ID_GRAMMAR = "RUNTIME-VERSION_PRECISION_LAYOUT_bBATCH_tTHREADS@CPU-ARCH"
ID = re.compile(  # the version begins at the first dash with a digit behind it
    r"(?P<runtime>[A-Za-z][A-Za-z0-9.+-]*?)-(?P<version>[0-9][A-Za-z0-9.+-]*)"
    r"_(?P<precision>[A-Za-z0-9.+-]+)_(?P<layout>[A-Za-z0-9.+-]+)"
    r"_b(?P<batch>[1-9][0-9]{0,4})_t(?P<threads>[1-9][0-9]{0,4})"
    r"@(?P<cpu>[a-z0-9][a-z0-9_-]*)-(?P<arch>[a-z0-9][a-z0-9_]*)"
)


ONNX, PARTS = "onnx", "parts"  # kinds of files that runtimes take
EXPORTERS = {ONNX: EXPORTER, PARTS: "none"}


@dataclass(frozen=True, slots=True, kw_only=True)
class RuntimeFacts:
    """What is known of a runtime without loading it: its package, and what it can be asked for.

    `takes` is the kind of file it loads: an ONNX graph, or the names of parts, from which it makes
    torch modules. `extra` of this package brings the runtime, where it is not installed anyway;
    `needs` says which further package a precision takes. `accelerator` is where it computes if not
    on the processor: "cuda" or "mps".
    """

    package: str
    precisions: tuple[str, ...]
    layout: str
    takes: str = ONNX
    extra: str = ""
    needs: Mapping[str, str] = field(default_factory=dict)
    accelerator: str = ""

    @property
    def install(self) -> str:
        """The command that installs it."""
        return (
            f"pip install 'hybrid-nas[{self.extra}]'"
            if self.extra
            else f"pip install {self.package}"
        )


# A new runtime has one row here and one module in nas/latency/runtimes/; see docs/runtimes.md.
RUNTIMES: dict[str, RuntimeFacts] = {
    "onnxruntime": RuntimeFacts(package="onnxruntime", precisions=("fp32", "int8"), layout="nchw"),
    "openvino": RuntimeFacts(
        package="openvino",
        precisions=("fp32", "int8"),
        layout="nchw",
        extra="openvino",
        needs={"int8": "nncf"},
    ),
    "torch": RuntimeFacts(package="torch", precisions=("fp32",), layout="nhwc", takes=PARTS),
    "torch-cuda": RuntimeFacts(
        package="torch",
        precisions=("fp32", "fp16"),
        layout="nhwc",
        takes=PARTS,
        accelerator="cuda",
    ),
    "torch-mps": RuntimeFacts(
        package="torch",
        precisions=("fp32", "fp16"),
        layout="nhwc",
        takes=PARTS,
        accelerator="mps",
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """A machine: its processor as a slug, its instruction set, the cores a process may use.

    For a runtime that computes on a GPU, `cpu` ends with the GPU's name.
    """

    cpu: str
    arch: str
    cores: int

    def __post_init__(self) -> None:
        for name in ("cpu", "arch"):
            if not re.fullmatch(r"[a-z0-9][a-z0-9_-]*", getattr(self, name)):
                raise ConfigError(
                    f"device.{name} may have lower-case letters, digits, - and _, "
                    f"but is {getattr(self, name)!r}."
                )
        if self.cores < 1:
            raise ConfigError(f"device.cores must be at least 1, but is {self.cores}.")

    @property
    def slug(self) -> str:
        """The folder of its tables, and the end of a target's id: `<cpu>-<arch>`."""
        return f"{self.cpu}-{self.arch}"

    @classmethod
    def here(cls, accelerator: str = "") -> Self:
        """Return this machine, with its GPU of that kind ("cuda" or "mps") if one is asked for.

        Raises:
            DeviceError: there is no such GPU; the message says what to do.
        """
        arch = {"amd64": "x86_64"}.get(platform.machine().lower(), platform.machine().lower())
        cpu = _cpu_slug()
        if accelerator:
            cpu += f"-{slug(accelerator_name(accelerator))}"
        return cls(cpu=cpu, arch=arch or "unknown", cores=allowed_cores())


@dataclass(frozen=True, slots=True, kw_only=True)
class Target:
    """What a latency is true for; two Targets never share a number.

    `exporter` and `opset` say how a network became the runtime's file, `layout` is its input's.
    """

    device: Device
    runtime: str
    version: str
    precision: str
    batch: int
    threads: int
    layout: str = "nchw"
    exporter: str = EXPORTER
    opset: int = OPSET

    def __post_init__(self) -> None:
        for name in ("runtime", "version", "precision", "layout", "exporter"):
            if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9.+-]*", getattr(self, name)):
                raise ConfigError(
                    f"target.{name} may have letters, digits, '.', '+' and '-', "
                    f"but is {getattr(self, name)!r}."
                )
        for name in ("batch", "threads", "opset"):
            if getattr(self, name) < 1:
                raise ConfigError(
                    f"target.{name} must be at least 1, but is {getattr(self, name)}."
                )

    @classmethod
    def parse(cls, text: str) -> Self:
        """Return the target that `RUNTIME[,PRECISION][,bBATCH][,tTHREADS]` means on this machine.

        A full id is the target of that name, wherever its device is.

        Raises:
            ConfigError: the text is not of that form, or asks for more threads than there are.
            DeviceError: the runtime, or the GPU or package it needs, is unknown or absent; the
                message says what to do.
        """
        if "@" in text:
            return cls.from_id(text.strip())
        runtime, *words = text.strip().split(",")
        facts = runtime_facts(runtime)
        asked = {"precision": "fp32", "b": "1", "t": "1"}
        for word in words:
            match = re.fullmatch(r"([bt])([1-9][0-9]{0,4})|([a-z]+[0-9]+)", word.strip())
            if match is None:
                raise ConfigError(f"a target is {GRAMMAR}, but {word!r} in {text!r} is none of it.")
            asked[match[1] or "precision"] = match[2] or match[3]
        if asked["precision"] not in facts.precisions:
            raise ConfigError(
                f"{runtime} is timed in {' or '.join(facts.precisions)}, "
                f"but {text!r} asks for {asked['precision']}."
            )
        found = installed_version(runtime, asked["precision"])
        device = Device.here(facts.accelerator)
        target = cls(
            device=device,
            runtime=runtime,
            version=found,
            precision=asked["precision"],
            layout=facts.layout,
            exporter=EXPORTERS[facts.takes],
            batch=int(asked["b"]),
            threads=int(asked["t"]),
        )
        if target.threads > device.cores:
            raise ConfigError(
                f"threads must be at most the {device.cores} cores this process may use, "
                f"but {text!r} asks for {target.threads}. Ask for t{device.cores} or fewer."
            )
        return target

    @classmethod
    def from_id(cls, text: str) -> Self:
        """Return the target of an id, such as names a device that is elsewhere.

        An id does not say how many cores the device has: as many as the target has threads.

        Raises:
            ConfigError: the text is no id.
        """
        match = ID.fullmatch(text)
        if match is None:
            raise ConfigError(
                f"a target that is elsewhere is named {ID_GRAMMAR}, for example "
                f"tensorrt-10.3_fp16_nchw_b1_t1@jetson-orin-nano-aarch64, but {text!r} is not."
            )
        threads = int(match["threads"])
        facts = RUNTIMES.get(match["runtime"])
        return cls(
            device=Device(cpu=match["cpu"], arch=match["arch"], cores=threads),
            runtime=match["runtime"],
            version=match["version"],
            precision=match["precision"],
            layout=match["layout"],
            exporter=EXPORTER if facts is None else EXPORTERS[facts.takes],
            batch=int(match["batch"]),
            threads=threads,
        )

    @property
    def takes(self) -> str:
        """The kind of file its runtime loads; one that is not known here is given ONNX."""
        facts = RUNTIMES.get(self.runtime)
        return ONNX if facts is None else facts.takes

    @property
    def id(self) -> str:
        """Its name in files and metrics: `onnxruntime-1.31.1_fp32_nchw_b1_t1@<cpu>-<arch>`."""
        numbers = f"b{self.batch}_t{self.threads}"
        what = f"{self.runtime}-{self.version}_{self.precision}_{self.layout}_{numbers}"
        return f"{what}@{self.device.slug}"

    def __str__(self) -> str:
        return self.id

    def matches(self, other: "Target") -> bool:
        """Return whether latencies of one are true for the other: all but spare cores agree."""
        return self == replace(other, device=replace(other.device, cores=self.device.cores))

    def is_here(self) -> bool:
        """Return whether this process can measure it: this machine, this runtime and version."""
        facts = RUNTIMES.get(self.runtime)
        if facts is None or _version_or_none(facts.package) != self.version:
            return False
        try:
            device = Device.here(facts.accelerator)
        except DeviceError:
            return False
        return self.device.slug == device.slug and self.threads <= device.cores

    def to_json(self) -> dict[str, Any]:
        """Return it as plain JSON values."""
        plain: dict[str, Any] = to_plain(self)
        return plain

    @classmethod
    def from_json(cls, value: Any, *, source: str = "target") -> Self:
        """Return the target that `to_json` wrote.

        Raises:
            CorruptFile: a field is missing, unknown or of the wrong type.
        """
        return into(cls, value, source=source, error=CorruptFile)


# ---------------------------------------------------------------- runtimes
def runtime_facts(runtime: str) -> RuntimeFacts:
    """Return what is known of a runtime, or raise DeviceError naming those there are."""
    facts = RUNTIMES.get(runtime)
    if facts is None:
        known = ", ".join(f"{name} ({row.install})" for name, row in RUNTIMES.items())
        raise DeviceError(
            f"{runtime!r} is not a runtime known here. Known: {known}. A target is {GRAMMAR}."
        )
    return facts


def installed_version(runtime: str, precision: str = "fp32") -> str:
    """Return the version of a runtime that is installed with all this precision needs.

    Raises:
        DeviceError: it is unknown, or a package is absent; the message says how to install it.
    """
    facts = runtime_facts(runtime)
    found = _version_or_none(facts.package)
    if found is None:
        raise DeviceError(
            f"the runtime {runtime} is not installed. Install it with `{facts.install}`."
        )
    package = facts.needs.get(precision)
    if package is not None and _version_or_none(package) is None:
        raise DeviceError(
            f"{runtime} needs {package} for {precision}, which is not installed. Install it with "
            f"`{facts.install}`."
        )
    return found


def _version_or_none(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


# ---------------------------------------------------------------- this machine
def slug(name: str) -> str:
    """Return a name in lower case and hyphens, fit for a device: "nvidia-a100-sxm4-40gb"."""
    return re.sub(r"[^a-z0-9]+", "-", name.lower()).strip("-") or "unknown"


def _cpu_slug(cpuinfo: Path = Path("/proc/cpuinfo")) -> str:
    """Return the processor's name in lower case and hyphens: "amd-epyc-7763".

    A name without a number ("Intel(R) Xeon(R) Processor", as cloud machines say) gets the family
    and model numbers behind it, or different processors would share tables.
    """
    facts: dict[str, str] = {}
    try:
        for line in cpuinfo.read_text(errors="replace").splitlines():
            key, _, value = line.partition(":")
            facts.setdefault(key.strip().lower(), value.strip())
    except OSError:
        pass  # not Linux
    name = facts.get("model name") or platform.processor() or platform.machine() or "unknown"
    name = re.sub(r"\((r|tm|c)\)|\bcpu\b|\bprocessor\b|@.*", " ", name.lower())
    if not re.search(r"[0-9]", name):
        keys = ("cpu family", "model", "cpu implementer", "cpu part")
        name += " " + " ".join(facts[key] for key in keys if key in facts)
    return slug(name)

"""What machine and which versions a number was made with."""

import os
import platform
import shutil
import subprocess
import sys
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from nas.errors import DeviceError

PACKAGES = (
    "hybrid-nas",
    "torch",
    "torchvision",
    "timm",
    "optuna",
    "ray",
    "numpy",
    "pandas",
    "sqlalchemy",
    "onnx",
    "onnxscript",
    "onnxruntime",
    "openvino",
    "nncf",
    "scikit-learn",
    "scipy",
    "safetensors",
)
# kind of GPU: the command that names it, and what to do where there is none
GPU_COMMANDS = {
    "cuda": (
        ("nvidia-smi", "--query-gpu=name", "--format=csv,noheader"),
        "install NVIDIA's driver, which brings `nvidia-smi`, on a machine with such a GPU",
    ),
    "mps": (("sysctl", "-n", "machdep.cpu.brand_string"), "use a Mac with Apple silicon"),
}


def cpu_name() -> str:
    """Return the processor's own name, or the architecture where it has none."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as stream:
            for line in stream:
                if line.startswith(("model name", "Model")):
                    return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def accelerator_name(kind: str) -> str:
    """Return the name of this machine's first GPU of a kind: "NVIDIA A100-SXM4-40GB".

    Raises:
        DeviceError: there is none that its driver knows of.
    """
    command, advice = GPU_COMMANDS[kind]
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30, check=True)
        name = answer.stdout.splitlines()[0].strip()
    except (OSError, subprocess.SubprocessError, IndexError):
        name = ""
    if not name:
        raise DeviceError(
            f"no {kind} device is found here: to measure on one, {advice}; to measure on the "
            "processor, choose another runtime, such as onnxruntime or torch."
        )
    return name


def program(name: str) -> str:
    """Return how to call a program of this environment: by its name, or by its path when the
    name means another program on PATH, or none.
    """
    here = Path(sys.executable).with_name(name)
    if not here.exists() or shutil.which(name) == str(here):
        return name
    return str(here.relative_to(Path.cwd()) if here.is_relative_to(Path.cwd()) else here)


def allowed_cores() -> int:
    """Return how many cores this process may keep busy: its affinity, and its cgroup's quota."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return max(1, min(cores or 1, int(_quota_cores())))


def _quota_cores(root: Path = Path("/sys/fs/cgroup")) -> float:
    """Return the processor quota in cores of cgroup v2 or v1; infinite is a large number."""
    for quota, period in (
        (root / "cpu.max", None),
        (root / "cpu" / "cpu.cfs_quota_us", root / "cpu" / "cpu.cfs_period_us"),
    ):
        try:
            words = quota.read_text().split()
            words += period.read_text().split() if period else []
            if words[0] not in ("max", "-1"):
                return float(words[0]) / float(words[1])
        except (OSError, ValueError, IndexError):
            continue  # not that kind of cgroup
    return 1e6


def memory_bytes(root: Path = Path("/sys/fs/cgroup")) -> int:
    """Return how much memory this process may use: the machine's, or its cgroup's where less."""
    import psutil

    limits = [psutil.virtual_memory().total]
    for limit in (root / "memory.max", root / "memory" / "memory.limit_in_bytes"):
        try:
            limits.append(int(limit.read_text()))
        except (OSError, ValueError):
            continue  # not that kind of cgroup, or "max"
    return min(limits)


def machine() -> dict[str, Any]:
    """Return processor, cores, memory and system as plain values."""
    import psutil

    return {
        "cpu": cpu_name(),
        "arch": platform.machine(),
        "cores": allowed_cores(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "system": f"{platform.system()} {platform.release()}",
    }


def versions() -> dict[str, str]:
    """Return the version of Python and of every package a result depends on."""
    found = {"python": platform.python_version()}
    for name in PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "absent"
    return found

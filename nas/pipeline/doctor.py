"""What this machine is good for: versions, memory, disk, runtimes, clock, database, tables."""

import os
import shutil
import statistics
import time
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, requires, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nas import environment
from nas.errors import ConfigError, NasError

if TYPE_CHECKING:
    from nas.target import Target

ENOUGH_DISK_GIB = 2.0
ENOUGH_MEMORY_GIB = 4.0
CLOCK_S = 2.0
QUIET_SHARE = 0.6  # of samples at full speed
DEFAULT_RUNTIME = "onnxruntime"


def doctor() -> dict[str, Any]:
    """Return machine, versions and a list of checks: {check, state (ok, warn, fail), detail}."""
    checks = [_cores(), _memory(), _disk(), *_packages(), *_runtimes(), _governor(), _clock()]
    checks += [_database(), _tables()]
    return {
        "machine": environment.machine(),
        "versions": environment.versions(),
        "checks": [{"check": c, "state": s, "detail": d} for c, s, d in checks],
        "healthy": all(state != "fail" for _, state, _ in checks),
    }


Check = tuple[str, str, str]


def _cores() -> Check:
    return "processor", "ok", f"{environment.cpu_name()}, {environment.allowed_cores()} cores"


def _memory() -> Check:
    import psutil

    free = psutil.virtual_memory().available / 2**30
    state = "ok" if free >= ENOUGH_MEMORY_GIB else "warn"
    return "memory", state, f"{free:.1f} GiB available"


def _disk() -> Check:
    free = shutil.disk_usage(Path.cwd()).free / 2**30
    state = "ok" if free >= ENOUGH_DISK_GIB else "warn"
    return "disk", state, f"{free:.1f} GiB free here; a run takes up to {ENOUGH_DISK_GIB:g}"


def _packages() -> list[Check]:
    """Check that every dependency's version is in the range that is tested."""
    from packaging.requirements import Requirement

    try:
        ranges = requires("hybrid-nas") or []
    except PackageNotFoundError:
        return [("packages", "fail", "hybrid-nas is not installed; run `pip install -e .`")]
    wrong = []
    for text in ranges:
        need = Requirement(text)
        if need.marker is not None and not need.marker.evaluate({"extra": ""}):
            continue
        try:
            found = version(need.name)
        except PackageNotFoundError:
            wrong.append(f"{need.name} is absent (needs {need.specifier})")
            continue
        if found not in need.specifier:
            wrong.append(f"{need.name} {found} is outside {need.specifier}")
    if wrong:
        return [("packages", "warn", text) for text in wrong]
    return [("packages", "ok", f"{len(ranges)} dependencies in their tested ranges")]


def _runtimes() -> list[Check]:
    """Check each runtime in each precision: only the default one has to be here."""
    from nas.target import RUNTIMES

    found = []
    for name, facts in RUNTIMES.items():
        ready, lacking = _precisions(name, facts.precisions)
        state = "fail" if not ready and name == DEFAULT_RUNTIME else "ok"
        detail = f"{', '.join(ready)}" if ready else "not here"
        found.append((name, state, "; ".join([detail, *lacking])))
    return found


def _precisions(runtime: str, precisions: tuple[str, ...]) -> tuple[list[str], list[str]]:
    """Return the precisions that can be timed here, and why the others cannot."""
    from nas.target import Target

    ready: list[str] = []
    lacking: list[str] = []
    for precision in precisions:
        try:
            target = Target.parse(f"{runtime},{precision}")
        except NasError as error:
            lacking.append(str(error))
        else:
            ready.append(precision if ready else f"{target.version}, {precision}")
    return ready, list(dict.fromkeys(lacking))


def _governor() -> Check:
    path = Path("/sys/devices/system/cpu/cpu0/cpufreq/scaling_governor")
    if not path.is_file():
        return "frequency", "ok", "no frequency control visible (usual on virtual machines)"
    governor = path.read_text().strip()
    state = "ok" if governor == "performance" else "warn"
    return "frequency", state, f"governor {governor}; 'performance' gives the steadiest latencies"


def _clock() -> Check:
    """Time the kernel that timings are judged by: how often is this machine at its full speed?"""
    from nas.latency.judge import MAX_REFERENCE, MAX_WALL_PER_CPU, REFERENCE_FLOOR
    from nas.latency.worker import reference_kernel

    run = reference_kernel()
    walls, shares = [], []
    until = time.perf_counter() + CLOCK_S
    while time.perf_counter() < until:
        wall, cpu = time.perf_counter(), time.thread_time()
        run()
        walls.append(time.perf_counter() - wall)
        shares.append(walls[-1] / max(time.thread_time() - cpu, 1e-9))
    best = sorted(walls)[int(REFERENCE_FLOOR * len(walls))]
    full = statistics.fmean(
        wall <= MAX_REFERENCE * best and share <= MAX_WALL_PER_CPU
        for wall, share in zip(walls, shares, strict=True)
    )
    slower = statistics.median(walls) / best
    detail = f"at full speed in {full:.0%} of {len(walls):,} samples, {slower:.2f}x in the median"
    if full >= QUIET_SHARE:
        return "timing", "ok", detail
    advice = (
        f"others use these cores, and profiling takes about {1 / max(full, 0.05):.0f} x as long"
    )
    return "timing", "warn", f"{detail}: {advice}"


def _database() -> Check:
    from nas.study import Study

    try:
        count = len(Study.list(None))
    except ConfigError:
        return "database", "ok", "none yet; the first search makes it"
    except NasError as error:
        return "database", "warn", str(error)
    where = "NAS_STORAGE" if os.environ.get("NAS_STORAGE") else "sqlite:///runs/nas.db"
    return "database", "ok", f"{count} studies in {where}"


def _tables() -> Check:
    """List the tables of this machine: those that are used, or else whose runtime has changed."""
    from nas.latency.table import find_table, table_folders
    from nas.target import Device, Target

    found: set[Target] = set()
    for folder in table_folders():
        for file in (*folder.glob("*@*.json"), *folder.glob("*/*@*.json")):
            with suppress(ConfigError):
                found.add(Target.from_id(file.stem))
    used = [target for target in found if target.is_here()]
    try:
        for target in used:
            find_table(target)
    except NasError as error:
        return "tables", "warn", str(error)
    if used:
        names = sorted(map(_without_device, used))
        return "tables", "ok", f"of this machine: {', '.join(names)}"
    here = Device.here().slug
    older = sorted(_without_device(target) for target in found if target.device.slug == here)
    if older:
        detail = f"of this machine only for what is not installed: {', '.join(older)}"
        return "tables", "ok", f"{detail}; `nas profile` makes new ones"
    return "tables", "ok", "none for this machine yet; `nas profile` makes one"


def _without_device(target: "Target") -> str:
    return target.id.partition("@")[0]

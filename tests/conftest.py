"""What every test runs under: one thread, no network, no user settings, and disks that fill up."""

import os
import resource
import shutil
import signal
import socket
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

# Set before anything imports torch; child processes inherit it. On small tensors one thread is
# faster, and sums come out the same everywhere.
os.environ |= {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg", "NO_COLOR": "1"}
os.environ["RAY_USAGE_STATS_ENABLED"] = "0"  # of the clusters that tests start themselves
os.environ.pop("NAS_STORAGE", None)

import pytest
from hypothesis import settings

# The same examples in every run; a disk that is slow today is no failure.
settings.register_profile("nas", derandomize=True, deadline=None, max_examples=50, database=None)
settings.load_profile("nas")

# Where the tests run in the background of a shell Ctrl-C is ignored, by everything they start too.
signal.signal(signal.SIGINT, signal.default_int_handler)


LONGEST = (
    "test_whole.py",
    "test_ray_workers.py",
    "test_remote.py",
    "test_rank.py",
    "test_train.py",
)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    """Skip, with the reason, the tests that need what is not here; begin with the longest files.

    Files are handed to processes in this order, so that no process ends long after the other.
    Tests in the file $NAS_TESTS_DONE, an id a line, are left out: CI goes on where it was stopped.
    """
    done = _lines(os.environ.get("NAS_TESTS_DONE"))
    if done:
        config.hook.pytest_deselected(items=[item for item in items if item.nodeid in done])
        items[:] = [item for item in items if item.nodeid not in done]
    places = {name: place for place, name in enumerate(LONGEST)}
    items.sort(key=lambda item: places.get(item.path.name, len(places)))
    for item in items:
        if item.get_closest_marker("gpu") and not _has_gpu():
            item.add_marker(pytest.mark.skip(reason="no GPU here"))
        if item.get_closest_marker("network") and "NAS_TEST_NETWORK" not in os.environ:
            item.add_marker(pytest.mark.skip(reason="set NAS_TEST_NETWORK=1 to use the internet"))


def _lines(path: str | None) -> set[str]:
    return set(Path(path).read_text().splitlines()) if path and Path(path).is_file() else set()


# ---------------------------------------------------------------- what ran, for CI
def _note(what: str, nodeid: str) -> None:
    """Append a line to $NAS_TESTS_LOG, in the process that all reports come to."""
    if "NAS_TESTS_LOG" in os.environ and "PYTEST_XDIST_WORKER" not in os.environ:
        with open(os.environ["NAS_TESTS_LOG"], "a") as log:
            log.write(f"{what} {nodeid}\n")


def pytest_runtest_logstart(nodeid: str) -> None:
    _note("begun", nodeid)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "teardown" or not report.passed:
        _note("failed" if report.failed else "ended", report.nodeid)


def _has_gpu() -> bool:
    import torch

    return torch.cuda.is_available()


@contextmanager
def _files_at_most(size_bytes: int) -> Iterator[None]:
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def files_at_most() -> Callable[[int], Any]:
    """Return a context manager in which no file of this process can grow past so many bytes."""
    return _files_at_most


@pytest.fixture
def disk_of(tmp_path: Path) -> Iterator[Callable[[int], Path]]:
    """Return what makes folders on a file system of so many MiB; it skips where none can be
    mounted (that needs root)."""
    folders: list[Path] = []

    def mount(size_mib: int) -> Path:
        folder = tmp_path / f"small disk {len(folders)}"
        folder.mkdir()
        words = ["mount", "-t", "tmpfs", "-o", f"size={size_mib}m", "tmpfs", str(folder)]
        try:
            subprocess.run(words, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError):
            pytest.skip("mounting a small tmpfs needs root")
        folders.append(folder)
        return folder

    yield mount
    for folder in folders:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.fixture
def small_disk(disk_of: Callable[[int], Path]) -> Path:
    """Return a folder on a file system of 1 MiB."""
    return disk_of(1)


@dataclass(frozen=True, kw_only=True)
class PostgreSQL:
    """A private server: its address, and how to restart it."""

    folder: Path
    port: int

    @property
    def url(self) -> str:
        return f"postgresql://nas@127.0.0.1:{self.port}/postgres"

    def _control(self, *words: str) -> None:
        command = ["pg_ctl", "-D", str(self.folder / "data"), "-w", *words]
        user = "nobody" if os.getuid() == 0 else None  # the server refuses root
        with open(self.folder / "control.log", "ab") as log:
            subprocess.run(
                command, check=True, cwd=self.folder, user=user, stdout=log, stderr=log, timeout=60
            )

    def start(self) -> None:
        settings = f"-p {self.port} -k {self.folder} -c fsync=off -c listen_addresses=127.0.0.1"
        self._control("-l", str(self.folder / "server.log"), "-o", settings, "start")

    def stop(self) -> None:
        self._control("-m", "immediate", "stop")

    def restart(self, down_s: float) -> None:
        """Cut every connection, and be away for a while."""
        self.stop()
        time.sleep(down_s)
        self.start()


@pytest.fixture(scope="session")
def postgresql() -> Iterator[PostgreSQL]:
    """Return a private PostgreSQL server; it skips where its programs are not installed."""
    if not all(map(shutil.which, ("initdb", "pg_ctl", "postgres"))):
        pytest.skip("initdb, pg_ctl and postgres are not installed")
    folder = Path(tempfile.mkdtemp(prefix="nas-pg-"))  # the socket's path must be short
    is_root = os.getuid() == 0
    if is_root:
        shutil.chown(folder, "nobody")
    command = ["initdb", "-D", str(folder / "data"), "-U", "nas", "-A", "trust", "--no-sync"]
    done = subprocess.run(
        [*command, "-E", "UTF8", "--locale=C"],
        cwd=folder, user="nobody" if is_root else None, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        server = PostgreSQL(folder=folder, port=free.getsockname()[1])
    server.start()
    try:
        yield server
    finally:
        server.stop()
        shutil.rmtree(folder, ignore_errors=True)

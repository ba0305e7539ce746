"""Files are written whole or not at all, read back as they were, and locked against others."""

import errno
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from nas import files
from nas.errors import CorruptFile, StorageError, TryAgain

MIB = 1024 * 1024


def python(code: str, *arguments: str) -> subprocess.Popen[str]:
    """Start a child process that has imported `files` and `sys`."""
    return subprocess.Popen(
        [sys.executable, "-c", "import sys\nfrom nas import files\n" + code, *arguments],
        stdout=subprocess.PIPE,
        text=True,
    )


# ---------------------------------------------------------------- writing
@pytest.mark.parametrize("name", ["a", "mit Leerzeichen und Ümläuten 模型.json", "x" * 250])
def test_a_written_file_reads_back_and_nothing_else_is_left(tmp_path: Path, name: str) -> None:
    path = tmp_path / "new folder" / name
    files.write_atomic(path, "é1")
    files.write_atomic(path, b"\x00second")
    assert path.read_bytes() == b"\x00second"
    assert os.listdir(path.parent) == [name]


def test_a_reader_sees_the_old_or_the_new_file_whenever_the_writer_is_killed(
    tmp_path: Path,
) -> None:
    path = tmp_path / "table.json"
    old, new = b"a" * MIB, b"b" * MIB
    code = f"while True:\n for c in (b'a', b'b'): files.write_atomic(sys.argv[1], c * {MIB})"
    for delay_ms in (0, 1, 2, 3, 5, 7, 11, 13):
        files.write_atomic(path, old)
        writer = python("print('go', flush=True)\n" + code, str(path))
        assert writer.stdout is not None
        writer.stdout.readline()
        time.sleep(delay_ms / 1000)
        writer.send_signal(signal.SIGKILL)
        writer.communicate()
        assert path.read_bytes() in (old, new)


def test_what_a_killed_writer_left_is_swept_and_nothing_else(tmp_path: Path) -> None:
    kept = [tmp_path / "a" / ".hidden", tmp_path / "a" / "x.partial", tmp_path / "a" / ".lock"]
    for path in kept:
        files.write_atomic(path, "kept")
    crash = (
        "import os\nos.replace = lambda *names: os._exit(9)\nfiles.write_atomic(sys.argv[1], 'x')"
    )
    with python(crash, str(tmp_path / "a" / "step-1.json")) as writer:
        assert writer.wait() == 9
    leftover = [path for path in tmp_path.rglob("*") if path.is_file() and path not in kept]
    assert len(leftover) == 1
    assert files.sweep(tmp_path) == leftover
    assert sorted(path for path in tmp_path.rglob("*") if path.is_file()) == sorted(kept)


def test_a_failed_fsync_leaves_the_old_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def broken(descriptor: int) -> None:
        raise OSError(errno.EIO, "Input/output error")

    path = files.write_atomic(tmp_path / "a.json", "old")
    monkeypatch.setattr(os, "fsync", broken)
    with pytest.raises(StorageError, match=r"a\.json.*Input/output error"):
        files.write_atomic(path, "new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["a.json"]


def test_a_file_too_large_for_the_disk_leaves_the_old_one(
    tmp_path: Path, files_at_most: Callable[[int], Any]
) -> None:
    path = files.write_atomic(tmp_path / "weights", "old")
    with files_at_most(1000), pytest.raises(StorageError, match=r"weights \(2,000 bytes\).*Free"):
        files.write_atomic(path, b"x" * 2000)
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["weights"]


def test_a_full_disk_leaves_the_old_file_and_works_again_once_there_is_room(
    small_disk: Path,
) -> None:
    path = files.write_atomic(small_disk / "weights", b"x" * (MIB // 2))
    with pytest.raises(StorageError, match=r"No space left on device.*Free space there"):
        files.write_atomic(path, b"y" * (MIB * 3 // 4))
    assert path.read_bytes() == b"x" * (MIB // 2)
    assert os.listdir(small_disk) == ["weights"]
    files.write_atomic(path, b"y" * (MIB // 4))
    assert path.read_bytes() == b"y" * (MIB // 4)


@pytest.mark.parametrize("below", ["file/x.json", "file/deeper/x.json", "folder"])
def test_a_path_that_cannot_be_a_file_is_named_with_the_way_out(tmp_path: Path, below: str) -> None:
    (tmp_path / "file").write_text("kept")
    (tmp_path / "folder" / "inner").mkdir(parents=True)
    with pytest.raises(StorageError, match=rf"{below}.*is a file, or the path is a folder"):
        files.write_atomic(tmp_path / below, "x")
    assert (tmp_path / "file").read_text() == "kept"
    assert sorted(os.listdir(tmp_path)) == ["file", "folder"]


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_never_written(tmp_path: Path, value: float) -> None:
    path = files.write_json(tmp_path / "a.json", {"loss": 1.5})
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.write_json(path, {"loss": value})
    with pytest.raises(ValueError, match="not JSON compliant"):
        files.digest_json([value])
    assert files.read_json(path) == {"loss": 1.5}


def test_a_name_that_is_no_utf8_survives_json_and_yaml(tmp_path: Path) -> None:
    name = os.fsdecode(b"run-\xff")
    assert files.read_json(files.write_json(tmp_path / "a.json", {"run": name})) == {"run": name}
    assert files.read_yaml(files.write_yaml(tmp_path / "a.yaml", {"run": name})) == {"run": name}


# ---------------------------------------------------------------- round trips
PLAIN = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(2**70), 2**70)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(exclude_categories=["Cs"]))
    | st.sampled_from(["1e-3", "no", "010", "1:30", "2026-01-01", "~", "", "0x10", "1_0", ".5"]),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner),
    max_leaves=12,
)


@given(value=PLAIN)
@example(value={"\x85": "a\u2028b"})
def test_plain_values_survive_json_and_yaml(
    value: Any, tmp_path_factory: pytest.TempPathFactory
) -> None:
    path = tmp_path_factory.getbasetemp() / "value"
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda descriptor: None)  # slow on a busy disk, and no matter
        assert repr(files.read_json(files.write_json(path, value))) == repr(value)
        assert repr(files.read_yaml(files.write_yaml(path, value))) == repr(value)


def test_a_digest_depends_on_the_value_and_not_on_the_order_of_keys() -> None:
    assert files.canonical_json({"b": (1, 2), "a": "é"}) == '{"a":"\\u00e9","b":[1,2]}'
    assert files.digest_json({"a": 1, "b": 2}) == files.digest_json({"b": 2, "a": 1})
    assert files.digest_json([1, 2]) != files.digest_json([2, 1])


def test_the_digest_of_a_file_is_its_sha256_and_a_missing_file_is_said(tmp_path: Path) -> None:
    path = files.write_atomic(tmp_path / "abc", "abc")
    assert files.digest_file(path).startswith("ba7816bf8f01cfea")
    with pytest.raises(CorruptFile, match=r"none.*No such file"):
        files.digest_file(tmp_path / "none")


# ---------------------------------------------------------------- locks
HOLD = "with files.lock(sys.argv[1]):\n    print('held', flush=True)\n    sys.stdin.read()"


def hold(path: Path) -> subprocess.Popen[str]:
    """Start a process that holds the lock until it is killed."""
    holder = subprocess.Popen(
        [sys.executable, "-c", "import sys\nfrom nas import files\n" + HOLD, str(path)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    assert holder.stdout is not None
    assert holder.stdout.readline() == "held\n"
    return holder


def test_a_held_lock_is_refused_naming_the_holder_and_freed_by_kill_9(tmp_path: Path) -> None:
    path = tmp_path / "run 1" / ".lock"
    with hold(path) as holder:
        held = pytest.raises(TryAgain, match=rf"run 1 is in use by pid {holder.pid} on ")
        with held, files.lock(path):
            raise AssertionError("two hold the lock")
        holder.kill()
    with files.lock(path):
        assert f"pid {os.getpid()} " in path.with_name(".lock.owner").read_text()


def test_a_lock_is_refused_to_its_own_process_and_freed_by_an_error(tmp_path: Path) -> None:
    path = tmp_path / ".lock"
    with pytest.raises(RuntimeError, match="body"), files.lock(path):
        with pytest.raises(TryAgain, match=f"pid {os.getpid()} "), files.lock(path):
            raise AssertionError("held twice")
        raise RuntimeError("body")
    with files.lock(path):
        pass
    assert not path.with_name(".lock.owner").exists()


def test_a_lock_below_a_regular_file_is_a_storage_error(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(StorageError, match="file"), files.lock(tmp_path / "file" / ".lock"):
        raise AssertionError("held")

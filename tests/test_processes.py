"""Work in processes of their own: results, errors, and processes that die."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from nas import processes
from nas.errors import ConfigError, NasError
from nas.processes import each


def square(number: int) -> int:
    return number * number


def refuse_odd(number: int) -> int:
    if number % 2:
        raise ConfigError(f"{number} must be even.")
    return number


def fail(number: int) -> int:
    return number // 0


def die(number: int) -> int:
    os.kill(os.getpid(), signal.SIGKILL)
    return number


def leave_a_thread(number: int) -> int:
    threading.Thread(target=time.sleep, args=(600,)).start()  # its process waits for it
    return number


@pytest.mark.parametrize("jobs", [1, 2])
def test_every_task_is_done_once(jobs: int) -> None:
    assert sorted(each(square, [3, 1, 2], jobs=jobs)) == [(1, 1), (2, 4), (3, 9)]
    assert list(each(square, [], jobs=jobs)) == []


def test_an_error_for_people_arrives_as_it_was() -> None:
    with pytest.raises(ConfigError, match="3 must be even"):
        list(each(refuse_odd, [3, 4], jobs=2))


def test_another_error_arrives_with_its_traceback() -> None:
    with pytest.raises(NasError, match="ZeroDivisionError"):
        list(each(fail, [3, 4], jobs=2))


def test_a_killed_process_is_noticed_and_the_way_out_told() -> None:
    with pytest.raises(NasError, match="fewer --jobs"):
        list(each(die, [1, 2], jobs=2))


def test_a_process_that_hangs_on_its_way_out_keeps_nobody(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(processes, "LEAVE_S", 0.2)
    assert sorted(each(leave_a_thread, [1, 2, 3], jobs=2)) == [(1, 1), (2, 2), (3, 3)]


PARENT = """
import sys, time
sys.path.insert(0, {folder!r})
from nas.processes import each
from tasks import told
if __name__ == "__main__":
    list(each(told, [{folder!r} + "/a", {folder!r} + "/b"], jobs=2))
"""
TASKS = """
import os, time
from pathlib import Path
from nas.processes import end_without_parent
def told(path):
    Path(path).write_text(str(os.getpid()))
    while True:
        end_without_parent()
        time.sleep(0.05)
"""


def test_children_end_when_their_parent_is_killed(tmp_path: Path) -> None:
    (tmp_path / "tasks.py").write_text(TASKS)
    (tmp_path / "parent.py").write_text(PARENT.format(folder=str(tmp_path)))
    parent = subprocess.Popen([sys.executable, str(tmp_path / "parent.py")])
    files = [tmp_path / "a", tmp_path / "b"]
    assert comes_true(lambda: all(file.is_file() and file.read_text() for file in files))
    parent.kill()
    parent.wait()
    children = [int(file.read_text()) for file in files]
    assert comes_true(lambda: not any(is_running(child) for child in children))


def comes_true(is_true: Callable[[], bool]) -> bool:
    """Return whether something is so within a minute."""
    for _ in range(600):
        if is_true():
            return True
        time.sleep(0.1)
    return False


def is_running(pid: int) -> bool:
    try:
        return "Z" not in Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False

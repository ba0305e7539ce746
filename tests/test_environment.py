import sys
from pathlib import Path

import pytest

from nas.environment import memory_bytes, program


@pytest.fixture
def installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / ".venv" / "bin"
    folder.mkdir(parents=True)
    for name in ("nas", "python3.11"):
        (folder / name).touch(mode=0o755)
    monkeypatch.setattr(sys, "executable", str(folder / "python3.11"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("PATH", "/usr/bin:/bin")
    return folder


def test_a_program_is_named_as_its_user_can_call_it(
    installed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert program("nas") == ".venv/bin/nas"
    monkeypatch.chdir(installed)
    monkeypatch.chdir("/usr")
    assert program("nas") == str(installed / "nas")
    monkeypatch.setenv("PATH", f"{installed}:/usr/bin:/bin")
    assert program("nas") == "nas"


def test_another_program_of_that_name_on_path_is_not_meant(
    installed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other"
    other.mkdir()
    (other / "nas").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(other))
    assert program("nas") == ".venv/bin/nas"


def test_a_program_that_is_not_there_keeps_its_name(installed: Path) -> None:
    assert program("nothing-of-that-name") == "nothing-of-that-name"


@pytest.mark.parametrize(
    ("file", "text", "limit"),
    [
        ("memory.max", "1048576\n", 1024**2),
        ("memory.max", "max\n", None),
        ("memory/memory.limit_in_bytes", "1048576\n", 1024**2),
        ("memory/memory.limit_in_bytes", "9223372036854771712\n", None),
        ("memory.max", "nonsense", None),
    ],
)
def test_a_container_s_limit_is_the_memory_there_is(
    tmp_path: Path, file: str, text: str, limit: int | None
) -> None:
    (tmp_path / file).parent.mkdir(exist_ok=True)
    (tmp_path / file).write_text(text)
    machine = memory_bytes(tmp_path / "none")
    assert machine > 1024**2
    assert memory_bytes(tmp_path) == (machine if limit is None else limit)

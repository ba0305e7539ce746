"""A wheel installed somewhere else brings its search spaces and latency tables with it."""

import json
import os
import subprocess
import sys
import tarfile
from importlib.metadata import version
from pathlib import Path

import pytest

import nas

REPOSITORY = Path(__file__).resolve().parent.parent
SHIPPED = ("search_spaces", "latency_tables")
ASK = """
import json, nas
from pathlib import Path
from nas.files import packaged_folder
found = {folder: sorted(str(f.relative_to(packaged_folder(folder)))
                        for f in packaged_folder(folder).rglob("*.*") if f.is_file())
         for folder in ("search_spaces", "latency_tables")}
space = nas.SearchSpace.load("tiny")
print(json.dumps({"home": nas.__file__, "found": found, "image_size": space.image_size,
                  "typed": (Path(nas.__file__).parent / "py.typed").is_file()}))
"""


def run(*command: object, cwd: Path, **environment: str) -> str:
    """Run a command that must succeed and return what it prints."""
    done = subprocess.run(
        [str(word) for word in command],
        cwd=cwd,
        env=os.environ | environment,
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build an sdist, from that a wheel, and install it alone; return the folder it is in."""
    folder = tmp_path_factory.mktemp("packaging")
    quiet = ("--quiet", "--disable-pip-version-check", "--no-deps", "--no-index")
    run(sys.executable, "-m", "hatchling", "build", "-t", "sdist", "-d", folder, cwd=REPOSITORY)
    with tarfile.open(next(folder.glob("*.tar.gz"))) as archive:
        archive.extractall(folder, filter="data")
    unpacked = next(path for path in folder.iterdir() if path.is_dir())
    pip = (sys.executable, "-m", "pip")
    run(*pip, "wheel", unpacked, "--no-build-isolation", *quiet, "-w", folder, cwd=folder)
    wheel = next(folder.glob("*.whl"))
    run(*pip, "install", "--target", folder / "site", *quiet, wheel, cwd=folder)
    return folder / "site"


@pytest.mark.slow
def test_an_installed_wheel_finds_its_spaces_and_tables_from_any_folder(
    installed: Path, tmp_path: Path
) -> None:
    told = json.loads(run(sys.executable, "-c", ASK, cwd=tmp_path, PYTHONPATH=str(installed)))
    assert Path(told["home"]).is_relative_to(installed)
    assert told["image_size"] == 32
    assert told["typed"]
    for folder in SHIPPED:
        here = REPOSITORY / folder
        shipped = sorted(str(f.relative_to(here)) for f in here.rglob("*.*") if f.is_file())
        assert told["found"][folder] == shipped, folder
    assert told["found"]["search_spaces"]


@pytest.mark.slow
def test_an_installed_wheel_brings_its_command_and_licence_and_nothing_else(
    installed: Path, tmp_path: Path
) -> None:
    command = installed / "bin" / "nas"
    assert "search" in run(command, "--help", cwd=tmp_path, PYTHONPATH=str(installed))
    licences = list(installed.glob("hybrid_nas-*.dist-info/licenses/LICENSE"))
    assert [licence.read_bytes() for licence in licences] == [(REPOSITORY / "LICENSE").read_bytes()]
    package = sorted(f.relative_to(REPOSITORY) for f in (REPOSITORY / "nas").rglob("*.*"))
    missing = [f for f in package if f.suffix != ".pyc" and not (installed / f).exists()]
    assert not missing
    tops = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert tops == {"nas", "bin"}


def test_the_version_is_written_once() -> None:
    assert version("hybrid-nas") == nas.__version__

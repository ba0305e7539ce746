"""timm's own model tests, unchanged, run on `nas_hybrid`.

The tests are not in timm's wheel; they come from the source distribution of the installed
version. The only addition is a conftest that imports nas.network, so that timm lists the model,
and names it among the models with `forward_intermediates` (timm picks those by file name).

    python benchmarks/timm_tests.py [--timm-sdist DIR]
"""

import argparse
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tempfile
from importlib.metadata import version
from pathlib import Path
from xml.etree import ElementTree

from record import RESULTS, Figure, record

CONFTEST = """\
import timm.models._registry as registry

import nas.network  # registers nas_hybrid

# test_models.py chooses the models for its tests of forward_intermediates by module name.
registry._module_to_models["efficientformer"].add("nas_hybrid")


def pytest_configure(config):
    config.addinivalue_line("markers", "timeout: of pytest-timeout, which is not needed here")
"""
# What timm runs on a model that is no exception to any of its rules.
WANTED = {
    "test_model_forward",
    "test_model_backward",
    "test_model_default_cfgs",
    "test_model_forward_torchscript",
    "test_model_forward_features",
    "test_model_forward_intermediates_features",
    "test_model_forward_intermediates",
    "test_prune_intermediate_layers_contract",
    "test_model_forward_fx",
    "test_model_backward_fx",
    "test_model_forward_fx_torchscript",
}


def download(folder: Path) -> Path:
    """Return the unpacked source distribution of the installed timm."""
    wanted = f"timm=={version('timm')}"
    subprocess.run(
        [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", "timm"]
        + ["--dest", str(folder), wanted],
        check=True,
    )
    (archive,) = folder.glob("timm-*.tar.gz")
    with tarfile.open(archive) as tar:
        tar.extractall(folder, filter="data")
    return folder / archive.name.removesuffix(".tar.gz")


def run(sdist: Path, folder: Path) -> tuple[str, list[tuple[str, str]]]:
    """Return pytest's output without paths of this machine, and (test, outcome) of each test."""
    shutil.copy(sdist / "tests" / "test_models.py", folder)
    shutil.copy(sdist / "pyproject.toml", folder)
    (folder / "conftest.py").write_text(CONFTEST)
    done = subprocess.run(
        [sys.executable, "-m", "pytest", "test_models.py", "-k", "nas_hybrid", "-v"]
        + ["-p", "no:cacheprovider", "--no-header", "--junitxml=junit.xml"],
        cwd=folder,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
    )
    text = done.stdout + done.stderr
    for place, name in ((folder, "."), (sys.prefix, "venv"), (Path.cwd(), ".")):
        text = text.replace(str(place), name)
    outcomes = []
    for case in ElementTree.parse(folder / "junit.xml").iter("testcase"):
        failed = [child.tag for child in case if child.tag in ("failure", "error", "skipped")]
        outcomes.append((case.get("name", ""), failed[0] if failed else "passed"))
    return text, outcomes


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--timm-sdist", type=Path, help="timm's unpacked source distribution")
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        sdist = arguments.timm_sdist or download(folder)
        (folder / "run").mkdir()
        text, outcomes = run(sdist.resolve(), folder / "run")
    passed = {re.sub(r"\[.*", "", name) for name, outcome in outcomes if outcome == "passed"}
    others = [f"{name}: {outcome}" for name, outcome in outcomes if outcome != "passed"]
    figures = [
        Figure(
            figure="timm's tests passed by nas_hybrid",
            asked=f"all {len(WANTED)}",
            measured=len(passed),
            holds=passed >= WANTED,
        ),
        Figure(
            figure="timm's tests failed or skipped",
            asked="none",
            measured=others or 0,
            holds=not others,
        ),
    ]
    print(text)
    (RESULTS / "timm_tests.txt").write_text(text)
    record("timm_tests", figures, notes={"tests": sorted(name for name, _ in outcomes)})
    return 0 if all(figure.holds for figure in figures) else 1


if __name__ == "__main__":
    sys.exit(main())

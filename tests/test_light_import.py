"""Starting is cheap: what needs no torch does not load it (each check in a fresh process)."""

import subprocess
import sys
from importlib.util import find_spec

import pytest

HEAVY = [
    *("torch", "torchvision", "timm", "optuna", "pandas", "sqlalchemy", "onnx", "onnxruntime"),
    *("sklearn", "scipy", "matplotlib", "plotly", "ray"),
]
TORCH_FREE = [
    *("errors", "files", "seeds", "block", "space", "target", "manifest", "study", "search"),
    *("report", "latency.table"),
]
SHOW_LOADED = (
    "import atexit, sys\n"
    "atexit.register(lambda: print('LOADED', *(n for n in {names} if n in sys.modules)))\n"
)


def loaded_by(code: str, names: list[str], *arguments: str) -> list[str]:
    """Run `code` in a fresh interpreter and return which of `names` it imported."""
    done = subprocess.run(
        [sys.executable, "-c", SHOW_LOADED.format(names=names) + code, *arguments],
        capture_output=True,
        text=True,
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()[-1].split()[1:]


def test_importing_nas_loads_no_heavy_library() -> None:
    assert loaded_by("import nas", HEAVY) == []


@pytest.mark.skipif(find_spec("nas.cli") is None, reason="nas.cli is not written yet")
@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["search", "--help"]])
def test_asking_the_command_for_help_loads_no_heavy_library(arguments: list[str]) -> None:
    code = "import nas.cli\nsys.argv[0] = 'nas'\nnas.cli.main()"
    assert loaded_by(code, HEAVY, *arguments) == []


@pytest.mark.parametrize("module", TORCH_FREE)
def test_a_torch_free_module_loads_neither_torch_nor_timm(module: str) -> None:
    if find_spec(f"nas.{module.partition('.')[0]}") is None:
        pytest.skip(f"nas.{module} is not written yet")
    assert loaded_by(f"import nas.{module}", ["torch", "timm"]) == []


def test_the_search_engine_loads_no_ray() -> None:
    assert loaded_by("import nas.search", ["ray"]) == []

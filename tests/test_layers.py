"""The rows: a module imports only from lower rows, and each foreign library has one home."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import nas

PACKAGE = Path(nas.__file__).parent
ROWS = [
    {"errors", "__version__"},
    {"files", "seeds", "environment", "processes"},
    {"block"},
    {"space", "target"},
    {"network", "data", "study", "checkpoint", "manifest"},
    {"supernet", "latency"},
    {"search", "winner", "report"},
    {"pipeline"},
    {"cli"},
]
ROW = {name: row for row, names in enumerate(ROWS) for name in names}
HOMES = {
    "torch": {"network", "data", "checkpoint", "supernet", "latency", "winner", "pipeline"},
    "timm": {"network", "data", "winner"},
    "optuna": {"study", "search"},
    "sqlalchemy": {"study"},
    "alembic": {"study"},
    "onnx": {"network", "latency", "winner"},
    "onnxruntime": {"latency", "winner"},
    "openvino": {"latency"},
    "nncf": {"latency"},
    "ray": {"search", "supernet"},
    "pydantic": {"files"},
    "yaml": {"files"},
    "matplotlib": {"report"},
    "plotly": {"report"},
    "jinja2": {"report"},
    "typer": {"cli"},
    "rich": {"cli"},
}
FILES = sorted(file for file in PACKAGE.rglob("*.py") if file != PACKAGE / "__init__.py")


def noun(file: Path) -> str:
    """Return the name a file counts as: its package or module directly below nas."""
    name = file.relative_to(PACKAGE).parts[0].removesuffix(".py")
    return "cli" if name.startswith(("cli_", "__main__")) else name


def imports(file: Path) -> Iterator[tuple[int, str]]:
    """Yield (line, dotted name) of all a file imports, in functions and through `nas.` as well."""
    for node in ast.walk(ast.parse(file.read_text())):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names if alias.name != "nas")
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{file}:{node.lineno}: imports are absolute"
            names = [alias.name for alias in node.names] if node.module == "nas" else [""]
            yield from ((node.lineno, f"{node.module}.{name}") for name in names)
        elif isinstance(node, ast.Attribute) and ast.unparse(node.value) == "nas":
            yield node.lineno, f"nas.{node.attr}"


@pytest.mark.parametrize("file", FILES, ids=lambda file: str(file.relative_to(PACKAGE)))
def test_a_module_imports_only_from_lower_rows_and_libraries_at_home(file: Path) -> None:
    own = noun(file)
    assert own in ROW, f"{own} stands in no row; give it one here and in CONTRIBUTING.md"
    for line, module in imports(file):
        library, _, rest = module.partition(".")
        other = rest.partition(".")[0]
        if library == "nas" and other != own:
            assert ROW.get(other, 99) < ROW[own], f"{file}:{line}: {own} may not import {module}"
        elif library in HOMES:
            assert own in HOMES[library], f"{file}:{line}: {library} belongs to {HOMES[library]}"
            is_rays = library != "ray" or file.stem.startswith("ray_")
            assert is_rays, f"{file}:{line}: Ray stays in the modules named after it"

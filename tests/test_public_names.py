"""The public names of `nas` are there, load lazily, and are the same wherever they are listed."""

import ast
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import nas

PACKAGE = Path(nas.__file__).parent


def modules_with_all() -> list[str]:
    """Return the dotted names of the modules below nas that declare `__all__`."""
    found = []
    for file in sorted(PACKAGE.rglob("*.py")):
        for node in ast.parse(file.read_text()).body:
            targets = node.targets if isinstance(node, ast.Assign) else []
            if any(isinstance(target, ast.Name) and target.id == "__all__" for target in targets):
                parts = file.relative_to(PACKAGE.parent).with_suffix("").parts
                found.append(".".join(parts).removesuffix(".__init__"))
    return found


def names_for_type_checkers() -> dict[str, str]:
    """Return what the `if TYPE_CHECKING` block of nas/__init__.py imports: name -> module."""
    tree = ast.parse((PACKAGE / "__init__.py").read_text())
    blocks = [node for node in tree.body if isinstance(node, ast.If)]
    return {
        alias.asname or alias.name: str(node.module)
        for block in blocks
        for node in block.body
        if isinstance(node, ast.ImportFrom)
        for alias in node.names
    }


@pytest.mark.parametrize("name", modules_with_all())
def test_every_name_in_all_is_there_once(name: str) -> None:
    module = import_module(name)
    assert len(set(module.__all__)) == len(module.__all__)
    missing = [public for public in module.__all__ if not hasattr(module, public)]
    assert not missing, f"{name}.__all__ promises {missing}"


def test_editors_and_the_interpreter_find_the_same_public_names() -> None:
    assert names_for_type_checkers() == nas._HOMES
    assert set(nas.__all__) == {*nas._HOMES, "__version__"}


def test_a_public_name_is_the_object_at_its_home() -> None:
    for name, home in nas._HOMES.items():
        assert getattr(nas, name) is getattr(import_module(home), name)


def test_dir_lists_public_names_before_they_are_used() -> None:
    code = "import nas; print(*sorted(set(nas.__all__) - set(dir(nas))))"
    done = subprocess.run([sys.executable, "-c", code], check=True, capture_output=True, text=True)
    assert done.stdout.split() == []


def test_an_unknown_name_is_an_attribute_error_that_lists_the_known_ones() -> None:
    with pytest.raises(AttributeError, match="SearchSpaec.*NasError"):
        _ = nas.SearchSpaec

"""An empty database made once: Optuna takes a second for it, a copy takes none."""

import shutil
from pathlib import Path

import pytest

from nas.study import database


@pytest.fixture(scope="session")
def empty_database(tmp_path_factory: pytest.TempPathFactory) -> Path:
    file = tmp_path_factory.mktemp("template") / "nas.db"
    database.open_storage(f"sqlite:///{file}", create=True)
    return file


@pytest.fixture
def file(empty_database: Path, tmp_path: Path) -> Path:
    """A database without a study."""
    return Path(shutil.copy(empty_database, tmp_path / "nas.db"))


@pytest.fixture
def url(file: Path) -> str:
    return f"sqlite:///{file}"

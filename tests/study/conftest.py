"""An empty database made once: Optuna takes a second for it, a copy takes none."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from nas.study import Study, database

COUNT = 50


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


@pytest.fixture(params=["sqlite", "postgresql"])
def either(request: pytest.FixtureRequest) -> str:
    """The address of an SQLite database, and of a PostgreSQL one."""
    if request.param == "sqlite":
        return str(request.getfixturevalue("url"))
    return str(request.getfixturevalue("postgresql").url)


@pytest.fixture
def opened(either: str, request: pytest.FixtureRequest) -> Callable[[], Study]:
    """What opens the test's study, each time as another process would."""

    def open_one() -> Study:
        study = Study.resume(request.node.name, storage=either)
        genes: dict[str, Any] = {"a": tuple(range(COUNT))}
        study.declare({"genes": genes, "metrics": ["latency_ms"], "budgets": {}})
        return study

    return open_one

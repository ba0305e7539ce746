"""README and docs say what is there: files, commands, exit codes, examples."""

import json
import re
import shlex
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest
import typer.main

import nas
from nas import errors, files
from nas.block import parse
from nas.cli.app import app
from nas.latency.calibration import Calibration
from nas.latency.device_study import Comparison, DeviceStudy, Observation, OpShare, Row, Step
from nas.latency.table import Entry, LatencyTable
from nas.manifest import Accuracy, Ancestry, TargetResult, Winner
from nas.space import Architecture, SearchSpace

TABLE = ('"unit"', (LatencyTable, Entry, Calibration), {"schema", "unit"})
WINNER = ('"ancestry"', (Winner, Accuracy, TargetResult, Ancestry), set[str]())
STUDY = (
    '"op_shares"',
    (DeviceStudy, Observation, Row, Comparison, Step, OpShare),
    {"schema", "advice"},
)
REPOSITORY = Path(__file__).resolve().parent.parent
README = (REPOSITORY / "README.md").read_text()
FORMATS = (REPOSITORY / "docs/formats.md").read_text()


def fenced(text: str, kind: str) -> list[str]:
    """Return the contents of the fenced code blocks of one language."""
    blocks = re.findall(r"^```(\w*)\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [content for language, content in blocks if language == kind]


def tree() -> set[str]:
    """Return the paths in the README's tree: each name before a gap of two spaces or its text."""
    found, folders = set(), [""]
    for line in next(b for b in fenced(README, "") if b.startswith("nas/")).splitlines():
        depth = (len(line) - len(line.lstrip())) // 4
        for name in re.match(r" *((?:\S+\.py ?|\S+/)+)", line)[1].split():  # type: ignore[index]
            folders[depth + 1 :] = [name]
            found.add("".join(folders))
    return found


def test_the_tree_lists_every_module_and_nothing_that_is_not_there() -> None:
    package = Path(nas.__file__).parent
    modules = {
        f"nas/{file.relative_to(package)}"
        for file in package.rglob("*.py")
        if file.name != "__init__.py" or file.parent == package
    }
    assert modules <= tree(), "missing in README's tree"
    gone = [path for path in tree() if not (REPOSITORY / path).exists()]
    assert not gone, "in README's tree only"


@pytest.mark.parametrize(
    "name",
    [
        *("README.md", "CONTRIBUTING.md", "docs/formats.md", "docs/runtimes.md"),
        *("docs/device-study.md", "docs/devices.md"),
    ],
)
def test_links_lead_to_files(name: str) -> None:
    file = REPOSITORY / name
    links = re.findall(r"\]\((?!http)([^)#]+)", file.read_text())
    assert [link for link in links if not (file.parent / link).exists()] == []


def test_readme_lists_the_commands_there_are() -> None:
    commands = set(typer.main.get_command(app).commands)  # type: ignore[attr-defined]
    assert set(re.findall(r"^\| `nas ([a-z-]+)` \|", README, re.MULTILINE)) == commands


def commands() -> list[str]:
    """Return the `nas` commands in the README's shell blocks, without comments."""
    text = "\n".join(fenced(README, "")).replace("\\\n", " ")
    lines = [re.sub(r"\s+#.*", "", line).strip() for line in text.splitlines()]
    return [line for line in lines if re.match(r"(\w+=\S+ )*nas \w", line)]


@pytest.mark.parametrize("line", commands())
def test_commands_in_the_readme_have_flags_that_are_there(line: str) -> None:
    words = shlex.split(line)
    words = words[words.index("nas") + 1 : words.index(">") if ">" in words else None]
    command: Any = typer.main.get_command(app)
    while hasattr(command, "commands"):
        command = command.commands[words.pop(0)]
    with command.make_context("nas", words) as parsed:  # which runs nothing
        assert parsed.params and not parsed.args


def test_readme_lists_the_exit_codes_there_are() -> None:
    listed = {int(code) for code in re.findall(r"^\| (\d+) \|", README, re.MULTILINE)}
    assert listed == {0, errors.NasError.exit_code} | {
        error.exit_code for error in errors.NasError.__subclasses__()
    }


def test_every_block_in_the_docs_is_one() -> None:
    texts = re.findall(r"^\| `(\w+_r\d[\w-]*)` \|", FORMATS, re.MULTILINE)
    assert len(texts) == 8
    assert [str(parse(text)) for text in texts] == texts


def test_the_space_and_the_architecture_in_the_docs_are_valid(tmp_path: Path) -> None:
    path = files.write_atomic(tmp_path / "mine.yaml", fenced(FORMATS, "yaml")[0])
    space = SearchSpace.load(path)
    architecture = Architecture.from_json(json.loads(fenced(FORMATS, "json")[0]))
    assert space.contains(architecture)


@pytest.mark.parametrize(
    ("mark", "kinds", "more"), [TABLE, WINNER, STUDY], ids=["table", "winner", "study"]
)
def test_the_fields_in_the_docs_are_those_there_are(
    mark: str, kinds: tuple[type, ...], more: set[str]
) -> None:
    (block,) = [block for block in fenced(FORMATS, "") if mark in block]
    known = {item.name for kind in kinds for item in fields(kind)} - {"path"}
    assert set(re.findall(r'"(\w+)"', block)) == known | more


def test_the_views_in_the_docs_have_the_columns_there_are(tmp_path: Path) -> None:
    import sqlite3

    from nas.study import Study

    Study.create("s", storage=f"sqlite:///{tmp_path}/nas.db")
    with sqlite3.connect(tmp_path / "nas.db") as database:
        for view, columns in re.findall(r"^\| `(nas_\w+)` \| (.*) \|$", FORMATS, re.MULTILINE):
            found = [row[1] for row in database.execute(f"PRAGMA table_info({view})")]
            assert columns.split(", ") == found
        for query in fenced(FORMATS, "sql"):
            database.execute(query)

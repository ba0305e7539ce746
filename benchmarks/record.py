"""What every benchmark prints and writes: machine, versions, figures beside what is asked."""

import json
import os
import shlex
import sys
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from nas import environment
from nas.files import write_json

RESULTS = Path(__file__).parent / "results"


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number that was asked for, and what was measured."""

    figure: str
    asked: str
    measured: Any
    holds: bool


def record(
    name: str,
    figures: list[Figure],
    *,
    notes: dict[str, Any] | None = None,
    folder: Path = RESULTS,
) -> None:
    """Print the figures and write FOLDER/NAME.json, benchmarks/results by default."""
    words = ["DIR" if os.sep in word else word for word in sys.argv[1:]]  # no path of a machine
    command = shlex.join(["python", f"benchmarks/{Path(sys.argv[0]).name}", *words])
    value = {
        "machine": environment.machine(),
        "versions": environment.versions(),
        "command": command,
        "figures": [asdict(figure) for figure in figures],
        **({"notes": notes} if notes else {}),
    }
    print(json.dumps(value["machine"]))
    print(json.dumps(value["versions"]))
    for figure in figures:
        mark = "holds" if figure.holds else "MISSED"
        print(f"{mark:<7} {figure.figure}: {figure.measured} (asked: {figure.asked})")
    print(write_json(folder / f"{name}.json", value))

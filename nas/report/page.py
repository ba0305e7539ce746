"""The report as one HTML file that asks for nothing else, with its pictures beside it too."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from nas.block import Block, parse_network
from nas.files import write_atomic
from nas.report import numbers
from nas.report.content import (
    PREDICTORS,
    Candidate,
    Prediction,
    ReportInput,
    pareto_front,
    prediction_errors,
)
from nas.report.figures import draw, prediction

PAGE = "index.html"
FRONT_ROWS = 30
TRANSITIONS = ("downsample", "patch_merge")
# fields that the stage's name and shape already say
PLACED = ("resolution", "channels", "out", "classes", "act", "bias", "act_last")


@dataclass(frozen=True, slots=True, kw_only=True)
class Box:
    """One block in the picture of a network: kind, inner numbers, share (0 to 1) of all MACs."""

    kind: str
    inner: tuple[str, ...]
    text: str
    share: float


@dataclass(frozen=True, slots=True, kw_only=True)
class StageBoxes:
    """The blocks of one stage, and the feature map they end with ("64 x 8 x 8")."""

    name: str
    shape: str
    boxes: tuple[Box, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Verdict:
    """The report's first sentence, and whether the winner was measured within the budget."""

    text: str
    kept: bool


def write_report(folder: Path | str, content: ReportInput) -> Path:
    """Write FOLDER/index.html, whole in itself, and its pictures as PNG files; return its path.

    The same content gives the same bytes. Nothing in the page is fetched from anywhere. PNG files
    of an older report are deleted: the folder is the report's own.

    Raises:
        StorageError: the folder cannot be made or the disk is full; an old report is intact.
    """
    pictures = draw(content)
    return write_page(Path(folder), render(content, pictures), pictures)


def write_page(folder: Path, page: str, pictures: Mapping[str, bytes]) -> Path:
    """Write a page and its PNG files, and delete those of an older one; return the page's path."""
    for name, png in pictures.items():
        write_atomic(folder / name, png)
    path = write_atomic(folder / PAGE, page)
    for stale in set(folder.glob("*.png")) - {folder / name for name in pictures}:
        stale.unlink()
    return path


def write_check(
    folder: Path | str, title: str, predictions: Sequence[Prediction], text: str
) -> Path:
    """Write FOLDER/index.html and prediction.png on how far a table is off; return the page.

    Args:
        folder: Made if it is not there; a page of before and its pictures are replaced.
        title: The space and the target.
        predictions: Networks the table had not seen.
        text: The errors as lines.

    Raises:
        StorageError: the folder cannot be made or the disk is full.
    """
    pictures = {"prediction.png": prediction(predictions)}
    page: str = template("check.html").render(
        title=title,
        text=text,
        predictions=_prediction_rows(predictions),
        errors=prediction_errors(predictions),
        pictures={name: data_uri(png) for name, png in pictures.items()},
    )
    return write_page(Path(folder), page, pictures)


def render(content: ReportInput, pictures: Mapping[str, bytes]) -> str:
    """Return the page as HTML; `pictures` maps the names `draw` gives to PNG bytes."""
    front = pareto_front(content.candidates)
    rows = stages(content.winner.blocks) if content.winner else ()
    page: str = template("page.html").render(
        content=content,
        winner=content.winner,
        result=content.winner.on(content.target) if content.winner else None,
        verdict=verdict(content),
        size=_size(content.winner.blocks) if content.winner else None,
        stages=rows,
        heaviest=max((box.share for row in rows for box in row.boxes), default=1),
        rejected=[(row, row.on(content.target)) for row in content.rejected],
        front=_thinned(front),
        front_count=len(front),
        errors=prediction_errors(content.predictions),
        predictions=_prediction_rows(content.predictions),
        pictures={name: data_uri(png) for name, png in pictures.items()},
    )
    return page


def template(name: str) -> Any:
    """Return a page of this folder, with our ways to write numbers as its filters."""
    from jinja2 import Environment, PackageLoader, StrictUndefined

    environment = Environment(
        loader=PackageLoader("nas.report", "."),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    for name_of_filter in ("ms", "percent", "accuracy", "count", "significant"):
        environment.filters[name_of_filter] = getattr(numbers, name_of_filter)
    return environment.get_template(name)


def verdict(content: ReportInput) -> Verdict:
    """Return what was promised and whether it is kept, in one sentence."""
    budget = numbers.ms(content.budget_ms)
    if content.winner is None:
        return Verdict(text=f"No network has met the budget of {budget} yet.", kept=False)
    result = content.winner.on(content.target)
    judged_ms = result.judged_ms(content.winner.statistic) if result is not None else None
    if result is None or result.measured_ms is None or judged_ms is None:
        return Verdict(text=f"The winner is not measured yet; the budget is {budget}.", kept=False)
    text = f"The winner takes {numbers.ms(result.measured_ms)}, measured whole: "
    if judged_ms <= content.budget_ms:
        return Verdict(text=f"{text}it meets the budget of {budget}.", kept=True)
    over = numbers.percent(judged_ms / content.budget_ms - 1)
    most = "a 95th percentile of" if content.winner.statistic == "p95" else "up to"
    text += f"at {most} {numbers.ms(judged_ms)} it is over the budget of {budget} by {over}."
    return Verdict(text=text, kept=False)


# ---------------------------------------------------------------- the network
def stages(texts: Sequence[str]) -> tuple[StageBoxes, ...]:
    """Return a network's blocks as rows of boxes: stem, stages 1 to n, head.

    A block that changes the shape opens its stage.
    """
    blocks = parse_network(tuple(texts))
    total = sum(block.macs for block in blocks)
    rows: list[list[Block]] = [[blocks[0]], []]
    for block in blocks[1:-1]:
        if block.kind in TRANSITIONS:
            rows.append([])
        rows[-1].append(block)
    rows = [*[row for row in rows if row], [blocks[-1]]]
    named = []
    for i, row in enumerate(rows):
        ends = {0: "stem", len(rows) - 1: "head"}
        last = row[-1]
        shape = f"{last.out_channels} × {last.out_resolution} × {last.out_resolution}"
        if last.kind == "head":
            shape = f"{last.out_channels} classes"
        boxes = tuple(_box(block, total) for block in row)
        named.append(StageBoxes(name=ends.get(i, f"stage {i}"), shape=shape, boxes=boxes))
    return tuple(named)


def _box(block: Block, total_macs: int) -> Box:
    inner = []
    for item in fields(block):
        value: Any = getattr(block, item.name)  # int, tuple of int or word, by kind
        if item.name not in PLACED and value != item.default:
            text = " ".join(map(str, value)) if isinstance(value, tuple) else str(value)
            inner.append(f"{item.name} {text}")
    share = block.macs / total_macs
    return Box(kind=block.kind, inner=tuple(inner), text=str(block), share=share)


def _size(texts: Sequence[str]) -> dict[str, int]:
    blocks = parse_network(tuple(texts))
    names = ("params", "macs", "bytes")
    return {name: sum(getattr(block, name) for block in blocks) for name in names}


# ---------------------------------------------------------------- rows
def _prediction_rows(predictions: Sequence[Prediction]) -> list[dict[str, Any]]:
    """Return one row a network: id, measured, and (predicted ms, signed error) three times."""
    return [
        {"id": row.id, "measured_ms": row.measured_ms}
        | {key: (getattr(row, key), getattr(row, key) / row.measured_ms - 1) for key in PREDICTORS}
        for row in sorted(predictions, key=lambda row: row.measured_ms)
    ]


def _thinned(front: Sequence[Candidate]) -> Sequence[Candidate]:
    """Return at most FRONT_ROWS of the front, evenly, the most accurate one always."""
    step = max(1, -(-len(front) // FRONT_ROWS))
    return front[::-1][::step][::-1]


def data_uri(png: bytes) -> str:
    """Return a picture as the address of an <img>."""
    return "data:image/png;base64," + base64.b64encode(png).decode()

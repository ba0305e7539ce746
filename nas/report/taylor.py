"""Which channels of a supernet matter, as one HTML page with its heat map."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from nas.report.figures import drawing, png_of
from nas.report.page import data_uri, template, write_page

if TYPE_CHECKING:
    from nas.supernet.taylor.findings import Finding, Share
    from nas.supernet.taylor.heads import HeadSimilarity

Numbers = npt.NDArray[np.float64]
COLUMNS = 16
DECADES = 6  # below the most important group by more than these all are drawn alike


@dataclass(frozen=True, slots=True, kw_only=True)
class TaylorReport:
    """What the page shows.

    Args:
        title: Name of the run.
        about: One sentence on what was measured.
        importance: Dimension -> importance of its channels, in the order they stand in.
        kinds: Dimension -> its kind.
        shares: Of each kind and stage.
        findings: EfficientViT's, checked here.
        heads: How alike the heads of each attention are.
        lines: The same as lines of text.
    """

    title: str
    about: str
    importance: Mapping[str, Numbers]
    kinds: Mapping[str, str]
    shares: tuple["Share", ...]
    findings: tuple["Finding", ...]
    heads: tuple["HeadSimilarity", ...]
    lines: tuple[str, ...]


def write_taylor(folder: Path, content: TaylorReport) -> Path:
    """Write FOLDER/index.html and heatmap.png; return the page's path.

    Raises:
        StorageError: the folder cannot be made or the disk is full; an old page is intact.
    """
    pictures = {"heatmap.png": heat_map(content.importance)}
    page: str = template("taylor.html").render(
        content=content, pictures={name: data_uri(png) for name, png in pictures.items()}
    )
    return write_page(folder, page, pictures)


def heat_map(importance: Mapping[str, Numbers]) -> bytes:
    """Draw the mean importance of each group of channels, one row a dimension, on a log scale."""
    from matplotlib.ticker import FuncFormatter

    names = sorted(importance, key=lambda name: (not name.startswith("stem"), name))
    cells = np.array([grouped(importance[name], COLUMNS) for name in names])
    top = float(cells.max()) or 1.0
    with drawing((7.2, 1.8 + 0.15 * len(names))) as (figure, axes):
        shown = np.log10(np.maximum(cells / top, 10.0**-DECADES))
        image = axes.imshow(shown, aspect="auto", cmap="viridis", vmin=-DECADES, vmax=0)
        axes.set_yticks(range(len(names)), names, fontsize=7)
        axes.set_xticks([-0.5, COLUMNS / 2 - 0.5, COLUMNS - 0.5], ["0 %", "50 %", "100 %"])
        axes.set_xlabel("channels of a dimension, in the order they are kept")
        axes.grid(visible=False)
        bar = figure.colorbar(image, ax=axes, location="top", shrink=0.6, aspect=40)
        bar.ax.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{10.0**x:g}"))
        bar.set_label("mean importance of a channel, by that of the most important group")
        return png_of(figure)


def grouped(values: Numbers, columns: int) -> Numbers:
    """Return the mean of each of so many groups of channels; few channels each fill several."""
    ends = [
        (column * len(values) // columns, -(-(column + 1) * len(values) // columns))
        for column in range(columns)
    ]
    return np.array([values[start:stop].mean() for start, stop in ends])

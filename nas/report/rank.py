"""How truthfully a supernet ranks, as one HTML page: a table, a scatter and every network."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nas.report.figures import BLUE, GREY, ORANGE, drawing, percent_axis, png_of
from nas.report.page import data_uri, template, write_page

if TYPE_CHECKING:
    from nas.supernet.agreement import Agreement, Ceiling


@dataclass(frozen=True, slots=True, kw_only=True)
class RankedNetwork:
    """One network of the sample: what was known of it, and what it reached trained alone.

    Accuracies are 0 to 1; `alone_accuracies` are those of its one or two trainings; `latency_ms`
    is a table's, None without one.
    """

    id: str
    band: int
    inherited_accuracy: float
    inherited_loss: float
    alone_accuracies: tuple[float, ...]
    params: int
    macs: int
    depth: int
    latency_ms: float | None = None

    @property
    def alone_accuracy(self) -> float:
        """The mean of its trainings' accuracies."""
        return sum(self.alone_accuracies) / len(self.alone_accuracies)


@dataclass(frozen=True, slots=True, kw_only=True)
class RankReport:
    """What the page shows.

    Args:
        title: Name of the run.
        about: One sentence on what was trained and how.
        networks: The sample.
        agreements: One a predictor.
        names: Predictor -> its name for people.
        ceiling: What noise leaves to be had; None if nothing was trained twice.
        lines: The same as lines of text.
    """

    title: str
    about: str
    networks: tuple[RankedNetwork, ...]
    agreements: tuple["Agreement", ...]
    names: Mapping[str, str]
    ceiling: "Ceiling | None"
    lines: tuple[str, ...]


def write_rank(folder: Path, content: RankReport) -> Path:
    """Write FOLDER/index.html and its pictures as PNG files; return the page's path.

    Raises:
        StorageError: the folder cannot be made or the disk is full; an old page is intact.
    """
    pictures = {"scatter.png": scatter(content), "predictors.png": predictors(content)}
    page: str = template("rank.html").render(
        content=content,
        networks=sorted(content.networks, key=lambda row: -row.alone_accuracy),
        pictures={name: data_uri(png) for name, png in pictures.items()},
    )
    return write_page(folder, page, pictures)


def scatter(content: RankReport) -> bytes:
    """Draw accuracy alone over inherited accuracy, darker for the dearer bands."""
    from matplotlib import colormaps

    networks = content.networks
    bands = sorted({network.band for network in networks})
    colors = colormaps["viridis_r"]
    with drawing() as (figure, axes):
        for band in bands:
            own = [network for network in networks if network.band == band]
            size = [network.macs / 1e6 for network in own]
            axes.errorbar(
                [network.inherited_accuracy for network in own],
                [network.alone_accuracy for network in own],
                yerr=(
                    [n.alone_accuracy - min(n.alone_accuracies) for n in own],
                    [max(n.alone_accuracies) - n.alone_accuracy for n in own],
                ),
                fmt="o", markersize=5.5, linewidth=1, capsize=2,
                color=colors((band + 1) / (len(bands) + 1)),
                label=f"{min(size):.3g} to {max(size):.3g} MMACs",
            )  # fmt: skip
        shown = [*axes.get_xlim(), *axes.get_ylim()]
        low, high = max(0.0, min(shown)), min(1.0, max(shown))
        axes.plot((low, high), (low, high), color=GREY, linewidth=0.8, zorder=1)
        axes.set_xlabel("inherited accuracy (supernet)")
        axes.set_ylabel("accuracy trained alone")
        percent_axis(axes.xaxis)
        percent_axis(axes.yaxis)
        return png_of(figure, legend_columns=2)


def predictors(content: RankReport) -> bytes:
    """Draw the tau of each predictor with its interval, and the noise ceiling."""
    rows = [each for each in content.agreements if each.tau is not None]
    with drawing((4.8, 1.6 + 0.32 * len(rows))) as (figure, axes):
        for place, each in enumerate(rows):
            tau = each.tau
            assert tau is not None
            is_ours = each.predictor.startswith("inherited")
            axes.errorbar(
                tau.value, place,
                xerr=([max(0.0, tau.value - tau.low)], [max(0.0, tau.high - tau.value)]),
                fmt="o", markersize=6, capsize=3, color=BLUE if is_ours else GREY,
            )  # fmt: skip
        limit = content.ceiling
        if limit is not None and limit.tau is not None:
            axes.axvline(limit.tau, color=ORANGE, linestyle="--", label="noise ceiling")
        axes.set_yticks(range(len(rows)), [content.names[row.predictor] for row in rows])
        axes.set_ylim(max(1, len(rows)) - 0.5, -0.5)
        axes.set_xlabel("Kendall's tau with the accuracy trained alone")
        return png_of(figure)

"""The report's pictures as PNG bytes; the same rows give the same bytes.

No text that comes from outside is drawn, only our own words and numbers: matplotlib would read a
`$` in a name as mathematics and miss glyphs its font does not have.
"""

import io
import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING

from nas.report.content import (
    PREDICTORS,
    LossPoint,
    Prediction,
    ReportInput,
    pareto_front,
    prediction_errors,
)
from nas.report.numbers import ms, percent

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.axis import Axis
    from matplotlib.figure import Figure

DPI = 200
SIZE_INCHES = (4.8, 4.0)  # drawn text of 10 pt stays readable on a page 400 px wide
# Okabe and Ito's colours, which stay apart for colour-blind readers
BLUE, ORANGE, GREEN, VERMILION, GREY = "#0072B2", "#E69F00", "#009E73", "#D55E00", "#9A9A9A"
STYLE = {
    "font.size": 10,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": "#E4E4E4",
    "legend.frameon": False,
    "legend.fontsize": 9.5,
    "savefig.dpi": DPI,
}


@contextmanager
def drawing(
    size_inches: tuple[float, float] = SIZE_INCHES,
) -> Iterator[tuple["Figure", "Axes"]]:
    """Give a figure in our style whatever the user's matplotlib settings are, without pyplot."""
    import matplotlib.style
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    with matplotlib.style.context(STYLE, after_reset=True):
        figure = Figure(figsize=size_inches, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure, figure.subplots()


def png_of(figure: "Figure", *, legend_columns: int = 2) -> bytes:
    """Return a figure, its legend below it if anything has a label, as PNG bytes."""
    if any(axes.get_legend_handles_labels()[0] for axes in figure.axes):
        figure.legend(loc="outside lower center", ncols=legend_columns)
    stream = io.BytesIO()
    figure.savefig(stream, format="png", metadata={"Software": None})
    return stream.getvalue()


def pareto(content: ReportInput) -> bytes:
    """Draw accuracy over predicted latency: every candidate, the front, the budget, the winner."""
    front = pareto_front(content.candidates)
    with drawing() as (figure, axes):
        axes.scatter(
            [row.latency_ms for row in content.candidates],
            [row.accuracy for row in content.candidates],
            s=16,
            color=GREY,
            alpha=0.45 if len(content.candidates) > 50 else 0.8,
            linewidths=0,
            label=f"evaluated ({len(content.candidates)})",
        )
        axes.plot(
            [row.latency_ms for row in front],
            [row.accuracy for row in front],
            color=BLUE,
            marker="o",
            markersize=4.5,
            linewidth=1.2,
            drawstyle="steps-post",
            label=f"Pareto front ({len(front)})",
        )
        axes.axvline(
            content.budget_ms,
            color=VERMILION,
            linestyle="--",
            linewidth=1.4,
            label=f"budget {ms(content.budget_ms)}",
        )
        _mark_winner(axes, content)
        axes.set_xlabel("latency (ms)")
        axes.set_ylabel("accuracy on the search split")
        _frame(axes, least_x=content.budget_ms / 10, least_y=0.02)
        percent_axis(axes.yaxis)
        return png_of(figure)


def _mark_winner(axes: "Axes", content: ReportInput) -> None:
    """Star the winner as it was found, and as it was measured after its own training."""
    if content.winner is None:
        return
    found = next((row for row in content.candidates if row.id == content.winner.id), None)
    if found is not None:
        (star,) = axes.plot(found.latency_ms, found.accuracy, "*", label="winner, predicted")
        star.set(markersize=15, zorder=5, markerfacecolor="white", markeredgecolor=GREEN)
        star.set(markeredgewidth=1.4)
    result = content.winner.on(content.target)
    if result is not None and result.measured_ms is not None:
        place = (result.measured_ms, content.winner.accuracy.search)
        (star,) = axes.plot(*place, "*", label="winner, trained and measured")
        star.set(markersize=15, zorder=5, markerfacecolor=GREEN, markeredgecolor="black")
        star.set(markeredgewidth=0.6)


def percent_axis(axis: "Axis") -> None:
    """Label accuracies as percent, with one decimal only where the ticks need it."""
    from matplotlib.ticker import FuncFormatter

    low, high = axis.get_view_interval()
    decimals = 1 if high - low < 0.05 else 0
    axis.set_major_formatter(
        FuncFormatter(lambda y, _: "" if y > 1 else f"{100 * y:.{decimals}f} %")
    )


def _frame(axes: "Axes", *, least_x: float, least_y: float) -> None:
    """Widen axes that show a single point, or equal ones, and keep their ticks few and round."""
    from matplotlib.ticker import MaxNLocator

    least = {"x": least_x, "y": least_y}
    for name, axis in (("x", axes.xaxis), ("y", axes.yaxis)):
        low, high = axis.get_view_interval()
        missing = least[name] - (high - low)
        if missing > 0:
            axes.set(**{f"{name}lim": (low - missing / 2, high + missing / 2)})
        axis.set_major_locator(MaxNLocator(nbins=6, steps=[1, 2, 2.5, 5, 10]))


def prediction(predictions: Sequence[Prediction]) -> bytes:
    """Draw predicted over measured latency of unseen networks, for our table and two rivals."""
    errors = prediction_errors(predictions)
    marks = {"table_ms": (BLUE, "o", 6), "isolated_ms": (ORANGE, "^", 6), "macs_ms": (GREY, "s", 5)}
    measured = [row.measured_ms for row in predictions]
    with drawing() as (figure, axes):
        for key in PREDICTORS:
            color, marker, size = marks[key]
            error = errors[key]
            axes.plot(
                measured,
                [getattr(row, key) for row in predictions],
                linestyle="none",
                marker=marker,
                color=color,
                markersize=size,
                markeredgewidth=0,
                alpha=0.85,
                zorder=4 if key == "table_ms" else 3,
                label=f"{error.name}: mean error {percent(error.mean)}, "
                f"worst {percent(error.worst)}",
            )
        shown = [*axes.get_xlim(), *axes.get_ylim()]
        low, high = min(shown), max(shown)
        axes.plot((low, high), (low, high), color="black", linewidth=0.8, zorder=2)
        axes.set(xlim=(low, high), ylim=(low, high))
        _frame(axes, least_x=0, least_y=0)
        axes.set_xlabel("measured latency (ms)")
        axes.set_ylabel("predicted latency (ms)")
        return png_of(figure, legend_columns=1)


def loss(losses: Sequence[LossPoint]) -> bytes:
    """Draw the training loss with its running mean; paths change every step, so it is noisy."""
    steps = [row.step for row in losses]
    values = [row.loss for row in losses]
    with drawing() as (figure, axes):
        axes.plot(steps, values, color=GREY, alpha=0.6, linewidth=0.8, label="each point")
        axes.plot(
            steps,
            _running_mean(values, half=max(1, len(values) // 50)),
            color=BLUE,
            linewidth=1.6,
            label="running mean",
        )
        axes.set_xlabel("training step")
        axes.set_ylabel("supernet training loss")
        _frame(axes, least_x=1, least_y=0)
        return png_of(figure)


def _running_mean(values: Sequence[float], *, half: int) -> list[float]:
    """Return the mean of each value and up to `half` on either side; fewer at the ends."""
    sums = list(itertools.accumulate(values, initial=0.0))
    ends = [(max(0, i - half), min(len(values), i + half + 1)) for i in range(len(values))]
    return [(sums[stop] - sums[start]) / (stop - start) for start, stop in ends]


def draw(content: ReportInput) -> dict[str, bytes]:
    """Return the pictures there are rows for: file name to PNG bytes."""
    pictures = {}
    if content.candidates:
        pictures["pareto.png"] = pareto(content)
    if content.predictions:
        pictures["prediction.png"] = prediction(content.predictions)
    if len(content.losses) > 1:
        pictures["loss.png"] = loss(content.losses)
    return pictures

"""The pictures of a device study: ratios with intervals, latencies, shares, and the staircase."""

from collections.abc import Sequence

from nas.latency.device_study import Comparison, Observation, Row
from nas.report.figures import BLUE, GREEN, GREY, ORANGE, VERMILION, drawing, png_of

WIDE = 7.2
LABEL_CHARACTERS = 52


def ratios(observations: Sequence[Observation]) -> bytes | None:
    """Draw every ratio with its interval on a logarithmic axis; None where there is none."""
    rows = [row for item in observations for row in item.comparisons if row.ratio is not None]
    if not rows:
        return None
    kinds: dict[str, tuple[str, list[int]]] = {
        "the first is slower": (VERMILION, []),
        "the first is faster": (GREEN, []),
        "not told, or too noisy": (GREY, []),
    }
    for place, row in enumerate(rows):
        kinds[_kind(row)][1].append(place)
    with drawing((WIDE, 1.4 + 0.27 * len(rows))) as (figure, axes):
        for label, (color, places) in kinds.items():
            if not places:
                continue
            values = [rows[place].ratio or 1.0 for place in places]
            low = [v - (rows[p].low or v) for v, p in zip(values, places, strict=True)]
            high = [(rows[p].high or v) - v for v, p in zip(values, places, strict=True)]
            axes.errorbar(
                values, places, xerr=(low, high), fmt="o", color=color, markersize=5,
                capsize=2.5, linewidth=1.2, label=label,
            )  # fmt: skip
        axes.axvline(1, color="black", linewidth=0.8, zorder=1)
        axes.set_xscale("log")
        _plain_log_ticks(axes)
        axes.set_yticks(range(len(rows)), [_short(row.subject) for row in rows], fontsize=8)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.set_xlabel("latency of the first, by that of the second")
        return png_of(figure, legend_columns=3)


def latencies(item: Observation) -> bytes | None:
    """Draw the networks of one observation as bars with the 10 % to 90 % range of their samples."""
    rows = [row for row in item.rows if row.median_ms is not None]
    if not rows:
        return None
    with drawing((WIDE, 1.2 + 0.33 * len(rows))) as (figure, axes):
        for noisy, color, label in ((False, BLUE, "median"), (True, GREY, "median, grade C")):
            own = [(place, row) for place, row in enumerate(rows) if (row.grade == "C") == noisy]
            if own:
                medians = [row.median_ms or 0.0 for _, row in own]
                axes.barh([p for p, _ in own], medians, height=0.6, color=color, label=label)
        medians = [row.median_ms or 0.0 for row in rows]
        low = [max(0.0, m - (row.p10_ms or m)) for m, row in zip(medians, rows, strict=True)]
        high = [max(0.0, (row.p90_ms or m) - m) for m, row in zip(medians, rows, strict=True)]
        axes.errorbar(
            medians, range(len(rows)), xerr=(low, high), fmt="none", ecolor="black",
            capsize=2.5, linewidth=1, label="10 % to 90 % of samples",
        )  # fmt: skip
        axes.set_yticks(range(len(rows)), [_short(row.text) for row in rows], fontsize=9)
        axes.set_ylim(len(rows) - 0.5, -0.5)
        axes.grid(axis="y", visible=False)
        axes.set_xlim(left=0)
        axes.set_xlabel("latency (ms)")
        return png_of(figure, legend_columns=3)


def widths(item: Observation) -> bytes | None:
    """Draw latency over channels, one line a side; filled marks are multiples of the step."""
    rows = [row for row in item.rows if row.median_ms is not None]
    if not rows:
        return None
    sides = sorted({row.shape[1] for row in rows})
    with drawing((WIDE, 4.4)) as (figure, axes):
        for side, color in zip(sides, (BLUE, ORANGE, GREEN, VERMILION), strict=False):
            own = sorted((row for row in rows if row.shape[1] == side), key=_channels)
            step = max((s.multiple for s in item.steps if s.side == side and s.pays), default=1)
            axes.plot(
                [_channels(row) for row in own], [row.median_ms or 0.0 for row in own],
                color=color, linewidth=1, label=f"side {side}",
            )  # fmt: skip
            if step == 1:
                continue
            on = [row for row in own if _channels(row) % step == 0]
            off = [row for row in own if _channels(row) % step]
            for some, face, what in (
                (on, color, f"multiples of {step}"), (off, "white", "widths between"),
            ):  # fmt: skip
                axes.plot(
                    [_channels(row) for row in some], [row.median_ms or 0.0 for row in some], "o",
                    markersize=5, markerfacecolor=face, markeredgecolor=color,
                    label=f"side {side}: {what}",
                )  # fmt: skip
        axes.set_xlim(left=0)
        axes.set_yscale("log")
        axes.set_xticks(range(0, max(map(_channels, rows)) + 1, 16))
        axes.set_xlabel("channels")
        axes.set_ylabel("latency (ms), logarithmic")
        return png_of(figure, legend_columns=3)


def draw(observations: Sequence[Observation]) -> dict[str, bytes]:
    """Return the pictures there are numbers for: file name to PNG bytes."""
    found = {"ratios.png": ratios(observations)}
    for item in observations:
        has_sides = len({row.shape[0] for row in item.rows}) > 3
        found[f"{item.key}.png"] = widths(item) if has_sides else latencies(item)
    return {name: png for name, png in found.items() if png is not None}


def _kind(row: Comparison) -> str:
    if row.grade == "C" or not row.is_told:
        return "not told, or too noisy"
    return "the first is slower" if (row.ratio or 1) > 1 else "the first is faster"


def _channels(row: Row) -> int:
    return row.shape[0]


def _short(text: str) -> str:
    return text if len(text) <= LABEL_CHARACTERS else f"{text[: LABEL_CHARACTERS - 1]}…"


def _plain_log_ticks(axes: object) -> None:
    """Label a logarithmic axis of ratios with plain numbers, few of them."""
    from matplotlib.axes import Axes
    from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

    assert isinstance(axes, Axes)
    low, high = axes.get_xlim()
    every = [0.1, 0.2, 0.33, 0.5, 0.7, 0.8, 0.9, 1, 1.1, 1.25, 1.5, 2, 3, 5, 10, 20, 50]
    shown = [tick for tick in every if low <= tick <= high]
    if high / low > 8:
        shown = [
            tick for tick in shown if tick in (0.1, 0.2, 0.33, 0.5, 0.7, 1, 1.5, 2, 3, 5, 10, 20)
        ]
    axes.xaxis.set_major_locator(FixedLocator(shown))
    axes.xaxis.set_minor_locator(NullLocator())
    axes.xaxis.set_major_formatter(FuncFormatter(lambda x, _: f"{x:g}"))

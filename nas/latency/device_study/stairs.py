"""Which multiple of channels pays: where widths between two multiples save no time.

A step m is judged by the widths halfway between its multiples (odd multiples of m / 2). On a
straight line between the two multiples around it, such a width would save its part of their
difference. Where it saves little of that, there is a stair: go up to the multiple for free.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

STEPS = (2, 4, 8, 16, 32)
MIN_WIDTHS = 3  # halfway widths to judge a step by
PAYS, SURELY = 0.25, 0.5  # of the fair saving: at most this, and with certainty at most that
DRAWS = 400


@dataclass(frozen=True, slots=True, kw_only=True)
class Step:
    """How far one step is a stair, at one side of the feature map.

    `saved`: what the `widths` halfway between multiples save, by what a straight line would: 1 is
    no stair, 0 a flat one, below 0 they are slower than the next multiple; with its 95 % interval.
    `cost`: their latency by the straight line's, a geometric mean.
    """

    side: int
    multiple: int
    saved: float
    low: float
    high: float
    cost: float
    widths: int

    @property
    def pays(self) -> bool:
        """Whether widths should be multiples of it."""
        return self.saved <= PAYS and self.high <= SURELY


def steps_of(
    times_ms: Mapping[int, float], noise: Mapping[int, float], *, side: int
) -> tuple[Step, ...]:
    """Return each step that there are widths to judge by.

    Args:
        times_ms: Latency of each number of channels.
        noise: Its relative standard error.
        side: Of the feature map, for the record.
    """
    widths = sorted(times_ms)
    times = np.array([times_ms[width] for width in widths])
    errors = np.array([noise[width] for width in widths])
    generator = np.random.default_rng(0)
    draws = times * np.exp(errors * generator.standard_normal((DRAWS, len(widths))))
    found = []
    for multiple in STEPS:
        triples = _halfway(widths, multiple)
        if len(triples) < MIN_WIDTHS:
            continue
        if not (saved := _saved(times[None, :], widths, triples)).size:
            continue
        spread = _saved(draws, widths, triples)
        below, at, above = (np.array(places) for places in zip(*triples, strict=True))
        shares = _shares(widths, triples)
        line = times[above] - shares * (times[above] - times[below])
        found.append(
            Step(
                side=side,
                multiple=multiple,
                saved=float(saved[0]),
                low=float(np.quantile(spread, 0.025)),
                high=float(np.quantile(spread, 0.975)),
                cost=float(np.exp(np.log(times[at] / line).mean())),
                widths=len(triples),
            )
        )
    return tuple(found)


def best_step(steps: Sequence[Step]) -> int:
    """Return the largest multiple that pays at one side, or 1."""
    return max((step.multiple for step in steps if step.pays), default=1)


def _halfway(widths: Sequence[int], multiple: int) -> list[tuple[int, int, int]]:
    """Return the places of (the multiple below, a width halfway, the multiple above)."""
    multiples = [place for place, width in enumerate(widths) if width % multiple == 0]
    triples = []
    for place, width in enumerate(widths):
        if width % multiple != multiple // 2:
            continue
        below = [other for other in multiples if widths[other] < width]
        above = [other for other in multiples if widths[other] > width]
        if below and above:
            triples.append((below[-1], place, above[0]))
    return triples


def _shares(widths: Sequence[int], triples: Sequence[tuple[int, int, int]]) -> np.ndarray:
    """Return which part of the way down from the multiple above each width is."""
    return np.array(
        [(widths[n] - widths[c]) / (widths[n] - widths[p]) for p, c, n in triples], dtype=float
    )


def _saved(
    times: np.ndarray, widths: Sequence[int], triples: Sequence[tuple[int, int, int]]
) -> np.ndarray:
    """Return what is saved by what a line would save, for each row of times that rises."""
    below, at, above = (np.array(places) for places in zip(*triples, strict=True))
    saved = (times[:, above] - times[:, at]).sum(axis=1)
    fair = ((times[:, above] - times[:, below]) * _shares(widths, triples)).sum(axis=1)
    rises: np.ndarray = saved[fair > 0] / fair[fair > 0]
    return rises

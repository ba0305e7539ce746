"""How carefully to measure: samples, processes, time limits, and what is measured at all."""

import math
from dataclasses import dataclass, replace

from nas.errors import ConfigError
from nas.latency.timing import SAMPLES_A_VISIT


@dataclass(frozen=True, slots=True, kw_only=True)
class ProfileConfig:
    """How carefully to measure.

    Each network is loaded `loads` times in each of `processes` processes (an agent has one, and
    loads as often), because where they happen to lie in memory changes latencies by some per cent.
    `samples` clean samples of at least `sample_ms` each are taken, the first and the last
    `spread_s` apart. Up to `batch` entries are timed together for at most `time_limit_s`, and as
    long again those that have next to nothing by then; a child silent for `timeout_s` is ended. A
    repeating part is read off chains of 1 and `copies`. A network that is promised to meet a budget
    is timed in `winner_processes` (see `for_winners`).
    `calibrate_on` whole networks are measured at the end for a fit (0: none). Along a line of
    sizes of one part every `every`-th is measured and the others are interpolated (1: none).
    Where networks held out are off by more than `block_error`, whole blocks are tried in place of
    sums of parts. `strict` refuses grade C.
    """

    samples: int = 30
    spread_s: float = 10.0
    sample_ms: float = 1.0
    time_limit_s: float = 300.0
    batch: int = 96
    loads: int = 1
    processes: int = 3
    winner_processes: int = 8
    copies: int = 3
    calibrate_on: int = 0
    every: int = 1
    block_error: float = 0.03
    timeout_s: float = 60.0
    strict: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        rules = {
            "samples": 3,
            "copies": 2,
            "batch": 1,
            "loads": 1,
            "processes": 1,
            "winner_processes": 1,
            "calibrate_on": 0,
            "every": 1,
            "spread_s": 0,
        }
        for name, low in rules.items():
            if getattr(self, name) < low:
                raise ConfigError(f"{name} must be at least {low}, but is {getattr(self, name)}.")
        for name in ("sample_ms", "time_limit_s", "timeout_s", "block_error"):
            if not 0 < getattr(self, name) < math.inf:
                raise ConfigError(f"{name} must be above 0, but is {getattr(self, name)}.")
        if self.spread_s >= self.time_limit_s:
            raise ConfigError(
                f"spread_s must be below time_limit_s, but they are {self.spread_s} and "
                f"{self.time_limit_s}."
            )

    @property
    def held(self) -> int:
        """How often each network is in memory while it is timed."""
        return self.loads * self.processes

    def for_winners(self) -> "ProfileConfig":
        """Return the same for networks that a promise is made of, or held to.

        What one process measures is some per cent off for all its life (LOG.md, 2026-11-30), so
        that a median over three says one thing today and another tomorrow. A table's entries
        and fits average that out over hundreds of chains; a winner stands alone.
        """
        count = max(self.processes, self.winner_processes)
        visits = SAMPLES_A_VISIT * count  # one in each of them at least
        return replace(self, processes=count, samples=max(self.samples, visits))


QUICK = ProfileConfig(samples=24, spread_s=2.0, time_limit_s=60.0, calibrate_on=24)

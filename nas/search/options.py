"""The settings of a search."""

from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias

from nas.errors import ConfigError
from nas.search.rows import Price
from nas.search.samplers import SAMPLERS
from nas.study import Choice, Option

Mode: TypeAlias = Literal["best", "front"]
MODES: tuple[Mode, ...] = ("best", "front")
RankBy: TypeAlias = Literal["accuracy", "loss"]
RANKS: tuple[RankBy, ...] = ("accuracy", "loss")
Progress: TypeAlias = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class SearchOptions:
    """How to search. The first four settings are part of a study and may not change in it.

    Attributes:
        sampler: "predictor", "tpe", "nsga2", "gp", "slimming" or "random".
        mode: "best" maximises accuracy within the budgets; "front" also minimises the first cost.
        rank_by: What the sampler learns from. "loss" needs `evaluate` to return one; it is steadier
            than an accuracy counted on few images, where many candidates tie.
        batch: Candidates proposed before the first of them is known; with an executor, how many
            are evaluated at once.
        complete: Makes a candidate whole: `complete(choice, level)` returns the choice to price,
            evaluate and record; level is the budget on the first cost (None without one).
        bound: What a choice costs at least before `complete`, as `price` says it; what the screen
            and the sampler look at where completing is dear. `price` itself if not given.
        key: What makes two completed candidates the same one; the whole choice by default.
        describe: More to record of a candidate: {"architecture": ..., "architecture_id": ...}.
        lost: What each option of each gene is predicted to lose, {gene: {option: loss}}, in any
            one unit; the sampler "slimming" needs it and no other looks at it.
        executor: Where `evaluate` runs; in this thread by default. For a process pool `evaluate`
            must be importable.
        timeout_s: An evaluation without an answer after this long has failed.
        progress: Called as `progress(done, total, text)` after every candidate.
    """

    sampler: str = "predictor"
    mode: Mode = "best"
    rank_by: RankBy = "accuracy"
    batch: int = 1
    complete: Callable[[Choice, float | None], Choice] | None = None
    bound: Price | None = None
    key: Callable[[Choice], Hashable] | None = None
    describe: Callable[[Choice], Mapping[str, Any]] | None = None  # Any: plain JSON
    lost: Mapping[str, Mapping[Option, float]] | None = None
    executor: Executor | None = None
    timeout_s: float | None = None
    progress: Progress | None = None

    def __post_init__(self) -> None:
        if self.sampler not in SAMPLERS:
            raise ConfigError(
                f"sampler must be one of {', '.join(SAMPLERS)}, but is {self.sampler!r}."
            )
        if self.sampler == "slimming" and self.lost is None:
            raise ConfigError(
                "the sampler slimming needs predicted losses: give SearchOptions(lost={gene: "
                "{option: loss}}), or use another sampler; predictor needs none."
            )
        if self.mode not in MODES:
            raise ConfigError(f"mode must be one of {', '.join(MODES)}, but is {self.mode!r}.")
        if self.rank_by not in RANKS:
            raise ConfigError(
                f"rank_by must be one of {', '.join(RANKS)}, but is {self.rank_by!r}."
            )
        if self.batch < 1:
            raise ConfigError(f"batch must be at least 1, but is {self.batch}.")
        if self.timeout_s is not None and not self.timeout_s > 0:
            raise ConfigError(f"timeout_s must be above zero, but is {self.timeout_s}.")

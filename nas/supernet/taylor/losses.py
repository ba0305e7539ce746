"""The loss table of a supernet: by importance and fitted scales, or measured number by number."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import numpy as np

from nas.data import Data
from nas.errors import ConfigError
from nas.space import Architecture, SearchSpace
from nas.space.loss_table import METHODS, DimLoss, LossTable
from nas.supernet.evaluate import Evaluator
from nas.supernet.gates import GATES, dims
from nas.supernet.model import SuperNet
from nas.supernet.taylor.importance import (
    Importance,
    TaylorConfig,
    covering_paths,
    measure_importance,
)
from nas.supernet.taylor.scales import Scales, fit_lost
from nas.supernet.taylor.tables import allocated, choices, widest

Progress = Callable[[int, int, str], None]
Kept = dict[str, DimLoss]
ALL_HEADS = 0  # where a dimension's channels are not counted by heads

# Images that weights and kinds were both not trained on alone: ranking has the search split.
SPLIT = "choice"


@dataclass(frozen=True, slots=True, kw_only=True)
class LossConfig:
    """How a loss table is made.

    Attributes:
        method: "taylor" measures the importance of all channels in a few passes and fits a scale
            for each kind of part; "sensitivity" measures the loss with every number of every
            dimension, which takes a forward pass over the images for each.
        images: Training images importance is measured on, and that statistics are fitted on.
        networks: Random networks that scales are fitted on, each with random inner numbers.
        numbers: Random inner numbers drawn for each of them.
        seed: What they are drawn with.
    """

    method: str = "taylor"
    images: int = 256
    networks: int = 6
    numbers: int = 6
    seed: int = 0

    def __post_init__(self) -> None:
        if self.method not in METHODS:
            raise ConfigError(f"method must be one of {', '.join(METHODS)}, not {self.method!r}.")
        for name, low in (("images", 2), ("networks", 2), ("numbers", 5)):
            if not low <= getattr(self, name) <= 1_000_000:
                raise ConfigError(
                    f"{name} must be from {low} to 1000000, but is {getattr(self, name)}."
                )


def measure_losses(
    supernet: SuperNet,
    data: Data,
    config: LossConfig | None = None,
    *,
    digest: str = "",
    progress: Progress = lambda done, total, text: None,
) -> LossTable:
    """Return what every inner number of every place of a supernet costs in loss.

    Places count by themselves: what a number costs there is taken to be the same in all networks,
    and to add up over places (Molchanov et al., arXiv 1906.10771, section 3; how far that holds
    is `fit`). Importance is of the largest paths that together stand in every place.

    Args:
        supernet: Trained; it is not changed.
        data: Importance and statistics are of its train split, losses of its choice split.
        config: How.
        digest: Of the supernet's weights, to be kept in the table.
        progress: Told (done, total, text).
    """
    config = config or LossConfig()
    space = supernet.space
    if config.method == "sensitivity":
        kept = measure_kept(supernet, data, progress)
        return LossTable(space=space.name, method=config.method, supernet=digest, dims=kept)
    progress(0, config.networks + 1, "importance of channels")
    paths = covering_paths(space)
    importance = measure_importance(supernet, paths, data, TaylorConfig(images=config.images))
    table = LossTable(
        space=space.name, method=config.method, supernet=digest, dims=sum_up(space, importance)
    )
    scales = measure_scales(supernet, data, table, config, progress)
    fit = {"r2": scales.r2, "r2_fitted": scales.r2_fitted, "spearman": scales.spearman}
    return LossTable(
        space=space.name,
        method=config.method,
        supernet=digest,
        scales=dict(scales.by_kind),
        fit={**fit, "networks": float(config.networks * config.numbers)},
        dims=table.dims,
    )


# ---------------------------------------------------------------- importance
def sum_up(space: SearchSpace, importance: Importance) -> Kept:
    """Return prefix sums of importance at every number that a dimension may have somewhere.

    Args:
        space: Whose places and numbers count.
        importance: Of the largest of every dimension, as `covering_paths` have it.

    Raises:
        ConfigError: importance lacks a dimension.
    """
    found: Kept = {}
    for name, (kind, numbers) in known_numbers(space).items():
        values = importance.get(name)
        if values is None or values.shape[-1] < max(map(max, numbers.values())):
            raise ConfigError(
                f"importance must know all channels of {name}, but does not. Measure it on "
                "covering_paths(space)."
            )
        kept = {}
        for heads, options in numbers.items():
            own = values[:heads].sum(0) if values.ndim == 2 else values
            sums = np.concatenate([[0.0], np.cumsum(own)])
            kept[str(heads)] = {str(number): float(sums[number]) for number in options}
        found[name] = DimLoss(kind=kind, kept=kept)
    return found


def known_numbers(space: SearchSpace) -> dict[str, tuple[str, dict[int, tuple[int, ...]]]]:
    """Return {"SLOT.FIELD": (kind, {heads: numbers ascending})} of all dimensions with a choice."""
    seen: dict[str, tuple[str, dict[int, set[int]]]] = {}
    for slot, blocks in space.variants():
        if slot in ("stem", "head"):
            continue
        for block in blocks:
            parts = block.parts()
            for dim in dims(block):
                shape = GATES[dim.gate].shape(parts[dim.part])
                heads = shape[0] if len(shape) == 2 else ALL_HEADS
                _, numbers = seen.setdefault(f"{slot}.{dim.field}", (dim.gate, {}))
                numbers.setdefault(heads, set()).add(dim.size(block))
    return {
        name: (kind, {heads: tuple(sorted(own)) for heads, own in numbers.items()})
        for name, (kind, numbers) in seen.items()
    }


# ---------------------------------------------------------------- scales
def measure_scales(
    supernet: SuperNet,
    data: Data,
    table: LossTable,
    config: LossConfig,
    progress: Progress = lambda done, total, text: None,
) -> Scales:
    """Fit scales to the losses of random networks with random inner numbers.

    Networks are drawn evenly over the levels of cost, since what is dropped from a narrow network
    costs more; each is compared with itself at its largest inner numbers.
    """
    space = supernet.space
    rng = np.random.default_rng(config.seed)
    lost: list[dict[str, float]] = []
    increases: list[float] = []
    scores = Evaluator(supernet, data, split=SPLIT)
    for turn, level in enumerate(np.linspace(0.1, 1.0, config.networks)):
        progress(turn + 1, config.networks + 1, "losses of random networks")
        path = widest(space, space.sample(rng, float(level)))
        whole = scores.score(path).loss
        for _ in range(config.numbers):
            numbers = {
                f"{slot}.{dim.field}": int(rng.choice(options))
                for slot, dim, _, options in choices(space, path)
            }
            smaller = allocated(space, path, numbers)
            lost.append(lost_by_kind(space, smaller, table))
            increases.append(scores.score(smaller).loss - whole)
    return fit_lost(lost, increases)


def lost_by_kind(
    space: SearchSpace, architecture: Architecture, table: LossTable
) -> dict[str, float]:
    """Return what a network's inner numbers lose of the largest ones, added up by kind."""
    found: dict[str, float] = {}
    for slot, dim, block, options in choices(space, architecture):
        name = f"{slot}.{dim.field}"
        heads = int(getattr(block, "heads", ALL_HEADS))
        lost = table.lost(name, dim.size(block), most=options[-1], heads=heads)
        found[dim.gate] = found.get(dim.gate, 0.0) + lost
    return found


# ---------------------------------------------------------------- sensitivity
def measure_kept(
    supernet: SuperNet, data: Data, progress: Progress = lambda done, total, text: None
) -> Kept:
    """Return minus the increase of the loss, in nats, that each number of each dimension makes.

    One number is changed at a time, on a largest path that the place is on.
    """
    space = supernet.space
    known = known_numbers(space)
    jobs = [(name, path) for name, path in _places(space) if name in known]
    losses: dict[str, float] = {}
    scores = Evaluator(supernet, data, split=SPLIT)
    found: Kept = {}
    for done, (name, path) in enumerate(jobs):
        progress(done, len(jobs), name)
        if path.id not in losses:
            losses[path.id] = scores.score(path).loss
        kind, numbers = known[name]
        kept = {}
        for number in sorted(set().union(*numbers.values())):
            changed = allocated(space, path, {name: number})
            same = changed == path
            loss = losses[path.id] if same else scores.score(changed).loss
            kept[str(number)] = losses[path.id] - loss
        found[name] = DimLoss(kind=kind, kept={str(ALL_HEADS): kept})
    progress(len(jobs), len(jobs), "every number measured")
    return found


def _places(space: SearchSpace) -> Iterator[tuple[str, Architecture]]:
    """Yield each dimension once, with the first of the covering paths that has it."""
    seen: set[str] = set()
    for path in covering_paths(space):
        largest = widest(space, path)
        for slot, block in zip(space.slots(largest), space.blocks(largest), strict=True):
            for dim in dims(block):
                name = f"{slot}.{dim.field}"
                if name not in seen:
                    seen.add(name)
                    yield name, largest

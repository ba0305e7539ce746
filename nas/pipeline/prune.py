"""Pruning one trained network: inner numbers cut until it meets a budget, least important first."""

import copy
import shlex
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from nas import checkpoint
from nas import data as nas_data
from nas.block import Block
from nas.data import Data
from nas.errors import ConfigError
from nas.files import to_plain, write_atomic
from nas.latency import QUICK, LatencyTable, find_table, time_networks
from nas.latency import profile as profile_table
from nas.latency.measure import at_begun_speed, child_bench
from nas.latency.sessions import Benches
from nas.latency.table import TABLES, Fitted
from nas.manifest import FILE, Accuracy, Ancestry, TargetResult, Winner
from nas.network import NasHybrid, load_folder, stock, timm_models
from nas.pipeline.cut_levels import Levels
from nas.pipeline.cut_losses import Pruner
from nas.pipeline.cuts import Cuts, cuts_of, smaller
from nas.pipeline.materials import Timed, best_device
from nas.pipeline.outcome import Outcome
from nas.pipeline.part_costs import PartCosts
from nas.pipeline.pruned_text import told
from nas.pipeline.run import Progress
from nas.seeds import stage_seed
from nas.space import Architecture, SearchSpace, architecture_of
from nas.space.loss_table import METHODS
from nas.study import latency_metric
from nas.supernet.taylor.alone import network_importance
from nas.target import DEFAULT_TARGET, Target
from nas.winner.distill import DistillConfig
from nas.winner.distill import train as train_alone
from nas.winner.export import export as export_folder
from nas.winner.latency import result_of
from nas.winner.objective import Teacher
from nas.winner.score import evaluate

FINE_TUNE_LR = 5e-4

Teller = Callable[[str], Progress]


@dataclass(frozen=True, slots=True, kw_only=True)
class PruneConfig:
    """How a network is pruned.

    Attributes:
        latency_budget: A time ("5ms"), or a share ("80%") of what the network takes as it is.
        budgets: Further ones: "params=3M".
        target: What the latency is of.
        table: Its latency table's path; found by the target otherwise.
        space: The space whose options are taken; the one the folder names otherwise, or multiples
            of 8 where that is none.
        data: The data set; the one the folder names otherwise.
        importance: "taylor" or "sensitivity".
        measure: Whether to time what the table lacks.
        epochs: Of training on afterwards, taught by the network as it was; 0: none.
        seed: What every random choice follows from.
    """

    latency_budget: str
    budgets: tuple[str, ...] = ()
    target: str = DEFAULT_TARGET
    table: str | None = None
    space: str | None = None
    data: str | None = None
    importance: str = "taylor"
    measure: bool = False
    epochs: int = 0
    seed: int = 0

    def __post_init__(self) -> None:
        if self.importance not in METHODS:
            raise ConfigError(
                f"importance must be one of {', '.join(METHODS)}, but is {self.importance!r}."
            )
        if not 0 <= self.epochs <= 100_000:
            raise ConfigError(f"epochs must be 0 to 100000, but is {self.epochs}.")


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Source:
    """A trained network, what its folder says of it, and its images."""

    model: NasHybrid
    winner: Winner | None
    name: str  # of its space; the folder's where it has none
    data: Data

    @property
    def blocks(self) -> tuple[Block, ...]:
        """The network's blocks."""
        return self.model.blocks_spec


def prune(
    source: str,
    out: Path,
    config: PruneConfig,
    *,
    progress: Teller,
    timed: Timed | None = None,
    benches: Benches | None = None,
) -> Outcome:
    """Cut a trained network's inner numbers until it meets the budgets, and write it as a folder.

    What is cut is allocated as `nas search --importance` allocates: the least predicted loss within
    all budgets, by the table. Then the network is timed whole on the target, if that can be; where
    it is slower than its price, the level is lowered until what is measured meets the budget.

    Args:
        source: A winner's folder, any folder that timm loads, or a timm name; of blocks of ours, or
            one that `nas.network.stock` converts.
        out: Where the pruned network goes: a folder as `export` writes it.
        config: How.
        progress: Returns where a stage reports.
        timed: Times whole networks, those promised to meet the budget; by default on `benches`.
        benches: Makes the place where networks of the target run: on this machine by default,
            nowhere if the target is another's.

    Raises:
        InfeasibleBudget: not even the smallest inner numbers meet a budget, by the table or
            measured; the message names the least.
        CorruptFile: the folder is damaged.
        ConfigError: network, data, table and settings do not fit.
    """
    _refuse_own_folder(source, out)
    found = _source(source, config, progress("data"))
    space = _space(config.space or found.name, found.data, explicit=config.space is not None)
    target = Target.parse(config.target)
    if benches is None and target.is_here():
        benches = child_bench
    table = _table(target, found, space, config, progress("profile"), benches)
    fit = table.calibration(space or found.name, found.blocks)
    costs = PartCosts({latency_metric(target.id): table}, fit)
    cuts = _cuts(found, costs, table, fit, space)
    if timed is None and benches is not None:
        timed = _timer(table, benches, progress("latency"))
    levels = Levels(cuts, costs, target.id, timed)
    limits = levels.limits(config.latency_budget, config.budgets)
    done = _Done(blocks=found.blocks, limits=limits, table=table)
    if not levels.meet(found.blocks, limits):
        cuts.check(costs, limits)
        pruner = Pruner(found.model, found.data, network_importance(found.model, found.data))
        losses, fitness = pruner.losses(
            cuts,
            config.importance,
            seed=stage_seed(config.seed, "prune"),
            progress=progress("importance"),
        )
        blocks = levels.lowered(losses, limits)
        done = replace(done, blocks=blocks, pruner=pruner, fit=fitness)
    return _finished(found, out, config, levels, done, progress)


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Done:
    """What was decided: blocks, within which limits, by which table, and by what they are made."""

    blocks: tuple[Block, ...]
    limits: Mapping[str, float]
    table: LatencyTable
    pruner: Pruner | None = None
    fit: Mapping[str, float] = field(default_factory=dict)


# ---------------------------------------------------------------- what there is
def _refuse_own_folder(source: str, out: Path) -> None:
    if Path(source.removeprefix(timm_models.LOCAL)).resolve() == out.resolve():
        raise ConfigError(f"--out must be another folder than the network's own, {out}.")


def _source(source: str, config: PruneConfig, progress: Progress) -> Source:
    """Return the network, what its winner.json says if it has one, and its data."""
    folder = Path(source.removeprefix(timm_models.LOCAL))
    winner = None
    if folder.is_dir():
        if (folder / FILE).is_file():
            winner = Winner.load(folder)
            winner.check_files(folder)
        theirs = load_folder(folder)
    else:
        theirs = timm_models.create(source, pretrained=True)
    model = theirs if isinstance(theirs, NasHybrid) else stock.from_timm(theirs)
    model.eval().to(best_device())
    name = config.data or (winner.data if winner is not None else "")
    if not name:
        raise ConfigError(f"{source} names no data set; give --data, for example folder:DIR.")
    data = nas_data.load(name, image_size=model.img_size, progress=progress)
    shown: dict[str, Any] = getattr(model, "pretrained_cfg", {})  # as it was trained to see them
    data = replace(
        data,
        mean=tuple(shown.get("mean") or data.mean),
        std=tuple(shown.get("std") or data.std),
    )
    if (model.in_chans, model.num_classes) != (data.in_chans, data.num_classes):
        raise ConfigError(
            f"{source} takes {model.in_chans} channels and knows {model.num_classes} classes, but "
            f"{data.name} has {data.in_chans} and {data.num_classes}. Name the data set it was "
            "trained on."
        )
    known = folder.name if winner is None else Architecture.from_json(winner.architecture).space
    return Source(model=model, winner=winner, name=known, data=data)


def _space(name: str, data: Data, *, explicit: bool) -> SearchSpace | None:
    """Return a space for the data, None where a folder names one that is not there."""
    try:
        found = SearchSpace.load(name)
    except ConfigError:
        if explicit:
            raise
        return None
    return found.replace(
        num_classes=data.num_classes, in_chans=data.in_chans, image_size=data.image_size
    )


def _table(
    target: Target,
    found: Source,
    space: SearchSpace | None,
    config: PruneConfig,
    tell: Progress,
    benches: Benches | None,
) -> LatencyTable:
    """Return the target's table, with what it lacks measured into a copy if that is asked for."""
    path = find_table(target, config.table)
    if path is None and not config.measure:
        name = space.name if space is not None else "SPACE"
        raise ConfigError(
            f"there is no latency table of {target}. Make one with `nas profile --space {name} "
            f"--target {config.target}`, or add --measure: it times the parts of this network."
        )
    if not config.measure:
        assert path is not None
        return LatencyTable.load(path)
    own_path = path or Path(config.table or TABLES / f"{target.id}.json")
    if path is not None and config.table is None and TABLES not in path.parents:
        own_path = write_atomic(TABLES / path.name, path.read_bytes())  # a shipped one stays
    versions = [version for own in smaller(found.blocks, space) for version in own]
    return profile_table(
        [*found.blocks, *versions],
        target,
        own_path,
        replace(QUICK, calibrate_on=0),
        tell,
        benches=benches or child_bench,  # which says why it cannot
    )


def _cuts(
    found: Source, costs: PartCosts, table: LatencyTable, fit: Fitted, space: SearchSpace | None
) -> Cuts:
    """Return what the table has prices for.

    Raises:
        ConfigError: the table lacks a part of the network as it is.
    """
    try:
        table.estimate(found.blocks, fit)
    except ConfigError as error:
        raise ConfigError(f"{error} Or add --measure: it times the network's own parts.") from error
    return cuts_of(
        found.blocks,
        found.model.block_prefixes,
        costs,
        priced=lambda block: not table.missing([block], fit),
        space=space,
    )


def _timer(table: LatencyTable, benches: Benches, progress: Progress) -> Timed:
    careful = QUICK.for_winners()  # what is cut is promised to meet its budget
    return lambda networks: at_begun_speed(
        time_networks(networks, table, careful, progress=progress, benches=benches), table.known
    )


# ---------------------------------------------------------------- what comes out
def _finished(
    found: Source, out: Path, config: PruneConfig, levels: Levels, done: "_Done", progress: Teller
) -> Outcome:
    """Make the network, train it on if asked, write its folder, and say what became of it."""
    model, is_refitted = found.model, False
    search = found.data.split("search")
    scores = {"before": evaluate(found.model, search, found.data)}
    if done.pruner is not None:
        model, is_refitted = done.pruner.pruned(done.blocks)
        if is_refitted:  # what refitting alone does is not the cut's merit
            scores["refitted"] = evaluate(done.pruner.uncut(), search, found.data)
        scores["pruned"] = evaluate(model, search, found.data)
    if config.epochs:
        model = _trained_on(model, found, config, progress("distill"))
        scores["trained"] = evaluate(model, search, found.data)
    last = list(scores.values())[-1]
    winner = export_folder(
        model,
        folder=out,
        winner=_promise(found, levels, done, last.accuracy),
        data=found.data,
    )
    cut = [
        {"place": place, "field": field, "before": before, "after": after}
        for place, field, before, after in levels.cuts.changes(done.blocks)
    ]
    values = {
        "folder": str(out),
        "architecture_id": winner.id,
        "target": levels.target_id,
        "budgets": done.limits,
        "predicted": {
            "before": levels.predicted(found.blocks),
            "after": levels.predicted(done.blocks),
        },
        "measured": {
            name: to_plain(timing) for name, timing in levels.timings(done.blocks).items()
        },
        "params": {"before": _params(found.blocks), "after": _params(done.blocks)},
        "scores": {name: to_plain(score) for name, score in scores.items()},
        "cut": cut,
        "statistics_refitted": is_refitted,
        "importance": config.importance,
        "fit": dict(done.fit),
        "offered": levels.cuts.offered,
        "lacking": len(levels.cuts.lacking),
    }
    return Outcome(values=values, lines=told(values, target=config.target, epochs=config.epochs))


def _params(blocks: tuple[Block, ...]) -> int:
    return sum(block.params for block in blocks)


def _trained_on(
    model: NasHybrid, found: Source, config: PruneConfig, progress: Progress
) -> NasHybrid:
    """Return the network after more training, taught by the network it was."""
    settings = DistillConfig(
        epochs=config.epochs,
        lr=FINE_TUNE_LR,
        warmup_epochs=min(1.0, config.epochs / 4),
        batch_size=min(DistillConfig().batch_size, len(found.data.split("train"))),
        seed=stage_seed(config.seed, "prune/distill"),
    )
    student = copy.deepcopy(model)
    teacher = Teacher(found.model, found.data)
    train_alone(student, found.data, settings, teacher=teacher, progress=progress)
    return student


def _promise(found: Source, levels: Levels, done: "_Done", accuracy: float) -> Winner:
    before = found.winner.ancestry if found.winner is not None else Ancestry(study="", trial=-1)
    architecture = architecture_of(done.blocks, space=found.name)
    timing = levels.timings(done.blocks).get("after")
    result = TargetResult(target=levels.target_id)
    if timing is not None:
        result = result_of(timing, done.table.target)
    result = replace(
        result,
        predicted_ms=levels.predicted(done.blocks)[levels.metric],
        reference_promised_ms=result.reference_measured_ms,
    )
    return Winner(
        architecture=architecture.to_json(),
        blocks=tuple(map(str, done.blocks)),
        accuracy=Accuracy(search=accuracy, search_images=len(found.data.split("search"))),
        budgets=dict(done.limits),
        targets=(result,),
        ancestry=replace(
            before,
            tables={levels.target_id: done.table.digest},
            pruned_from=checkpoint.digest_tensors(found.model.state_dict()),
        ),
        data=found.data.name,
        command=shlex.join(["nas", *sys.argv[1:]]),
    )

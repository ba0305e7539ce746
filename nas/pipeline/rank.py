"""How truthfully the supernet ranks: a sample of its networks, each trained alone, compared."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from nas import files, processes
from nas.block import Block
from nas.data import Data
from nas.errors import ConfigError
from nas.latency import LatencyTable
from nas.pipeline.alone import Alone, AloneResult, Away, Trainer
from nas.pipeline.config import RunConfig
from nas.pipeline.materials import Materials
from nas.pipeline.outcome import Outcome, rows
from nas.pipeline.run import Run
from nas.pipeline.sample import Drawn, draw, repeated
from nas.report import RankedNetwork, RankReport, write_rank
from nas.seeds import stage_seed
from nas.space import SearchSpace
from nas.supernet.agreement import Agreement, Ceiling, Interval, agreement, ceiling

SCHEMA = 1
FOLDER = "rank"
RESULT = "rank.json"
# What is held against the accuracy alone, in the order of the table; more of each is better.
PREDICTORS = {
    "inherited_accuracy": "inherited accuracy",
    "inherited_loss": "inherited loss, negative",
    "params": "parameters",
    "macs": "MACs",
    "depth": "depth (blocks)",
    "latency_ms": "latency by the table",
}


def rank(
    run: Run,
    materials: Materials | None = None,
    *,
    jobs: int | None = None,
    engine: str = "local",
    address: str | None = None,
) -> Outcome:
    """Train a sample of the run's networks alone and hold the supernet's ranking against it.

    Each training is kept as it ends, and goes on from its checkpoint after a stop; the same
    settings trained once are not trained again. Writes rank.json, one HTML page and its pictures.

    Args:
        run: With a trained supernet; `config.rank` says how many networks and how they are
            trained.
        materials: Of that run.
        jobs: Networks trained at once, each in a process of its own with one thread; None is one,
            with Ray as many as there are CPUs for.
        engine: "local", or "ray": each training is a Ray task, and begun anew if its worker dies.
        address: Of a running Ray cluster; None starts Ray on this machine.

    Raises:
        ConfigError: the supernet is not trained, or a band of MACs holds too few networks.
        DeviceError: Ray is not there, or a task's workers died again and again.
    """
    if jobs is not None and jobs < 1:
        raise ConfigError(f"jobs must be at least 1, but is {jobs}.")
    engines = replace(run.config, engine=engine, address=address)  # which checks them
    materials = materials or Materials(run)
    config = run.config.rank
    supernet_digest = run.result("train", make_with="train")["digest"]
    sample = sample_of(materials.space, run.config)
    trained = _trained_alone(run, materials, sample, engines, jobs)
    networks = _networks(run, materials, sample, trained)
    compared, limit = compare(networks, resamples=config.resamples)
    result = {
        "schema": SCHEMA,
        "space": materials.space.name,
        "data": materials.data.name,
        "data_digest": materials.data.digest,
        "supernet_digest": supernet_digest,
        "seed": run.config.seed,
        "settings": files.to_plain(config),
        "networks": [files.to_plain(network) for network in networks],
        "agreements": [files.to_plain(each) for each in compared],
        "ceiling": files.to_plain(limit),
        "inherited_less_alone": inherited_less_alone(networks),
    }
    folder = run.folder / FOLDER
    files.write_json(folder / RESULT, result)
    lines = told(networks, compared, limit)
    shown = RankReport(
        title=run.folder.name, about=about(run, networks), networks=networks,
        agreements=tuple(compared), names=PREDICTORS, ceiling=limit, lines=lines,
    )  # fmt: skip
    page = write_rank(folder, shown)
    run.log("rank", "done", page=page)
    return Outcome(values={**result, "page": str(page)}, lines=(*lines, "", f"page: {page}"))


def about(run: Run, networks: Sequence[RankedNetwork]) -> str:
    """Return one sentence on what was trained and how."""
    config = run.config.rank
    size = [network.macs / 1e6 for network in networks]
    return (
        f"{len(networks)} networks of {run.config.space} in {config.bands} bands of "
        f"{min(size):.3g} to {max(size):.3g} MMACs, each trained alone on {run.config.data} for "
        f"{config.train.epochs} epochs, {config.twice} of them twice; seed {run.config.seed}."
    )


# ---------------------------------------------------------------- training
def _trained_alone(
    run: Run, materials: Materials, sample: Sequence[Drawn], engines: RunConfig, jobs: int | None
) -> dict[str, AloneResult]:
    """Return what each training came to, by its name; those that are done are read."""
    data = materials.data
    trainer = trainer_of(run.folder, run.config, data)
    tasks = trainings(materials.space, sample, run.config.rank.twice)
    known = {task.name: trainer.known(task, data) for task in tasks}
    found = {name: result for name, result in known.items() if result is not None}
    waiting = [task for task in tasks if task.name not in found]
    tell = run.progress("rank")
    tell(len(found), len(tasks), f"trained alone, {len(waiting)} to go" if waiting else "all kept")
    for task, result in each_training(trainer, waiting, data, engines, jobs):
        found[task.name] = result
        text = f"{task.name}: {result.accuracy:.1%} alone, {result.seconds:.0f} s of processor"
        run.log("rank", "trained", network=task.name, accuracy=result.accuracy)
        tell(len(found), len(tasks), text)
    return found


def each_training(
    trainer: Trainer, tasks: Sequence[Alone], data: Data, config: RunConfig, jobs: int | None
) -> Iterator[tuple[Alone, AloneResult]]:
    """Yield every training and what it came to, which is kept by then."""
    if config.engine == "local" or not tasks:
        yield from processes.each(trainer, tasks, jobs=jobs or 1)
        return
    from nas.search import each_by_ray

    away = Away(trainer=trainer, data=data)
    for task, result in each_by_ray(away, tasks, at_once=jobs, address=config.address):
        trainer.keep(task, data, result)
        yield task, result


def trainer_of(folder: Path, config: RunConfig, data: Data) -> Trainer:
    """Return what trains the sample of the run in a folder."""
    return Trainer(
        folder=folder / FOLDER / "alone",
        data=data.name,
        image_size=data.image_size,
        config=replace(config.rank.train, seed=stage_seed(config.seed, "rank")),
    )


def sample_of(space: SearchSpace, config: RunConfig) -> tuple[Drawn, ...]:
    """Return the sample of a run."""
    return draw(space, config.rank, seed=stage_seed(config.seed, "rank sample"))


def trainings(space: SearchSpace, sample: Sequence[Drawn], twice: int) -> list[Alone]:
    """Return every training there is, the dearest networks first: no process waits for one."""
    again = repeated(len(sample), twice)
    tasks = []
    for place, drawn in reversed(list(enumerate(sample))):
        blocks = tuple(map(str, space.blocks(drawn.architecture)))
        for number in range(2 if place in again else 1):
            tasks.append(Alone(id=drawn.architecture.id, blocks=blocks, number=number))
    return tasks


def _networks(
    run: Run, materials: Materials, sample: Sequence[Drawn], trained: Mapping[str, AloneResult]
) -> tuple[RankedNetwork, ...]:
    space = materials.space
    blocks = [space.blocks(drawn.architecture) for drawn in sample]
    latencies = _latencies(run, materials, blocks)
    found = []
    for place, drawn in enumerate(sample):
        inherited = materials.evaluator.quality(drawn.architecture)
        name = drawn.architecture.id
        own = [trained[key] for key in (f"{name}-0", f"{name}-1") if key in trained]
        found.append(
            RankedNetwork(
                id=name,
                band=drawn.band,
                inherited_accuracy=inherited.accuracy,
                inherited_loss=inherited.loss,
                alone_accuracies=tuple(each.accuracy for each in own),
                params=sum(block.params for block in blocks[place]),
                macs=sum(block.macs for block in blocks[place]),
                depth=sum(len(stage.blocks) for stage in drawn.architecture.stages),
                latency_ms=latencies[place],
            )
        )
    return tuple(found)


def _latencies(
    run: Run, materials: Materials, networks: Sequence[Sequence[Block]]
) -> list[float | None]:
    """Return each network's latency by the table of the run's target, None without one."""
    path: Path = materials.table_path
    if not path.is_file():
        return [None] * len(networks)
    table = LatencyTable.load(path)
    if any(table.missing(blocks) for blocks in networks):
        run.log("rank", "table lacks entries", table=path)
        return [None] * len(networks)
    return [table.estimate(blocks, materials.space) for blocks in networks]


# ---------------------------------------------------------------- comparing
def compare(
    networks: Sequence[RankedNetwork], *, resamples: int
) -> tuple[list[Agreement], Ceiling | None]:
    """Return how each predictor ranks the networks, and what noise leaves to be had."""
    accuracies = [network.alone_accuracy for network in networks]
    macs = [float(network.macs) for network in networks]
    bands = [network.band for network in networks]
    found = []
    for key in PREDICTORS:
        values = [getattr(network, key) for network in networks]
        if None in values:
            continue
        predicted = [-value if key == "inherited_loss" else float(value) for value in values]
        found.append(
            agreement(key, predicted, accuracies, macs=macs, bands=bands, resamples=resamples)
        )
    return found, ceiling([network.alone_accuracies for network in networks])


def inherited_less_alone(networks: Sequence[RankedNetwork]) -> dict[str, float]:
    """Return the mean difference of inherited and stand-alone accuracy, and the largest one."""
    gaps = [network.inherited_accuracy - network.alone_accuracy for network in networks]
    return {"mean": sum(gaps) / len(gaps), "largest": max(gaps, key=abs)}


def told(
    networks: Sequence[RankedNetwork], compared: Sequence[Agreement], limit: Ceiling | None
) -> tuple[str, ...]:
    """Return the table and what stands below it as lines of text."""
    header = ["predictor", "tau [95 %]", "Spearman [95 %]", "tau|MACs", "in band"]
    cells = [[*header, "regret@1", "@3", "@5"]]
    for each in compared:
        regrets = [f"{100 * value:.1f}" for value in each.regret.values()]
        middle = [_interval(each.tau), _interval(each.spearman), _number(each.tau_given_macs)]
        share = "-" if each.in_band is None else f"{each.in_band:.0%}"
        cells.append([PREDICTORS[each.predictor], *middle, share, *regrets])
    widths = [max(len(row[column]) for row in cells) for column in range(len(cells[0]))]
    lines = [
        "  ".join(
            text.ljust(width) if column == 0 else text.rjust(width)
            for column, (text, width) in enumerate(zip(row, widths, strict=True))
        )
        for row in cells
    ]
    gap = inherited_less_alone(networks)
    alone = [network.alone_accuracy for network in networks]
    facts = {
        "networks": f"{len(networks)}, {min(alone):.1%} to {max(alone):.1%} trained alone",
        "inherited less alone": f"{100 * gap['mean']:+.1f} points on average, "
        f"{100 * gap['largest']:+.1f} at most",
        "noise ceiling": _ceiling(limit),
        "regret": "points of accuracy lost by training only the 1, 3, 5 predicted best",
    }
    return (*lines, "", *rows(facts))


def _ceiling(limit: Ceiling | None) -> str:
    if limit is None:
        return "not known: no network was trained twice"
    return (
        f"tau {_number(limit.tau)} for a perfect predictor (a training is noisy by "
        f"{100 * limit.noise:.2f} points; {limit.networks} trained twice, "
        f"tau {_number(limit.retest_tau)} between their two)"
    )


def _interval(value: Interval | None) -> str:
    return "-" if value is None else f"{value.value:.2f} [{value.low:.2f}, {value.high:.2f}]"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"

"""The search stage: evaluate architectures under the budget, measure the best ones whole."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nas.errors import ConfigError, InfeasibleBudget
from nas.latency import Timing, time_networks
from nas.pipeline import budget as budgets
from nas.pipeline import workers
from nas.pipeline.budget import Budget, Pricer
from nas.pipeline.materials import Materials
from nas.pipeline.outcome import Outcome, rows
from nas.pipeline.run import Progress, Run
from nas.search import SearchOptions
from nas.search import run as run_search
from nas.seeds import stage_seed
from nas.space import Architecture
from nas.study import Study, Trial
from nas.supernet import taylor

# How far a candidate's price is from the middle of the level searched, as a share of the budget.
OFF_LEVEL = "off_level"
MEASURED_AT_ONCE = 4
MOST_STUDIES = 1000


def search(run: Run, materials: Materials | None = None) -> Outcome:
    """Search under the budget, then measure the best candidates whole, in order.

    Raises:
        InfeasibleBudget: nothing in the space meets the budget, or no candidate did when measured.
        ConfigError: a stage this one needs is missing.
    """
    materials = materials or Materials(run)
    name = run.study

    def work(progress: Progress) -> dict[str, Any]:
        return _search(run, materials, name, progress)

    result = run.stage(f"search/{name}", work)
    lines = [
        *rows(
            {
                "study": f"{result['study']} ({result['evaluated']} candidates evaluated)",
                "budget": f"{result['budget_ms']:.4g} ms on {materials.target.id}",
                "random networks that meet it": f"{result['feasible_share']:.1%}",
                "measured whole": f"{len(result['measured'])}, "
                f"{len(result['chosen'])} meet the budget",
            }
        )
    ]
    return Outcome(values=result, lines=tuple(lines))


def _search(run: Run, materials: Materials, name: str, progress: Progress) -> dict[str, Any]:
    prices, budget = budgets.priced(run, materials)
    study = _study(
        name,
        named=bool(run.config.study),
        resume=run.resume,
        storage=run.config.storage,
        attrs=_about(run, materials),
    )
    _evaluate(run, materials, study, prices=prices, budget=budget, progress=progress)
    measured = list(measure_best(run, materials, study, budget, progress))
    chosen = [row["trial"] for row in measured if row["meets"]]
    if not chosen:
        raise _none_met(measured, budget)
    return {
        "study": study.name,
        "storage": study.url,
        "evaluated": len(study.trials),
        "ended": study.ended,
        "budget_ms": budget.latency_ms,
        "budgets": budget.limits,
        "feasible_share": budgets.feasible_share(materials.space, prices, budget),
        "feasible_sample": budgets.RANDOM_DRAWS,
        "measured": measured,
        "chosen": chosen,
    }


def _about(run: Run, materials: Materials) -> dict[str, Any]:
    """Return what tells this search from every other, as the study's attributes."""
    target_id = materials.target.id
    return {
        "space": materials.space.name,
        "space_digest": materials.space.digest,
        "targets": [target_id],
        "table_digests": {target_id: materials.table.digest},
        "supernet_digest": run.result("train", make_with="train")["digest"],
        "data_digest": materials.data.digest,
        "settings": run.config.reads("search"),
    }


def _evaluate(
    run: Run,
    materials: Materials,
    study: Study,
    *,
    prices: Mapping[str, Pricer],
    budget: Budget,
    progress: Progress,
) -> None:
    """Fill the study: candidates at the level below the budget, scored by the supernet."""
    config, space = run.config, materials.space
    middle = (1 - config.margin + config.least_use) / 2
    half = (1 - config.margin - config.least_use) / 2

    def price(choices: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        codes = space.encode(choices)
        costs = {metric: pricer(codes) for metric, pricer in prices.items()}
        return {**costs, OFF_LEVEL: abs(costs[budget.metric] / budget.latency_ms - middle)}

    def describe(choice: Mapping[str, Any]) -> dict[str, Any]:
        architecture = space.architecture(choice)
        return {"architecture": architecture.to_json(), "architecture_id": architecture.id}

    with workers.executor(run, study) as executor:
        run_search(
            space.genes(),
            workers.evaluator(materials),
            price,
            {**budget.limits, OFF_LEVEL: half},
            evaluations=config.evaluations,
            seed=stage_seed(config.seed, "search"),
            options=SearchOptions(
                sampler=config.sampler,
                rank_by="loss",
                batch=workers.batch(config, study),
                complete=lambda choice, level: space.choice(space.architecture(choice)),
                key=lambda choice: space.architecture(choice).id,
                describe=describe,
                lost=_lost(run, materials) if config.sampler == "slimming" else None,
                executor=executor,
                timeout_s=config.timeout_s if executor is None else None,  # else its workers'
                progress=progress,
            ),
            study=study,
        )


def _lost(run: Run, materials: Materials) -> taylor.Lost:
    """Return what each option of each gene is predicted to lose, for the sampler slimming."""
    space, kinds = materials.space, run.result("train", make_with="train")["kinds"]
    path = taylor.fitted_path(space, kinds)
    branches = taylor.measure_branches(materials.supernet, path, materials.data)
    return taylor.predicted_losses(space, path, branches, kinds)


def _none_met(measured: Sequence[Mapping[str, Any]], budget: Budget) -> InfeasibleBudget:
    fastest_ms = min(float(row["ci_high_ms"]) for row in measured)
    return InfeasibleBudget(
        f"none of the {len(measured)} best candidates meets {budget.latency_ms:.4g} ms when "
        f"measured whole; the fastest takes {fastest_ms:.4g} ms. "
        "Profile again on a quiet machine, or raise margin.",
        metric=budget.metric,
        budget=budget.latency_ms,
        smallest=fastest_ms,
    )


def _study(
    name: str, *, named: bool, resume: bool, storage: str | None, attrs: Mapping[str, Any]
) -> Study:
    """Return the study of this name to go on with; a run's own gets a number if that is taken.

    Raises:
        ConfigError: it was begun otherwise, and it is not another run's; the message shows how.
    """
    for number in range(2, MOST_STUDIES):
        try:
            return Study.resume(name, storage=storage, attrs=attrs)
        except ConfigError:
            if named:
                raise
            there = Study.load(name, storage=storage)  # not there, or not to be opened: says why
            if resume and there.attrs.get("supernet_digest") == attrs["supernet_digest"]:
                raise
            name = f"{name.rpartition('-')[0] if number > 2 else name}-{number}"
    return Study.resume(name, storage=storage, attrs=attrs)


def by_loss(trials: Sequence[Trial]) -> list[Trial]:
    """Return complete trials, the lowest cross-entropy on the search split first.

    Ranking by loss is steadier than by accuracy, which ties on small splits.
    """
    complete = [trial for trial in trials if trial.is_complete]
    return sorted(complete, key=lambda t: (t.loss if t.loss is not None else 0.0, t.number))


def measure_best(
    run: Run, materials: Materials, study: Study, budget: Budget, progress: Progress
) -> Iterator[dict[str, Any]]:
    """Measure the best candidates whole, a few at a time, until enough meet the budget.

    Yields a row a candidate: trial, architecture, predicted and measured ms, whether the upper
    end of the interval of its median meets the budget.
    """
    config = run.config
    waiting = by_loss(study.trials)[: config.candidates]
    at_once = MEASURED_AT_ONCE if materials.timed is None else max(len(waiting), 1)
    met = 0
    while waiting and met < config.winners:
        batch, waiting = waiting[:at_once], waiting[at_once:]
        timings = _measure(materials, batch, progress)
        for trial in batch:
            timing = timings[str(trial.number)]
            is_met = timing.ci_high_ms <= budget.latency_ms
            row = {
                "trial": trial.number,
                "architecture_id": trial.architecture_id,
                "accuracy": trial.accuracy,
                "predicted_ms": trial.costs[budget.metric],
                "measured_ms": timing.median_ms,
                "ci_high_ms": timing.ci_high_ms,
                "grade": timing.grade,
                "meets": is_met,
            }
            study.record_measurement(
                trial.number, materials.target.id, "latency_ms", timing.median_ms,
                timing.ci_high_ms,
            )  # fmt: skip
            met += is_met
            yield row


def _measure(materials: Materials, batch: Sequence[Trial], progress: Progress) -> dict[str, Timing]:
    """Return {trial number: timing}."""
    networks = {
        str(trial.number): materials.space.blocks(Architecture.from_json(trial.architecture))
        for trial in batch
    }
    if materials.timed is not None:
        return materials.timed(networks)
    return time_networks(
        networks,
        materials.table,
        materials.run.config.profile,
        progress=progress,
        benches=materials.benches,
        export=materials.parts,
    )

"""The search stage: evaluate architectures under the budget, measure the best ones whole."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np

from nas.errors import ConfigError, InfeasibleBudget
from nas.latency import Timing
from nas.pipeline import budget as budgets
from nas.pipeline import workers
from nas.pipeline.allocation import Completion
from nas.pipeline.budget import Budget
from nas.pipeline.completion import Level, completion_of
from nas.pipeline.importance import loss_table
from nas.pipeline.materials import Materials
from nas.pipeline.outcome import Outcome, rows
from nas.pipeline.recalibrate import recalibrate
from nas.pipeline.recalibrate import told as recalibration_told
from nas.pipeline.run import Progress, Run
from nas.search import SearchOptions
from nas.search import run as run_search
from nas.search.mind import whole_key
from nas.seeds import stage_seed
from nas.space import Architecture
from nas.study import Study, Trial, describe_cost, front_metrics, latency_metric
from nas.supernet import taylor

# How far a candidate's price is from the middle of the level searched, as a share of the budget.
OFF_LEVEL = "off_level"
MEASURED_AT_ONCE = 4
DRIFT = 0.05  # predictions further off are said to be
MOST_STUDIES = 1000


def search(run: Run, materials: Materials | None = None) -> Outcome:
    """Search under the budget, then measure the best candidates whole, in order.

    The best are those of lowest loss; in mode "front" those that are spread along the front.

    Raises:
        InfeasibleBudget: nothing in the space meets the budget, or no candidate did when measured.
        ConfigError: a stage this one needs is missing.
    """
    materials = materials or Materials(run)
    name = run.study

    def work(progress: Progress) -> dict[str, Any]:
        return _search(run, materials, name, progress)

    result = run.stage(f"search/{name}", work)
    lines = rows(
        {
            "study": f"{result['study']} ({result['evaluated']} candidates evaluated)",
            **{
                f"budget of {metric}": describe_cost(metric, limit)
                for metric, limit in result["budgets"].items()
            },
            "random networks that meet it": f"{result['feasible_share']:.1%}",
            "measured whole": f"{len(result['measured'])}, {len(result['chosen'])} meet the budget",
        }
    )
    told = [_told(row) for row in result["measured"]]
    today = [recalibration_told(name, row) for name, row in result.get("recalibrated", {}).items()]
    drifted = [_drift_told(*row) for row in result.get("measured_by_predicted", {}).items()]
    return Outcome(values=result, lines=(*lines, *today, *told, *filter(None, drifted)))


def _told(row: Mapping[str, Any]) -> str:
    """Return a measured candidate in words: what is left of the budget, or where it is over."""
    share = f"{abs(row['slack']):.1%} of the budget"
    verdict = f"{share} left" if row["meets"] else f"refused, {share} over on {row['tightest']}"
    return f"  {row['architecture_id']}  {row['accuracy']:.1%}  {verdict}"


def measured_by_predicted(measured: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    """Return {target: median of measured by predicted ms} of candidates measured whole."""
    ratios: dict[str, list[float]] = {}
    for row in measured:
        for target_id, each in row["latencies"].items():
            ratio = float(each["measured_ms"]) / float(each["predicted_ms"])
            ratios.setdefault(target_id, []).append(ratio)
    return {target_id: float(np.median(own)) for target_id, own in ratios.items()}


def _drift_told(target_id: str, ratio: float) -> str | None:
    """Return what a table that is off by more than it may be means for the budget, if it is."""
    if abs(ratio - 1) <= DRIFT:
        return None
    now, means = (
        ("faster", "part of the budget stays unused") if ratio < 1
        else ("slower", "candidates are refused that need not have been tried")
    )  # fmt: skip
    return (
        f"  candidates take {ratio:.2f} x what was predicted on {target_id}: the machine is {now} "
        f"now than before, or the table is off, and {means}. Profile it again in "
        "another run (nas profile --run NEW --table NEW.json) and search with --table NEW.json."
    )


def _search(run: Run, materials: Materials, name: str, progress: Progress) -> dict[str, Any]:
    recalibrated = _recalibrate(run, materials)
    prices, budget = budgets.priced(run, materials)
    completion = completion_of(run, materials, prices, budget)
    study = _study(
        name,
        named=bool(run.config.study),
        resume=run.resume,
        storage=run.config.storage,
        attrs=_about(run, materials),
    )
    _evaluate(run, materials, study, completion=completion, budget=budget, progress=progress)
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
        "recalibrated": recalibrated,
        "measured_by_predicted": measured_by_predicted(measured),
        "chosen": chosen,
    }


def _recalibrate(run: Run, materials: Materials) -> dict[str, Any]:
    """Hold the tables against a few networks of today; see `nas.pipeline.recalibrate`."""
    if run.recalibrate_key in run.stages:
        return run.result(run.recalibrate_key, make_with="search")
    prices, budget = budgets.priced(run, materials)
    completion = completion_of(run, materials, prices, budget)
    return recalibrate(run, materials, completion, Level.of(run.config, budget))


def _about(run: Run, materials: Materials) -> dict[str, Any]:
    """Return what tells this search from every other, as the study's attributes."""
    about = {
        "space": materials.space.name,
        "space_digest": materials.space.digest,
        "targets": list(materials.tables),
        "table_digests": {name: table.digest for name, table in materials.tables.items()},
        "supernet_digest": run.result("train", make_with="train")["digest"],
        "data_digest": materials.data.digest,
        "settings": run.config.reads("search"),
    }
    done = run.stages.get(run.recalibrate_key)
    if done is not None:
        about["price_factors"] = {name: row["factor"] for name, row in done["result"].items()}
    if run.config.importance != "none":
        about["losses_digest"] = loss_table(run, materials).digest
    return about


def _evaluate(
    run: Run,
    materials: Materials,
    study: Study,
    *,
    completion: Completion,
    budget: Budget,
    progress: Progress,
) -> None:
    """Fill the study: candidates at the level below the budget, scored by the supernet."""
    config = run.config
    level = Level.of(config, budget)

    def price(choices: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        costs = completion.price(choices)
        return {**costs, OFF_LEVEL: level.off(costs, costs)}

    def bound(choices: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
        least, most = completion.bounds(choices)
        return {**least, OFF_LEVEL: level.off(least, most)}

    def describe(choice: Mapping[str, Any]) -> dict[str, Any]:
        architecture = completion.architecture(choice)
        return {"architecture": architecture.to_json(), "architecture_id": architecture.id}

    with workers.executor(run, study) as executor:
        run_search(
            completion.genes,
            workers.evaluator(materials, completion.architecture),
            price,
            {**budget.limits, OFF_LEVEL: level.half},
            evaluations=config.evaluations,
            seed=stage_seed(config.seed, "search"),
            options=SearchOptions(
                sampler=config.sampler,
                mode=config.mode,  # type: ignore[arg-type]  # checked by the settings
                rank_by="loss",
                batch=workers.batch(config, study),
                complete=lambda choice, level: completion.canonical(choice),
                bound=bound,
                key=lambda choice: whole_key(completion.canonical(choice)),
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
    nearest = max(measured, key=lambda row: float(row["slack"]))
    target_id = nearest["tightest"]
    metric = latency_metric(target_id)
    limit_ms = budget.latencies_ms[metric]
    fastest_ms = limit_ms * (1 - float(nearest["slack"]))  # by the statistic that was asked for
    return InfeasibleBudget(
        f"none of the {len(measured)} best candidates meets {limit_ms:.4g} ms on {target_id} when "
        f"measured whole; the nearest takes {fastest_ms:.4g} ms. "
        "Profile again on a quiet machine, or raise margin.",
        metric=metric,
        budget=limit_ms,
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


def spread(front: Sequence[Trial], metrics: Sequence[str]) -> list[Trial]:
    """Return the trials of a front, the lowest loss first, so that the first few span it.

    Each of the others is the farthest from those before it in the logarithm of a cost
    (farthest-first traversal: Gonzalez 1985).
    """
    best_first = by_loss(front)
    places = np.log([[trial.costs[name] for name in metrics] for trial in best_first])
    order: list[int] = []
    distance = np.full(len(front), np.inf)
    while len(order) < len(front):
        order.append(int(distance.argmax()))
        distance = np.minimum(distance, np.abs(places - places[order[-1]]).max(axis=1))
        distance[order[-1]] = -1.0  # taken, as equals of it are not
    return [best_first[place] for place in order]


def measure_best(
    run: Run, materials: Materials, study: Study, budget: Budget, progress: Progress
) -> Iterator[dict[str, Any]]:
    """Measure the best candidates whole on every target, a few at a time, until enough meet all.

    Yields a row a candidate: trial, architecture, predicted and measured ms on the first target,
    the same of each target as `latencies`, which budget is the tightest, the share of it that is
    left (`slack`, below 0 if it is over), and whether every budget is met by what `statistic` says.
    """
    config = run.config
    if config.mode == "front":
        best = spread(study.front(by="loss"), front_metrics(None, study.metrics))
    else:
        best = by_loss(study.trials)
    waiting = best[: config.candidates]
    at_once = MEASURED_AT_ONCE if materials.timed is None else max(len(waiting), 1)
    met = 0
    while waiting and met < config.winners:
        batch, waiting = waiting[:at_once], waiting[at_once:]
        networks = {
            str(trial.number): materials.space.blocks(Architecture.from_json(trial.architecture))
            for trial in batch
        }
        timings = {
            target_id: materials.time(table, networks, progress)
            for target_id, table in materials.tables.items()
        }
        for trial in batch:
            found = {name: own[str(trial.number)] for name, own in timings.items()}
            for target_id, timing in found.items():
                study.record_measurement(
                    trial.number, target_id, "latency_ms", timing.median_ms, timing.ci_high_ms
                )
            row = measured_row(trial, found, budget, config.statistic)
            met += row["meets"]
            yield row


def measured_row(
    trial: Trial, found: Mapping[str, Timing], budget: Budget, statistic: str
) -> dict[str, Any]:
    """Return what was measured of one candidate, and whether it meets the budgets.

    Args:
        trial: The candidate.
        found: Its timing by target id, the first target's first.
        budget: The budgets.
        statistic: "median" holds the upper end of the median's interval against the budget,
            "p95" the 95th percentile of all runs.
    """
    used = {
        target_id: (timing.ci_high_ms if statistic == "median" else timing.p95)
        / budget.latencies_ms[latency_metric(target_id)]
        for target_id, timing in found.items()
    }
    tightest = max(used, key=lambda target_id: used[target_id])
    latencies = {
        target_id: {
            "predicted_ms": trial.costs[latency_metric(target_id)],
            "measured_ms": timing.median_ms,
            "ci_high_ms": timing.ci_high_ms,
            "p95_ms": timing.p95,
            "grade": timing.grade,
            "reference_ms": timing.reference_ms,
        }
        for target_id, timing in found.items()
    }
    first = next(iter(latencies.values()))
    return {
        "trial": trial.number,
        "architecture_id": trial.architecture_id,
        "accuracy": trial.accuracy,
        **{name: first[name] for name in ("predicted_ms", "measured_ms", "ci_high_ms", "grade")},
        "latencies": latencies,
        "tightest": tightest,
        "slack": 1 - used[tightest],
        "meets": used[tightest] <= 1,
    }

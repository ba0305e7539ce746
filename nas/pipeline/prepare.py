"""The first two stages: profile the device, train the supernet."""

from dataclasses import replace
from typing import Any

from nas import checkpoint
from nas.latency import Check, LatencyTable, check, plan, time_networks
from nas.latency import profile as profile_table
from nas.latency.calibration import calibration_name
from nas.latency.measure import at_begun_speed
from nas.network.stock import pretrained
from nas.pipeline import budget as budgets
from nas.pipeline.materials import Materials, best_device
from nas.pipeline.outcome import Outcome, rows
from nas.pipeline.run import Progress, Run
from nas.report import Prediction, prediction_errors
from nas.seeds import stage_seed
from nas.space import Architecture
from nas.supernet import SuperNet, embed, score
from nas.supernet import train as train_supernet

PREDICTION_KEYS = ("id", "measured_ms", "table_ms", "isolated_ms", "macs_ms")


# ---------------------------------------------------------------- profile
def plan_profile(run: Run, materials: Materials | None = None) -> Outcome:
    """Say what profiling would measure and for how long, without measuring."""
    materials = materials or Materials(run)
    path = materials.table_path
    found = plan(materials.space, materials.target, path, run.config.profile)
    values = {
        "table": str(path),
        "needed": len(found.needed),
        "missing": [recipe.entry for recipe in found.missing],
        "interpolated": list(found.between),
        "networks": found.networks,
        "seconds": round(found.seconds, 1),
    }
    lines = rows(
        {
            "table": str(path),
            "entries": f"{len(found.needed)} needed, {len(found.missing)} missing"
            + (f", {len(found.between)} to interpolate" if found.between else ""),
            "whole networks": str(found.networks),
            "time": f"about {found.seconds:.0f} s on a quiet machine",
        }
    )
    return Outcome(values=values, lines=lines)


def profile(run: Run, materials: Materials | None = None) -> Outcome:
    """Measure what the space needs and the table lacks; see that the budget can be met at all.

    Raises:
        InfeasibleBudget: even the cheapest architecture is over the run's budget.
    """
    materials = materials or Materials(run)
    result = run.stage(run.profile_key, lambda progress: _profile(run, materials, progress))
    for words in run.config.other_targets:
        other = replace(run, config=replace(run.config, target=words, other_targets=()))
        _profile_other(other, materials)
    _, budget = budgets.priced(run, materials)
    lines = rows(
        {
            "table": result["table"],
            "entries": f"{result['entries']} on {materials.target.id}" + _how_priced(result),
            "largest network": f"{result['largest_ms']:.4g} ms measured",
            "fastest network": f"{result['fastest_ms']:.4g} ms predicted",
            "budget": f"{budget.latency_ms:.4g} ms ({run.config.latency_budget})",
            "error on unseen": errors_text(result["predictions"]),
        }
    )
    return Outcome(values={**result, "budget_ms": budget.latency_ms}, lines=lines)


def _how_priced(result: dict[str, Any]) -> str:
    """Return what a user should know of how the prices came about, if it is not the usual way."""
    text = ""
    if result.get("interpolated"):
        text += f", {result['interpolated']} of them interpolated"
    if result.get("by_block"):
        text += f"; {', '.join(result['by_block'])} by whole blocks"
    return text


def _profile_other(run: Run, materials: Materials) -> None:
    """Measure what the space needs on a further target; `run` is the same with that target."""
    own = Materials(run)
    own.data, own.space, own.parts = materials.data, materials.space, materials.parts
    run.stage(run.profile_key, lambda progress: _profile(run, own, progress))


def _profile(run: Run, materials: Materials, progress: Progress) -> dict[str, Any]:
    config, space, target = run.config, materials.space, materials.target
    path = materials.own_table()
    table = profile_table(
        space,
        target,
        path,
        config.profile,
        progress,
        export=materials.parts,
        benches=materials.benches,
    )
    fastest, fastest_ms = budgets.cheapest(space, table.pricer(space))
    largest = space.largest()
    fit = table.calibration(space)
    known = fit.fitted_on if fit is not None else {}
    if largest.id not in known:
        alone = {largest.id: space.blocks(largest)}
        timings = time_networks(
            alone,
            table,
            config.profile,
            progress=progress,
            export=materials.parts,
            benches=materials.benches,
        )
        timings = at_begun_speed(timings, table.known)
        known = {largest.id: timings[largest.id].median_ms}
    checked = check(
        table,
        space,
        networks=config.check_networks,
        config=config.profile,
        progress=progress,
        export=materials.parts,
        benches=materials.benches,
    )
    return profiled(table, (fastest, fastest_ms), known[largest.id], checked)


def profiled(
    table: LatencyTable, fastest: tuple[Architecture, float], largest_ms: float, checked: Check
) -> dict[str, Any]:
    """Return what later stages read of a profile: its table, the space's ends, its errors."""
    fit = table.calibration(calibration_name(fastest[0].space, fastest[0].image_size))
    return {
        "table": table.path,
        "digest": table.digest,
        "target": table.target.id,
        "entries": len(table.entries),
        "interpolated": sum(entry.interpolated is not None for entry in table.entries.values()),
        "by_block": list(fit.by_block) if fit is not None else [],
        "fastest": fastest[0].id,
        "fastest_ms": fastest[1],
        "largest_ms": largest_ms,
        "predictions": [
            {key: getattr(row, key) for key in PREDICTION_KEYS} for row in checked.rows
        ],
    }


def errors_text(predictions: list[dict[str, Any]]) -> str:
    """Return the mean error of the table and of its rivals on unseen whole networks."""
    errors = prediction_errors([Prediction(**row) for row in predictions])
    return (
        f"{errors['table_ms'].mean:.1%} off on {len(predictions)} unseen networks (sum of isolated "
        f"parts {errors['isolated_ms'].mean:.0%}, line through MACs {errors['macs_ms'].mean:.0%})"
    )


# ---------------------------------------------------------------- train
def train(run: Run, materials: Materials | None = None) -> Outcome:
    """Train the supernet once, for every device and budget."""
    materials = materials or Materials(run)

    def work(progress: Progress) -> dict[str, Any]:
        config, space, data = run.config, materials.space, materials.data
        supernet = SuperNet(space, seed=stage_seed(config.seed, "supernet"))
        started = None if config.init is None else _start(supernet, config.init)
        supernet.to(best_device())
        settings = replace(config.train, seed=stage_seed(config.seed, "train"))
        folder = run.folder / "supernet"
        teacher = materials.teacher if settings.needs_teacher else None
        trained = train_supernet(
            supernet, data, settings, folder, teacher=teacher, progress=progress
        )
        ends = {"smallest": space.smallest(), "largest": space.largest()}
        accuracies = {end: score(supernet, ends[end], data).accuracy for end in ends}
        return {
            "folder": str(folder),
            "digest": checkpoint.digest_tensors(supernet.state_dict()),
            "steps": trained.history[-1]["step"] if trained.history else 0,
            "accuracy": accuracies,
            "kinds": trained.choice.probabilities(),
            "averaged": trained.is_averaged,
            "init": started,
        }

    result = run.stage("train", work)
    accuracy, started = result["accuracy"], result.get("init")
    begun = {} if started is None else {"started from": f"{run.config.init} as {started}"}
    lines = rows(
        {
            "supernet": f"{result['folder']} ({result['steps']} steps)",
            **begun,
            "largest network": f"{accuracy['largest']:.1%} on the search split",
            "smallest network": f"{accuracy['smallest']:.1%}",
        }
    )
    return Outcome(values=result, lines=lines)


def _start(supernet: SuperNet, source: str) -> str:
    """Give a supernet the weights of a network; return the id of the path that has them."""
    space = supernet.space
    network = pretrained(source, image_size=space.image_size, in_chans=space.in_chans)
    return embed(supernet, network).id

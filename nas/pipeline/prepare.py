"""The first two stages: profile the device, train the supernet."""

from dataclasses import replace
from typing import Any

import torch

from nas import checkpoint
from nas.latency import compare, plan
from nas.latency import profile as profile_table
from nas.latency.calibrate import draw
from nas.pipeline import budget as budgets
from nas.pipeline.materials import Materials
from nas.pipeline.outcome import Outcome, rows
from nas.pipeline.run import Progress, Run
from nas.seeds import stage_seed
from nas.supernet import SuperNet, score
from nas.supernet import train as train_supernet

CHECK_SEED = 1
PREDICTION_KEYS = ("id", "measured_ms", "table_ms", "isolated_ms", "macs_ms")


# ---------------------------------------------------------------- profile
def plan_profile(run: Run) -> Outcome:
    """Say what profiling would measure and for how long, without measuring."""
    materials = Materials(run)
    path = materials.table_path
    found = plan(materials.space, materials.target, path, run.config.profile)
    values = {
        "table": str(path),
        "needed": len(found.needed),
        "missing": [recipe.entry for recipe in found.missing],
        "networks": found.networks,
        "seconds": round(found.seconds, 1),
    }
    lines = rows(
        {
            "table": str(path),
            "entries": f"{len(found.needed)} needed, {len(found.missing)} missing",
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
    result = run.stage("profile", lambda progress: _profile(run, materials, progress))
    _, budget = budgets.priced(run, materials)
    lines = rows(
        {
            "table": result["table"],
            "entries": f"{result['entries']} on {materials.target.id}",
            "largest network": f"{result['largest_ms']:.4g} ms measured",
            "fastest network": f"{result['fastest_ms']:.4g} ms predicted",
            "budget": f"{budget.latency_ms:.4g} ms ({run.config.latency_budget})",
            "error on unseen": errors_text(result["predictions"]),
        }
    )
    return Outcome(values={**result, "budget_ms": budget.latency_ms}, lines=lines)


def _profile(run: Run, materials: Materials, progress: Progress) -> dict[str, Any]:
    config, space, target = run.config, materials.space, materials.target
    path = materials.table_path
    table = profile_table(space, target, path, config.profile, progress, export=materials.parts)
    fastest, fastest_ms = budgets.cheapest(space, table.pricer(space))
    fit = table.calibrations.get(space.name)
    known = fit.fitted_on if fit is not None else {}
    unseen = draw(space, config.check_networks, seed=CHECK_SEED, avoid=list(known))
    networks = {architecture.id: space.blocks(architecture) for architecture in unseen}
    largest = space.largest()
    if largest.id not in known:
        networks[largest.id] = space.blocks(largest)
    timings = materials.time_networks(networks, progress)
    largest_ms = known.get(largest.id) or timings.pop(largest.id).median_ms
    networks.pop(largest.id, None)
    checked = compare(table, networks, timings, space=space)
    return {
        "table": str(path),
        "digest": table.digest,
        "target": target.id,
        "entries": len(table.entries),
        "fastest": fastest.id,
        "fastest_ms": fastest_ms,
        "largest_ms": largest_ms,
        "predictions": [
            {key: getattr(row, key) for key in PREDICTION_KEYS} for row in checked.rows
        ],
    }


def errors_text(predictions: list[dict[str, float]]) -> str:
    """Return the mean error of the table and of its rivals on unseen whole networks."""
    if not predictions:
        return "not checked"
    off = {}
    for key in ("table_ms", "isolated_ms", "macs_ms"):
        errors = [abs(row[key] / row["measured_ms"] - 1) for row in predictions]
        off[key] = sum(errors) / len(errors)
    return (
        f"{off['table_ms']:.1%} off on {len(predictions)} unseen networks (sum of isolated parts "
        f"{off['isolated_ms']:.0%}, line through MACs {off['macs_ms']:.0%})"
    )


# ---------------------------------------------------------------- train
def train(run: Run, materials: Materials | None = None) -> Outcome:
    """Train the supernet once, for every device and budget."""
    materials = materials or Materials(run)

    def work(progress: Progress) -> dict[str, Any]:
        config, space, data = run.config, materials.space, materials.data
        supernet = SuperNet(space, seed=stage_seed(config.seed, "supernet")).to(best_device())
        settings = replace(config.train, seed=stage_seed(config.seed, "train"))
        folder = run.folder / "supernet"
        trained = train_supernet(supernet, data, settings, folder, progress=progress)
        ends = {"smallest": space.smallest(), "largest": space.largest()}
        accuracies = {end: score(supernet, ends[end], data).accuracy for end in ends}
        return {
            "folder": str(folder),
            "digest": checkpoint.digest_tensors(supernet.state_dict()),
            "steps": trained.history[-1]["step"] if trained.history else 0,
            "accuracy": accuracies,
            "kinds": trained.choice.probabilities(),
        }

    result = run.stage("train", work)
    accuracy = result["accuracy"]
    lines = rows(
        {
            "supernet": f"{result['folder']} ({result['steps']} steps)",
            "largest network": f"{accuracy['largest']:.1%} on the search split",
            "smallest network": f"{accuracy['smallest']:.1%}",
        }
    )
    return Outcome(values=result, lines=lines)


def best_device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")

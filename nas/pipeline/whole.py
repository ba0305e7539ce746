"""The whole job, in order. Read this file first."""

from collections.abc import Mapping
from typing import Any

from nas.environment import program
from nas.errors import BrokenPromise
from nas.pipeline.candidates import search
from nas.pipeline.materials import Materials
from nas.pipeline.outcome import Outcome, rows
from nas.pipeline.prepare import errors_text, profile, train
from nas.pipeline.report import report
from nas.pipeline.run import Run
from nas.pipeline.winners import Candidate, chosen


def run_all(run: Run, materials: Materials | None = None) -> Outcome:
    """Profile, train, search, then distill, export and verify until enough winners hold.

    Profiling comes first: a budget that nothing can meet is known before anything is trained.
    A candidate that turns out over budget in a fresh process is no winner; the next one is taken.

    Raises:
        InfeasibleBudget: no architecture of the space meets the budget.
        BrokenPromise: no candidate kept its promise when it was verified.
    """
    materials = materials or Materials(run)
    profile(run, materials)
    train(run, materials)
    search(run, materials)
    winners: list[tuple[Candidate, dict[str, Any]]] = []
    refused: list[tuple[Candidate, dict[str, Any]]] = []
    for candidate in chosen(run, materials):
        candidate.distill()
        candidate.export()
        verified = candidate.verify()
        (winners if verified["kept"] else refused).append((candidate, verified))
        if len(winners) == run.config.winners:
            break
    reported = report(run, materials)
    if not winners:
        broken = "; ".join(text for _, row in refused for text in row["statements"])
        raise BrokenPromise(
            f"none of {len(refused)} verified candidates keeps its promise: {broken}. "
            "Measure again on a quiet machine, or raise margin."
        )
    return _told(run, materials, winners, str(reported.values["page"]))


def _told(
    run: Run, materials: Materials, winners: list[tuple[Candidate, dict[str, Any]]], page: str
) -> Outcome:
    """Return the table a newcomer wants and the next three commands to try."""
    searched = run.result(f"search/{run.study}", make_with="search")
    lines: list[str] = []
    for candidate, verified in winners:
        lines += ["", *rows(_table(run, candidate, verified, materials.target.id, page))]
    folder = winners[0][1]["folder"]
    lines += [
        "",
        "Try next:",
        f"  {program('nas')} verify {folder}",
        f'  {program("python")} -c "import timm, nas.network; '
        f"print(timm.create_model('local-dir:{folder}', pretrained=True))\"",
        f"  {program('nas')} search --run {run.folder} --name faster --latency-budget "
        f"{0.8 * searched['budget_ms']:.3g}ms",
    ]
    values = [
        {
            "architecture_id": candidate.id,
            "folder": verified["folder"],
            "accuracy": verified["accuracy"],
            "latency": verified["latency"],
            "budget_ms": searched["budget_ms"],
            "params": sum(block.params for block in candidate.blocks),
            "macs": sum(block.macs for block in candidate.blocks),
        }
        for candidate, verified in winners
    ]
    kept = {key: searched[key] for key in ("study", "budget_ms", "feasible_share")}
    return Outcome(values={"winners": values, "report": page, **kept}, lines=tuple(lines))


def _table(
    run: Run, candidate: Candidate, verified: dict[str, Any], target_id: str, page: str
) -> dict[str, str]:
    """Return the rows about one winner."""
    searched = run.result(f"search/{candidate.study}", make_with="search")
    profiled = run.result(run.profile_key, make_with="profile")
    distilled = run.result(candidate.key("distill"), make_with="distill")
    latency, budget_ms = verified["latency"], searched["budget_ms"]
    params = sum(block.params for block in candidate.blocks)
    macs = sum(block.macs for block in candidate.blocks)
    most = f"at most {latency['ci_high_ms']:.4g}"
    if run.config.statistic == "p95":
        most = f"95th percentile {latency['p95_ms']:.4g}"
    return {
        "winner": f"{candidate.id}, verified in a fresh process",
        "budget": f"{budget_ms:.4g} ms = {run.config.latency_budget}"
        f" ({searched['feasible_share']:.0%} of random networks meet it)",
        "measured latency": f"{latency['measured_ms']:.4g} ms, {most} "
        f"({latency['measured_ms'] / budget_ms:.0%} of the budget, "
        f"grade {latency['grade']})",
        "predicted latency": f"{latency['predicted_ms']:.4g} ms",
        "test accuracy": f"{verified['accuracy']['test']:.1%} "
        f"({distilled['accuracy']:.1%} on search, {distilled['inherited']:.1%} inherited)",
        **_in_int8(verified["accuracy"]),
        "size": f"{params:,} parameters, {macs / 1e6:.3g} MMACs",
        "device": target_id,
        "latency table": errors_text(profiled["predictions"]),
        "folder": verified["folder"],
        "report": page,
    }


def _in_int8(accuracy: Mapping[str, Any]) -> dict[str, str]:
    """Return the rows of the int8 files' accuracies; none where there is no such file."""
    return {
        f"test accuracy in int8, {runtime}": f"{own['test']:.1%} ({own['search']:.1%} on search)"
        for runtime, own in accuracy.get("int8", {}).items()  # a run of before has none
    }

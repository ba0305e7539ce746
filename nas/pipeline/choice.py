"""Kinds for one target: logits weighed against latencies, as choice/<target>.json."""

from dataclasses import replace
from typing import Any

from nas.errors import ConfigError
from nas.files import to_plain, write_json
from nas.latency import LatencyTable, find_table
from nas.pipeline import budget as budgets
from nas.pipeline.materials import Materials
from nas.pipeline.outcome import Outcome, rows
from nas.pipeline.run import Run
from nas.seeds import stage_seed
from nas.supernet import fit_choice, load
from nas.target import Target

SCHEMA = 1
FOLDER = "choice"


def fit_kinds(run: Run, words: str, materials: Materials | None = None) -> Outcome:
    """Fit which kinds suit a target, and write their probabilities into the run.

    The reference that latencies are relative to is the run's latency budget; a share of the
    largest network is one of its predicted latency here.

    Args:
        run: Its supernet is trained; the weights stay as they are.
        words: The target, as `--target` has it.
        materials: Shared with other stages.

    Raises:
        ConfigError: the supernet is not trained, or the target has no table, or the table lacks
            a part of the space.
    """
    materials = materials or Materials(run)
    trained = run.result("train", make_with="train")
    table = _table(run, materials, words)
    space = materials.space
    largest_ms = table.estimate(space.blocks(space.largest()), space)
    asked = budgets.resolve(run.config, target_id=table.target.id, largest_ms=largest_ms)
    config = replace(run.config.fit_choice, seed=stage_seed(run.config.seed, "fit choice"))
    fitted = fit_choice(
        materials.supernet,
        materials.data,
        lambda block: table.block_ms(block, space),
        asked.latency_ms,
        config,
        start=load(run.folder / "supernet").choice,
        progress=run.progress("choice"),
    )
    record: dict[str, Any] = {
        "schema": SCHEMA,
        "target": table.target.id,
        "space": space.name,
        "supernet": trained["digest"],
        "table": table.digest,
        "reference_ms": asked.latency_ms,
        "settings": to_plain(config),
        "logits": {gene: logits.tolist() for gene, logits in fitted.logits.items()},
        "probabilities": {
            gene: {str(kind): share for kind, share in kinds.items()}
            for gene, kinds in fitted.probabilities().items()
        },
    }
    path = write_json(run.folder / FOLDER / f"{table.target.id}.json", record)
    run.log("choice", "done", target=table.target.id)
    first = {gene: max(kinds, key=kinds.__getitem__) for gene, kinds in
             record["probabilities"].items()}  # fmt: skip
    said = ", ".join(f"{gene} {kind}" for gene, kind in first.items())
    lines = rows({"choice of kinds": str(path), "most probable": said or "there is no choice"})
    return Outcome(values={"path": str(path), **record}, lines=lines)


def _table(run: Run, materials: Materials, words: str) -> LatencyTable:
    """Return the latency table of a target: the run's own, or where tables are."""
    target = Target.parse(words)
    if target.matches(materials.target):
        path = materials.table_path
    else:
        path = find_table(target) or run.folder / "none"
    if not path.is_file():
        raise ConfigError(
            f"there is no latency table of {target.id}. Measure one with `nas profile --run "
            f"{run.folder} --target {words}`, then fit the choice."
        )
    return LatencyTable.load(path)

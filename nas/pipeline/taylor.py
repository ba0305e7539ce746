"""Which channels of a run's supernet matter: a heat map, and EfficientViT's findings checked."""

from collections.abc import Sequence

from nas import files
from nas.pipeline.materials import Materials
from nas.pipeline.outcome import Outcome, rows
from nas.pipeline.run import Run
from nas.report import TaylorReport, write_taylor
from nas.supernet.taylor import TaylorConfig, covering_paths, measure_importance
from nas.supernet.taylor.findings import Finding, Share, findings, kinds_of, shares
from nas.supernet.taylor.heads import HeadSimilarity, head_similarities

SCHEMA = 1
FOLDER = "taylor"
RESULT = "taylor.json"
ATTENTIONS = {"mb3d": "global attention (mb3d)", "cga": "cascaded group attention (cga)"}


def taylor(run: Run, materials: Materials | None = None, *, images: int = 256) -> Outcome:
    """Measure the importance of every channel group of the run's supernet, and draw it.

    Measured on the paths of the largest numbers that together stand in every slot. Writes
    taylor.json, one HTML page and the heat map.

    Args:
        run: With a trained supernet.
        materials: Of that run.
        images: Training images, not augmented, always the same ones.

    Raises:
        ConfigError: the supernet is not trained, or images is below 2.
    """
    materials = materials or Materials(run)
    config = TaylorConfig(images=images, fixed=True)
    digest = run.result("train", make_with="train")["digest"]
    supernet, data = materials.supernet, materials.data
    paths = covering_paths(supernet.space)
    tell = run.progress("taylor")
    tell(0, 2, f"importance on {len(paths)} paths")
    importance = measure_importance(supernet, paths, data, config)
    tell(1, 2, "likeness of heads")
    heads = head_similarities(supernet, paths, data, config)
    kinds = kinds_of(supernet)
    found = shares(importance, kinds)
    checked = findings(found, stages=len(supernet.space.stages))
    tell(2, 2, "drawn")
    result = {
        "schema": SCHEMA,
        "space": supernet.space.name,
        "data": data.name,
        "data_digest": data.digest,
        "supernet_digest": digest,
        "images": min(images, len(data.split("train"))),
        "paths": [path.id for path in paths],
        "importance": {name: own.tolist() for name, own in importance.items()},
        "shares": files.to_plain(found),
        "findings": files.to_plain(checked),
        "heads": files.to_plain(heads),
    }
    folder = run.folder / FOLDER
    files.write_json(folder / RESULT, result)
    lines = told(found, checked, heads)
    drawn = TaylorReport(
        title=run.folder.name,
        about=f"The supernet of {supernet.space.name}, on {result['images']} images of "
        f"{data.name}: the mean over {len(paths)} paths of the largest numbers.",
        importance={n: own if own.ndim == 1 else own.mean(0) for n, own in importance.items()},
        kinds=kinds,
        shares=found,
        findings=checked,
        heads=heads,
        lines=lines,
    )
    page = write_taylor(folder, drawn)
    run.log("taylor", "done", page=page)
    return Outcome(values={**result, "page": str(page)}, lines=(*lines, "", f"page: {page}"))


def told(
    found: Sequence[Share], checked: Sequence[Finding], heads: Sequence[HeadSimilarity]
) -> tuple[str, ...]:
    """Return the shares of each kind, the findings and the likeness of heads as lines."""
    lines = [f"{'kind of channel':20}{'channels':>10}{'importance':>12}{'can go for 1 %':>16}"]
    for kind in dict.fromkeys(share.kind for share in found):
        own = [share for share in found if share.kind == kind]
        channels = sum(share.channels for share in own)
        gone = sum(share.channels * share.removable for share in own) / channels
        inside = sum(share.importance for share in own)
        lines.append(f"{kind:20}{channels:>10,}{inside:>12.1%}{gone:>16.0%}")
    lines += ["", "EfficientViT's findings here:"]
    lines += [f"  {each.verdict}: {each.claim} ({each.here})" for each in checked]
    likeness = {
        name: _mean([head.similarity for head in heads if head.kind == kind])
        for kind, name in ATTENTIONS.items()
    }
    return (*lines, "", "mean of the largest cosine similarity of a head with another:",
            *(f"  {line}" for line in rows(likeness)))  # fmt: skip


def _mean(values: Sequence[float]) -> str:
    return f"{sum(values) / len(values):.2f} over {len(values)} blocks" if values else "none here"

"""The importance stage: what every inner number of the supernet costs in loss, once a supernet."""

from pathlib import Path
from typing import Any

from nas.pipeline.materials import Materials
from nas.pipeline.run import Progress, Run
from nas.seeds import stage_seed
from nas.space.loss_table import LossTable
from nas.supernet.taylor import LossConfig, measure_losses


def loss_table(run: Run, materials: Materials) -> LossTable:
    """Return the loss table of a run's supernet: measured once, kept beside the supernet.

    Raises:
        ConfigError: the supernet is not trained yet.
    """
    method = run.config.importance

    def work(progress: Progress) -> dict[str, Any]:
        path = run.folder / "importance" / f"{method}.json"
        config = LossConfig(method=method, seed=stage_seed(run.config.seed, "importance"))
        digest = run.result("train", make_with="train")["digest"]
        table = measure_losses(
            materials.supernet, materials.data, config, digest=digest, progress=progress
        )
        table.save(path)
        return {"path": str(path), "digest": table.digest, "fit": table.fit}

    return LossTable.load(Path(run.stage(run.importance_key, work)["path"]))

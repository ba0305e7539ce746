"""From a chosen candidate to a winner: distill, export, verify in a fresh process."""

import shlex
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

from nas import checkpoint
from nas.environment import program
from nas.errors import ConfigError, NasError
from nas.latency import LatencyTable, find_table
from nas.manifest import Accuracy, Ancestry, TargetResult, Winner
from nas.network import NasHybrid
from nas.pipeline.materials import Materials, best_device
from nas.pipeline.outcome import Outcome
from nas.pipeline.run import Progress, Run
from nas.seeds import stage_seed
from nas.space import Architecture
from nas.study import Study, Trial, latency_metric, mask_url
from nas.supernet import score
from nas.target import DEFAULT_TARGET, Target
from nas.winner.distill import TrainResult
from nas.winner.distill import train as train_alone
from nas.winner.export import export as export_folder
from nas.winner.promise import VerifyResult
from nas.winner.verify import verify as verify_winner
from nas.winner.verify import verify_elsewhere


class Candidate:
    """One chosen candidate of a study on its way to become a winner."""

    def __init__(self, run: Run, materials: Materials, trial: Trial) -> None:
        assert trial.architecture is not None and trial.architecture_id is not None
        self.run, self.materials, self.trial = run, materials, trial
        self.architecture = Architecture.from_json(trial.architecture)
        self.id = trial.architecture_id
        self.blocks = materials.space.blocks(self.architecture)
        self.study = run.study

    def key(self, stage: str) -> str:
        """Return the stage's key in the run's state."""
        return f"{stage}/{self.study}/{self.id}"

    @property
    def training(self) -> Path:
        """Where its training's checkpoints stand."""
        return self.run.folder / "distill" / self.id

    @property
    def folder(self) -> Path:
        """Where it is exported to."""
        return self.run.winner_folder(self.id)

    # ------------------------------------------------------------ distill
    def distill(self) -> dict[str, Any]:
        """Train it on its own from the supernet's weights, taught by the teacher."""

        def work(progress: Progress) -> dict[str, Any]:
            trained = self._train(progress)
            return {
                "architecture_id": self.id,
                "accuracy": trained.score.accuracy,
                "loss": trained.score.loss,
                "inherited": self.trial.accuracy,
                "digest": trained.digest,
                "teacher": self.materials.teacher.digest,
            }

        return self.run.stage(self.key("distill"), work)

    def _train(self, progress: Progress | None) -> TrainResult:
        materials, config = self.materials, self.run.config
        inherited = score(materials.supernet, self.architecture, materials.data)
        model = materials.supernet.extract(self.architecture, inherited.statistics)
        model.to(best_device())
        settings = replace(config.distill, seed=stage_seed(config.seed, f"distill/{self.id}"))
        return train_alone(
            model,
            materials.data,
            settings,
            teacher=materials.teacher,
            folder=self.training,
            progress=progress,
        )

    # ------------------------------------------------------------ export
    def export(self) -> dict[str, Any]:
        """Write its folder: timm's files, ONNX, the model card, winner.json."""
        distilled = self.run.result(self.key("distill"), make_with="distill")

        def work(progress: Progress) -> dict[str, Any]:
            progress(0, 1, self.id)
            model = self._distilled(distilled["digest"])
            exported = export_folder(
                model,
                folder=self.folder,
                winner=self._promise(distilled),
                data=self.materials.data,
            )
            progress(1, 1, str(self.folder))
            return {
                "folder": str(self.folder),
                "files": exported.files,
                "accuracy": exported.accuracy,
            }

        return self.run.stage(self.key("export"), work)

    def _distilled(self, digest: str) -> NasHybrid:
        """Return the network as its training left it."""
        trained = self._train(None).model  # a finished training is read from its checkpoint
        assert isinstance(trained, NasHybrid)
        if checkpoint.digest_tensors(trained.state_dict()) != digest:
            raise ConfigError(
                f"the training in {self.training} is not the one this run finished. Remove the "
                "folder and its lines in state.json, and distill again."
            )
        return trained

    def _promise(self, distilled: dict[str, Any]) -> Winner:
        materials = self.materials
        searched = self.run.result(f"search/{self.study}", make_with="search")
        split = materials.data.split("search")
        (measured,) = (row for row in searched["measured"] if row["trial"] == self.trial.number)
        return Winner(
            architecture=self.architecture.to_json(),
            blocks=tuple(map(str, self.blocks)),
            accuracy=Accuracy(search=distilled["accuracy"], search_images=len(split)),
            budgets=searched["budgets"],
            targets=tuple(
                TargetResult(
                    target=name,
                    predicted_ms=self.trial.costs[latency_metric(name)],
                    reference_promised_ms=measured["latencies"][name].get("reference_ms"),
                )
                for name in materials.tables
            ),
            ancestry=Ancestry(
                study=searched["study"],
                trial=self.trial.number,
                supernet=self.run.result("train", make_with="train")["digest"],
                tables={name: table.digest for name, table in materials.tables.items()},
                teacher=distilled["teacher"],
            ),
            data=materials.data.name,
            statistic=self.run.config.statistic,
            command=shlex.join(["nas", *map(mask_url, sys.argv[1:])]),
        )

    # ------------------------------------------------------------ verify
    def verify(self) -> dict[str, Any]:
        """Check the exported folder in a fresh process; whether it is over budget is recorded."""

        def work(progress: Progress) -> dict[str, Any]:
            results = [self._verify_on(table, progress) for table in self.materials.tables.values()]
            texts = dict.fromkeys(row.text for found in results for row in found.statements)
            return {
                "folder": str(self.folder),
                "kept": all(found.is_kept for found in results),
                "over_budget": any(found.is_over_budget for found in results),
                "statements": list(texts),
                "accuracy": results[-1].winner.accuracy,
                "latency": results[-1].winner.on(self.materials.target.id),
                "latencies": [results[-1].winner.on(found.target) for found in results],
            }

        return self.run.stage(self.key("verify"), work)

    def _verify_on(self, table: LatencyTable, progress: Progress) -> VerifyResult:
        """Check the folder on one target and record what was measured there."""
        result = self._checked(table, progress)
        measured = result.winner.on(table.target.id)
        if measured is not None and measured.measured_ms is not None:
            self._study().record_measurement(
                self.trial.number, table.target.id, "latency_ms", measured.measured_ms,
                measured.ci_high_ms,
            )  # fmt: skip
        return result

    def _checked(self, table: LatencyTable, progress: Progress) -> VerifyResult:
        materials = self.materials
        if materials.stopwatch is not None:
            return verify_elsewhere(
                self.folder,
                materials.stopwatch,
                target=table.target,
                data_name=materials.data.name,
                progress=progress,
            )
        return verify_winner(
            self.folder,
            target=table.target,
            data_name=materials.data.name,
            config=self.run.config.profile,
            known=table.known,
            progress=progress,
        )

    def _study(self) -> Study:
        searched = self.run.result(f"search/{self.study}", make_with="search")
        return Study.load(searched["study"], storage=self.run.config.storage)


def chosen(run: Run, materials: Materials) -> list[Candidate]:
    """Return the candidates of the run's search that met the budget when measured, best first."""
    searched = run.result(f"search/{run.study}", make_with="search")
    study = Study.load(searched["study"], storage=run.config.storage)
    trials = {trial.number: trial for trial in study.trials}
    return [Candidate(run, materials, trials[number]) for number in searched["chosen"]]


# ---------------------------------------------------------------- one verb each
def distill(run: Run) -> Outcome:
    """Train the chosen candidates of the run's search, the first `winners` of them."""
    materials = Materials(run)
    results = [item.distill() for item in chosen(run, materials)[: run.config.winners]]
    lines = [
        f"{row['architecture_id']}: {row['inherited']:.1%} inherited, {row['accuracy']:.1%} "
        "distilled, on the search split"
        for row in results
    ]
    return Outcome(values={"distilled": results}, lines=tuple(lines))


def export(run: Run) -> Outcome:
    """Export every distilled candidate of the run's search."""
    materials = Materials(run)
    ready = [item for item in chosen(run, materials) if item.key("distill") in run.stages]
    if not ready:
        raise ConfigError(
            f"nothing is distilled in {run.folder}. Run `nas distill --run {run.folder}` first."
        )
    results = [item.export() for item in ready]
    verify = f"{program('nas')} verify"
    lines = [
        f"{row['folder']}:{_int8_words(row.get('accuracy') or {})} check it with "
        f"`{verify} {row['folder']}`"
        for row in results
    ]
    return Outcome(values={"exported": results}, lines=tuple(lines))


def _int8_words(accuracy: dict[str, Any]) -> str:
    """Return what int8 files score beside the network; nothing where there is no such file."""
    int8 = accuracy.get("int8", {})
    words = [f", {own['search']:.1%} in int8 by {runtime}" for runtime, own in int8.items()]
    return f" {accuracy['search']:.1%} on the search split{''.join(words)};" if words else ""


def verify_folder(
    folder: Path, *, target: str | None, data: str | None, progress: Progress
) -> Outcome:
    """Check one exported folder in a fresh process against what its winner.json promises.

    Args:
        folder: What `nas export` wrote.
        target: What to time it on; None: every target it was promised for that is of this machine,
            the default target where there is none.
        data: The data set whose test split is scored; None: the winner's.
        progress: Told (done, total, text).
    """
    winner = Winner.load(folder)
    wanted = [Target.parse(target)] if target is not None else _promised_here(winner)
    results = []
    for each in wanted or [Target.parse(DEFAULT_TARGET)]:
        path = find_table(each)
        results.append(
            verify_winner(
                folder,
                target=each,
                data_name=data or winner.data,
                known=LatencyTable.load(path).known if path is not None else None,
                progress=progress,
            )
        )
    return verdict(winner, *results)


def _promised_here(winner: Winner) -> list[Target]:
    """Return the targets a winner was promised for that this machine can time."""
    targets = [Target.from_id(row.target) for row in winner.targets]
    return [
        target
        for target in targets
        if target.is_here() and winner.latency_budget_ms(target.id) is not None
    ]


def verdict(winner: Winner, *results: VerifyResult) -> Outcome:
    """Return what to say of a winner, given as it was before it was checked on each target; broken
    promises are its `problem`."""
    known = [row.target for row in winner.targets]
    kept = {True: "kept", False: "BROKEN", None: "-"}
    statements = list(dict.fromkeys(row for result in results for row in result.statements))
    width = max(len(row.about) for row in statements)
    lines = [
        f"winner {winner.id} (promised for {', '.join(known)})",
        *(f"{row.about:<{width}}  {kept[row.is_kept]:<6} {row.text}" for row in statements),
    ]
    problem: NasError | None = None
    try:
        replace(results[-1], statements=tuple(statements)).raise_if_broken()
    except NasError as error:
        problem = error
    values = {
        "winner": winner.id,
        "kept": all(result.is_kept for result in results),
        "statements": [
            {"about": row.about, "kept": row.is_kept, "text": row.text} for row in statements
        ],
    }
    return Outcome(values=values, lines=tuple(lines), problem=problem)

"""What the stages of one run share - data, space, target, table, supernet - loaded when needed."""

import shlex
import shutil
import tempfile
import weakref
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import cached_property
from pathlib import Path

import torch

from nas import data as nas_data
from nas.block import Block
from nas.data import Data
from nas.errors import ConfigError
from nas.files import write_atomic
from nas.latency import LatencyTable, Timing, find_table, time_networks
from nas.latency.measure import at_begun_speed, child_bench
from nas.latency.sessions import Benches
from nas.latency.table import TABLES
from nas.manifest import TargetResult
from nas.network.onnx import parts_to_onnx
from nas.pipeline.run import Progress, Run
from nas.seeds import stage_seed
from nas.space import SearchSpace
from nas.supernet import Evaluator, SuperNet
from nas.supernet import load as load_supernet
from nas.target import Target
from nas.winner.objective import Teacher
from nas.winner.teacher import make_teacher

Timed = Callable[[Mapping[str, Sequence[Block]]], dict[str, Timing]]  # networks by name
Stopwatch = Callable[[Path], TargetResult]  # an exported folder's latency


class Parts:
    """ONNX files of parts, each exported once in a process: exporting is what takes the time."""

    def __init__(self) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="nas-parts-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._paths: dict[tuple[str, int], Path] = {}

    def __call__(self, parts: Sequence[Block], folder: Path, *, batch: int = 1) -> dict[str, Path]:
        """Return the file of each part by its string; `folder` is left alone."""
        missing = [part for part in parts if (str(part), batch) not in self._paths]
        place = self._folder / f"b{batch}"
        for name, path in parts_to_onnx(missing, place, batch=batch).items():
            self._paths[name, batch] = path
        return {str(part): self._paths[str(part), batch] for part in parts}


class Materials:
    """The parts a run is made of, each loaded once in a process."""

    def __init__(self, run: Run) -> None:
        self.run = run
        self.parts = Parts()
        self.benches: Benches = child_bench  # where networks of the target run
        self.timed: Timed | None = None  # where candidates are timed by hand
        self.stopwatch: Stopwatch | None = None  # where this machine cannot time a winner
        if run.config.threads is not None:
            torch.set_num_threads(run.config.threads)

    @cached_property
    def data(self) -> Data:
        """The images, without the test split."""
        config = self.run.config
        size = config.image_size or SearchSpace.load(config.space).image_size
        return nas_data.load(config.data, image_size=size, progress=self.run.progress("data"))

    @cached_property
    def space(self) -> SearchSpace:
        """The search space for these images and classes."""
        return SearchSpace.load(self.run.config.space).replace(
            num_classes=self.data.num_classes,
            in_chans=self.data.in_chans,
            image_size=self.data.image_size,
        )

    @cached_property
    def target(self) -> Target:
        """The device and runtime the budget is for."""
        return Target.parse(self.run.config.target)

    @property
    def table_path(self) -> Path:
        """Where the latency table stands, or will stand."""
        given = self.run.config.table
        if given is not None:
            return Path(given)
        return find_table(self.target) or TABLES / f"{self.target.id}.json"

    def own_table(self) -> Path:
        """Return where the table may grow: of one that was shipped, a copy in runs/tables."""
        path = self.table_path
        is_given = self.run.config.table is not None
        if is_given or not path.is_file() or TABLES in path.parents:
            return path
        return write_atomic(TABLES / path.name, path.read_bytes())

    @cached_property
    def table(self) -> LatencyTable:
        """The latency table of the target."""
        return LatencyTable.load(self.table_path)

    @cached_property
    def tables(self) -> dict[str, LatencyTable]:
        """The latency tables of all targets by their ids, the run's own target first.

        Raises:
            ConfigError: a further one has none, or lacks entries; the message has the command.
        """
        found = {self.target.id: self.table}
        for words in self.run.config.other_targets:
            target = Target.parse(words)
            path = find_table(target)
            if path is None:
                raise ConfigError(
                    f"there is no latency table of {target}. Make one, in a run of its own, with "
                    f"{self._profile_command(words)}."
                )
            table = found[target.id] = LatencyTable.load(path)
            lacking = table.missing(self.space.every_block(), self.space)
            if lacking:
                raise ConfigError(
                    f"the latency table {path} has no entry for {lacking[0]} and {len(lacking) - 1}"
                    f" others. Measure them, in a run of its own, with "
                    f"{self._profile_command(words)}."
                )
        return found

    @property
    def search_tables(self) -> dict[str, LatencyTable]:
        """The tables as the run's search prices by them: set right by what it measured before.

        See `nas.pipeline.recalibrate`. Their digests and best speeds are those of `tables`.
        """
        done = self.run.stages.get(self.run.recalibrate_key, {"result": {}})["result"]
        return {
            target_id: table.scaled(done[target_id]["factor"]) if target_id in done else table
            for target_id, table in self.tables.items()
        }

    def _profile_command(self, words: str) -> str:
        """Return the command that profiles this run's space on another target."""
        config = self.run.config
        folder = self.run.folder.with_name(words.replace(",", "-"))
        named = ["nas", "profile", "--run", str(folder), "--space", config.space]
        sized = [] if config.image_size is None else ["--image-size", str(config.image_size)]
        return f"`{shlex.join([*named, '--data', config.data, *sized, '--target', words])}`"

    def time(
        self,
        table: LatencyTable,
        networks: Mapping[str, Sequence[Block]],
        progress: Progress,
    ) -> dict[str, Timing]:
        """Return timings of whole networks on a table's target, as candidates are timed.

        They are of the speed that the table's prices are of, where the machine is faster now.

        Raises:
            UnreliableTiming, DeviceError: as `time_networks`.
        """
        if self.timed is not None:
            return self.timed(networks)
        timings = time_networks(
            networks,
            table,
            self.run.config.profile.for_winners(),
            progress=progress,
            benches=self.benches,
            export=self.parts,
        )
        return at_begun_speed(timings, table.known)

    @cached_property
    def supernet(self) -> SuperNet:
        """The trained supernet of this run.

        Raises:
            ConfigError: it is not trained yet.
        """
        self.run.result("train", make_with="train")
        return load_supernet(self.run.folder / "supernet").supernet.to(best_device())

    @cached_property
    def evaluator(self) -> Evaluator:
        """What scores sub-networks of that supernet; what it found is kept in the run's folder."""
        return Evaluator(self.supernet, self.data, folder=self.run.folder / "scores")

    @cached_property
    def teacher(self) -> Teacher:
        """The teacher of the distillation, made on the train split if it is not there yet."""
        config = self.run.config
        made = make_teacher(
            config.teacher,
            self.data,
            replace(config.teach, seed=stage_seed(config.seed, "teacher")),
            folder=self.run.folder / "teacher",
            device=best_device(),
            progress=self.run.progress("teacher"),
        )
        self.run.log("teacher", "ready", name=config.teacher, accuracy=made.score.accuracy)
        # In one memory layout whether trained just now or read back: its last bits depend on it.
        return Teacher(made.model.to(memory_format=torch.channels_last), self.data)


def best_device() -> torch.device:
    """Return the GPU if there is one, else the CPU."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")

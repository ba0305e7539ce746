"""A run's folder: its configuration, which stages are done, its log and its lock."""

import contextlib
import json
import re
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from nas import environment
from nas.errors import ConfigError, CorruptFile, StorageError
from nas.files import (
    digest_json,
    into,
    lock,
    read_json,
    read_yaml,
    sweep,
    to_plain,
    write_json,
    write_yaml,
)
from nas.pipeline.config import RunConfig, differences, load, without_password

STATE_SCHEMA = 1
Progress = Callable[[int, int, str], None]


def silent(done: int, total: int, text: str) -> None:
    """Report no progress."""


@dataclass(slots=True)
class Run:
    """One folder under runs/, held by one process at a time.

    `stages` maps a stage's key ("train", "profile/TARGET", "search/NAME" ...) to what it ended
    with and the digest of the settings it read, so that a finished stage is never done twice,
    nor believed after its settings changed.
    """

    folder: Path
    config: RunConfig
    resume: bool
    progress: Callable[[str], Progress] = field(default=lambda stage: silent)
    stages: dict[str, Any] = field(default_factory=dict)

    @classmethod
    @contextmanager
    def open(
        cls,
        folder: Path | str,
        config: RunConfig | None = None,
        *,
        resume: bool = False,
        progress: Callable[[str], Progress] = lambda stage: silent,
    ) -> Iterator["Run"]:
        """Hold a run's folder, new or begun before.

        Args:
            folder: Usually runs/NAME.
            config: The settings asked for; None takes those the folder was begun with.
            resume: Go on where it stopped.
            progress: Given a stage's name, returns where to report its progress.

        Raises:
            ConfigError: there is nothing to open, or a done stage read other settings.
            TryAgain: another process holds the folder.
        """
        folder = Path(folder)
        stored = load_config(folder, config.study if config is not None else "")
        if config is None and stored is None:
            raise ConfigError(
                f"{folder} holds no run. Begin one with `nas run` or `nas train --run {folder}`."
            )
        with lock(folder / ".lock"):
            sweep(folder)
            run = cls(folder, config or stored or RunConfig(), resume, progress)
            run.stages = run._read_stages()
            if config is not None and stored is not None:
                run._check_changes(stored)
            kept = without_password(run.config)
            write_yaml(config_path(folder, run.config.study), kept)
            if not config_path(folder).is_file():
                write_yaml(config_path(folder), kept)
            write_json(
                folder / "environment.json",
                {"machine": environment.machine(), "versions": environment.versions()},
            )
            yield run

    @classmethod
    def look(cls, folder: Path | str) -> "Run":
        """Return a run that another process may hold, as it stands; write nothing with it.

        Raises:
            ConfigError: there is none.
        """
        folder = Path(folder)
        stored = load_config(folder)
        if stored is None:
            raise ConfigError(f"{folder} holds no run. Give the --run of a search.")
        run = cls(folder, stored, resume=True)
        run.stages = run._read_stages()
        return run

    @property
    def study(self) -> str:
        """The name of the run's study: the one asked for, or the folder's."""
        return self.config.study or self.folder.resolve().name

    def winner_folder(self, architecture_id: str) -> Path:
        """Return where a winner of the study stands; each study of a run makes its own promises."""
        return self.folder / "winners" / self.config.study / architecture_id

    @property
    def profile_key(self) -> str:
        """The key of profiling the run's target: a run has one for each device and runtime."""
        return f"profile/{self.config.target}"

    @property
    def recalibrate_key(self) -> str:
        """The key of holding the tables against networks of today: a run has one a study."""
        return f"recalibrate/{self.study}"

    @property
    def importance_key(self) -> str:
        """The key of measuring what inner numbers cost: a run has one for each method."""
        return f"importance/{self.config.importance}"

    # ------------------------------------------------------------ stages
    def stage(self, key: str, work: Callable[[Progress], dict[str, Any]]) -> dict[str, Any]:
        """Do one stage unless it is done; return its result (plain values)."""
        if key in self.stages:
            self.log(key, "kept")
            return dict(self.stages[key]["result"])
        name = key.partition("/")[0]
        self.log(key, "begun")
        begun = time.monotonic()
        result: dict[str, Any] = to_plain(work(self.progress(name)))
        seconds = round(time.monotonic() - begun, 1)
        self.stages[key] = {
            "settings": digest_json(self.config.reads(name)),
            "seconds": seconds,
            "result": result,
        }
        write_json(self._state_path, {"schema": STATE_SCHEMA, "stages": self.stages})
        self.log(key, "done", seconds=seconds)
        return result

    def refuse_repeat(self, key: str) -> None:
        """Raise ConfigError if a stage is done and nobody asked to go on with it."""
        if key in self.stages and not self.resume:
            raise ConfigError(
                f"{key} is done in {self.folder}. Add --resume to use what it made, or give "
                "another --run to do it again."
            )

    def result(self, key: str, *, make_with: str) -> dict[str, Any]:
        """Return the result of a stage that must be done; the error names the verb that does it."""
        if key not in self.stages:
            raise ConfigError(
                f"{self.folder} has no {key} yet. Run `nas {make_with} --run {self.folder}` first."
            )
        return dict(self.stages[key]["result"])

    def _check_changes(self, stored: RunConfig) -> None:
        for key, record in self.stages.items():
            name, _, rest = key.partition("/")
            asked = {"profile": self.config.target, "importance": self.config.importance}
            own = asked.get(name, self.study)
            if rest and rest.partition("/")[0] != own:
                continue  # of another target or study of this run, with settings of its own
            if record["settings"] != digest_json(self.config.reads(name)):
                changed = differences(stored.reads(name), self.config.reads(name))
                raise ConfigError(
                    f"{key} is done in {self.folder} with other settings: {changed}. "
                    "Give another --run, or take the old settings back."
                )

    # ------------------------------------------------------------ files
    @property
    def _state_path(self) -> Path:
        return self.folder / "state.json"

    def _read_stages(self) -> dict[str, Any]:
        if not self._state_path.is_file():
            return {}
        state = read_json(self._state_path)
        if not isinstance(state, dict) or state.get("schema") != STATE_SCHEMA:
            raise CorruptFile(f"{self._state_path} is not a run's state of schema {STATE_SCHEMA}.")
        stages: dict[str, Any] = state["stages"]
        return stages

    def log(self, stage: str, event: str, **values: Any) -> None:
        """Append one line to log.jsonl; a full disk does not stop the work for it."""
        line = {"time": datetime.now(UTC).isoformat(timespec="seconds"), "stage": stage}
        with (
            contextlib.suppress(OSError),
            open(self.folder / "log.jsonl", "a", encoding="utf-8") as stream,
        ):
            stream.write(json.dumps({**line, "event": event, **to_plain(values)}) + "\n")


def config_path(folder: Path, study: str = "") -> Path:
    """Return where settings stand: the run's, or those of a study with a name of its own."""
    return folder / (f"config-{study}.yaml" if study else "config.yaml")


def load_config(folder: Path, study: str = "") -> RunConfig | None:
    """Return the settings a run (or one of its studies) was begun with, None if there are none."""
    path = config_path(folder, study)
    try:
        if not path.is_file():
            return None
    except OSError as error:
        raise StorageError(f"{folder} cannot be read: {error.strerror}.") from error
    return into(RunConfig, read_yaml(path), source=str(path))


def config_of(
    folder: Path | str, overrides: Sequence[str], *, begin: bool, study: str | None = None
) -> RunConfig | None:
    """Return a run's settings with changes, its own or the defaults underneath.

    Args:
        folder: The run's folder.
        overrides: `key.sub=value` words.
        begin: Whether a run may begin here; else None stands for one that is not there.
        study: A study by name: with the settings it was begun with, or the run's if it is new.

    Raises:
        ConfigError: a study's name is not letters, digits, ., _ and -.
    """
    folder = Path(folder)
    name = "" if study in (None, folder.resolve().name) else str(study)
    if name and not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._-]*", name):
        raise ConfigError(f"a study's name has letters, digits, '.', '_' and '-', not {name!r}.")
    words = [*overrides, f"study={json.dumps(name)}"] if name else overrides
    for path in dict.fromkeys([config_path(folder, name), config_path(folder)]):
        if path.is_file():
            return load(path, words)
    return load(None, words) if begin else None

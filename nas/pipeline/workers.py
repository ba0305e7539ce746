"""The workers of a search: processes that hold the run's supernet and evaluate candidates."""

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

from nas.errors import ConfigError
from nas.pipeline import budget as budgets
from nas.pipeline.completion import completion_of
from nas.pipeline.config import RunConfig
from nas.pipeline.materials import Materials
from nas.pipeline.outcome import Outcome
from nas.pipeline.run import Run, load_config
from nas.pipeline.stock import StockAlone
from nas.search import Crew, QueueExecutor
from nas.search import work as work_on
from nas.space import Architecture
from nas.study import Study, mask_url, storage_url

LOG = "workers.log"
ACTORS = 8  # with --engine ray, where no number of workers is given
BATCHES = 2  # candidates proposed at once, a worker: none waits for the slowest of the others
ONE_THREAD = dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")


def evaluator(
    materials: Materials, architecture_of: Callable[[Mapping[str, Any]], Architecture]
) -> Callable[[Mapping[str, Any]], dict[str, float]]:
    """Return what scores a choice by the run's supernet, on the search split.

    Args:
        materials: The run's.
        architecture_of: Returns the network of a choice.
    """

    scores = materials.evaluator

    def evaluate(choice: Mapping[str, Any]) -> dict[str, float]:
        found = scores.quality(architecture_of(choice))
        return {"accuracy": found.accuracy, "loss": found.loss}

    return evaluate


def batch(config: RunConfig, study: Study) -> int:
    """Return how many candidates are proposed at once: part of a study, like its sampler."""
    begun_with: int | None = study.attrs.get("batch")
    at_once = _actors(config) if config.engine == "ray" else BATCHES * config.workers
    return config.batch or begun_with or max(1, at_once)


def _actors(config: RunConfig) -> int:
    return config.workers or ACTORS


@contextmanager
def executor(run: Run, study: Study) -> Iterator[Executor | None]:
    """Give candidates to the run's workers or actors while the body runs; None: it has none."""
    if run.config.engine == "ray":
        from nas.search import RayExecutor

        config = run.config
        with RayExecutor(
            _actors(config), address=config.address, timeout_s=config.timeout_s
        ) as actors:
            yield actors
        return
    if run.config.workers == 0:
        yield None
        return
    log = run.folder / LOG
    crew = Crew(run.config.workers, lambda: _start(run, study, log), log=log)
    queued = QueueExecutor(study, timeout_s=run.config.timeout_s, crew=crew)
    try:
        yield queued
    finally:
        queued.shutdown()


def _start(run: Run, study: Study, log: Path) -> "subprocess.Popen[bytes]":
    """Start one worker; other processes can read its words, so the password is not in them."""
    url = storage_url(run.config.storage)
    words = ["worker", "--run", str(run.folder), "--study", study.name, "--storage", mask_url(url)]
    with open(log, "ab") as stream:
        return subprocess.Popen(
            [sys.executable, "-m", "nas", *words, "--with-owner"],
            stdin=subprocess.PIPE,
            stdout=subprocess.DEVNULL,
            stderr=stream,
            env=os.environ | ONE_THREAD | {"NAS_STORAGE": url},
            start_new_session=True,  # Ctrl-C is for the search, which ends its workers
        )


def run_of(folder: Path | str, study: str) -> Run:
    """Return a run with the settings of one of its studies, which say how choices are completed.

    Raises:
        ConfigError: there is none.
    """
    run = Run.look(folder)
    run.config = replace(load_config(run.folder, study) or run.config, threads=1)
    return run


def work(
    folder: Path | str,
    study: str,
    *,
    storage: str | None = None,
    idle_s: float,
    with_owner: bool = False,
) -> Outcome:
    """Evaluate candidates of a study until nobody has searched it for `idle_s`.

    Args:
        folder: The run's folder, or a copy of it on this machine.
        study: The study's name.
        storage: Its database; the run's if not given.
        idle_s: How long to wait for a search.
        with_owner: End when standard input does.

    Raises:
        ConfigError: the folder's supernet or data are not those the study was begun with.
        NasError: an evaluation did not answer in its time.
        TryAgain: the database stays away.
    """
    run = run_of(folder, study)
    opened = Study.load(study, storage=storage or run.config.storage)
    materials = Materials(run)
    own = {
        "supernet_digest": run.result("train", make_with="train")["digest"],
        "data_digest": materials.data.digest,
    }
    for name, digest in own.items():
        if opened.attrs.get(name) != digest:
            raise ConfigError(
                f"the study {study!r} has {name} {str(opened.attrs.get(name))[:12]}, but "
                f"{run.folder} has {digest[:12]}: their results would not be comparable. Give "
                "the --run it is searched in, or a copy."
            )
    _ = materials.supernet  # once, before there is a candidate to keep waiting
    stop = threading.Event()
    if with_owner:
        threading.Thread(target=_stop_at_end_of_input, args=(stop,), daemon=True).start()
    taken = work_on(
        opened, evaluator(materials, _architectures(run, materials)), idle_s=idle_s, stop=stop
    )
    return Outcome(
        values={"study": study, "evaluated": taken},
        lines=(f"{taken} candidates of {study} evaluated",),
    )


def _architectures(run: Run, materials: Materials) -> Callable[[Mapping[str, Any]], Architecture]:
    """Return what makes a network of a choice; only allocation needs the target's table for it."""
    if run.config.stock:
        return StockAlone(materials.space, {}).architecture
    if run.config.importance == "none":
        return materials.space.architecture
    return completion_of(run, materials, *budgets.priced(run, materials)).architecture


def _stop_at_end_of_input(stop: threading.Event) -> None:
    while sys.stdin.buffer.read(1024):
        pass
    stop.set()

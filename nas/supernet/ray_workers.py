"""Workers: one training in several processes, started and replaced by Ray Train.

Each worker makes the whole batch (order and augmentation are functions of the seed), trains on its
share of it, and averages gradients with the others: gloo on CPUs, NCCL where there is a GPU for
each. The first one writes the checkpoints that a single process would. Ray carries data and
weights to the workers in its own way, pickles; they lie in the folder `ray` beside the checkpoints
(mode 0700), never among what this package reads.
"""

import contextlib
import copy
import json
import logging
import os
import shutil
import sys
import tempfile
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from nas import errors, files
from nas.data import Data
from nas.errors import ConfigError, DeviceError, NasError, TrainingDiverged
from nas.supernet.model import SuperNet
from nas.supernet.peers import Peers
from nas.supernet.schedule import TrainConfig
from nas.supernet.stored import Trained
from nas.supernet.training import Progress, Training

log = logging.getLogger(__name__)

LONGEST_SESSION = 40  # characters; Ray puts sockets below, whose paths end at 107
SECONDS_A_LOOK = 0.5
FOLDER, PROGRESS, FAILURE = "ray", "progress.json", "failure.json"


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Job:
    """What every worker is given.

    Attributes:
        supernet: On the CPU, with the weights to begin with.
        data: All of it; each worker cuts its own share.
        config: With the number of workers.
        folder: Of the checkpoints; every worker can read it and the first one writes it.
        place: Folder of what the workers tell the process that started them.
        teacher: On the CPU.
        threads: torch's own threads in each worker.
    """

    supernet: SuperNet
    data: Data
    config: TrainConfig
    folder: Path
    place: Path
    teacher: nn.Module | None
    threads: int


def train_with_workers(
    supernet: SuperNet,
    data: Data,
    config: TrainConfig,
    folder: Path,
    *,
    teacher: nn.Module | None = None,
    progress: Progress | None = None,
) -> Trained:
    """Train a supernet in `config.workers` processes; see `nas.supernet.train`.

    Raises:
        DeviceError: Ray cannot be started, or workers were lost more often than `restarts`.
        NasError: what a worker raised, as it raised it.
    """
    # Everything that one process would refuse is refused here, before anything is started.
    here = Training(supernet, data, config, folder, teacher=teacher)
    here.resume()
    if here.step == here.schedule.steps:
        return here.trained()
    folder = folder.resolve()
    place = folder.parent / FOLDER
    place.mkdir(mode=0o700, parents=True, exist_ok=True)
    place.chmod(0o700)
    for name in (PROGRESS, FAILURE):
        (place / name).unlink(missing_ok=True)
    job = Job(
        supernet=copy.deepcopy(supernet).cpu(),
        data=data,
        config=config,
        folder=folder,
        place=place,
        teacher=None if teacher is None else copy.deepcopy(teacher).cpu(),
        threads=max(1, torch.get_num_threads() // config.workers),
    )
    with _cluster(place, config.workers) as ray:
        _fit(ray, job, progress)
    here.resume()
    if here.step < here.schedule.steps:
        raise DeviceError(
            f"workers ended after step {here.step} of {here.schedule.steps}: {folder} does not "
            "hold what they wrote. It must be a folder that every worker sees."
        )
    shutil.rmtree(place, ignore_errors=True)
    return here.trained()


# ---------------------------------------------------------------- Ray
@contextmanager
def _cluster(place: Path, workers: int) -> Iterator[Any]:  # Any: the module ray has no types
    """Give the module ray, connected: as it is, to RAY_ADDRESS, or to a cluster of this machine."""
    os.environ.setdefault("RAY_USAGE_STATS_ENABLED", "0")  # nothing is sent anywhere
    os.environ.setdefault("RAY_TRAIN_METRICS_ENABLED", "0")
    import ray

    if ray.is_initialized():
        yield ray
        return
    quiet: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.ERROR}
    session = None
    if not os.environ.get("RAY_ADDRESS"):
        session = _session_folder(place)
        cores = max(workers, len(os.sched_getaffinity(0)))
        quiet |= {"num_cpus": cores, "include_dashboard": False, "_temp_dir": str(session)}
    try:
        ray.init(**quiet)
    except (OSError, RuntimeError, ValueError, ConnectionError) as error:
        raise DeviceError(f"Ray could not be started for {workers} workers: {error}") from error
    try:
        with contextlib.redirect_stdout(sys.stderr):  # where Ray says what befell a worker
            yield ray
    finally:
        ray.shutdown()
        if session is not None:
            shutil.rmtree(session, ignore_errors=True)


def _session_folder(place: Path) -> Path:
    """Return where Ray may keep sockets and logs: beside the run, or elsewhere if that is long."""
    if len(str(place)) <= LONGEST_SESSION:
        return place / "session"
    return Path(tempfile.mkdtemp(prefix="nas-ray-"))  # mode 0700


def _fit(ray: Any, job: Job, progress: Progress | None) -> None:
    """Let Ray Train run the workers to the end, and say meanwhile how far they are."""
    from ray.train import FailureConfig, RunConfig, ScalingConfig
    from ray.train.torch import TorchTrainer

    gpus = ray.cluster_resources().get("GPU", 0)
    trainer = TorchTrainer(
        _work,
        train_loop_config={"job": ray.put(job)},
        scaling_config=ScalingConfig(
            num_workers=job.config.workers, use_gpu=gpus >= job.config.workers
        ),
        run_config=RunConfig(
            name="supernet",
            storage_path=str(job.place),
            failure_config=FailureConfig(max_failures=job.config.restarts),
        ),
    )
    raised: list[BaseException] = []

    def fit() -> None:
        try:
            trainer.fit()
        except BaseException as error:  # told below, where it can be said what it means
            raised.append(error)

    # In a thread of its own: there Ray leaves the handling of signals to us.
    running = threading.Thread(target=fit, name="ray train", daemon=True)
    running.start()
    while running.is_alive():
        running.join(SECONDS_A_LOOK)
        _tell(job.place / PROGRESS, progress)
    _raise_failure(job)
    if raised:
        last = str(raised[0]).strip().splitlines()[-1:]
        raise DeviceError(
            f"training with {job.config.workers} workers failed more often than restarts "
            f"({job.config.restarts}) allow: {' '.join(last)}. Every checkpoint is kept; go on "
            "with the same command, or with fewer workers in a new folder."
        ) from raised[0]


def _tell(path: Path, progress: Progress | None) -> None:
    """Pass on what the first worker wrote last."""
    if progress is None:
        return
    with contextlib.suppress(OSError, ValueError, KeyError):  # not there yet, or half written
        row = json.loads(path.read_text(encoding="utf-8"))
        progress(row["done"], row["total"], row["text"])


def _raise_failure(job: Job) -> None:
    """Raise the error that a worker ended with, if it was one of ours."""
    path = job.place / FAILURE
    if not path.is_file():
        return
    row = files.read_json(path)
    kind = getattr(errors, str(row["type"]), NasError)
    raise kind(row["message"])


# ---------------------------------------------------------------- in a worker
def _work(given: dict[str, Any]) -> None:
    """Train, as one of several; Ray Train calls it in each worker, and again after a loss."""
    import ray
    from ray.train.torch import get_device

    job: Job = ray.get(given["job"])
    if (job.place / FAILURE).exists():
        return  # what failed would fail again: this start is only there to end
    torch.set_num_threads(job.threads)
    peers = Peers.joined()
    device = get_device()
    try:
        if job.config.workers != peers.count:
            raise ConfigError(f"{job.config.workers} workers were asked for, {peers.count} came.")
        run = Training(
            job.supernet.to(device),
            job.data,
            job.config,
            job.folder,
            teacher=None if job.teacher is None else job.teacher.to(device),
            peers=peers,
        )
        run.resume()
        run.go(_Reporter(job.place / PROGRESS) if peers.is_first else None)
    except NasError as error:
        with contextlib.suppress(NasError):  # a full disk may be the very reason
            row = {"type": type(error).__name__, "message": str(error)}
            files.write_json(job.place / FAILURE, row)
        if not isinstance(error, TrainingDiverged):  # which all of them find at once;
            raise  # else the others may wait for this one in an exchange, and have to be ended


class _Reporter:
    """Writes progress for the process that started the workers, twice a second at most."""

    def __init__(self, path: Path) -> None:
        self.path, self.said_at = path, 0.0

    def __call__(self, done: int, total: int, text: str) -> None:
        now = time.monotonic()
        if now - self.said_at < SECONDS_A_LOOK and done < total:
            return
        self.said_at = now
        row = {"done": done, "total": total, "text": text, "pid": os.getpid()}
        with contextlib.suppress(OSError):  # a full disk does not stop the work for it
            self.path.write_text(json.dumps(row), encoding="utf-8")

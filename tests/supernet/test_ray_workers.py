"""Several processes train one supernet; the tests with Ray start a cluster of their own."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from nas.data import Data
from nas.errors import ConfigError, NasError, TrainingDiverged
from nas.files import write_json
from nas.supernet import SuperNet, TrainConfig, load, train
from nas.supernet.passes import Passes
from nas.supernet.paths import step_paths
from nas.supernet.peers import Peers
from nas.supernet.ray_workers import FAILURE, LONGEST_SESSION, Job, _raise_failure, _session_folder
from nas.supernet.schedule import Schedule

CHILD = {**os.environ, "OMP_NUM_THREADS": "1"}

# ---------------------------------------------------------------- the exchange of gradients
GRADIENTS = """
import sys
import torch
from safetensors.torch import save_file
from nas.space import SearchSpace
from nas.supernet import SuperNet, TrainConfig
from nas.supernet.passes import Passes
from nas.supernet.paths import step_paths
from nas.supernet.peers import Peers
from nas.supernet.schedule import Schedule

class Frozen(SuperNet):
    # BatchNorm reads statistics that were fitted before, so that images do not mix.
    known = {}
    def forward(self, x, architecture, statistics=None, *, fit=False):
        own = self.known.get(architecture.id) if statistics is None else statistics
        return super().forward(x, architecture, own, fit=fit)

torch.set_num_threads(1)
rank, count, folder = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
space = SearchSpace.load("tiny").replace(num_classes=10, image_size=16)
supernet = Frozen(space, seed=3)
draws = torch.Generator().manual_seed(0)
images, labels = torch.randn(24, 3, 16, 16, generator=draws), torch.arange(24) % 10
for accumulate in (1, 2):
    config = TrainConfig(steps=9, sandwich=1.0, largest=0.0, batch_size=24, path_threads=1,
                         accumulate=accumulate)
    paths = step_paths(space, Schedule.of(config, steps_per_epoch=1), 4)
    for path in paths:
        own = supernet.empty_statistics(path.architecture)
        with torch.no_grad():
            supernet.forward(images, path.architecture, own, fit=True)
        supernet.known[path.architecture.id] = own
    if count > 1 and accumulate == 1:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=count)
    peers = Peers.joined() if count > 1 else Peers()
    passes = Passes(supernet, config, model=peers.wrapped(supernet))
    for _ in range(2):  # the second time torch knows the buckets
        losses = passes.run(paths, peers.share((images, labels)))
    mean = peers.mean(torch.stack(list(losses.values())))
    found = {n: v.grad.contiguous() for n, v in supernet.named_parameters() if v.grad is not None}
    found["losses"] = mean
    save_file(found, f"{folder}/{count}-{rank}-{accumulate}.safetensors")
if count > 1:
    assert peers.of_first({"a": rank}) == {"a": 0}
    torch.distributed.destroy_process_group()
"""


@pytest.mark.slow
def test_gradients_of_two_processes_are_those_of_one_with_the_whole_batch(tmp_path):
    def start(rank: int, count: int) -> "subprocess.Popen[bytes]":
        words = [sys.executable, "-c", GRADIENTS, str(rank), str(count), str(tmp_path)]
        return subprocess.Popen(words, env=CHILD)

    children = [start(0, 1), start(0, 2), start(1, 2)]
    assert [child.wait(timeout=300) for child in children] == [0, 0, 0]
    for accumulate in (1, 2):
        alone = load_file(tmp_path / f"1-0-{accumulate}.safetensors")
        for rank in (0, 1):
            own = load_file(tmp_path / f"2-{rank}-{accumulate}.safetensors")
            assert own.keys() == alone.keys() and len(own) > 20
            largest = max(float(value.abs().max()) for value in alone.values())
            for name, value in alone.items():
                assert float((own[name] - value).abs().max()) <= 1e-5 * max(1, largest), name


def test_workers_share_a_batch_without_a_gap_and_alone_there_is_nothing_to_exchange():
    batch = torch.arange(12).reshape(12, 1), torch.arange(12)
    shares = [Peers(rank, 3).share(batch) for rank in range(3)]
    for place in (0, 1):
        assert torch.equal(torch.cat([share[place] for share in shares]), batch[place])
    alone, values = Peers(), torch.ones(2)
    assert alone.share(batch) is batch and alone.mean(values) is values
    assert alone.of_first(batch) is batch and alone.is_first


@pytest.mark.slow
def test_one_process_needs_no_ray(tmp_path, small, quarters):
    train(SuperNet(small), quarters, TrainConfig(steps=1, batch_size=16), tmp_path)
    assert not (tmp_path.parent / "ray").exists()
    code = "import sys, nas.supernet, nas.supernet.train, nas.supernet.ray_workers; "
    done = subprocess.run(
        [sys.executable, "-c", code + "print('ray' in sys.modules)"],
        env=CHILD, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert done.stdout.strip() == "False"


def test_what_one_process_refuses_starts_no_workers(tmp_path, small, quarters):
    config = TrainConfig(steps=4, batch_size=32, workers=2)
    with pytest.raises(ConfigError, match="num_classes"):
        train(SuperNet(small.replace(num_classes=9)), quarters, config, tmp_path / "supernet")
    with pytest.raises(ConfigError, match="2 images for each of 20 workers, .* has 32"):
        many = replace(config, workers=20, batch_size=40)
        train(SuperNet(small), quarters, many, tmp_path / "supernet")
    assert not (tmp_path / "ray").exists()


def job(folder: Path, supernet: SuperNet, data: Data) -> Job:
    return Job(
        supernet=supernet, data=data, config=TrainConfig(), folder=folder, place=folder,
        teacher=None, threads=1,
    )  # fmt: skip


def test_an_error_of_a_worker_comes_out_as_what_it_was(tmp_path, small, quarters):
    of = job(tmp_path, SuperNet(small), quarters)
    _raise_failure(of)
    write_json(tmp_path / FAILURE, {"type": "TrainingDiverged", "message": "nan at step 3"})
    with pytest.raises(TrainingDiverged, match="nan at step 3"):
        _raise_failure(of)
    write_json(tmp_path / FAILURE, {"type": "SomethingOld", "message": "what"})
    with pytest.raises(NasError, match="what"):
        _raise_failure(of)


def test_rays_sockets_are_beside_the_run_unless_their_paths_would_be_too_long():
    assert _session_folder(Path("/data/runs/mine/ray")) == Path("/data/runs/mine/ray/session")
    far = Path("/" + "x" * LONGEST_SESSION) / "ray"
    other = _session_folder(far)
    assert len(str(other)) < LONGEST_SESSION and other.stat().st_mode & 0o077 == 0
    other.rmdir()


def test_a_batch_of_several_parts_in_a_group_exchanges_once(small):
    """Every pass but the last is inside `no_sync`."""

    class Counting(torch.nn.parallel.DistributedDataParallel):
        def __init__(self) -> None:
            torch.nn.Module.__init__(self)
            self.calls: list[str] = []

        def no_sync(self):
            self.calls.append("apart")
            return super().no_sync()

        def __call__(self, images, architecture):
            self.calls.append("pass")
            return supernet(images, architecture)

        require_backward_grad_sync = True

    supernet, model = SuperNet(small), Counting()
    config = TrainConfig(steps=9, sandwich=1.0, largest=0.0, batch_size=16, accumulate=2)
    passes = Passes(supernet, config, model=model)
    paths = step_paths(small, Schedule.of(config, steps_per_epoch=1), 1)
    passes.run(paths, (torch.randn(16, 3, 16, 16), torch.arange(16) % 4))
    assert model.calls == ["apart", "pass"] * 5 + ["pass"]


# ---------------------------------------------------------------- with Ray
TRAINING = """
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
import torch
from nas.data import load
from nas.space import SearchSpace
from nas.supernet import SuperNet, TrainConfig, train
torch.set_num_threads(2)
data = load("digits", image_size=16)
space = SearchSpace.load("tiny").replace(num_classes=10, image_size=16)
space = space.replace(stages=tuple(replace(s, depth=s.depth[:1]) for s in space.stages))
config = TrainConfig(steps=int(sys.argv[2]), batch_size=16, checkpoint_steps=6, choice_every=3,
                     workers=2, lr=float(sys.argv[3]), clip_grad=float(sys.argv[4]),
                     log_steps=5, ema_decay=0.9)
train(SuperNet(space), data, config, sys.argv[1], progress=lambda done, total, text: None)
"""


@contextmanager
def started(folder: Path, *words: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Give a training that writes to the files `out` and `err`: nobody reads a pipe meanwhile."""
    place = folder.parent
    with (
        open(place / "out", "wb") as out,
        open(place / "err", "wb") as err,
        subprocess.Popen(
            [sys.executable, "-c", TRAINING, str(folder), *words],
            env=CHILD, stdout=out, stderr=err,
        ) as child,
    ):  # fmt: skip
        try:
            yield child
        finally:
            child.kill()  # its cluster ends with it


def process_of(told: Path) -> int | None:
    """Return the process of the first worker, as it said last; None while it writes."""
    try:
        return int(json.loads(told.read_text())["pid"])
    except (OSError, ValueError):
        return None


@pytest.mark.slow
def test_a_killed_worker_does_not_end_the_run(tmp_path):
    folder, told = tmp_path / "supernet", tmp_path / "ray" / "progress.json"
    with started(folder, "24", "0.003", "1") as child:
        while child.poll() is None and not list(folder.glob("step-*.json")):
            time.sleep(0.1)
        assert (tmp_path / "ray").stat().st_mode & 0o777 == 0o700
        first = process_of(told)
        assert first is not None
        os.kill(first, signal.SIGKILL)
        later = set()
        while child.poll() is None:
            later.add(process_of(told))
            time.sleep(0.1)
    assert child.returncode == 0, (tmp_path / "err").read_text()
    assert (tmp_path / "out").read_text() == ""  # what Ray has to say is no result
    assert later - {first, None}  # another process is the first worker now
    trained = load(folder)
    assert trained.history[-1]["step"] == 24
    assert not (tmp_path / "ray").exists()  # nothing of Ray's stays


@pytest.mark.slow
def test_what_ends_a_training_in_a_worker_is_said_as_by_one_process(tmp_path):
    with started(tmp_path / "supernet", "24", "1000", "0") as child:
        child.wait(timeout=300)
    err = (tmp_path / "err").read_text()
    assert child.returncode == 1
    assert "TrainingDiverged: the loss of the" in err and "Train in a new folder" in err

import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from nas.space import Architecture, SearchSpace
from nas.supernet import SuperNet, TrainConfig
from nas.supernet.passes import Batch, Losses, Passes
from nas.supernet.paths import step_paths
from nas.supernet.schedule import Schedule

SANDWICH = TrainConfig(steps=10, sandwich=1.0, largest=0.0, batch_size=16, path_threads=1)

Gradients = dict[str, Tensor | None]


@pytest.fixture
def batch() -> Batch:
    draws = torch.Generator().manual_seed(3)
    return torch.randn(16, 3, 16, 16, generator=draws), torch.arange(16) % 4


def gradients(
    space: SearchSpace,
    config: TrainConfig,
    batch: Batch,
    *,
    taught_by: str = "",
    teacher: nn.Module | None = None,
) -> tuple[Gradients, Losses]:
    """Return the gradients of a sandwich step by name, and its losses by role."""
    supernet = SuperNet(space, seed=1)
    passes = Passes(supernet, config, teacher=teacher)
    paths = step_paths(space, Schedule.of(config, steps_per_epoch=1), 2)
    losses = passes.run(paths, batch, taught_by=taught_by)
    passes.close()
    return {name: value.grad for name, value in supernet.named_parameters()}, losses


def by_hand(
    space: SearchSpace,
    config: TrainConfig,
    loss_of: Callable[[SuperNet, list[Architecture]], Tensor],
) -> Gradients:
    """Return the gradients of the mean of some losses, by one backward pass."""
    supernet = SuperNet(space, seed=1)
    paths = step_paths(space, Schedule.of(config, steps_per_epoch=1), 2)
    loss_of(supernet, [path.architecture for path in paths]).backward()  # type: ignore[no-untyped-call]
    return {name: value.grad for name, value in supernet.named_parameters()}


def assert_equal(found: Gradients, wanted: Gradients, *, rtol: float, atol: float) -> None:
    assert found.keys() == wanted.keys()
    for name, gradient in wanted.items():
        if gradient is None:
            assert found[name] is None, name
        else:
            torch.testing.assert_close(found[name], gradient, rtol=rtol, atol=atol)


def test_a_step_leaves_the_gradient_of_the_mean_loss_of_its_paths(small, batch):
    images, labels = batch
    found, losses = gradients(small, SANDWICH, batch)

    def mean(supernet: SuperNet, paths: list[Architecture]) -> Tensor:
        each = [F.cross_entropy(supernet(images, p), labels, label_smoothing=0.1) for p in paths]
        assert list(losses) == ["largest", "smallest", "random"]
        torch.testing.assert_close(torch.stack(list(losses.values())), torch.stack(each).detach())
        return torch.stack(each).mean()

    assert_equal(found, by_hand(small, SANDWICH, mean), rtol=1e-4, atol=1e-6)
    assert any(gradient is None for gradient in found.values())  # kinds that were not run


@pytest.mark.parametrize("taught_by", ["", "largest"])
def test_several_threads_leave_the_very_gradients_of_one(small, batch, taught_by):
    several = replace(SANDWICH, path_threads=3, accumulate=2)
    one = replace(SANDWICH, accumulate=2)
    wanted, losses = gradients(small, one, batch, taught_by=taught_by)
    for _ in range(3):
        found, own = gradients(small, several, batch, taught_by=taught_by)
        assert own == losses
        assert_equal(found, wanted, rtol=0, atol=0)


def test_a_batch_in_parts_leaves_the_mean_gradient_of_the_parts(small, batch):
    images, labels = batch
    config = replace(SANDWICH, accumulate=4)
    found, _ = gradients(small, config, batch)

    def mean(supernet: SuperNet, paths: list[Architecture]) -> Tensor:
        parts = zip(images.split(4), labels.split(4), strict=True)
        each = [
            F.cross_entropy(supernet(x, path), y, label_smoothing=0.1)
            for x, y in parts
            for path in paths
        ]
        assert len(each) == 12
        return torch.stack(each).mean()

    assert_equal(found, by_hand(small, config, mean), rtol=1e-4, atol=1e-6)


def test_in_place_the_largest_learns_the_labels_and_the_others_its_scores(small, batch):
    images, labels = batch
    config = replace(SANDWICH, regularise="largest")
    found, _ = gradients(small, config, batch, taught_by="largest")

    def mean(supernet: SuperNet, paths: list[Architecture]) -> Tensor:
        scores = [supernet(images, path) for path in paths]
        soft = scores[0].detach().softmax(1)
        losses = [F.cross_entropy(scores[0], labels, label_smoothing=0.1)]
        losses += [-(soft * own.log_softmax(1)).sum(1).mean() for own in scores[1:]]
        return torch.stack(losses).mean()

    assert_equal(found, by_hand(small, config, mean), rtol=1e-4, atol=1e-6)


def test_a_network_teaches_every_path_by_its_weight_beside_labels_smoothed_for_the_largest(
    small, batch
):
    images, labels = batch
    torch.manual_seed(0)
    teacher = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(3 * 16 * 16, 4)).eval()
    config = replace(SANDWICH, regularise="largest", distill_weight=0.25)
    found, _ = gradients(small, config, batch, taught_by="teacher", teacher=teacher)

    def mean(supernet: SuperNet, paths: list[Architecture]) -> Tensor:
        soft = teacher(images).detach().softmax(1)
        losses = []
        for path, smoothing in zip(paths, (0.1, 0.0, 0.0), strict=True):
            own = supernet(images, path)
            task = F.cross_entropy(own, labels, label_smoothing=smoothing)
            losses.append(0.75 * task - 0.25 * (soft * own.log_softmax(1)).sum(1).mean())
        return torch.stack(losses).mean()

    assert_equal(found, by_hand(small, config, mean), rtol=1e-4, atol=1e-6)


def test_an_error_in_the_largest_path_ends_the_others_that_wait_for_it(small, batch):
    class Broken(SuperNet):
        def forward(self, x, architecture, statistics=None, *, fit=False):
            if architecture == small.largest() or len(architecture.stages[0].blocks) == 99:
                raise MemoryError("no memory for the largest")
            return super().forward(x, architecture, statistics, fit=fit)

    config = replace(SANDWICH, path_threads=2)
    supernet = Broken(small, seed=1)
    passes = Passes(supernet, config)
    paths = step_paths(small, Schedule.of(config, steps_per_epoch=1), 2)
    first = paths[0]
    paths = (type(first)(first.role, small.largest()), *paths[1:])
    with pytest.raises(MemoryError, match="no memory"):
        passes.run(paths, batch, taught_by="largest")
    passes.close()


def test_gradients_keep_the_memory_layout_of_weights_in_channels_last(small, batch):
    supernet = SuperNet(small, seed=1).to(memory_format=torch.channels_last)
    config = replace(SANDWICH, path_threads=2)
    passes = Passes(supernet, config)
    passes.run(step_paths(small, Schedule.of(config, steps_per_epoch=1), 2), batch)
    passes.close()
    for name, value in supernet.named_parameters():
        assert value.grad is None or value.grad.stride() == value.stride(), name


THREADS = """
import sys
import torch
from nas.space import SearchSpace
from nas.supernet import SuperNet, TrainConfig
from nas.supernet.passes import Passes
from nas.supernet.paths import step_paths
from nas.supernet.schedule import Schedule

torch.set_num_threads(1)
sys.setswitchinterval(1e-5)  # threads meet much more often than they would
space = SearchSpace.load("tiny").replace(num_classes=4, image_size=16)
config = TrainConfig(steps=10, sandwich=1.0, largest=0.0, batch_size=2, path_threads=2)
passes = Passes(SuperNet(space, seed=1), config)
paths = step_paths(space, Schedule.of(config, steps_per_epoch=1), 2)
for _ in range(int(sys.argv[1])):
    losses = passes.run(paths, (torch.randn(2, 3, 16, 16), torch.arange(2)))
    print(sorted(losses), all(loss.isfinite() for loss in losses.values()))
"""


def test_threads_that_share_parameters_never_wait_for_each_other_for_ever() -> None:
    command = [sys.executable, "-c", THREADS, "60"]
    ended = subprocess.run(command, capture_output=True, text=True, timeout=240)  # or it hangs
    assert ended.returncode == 0, ended.stderr
    lines = ended.stdout.splitlines()
    assert len(lines) == 60 and set(lines) == {"['largest', 'random', 'smallest'] True"}

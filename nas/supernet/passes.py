"""Passes: a step's paths, forward and backward; what is left is the sum of their gradients."""

import contextlib
import os
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from nas.supernet.model import SuperNet
from nas.supernet.paths import StepPath
from nas.supernet.schedule import TrainConfig

Batch = tuple[Tensor, Tensor]
Losses = dict[str, Tensor]  # role -> mean loss


class Passes:
    """Runs paths on a batch.

    The gradient of a step is that of the mean loss of its paths. A batch may be run in several
    parts (`accumulate`), whose gradients have the same weight.

    On a CPU several Python threads may share the paths: torch leaves the interpreter while it
    computes, and every thread has templates of its own. Each path's gradient is kept apart and
    they are added in the order of the paths, as one thread adds them: no bit depends on it.

    Args:
        supernet: Whose parameters get the gradients.
        config: How losses are made.
        model: What is called with (images, architecture): the supernet, or what wraps it to
            average gradients over processes.
        teacher: Scores images for paths that learn from it.
    """

    def __init__(
        self,
        supernet: SuperNet,
        config: TrainConfig,
        *,
        model: nn.Module | None = None,
        teacher: nn.Module | None = None,
    ) -> None:
        self.config, self.teacher = config, teacher
        self.model = supernet if model is None else model
        self.parameters = list(supernet.parameters())
        self.device = self.parameters[0].device
        is_apart = isinstance(self.model, DistributedDataParallel) or self.device.type != "cpu"
        self.threads = 1 if is_apart else config.path_threads or _free_threads()
        self._pool: ThreadPoolExecutor | None = None
        self._views: list[Tensor] = []

    def run(self, paths: Sequence[StepPath], batch: Batch, *, taught_by: str = "") -> Losses:
        """Leave the gradients in the parameters; return the mean loss of each role.

        Parameters that no path used have no gradient afterwards.

        Args:
            paths: The first must be the largest one where it teaches the others.
            batch: Images and labels.
            taught_by: "largest", "teacher", or "" for the labels alone.
        """
        for parameter in self.parameters:
            parameter.grad = None  # kinds that are not run stay as they are
        parts = _parts(batch, self.config.accumulate)
        count = len(parts) * len(paths)
        losses: Losses = {}
        for number, part in enumerate(parts):
            taught = None
            if taught_by == "teacher":
                assert self.teacher is not None
                with torch.no_grad(), self.autocast():
                    taught = self.teacher(part[0])
            run = self._together if min(self.threads, len(paths)) > 1 else self._in_turn
            found = run(paths, part, taught, in_place=taught_by == "largest", count=count,
                        is_last=number == len(parts) - 1)  # fmt: skip
            for path, loss in zip(paths, found, strict=True):
                share = 1 / (len(parts) * sum(other.role == path.role for other in paths))
                losses[path.role] = losses.get(path.role, 0) + share * loss
        return losses

    def close(self) -> None:
        """End the threads."""
        if self._pool is not None:
            self._pool.shutdown()
            self._pool = None
            self._views = []

    # ------------------------------------------------------------ one part of a batch
    def _in_turn(
        self,
        paths: Sequence[StepPath],
        part: Batch,
        taught: Tensor | None,
        *,
        in_place: bool,
        count: int,
        is_last: bool,
    ) -> list[Tensor]:
        """Run the paths one after another; processes exchange gradients behind the last one."""
        found = []
        for place, path in enumerate(paths):
            is_end = is_last and place == len(paths) - 1
            with contextlib.nullcontext() if is_end else self._without_exchange():
                scores, loss = self._forward(path, part, taught)
                (loss / count).backward()  # type: ignore[no-untyped-call]
            if in_place and path.role == "largest":
                taught = scores.detach()
            found.append(loss.detach())
        return found

    def _together(
        self,
        paths: Sequence[StepPath],
        part: Batch,
        taught: Tensor | None,
        *,
        in_place: bool,
        count: int,
        is_last: bool,
    ) -> list[Tensor]:
        """Run the paths in several threads, which wait for the largest's scores if it teaches."""
        promised: Future[Tensor] = Future()

        def work(path: StepPath) -> tuple[Tensor, tuple[Tensor | None, ...]]:
            is_largest = path.role == "largest"
            try:
                own = promised.result() if in_place and not is_largest else taught
                scores, loss = self._forward(path, part, own)
            except BaseException as error:
                if is_largest:
                    promised.set_exception(error)  # or the others would wait for ever
                raise
            if is_largest:
                promised.set_result(scores.detach())
            gradients = torch.autograd.grad(loss / count, self.parameters, allow_unused=True)
            return loss.detach(), gradients

        if self._pool is None:
            self._pool = ThreadPoolExecutor(self.threads, thread_name_prefix="path")
            # torch makes the node that takes a parameter's gradient when a graph needs it and none
            # lives, under a lock under which it waits for the interpreter; a thread that has the
            # interpreter and wants the lock stands still with it, for ever (LOG.md). A view keeps
            # the node alive; a node that Python has in hand itself would not do.
            self._views = [parameter.view_as(parameter) for parameter in self.parameters]
        begun = [self._pool.submit(work, path) for path in paths]
        found = []
        for each in begun:
            loss, gradients = each.result()
            self._add(gradients)
            found.append(loss)
        return found

    def _add(self, gradients: Sequence[Tensor | None]) -> None:
        """Add to the parameters' gradients, in the parameters' memory layouts."""
        for parameter, gradient in zip(self.parameters, gradients, strict=True):
            if gradient is None:
                continue
            if parameter.grad is None:
                parameter.grad = torch.empty_like(parameter).copy_(gradient)
            else:
                parameter.grad.add_(gradient)

    def _forward(self, path: StepPath, part: Batch, taught: Tensor | None) -> tuple[Tensor, Tensor]:
        """Return the class scores of a path and its loss."""
        images, labels = part
        with self.autocast():
            scores = self.model(images, path.architecture)
            return scores, self.loss(path.role, scores, labels, taught)

    def loss(self, role: str, scores: Tensor, labels: Tensor, taught: Tensor | None) -> Tensor:
        """Return the loss of a path, a scalar in nats.

        The cross-entropy with the labels, smoothed for those that are regularised, and with a
        teacher's softmax by its weight.

        Args:
            role: Why the path is run.
            scores: Of shape (batch, classes).
            labels: Classes of shape (batch,), or soft labels of shape (batch, classes).
            taught: The teacher's scores of shape (batch, classes), if there is one.
        """
        weight = 0.0 if taught is None else self.config.distill_weight
        is_smoothed = self.config.regularise == "all" or role == "largest"
        smoothing = self.config.label_smoothing if is_smoothed else 0.0
        scores = scores.float()
        loss = torch.zeros((), device=scores.device)
        if weight < 1:
            own = F.cross_entropy(scores, labels, label_smoothing=smoothing)
            loss = own if not weight else (1 - weight) * own
        if taught is not None and weight:
            loss = loss + weight * F.cross_entropy(scores, taught.float().softmax(1))
        return loss

    # ------------------------------------------------------------ the device
    def autocast(self) -> contextlib.AbstractContextManager[Any]:  # Any: as torch has it
        """Return bfloat16 autocast where the device is a GPU that has it."""
        is_on = self.config.amp and self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        if not is_on:
            return contextlib.nullcontext()
        return torch.autocast("cuda", dtype=torch.bfloat16)

    def _without_exchange(self) -> contextlib.AbstractContextManager[Any]:  # Any: as torch has it
        if isinstance(self.model, DistributedDataParallel):
            return self.model.no_sync()
        return contextlib.nullcontext()


def _parts(batch: Batch, count: int) -> list[Batch]:
    """Return a batch in so many parts of equal size."""
    return list(zip(batch[0].chunk(count), batch[1].chunk(count), strict=True))


def _free_threads() -> int:
    """Return how many Python threads there are cores for, each with torch's own threads."""
    return max(1, len(os.sched_getaffinity(0)) // torch.get_num_threads())

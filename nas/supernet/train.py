"""Training a supernet: many cheap paths, then a short sandwich; kinds chosen along the way."""

import contextlib
import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nas import checkpoint, files
from nas.data import Data, batches, steps_per_epoch
from nas.errors import TrainingDiverged
from nas.seeds import stage_seed
from nas.supernet.choice import Choice, spots
from nas.supernet.evaluate import check_fit
from nas.supernet.history import History
from nas.supernet.model import SuperNet
from nas.supernet.paths import choice_path, step_paths
from nas.supernet.schedule import Schedule, TrainConfig
from nas.supernet.stored import Trained, restored, stored
from nas.supernet.taylor import TaylorConfig, covering_paths, measure_importance, order

log = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
Batch = tuple[Tensor, Tensor]


def train(
    supernet: SuperNet,
    data: Data,
    config: TrainConfig,
    folder: Path | str,
    *,
    progress: Progress | None = None,
) -> Trained:
    """Train a supernet in place, on the device it is on, and leave its checkpoints in a folder.

    A folder with a checkpoint of the same training is gone on with: on a CPU, with as many threads
    as before, the result is bit for bit that of a training that was never interrupted, because
    every draw is a function of the seed and the number of the step. `load(folder)` gives the
    result back later.

    Tensors of a slot that no path touched in a step stay as they are. Entries that a path of the
    same kind did not reach get zero gradients, so that AdamW's decay and momentum move them on.

    Between the largest paths and the random ones the channels are put into the order of their
    Taylor importance, together with AdamW's moments (`taylor.order`), so that the small networks,
    which come then, begin with the channels that matter.

    Args:
        supernet: What to train; its weights are overwritten if there is a checkpoint.
        data: Trained on its train split; kinds are chosen on its choice split.
        config: How.
        folder: Holds `step-N.safetensors`, `step-N.json` and `losses.jsonl`, the loss of the
            largest, smallest and random paths apart. One process at a time.
        progress: Told (steps done, steps in all, loss and time left).

    Raises:
        ConfigError: data and space do not fit, or the folder belongs to another training; the
            message names the difference.
        CorruptFile: every checkpoint there is damaged.
        TrainingDiverged: a loss is NaN or infinite; the last checkpoint is intact.
        StorageError: a checkpoint cannot be written; the one before it is intact.
    """
    run = _Training(supernet, data, config, Path(folder))
    run.resume()
    run.go(progress)
    return Trained(supernet=supernet, choice=run.choice, history=tuple(run.history.rows))


class _Training:
    """The state of one training, and its steps."""

    def __init__(self, supernet: SuperNet, data: Data, config: TrainConfig, folder: Path) -> None:
        check_fit(supernet, data)
        train_split, choice_split = data.split("train"), data.split("choice")
        self.supernet, self.data, self.config, self.folder = supernet, data, config, folder
        self.schedule = Schedule.of(
            config, steps_per_epoch=steps_per_epoch(train_split, config.batch_size)
        )
        self.choice_batch = min(config.batch_size, len(choice_split))
        self.device = next(supernet.parameters()).device
        if config.channels_last:
            supernet.to(memory_format=torch.channels_last)
        self.choice = Choice(supernet.space)
        is_fused = self.device.type in ("cpu", "cuda")
        self.optimizer = torch.optim.AdamW(
            supernet.weight_groups(config.weight_decay), lr=config.lr, fused=is_fused
        )
        self.choice_optimizer = torch.optim.Adam(
            [{"params": list(self.choice.logits.values())}],
            lr=config.choice_lr,
        )
        self.history = History()
        self.step = 0

    # ------------------------------------------------------------ checkpoints
    def resume(self) -> None:
        """Go on from the newest whole checkpoint, if there is one."""
        found = checkpoint.load(self.folder)
        if found is not None:
            restored(found, self._identity(), self._parts(), source=self.folder)
            self.step = found.step
            self.history = History(found.state["history"])
            log.info("going on after step %d of %d", self.step, self.schedule.steps)

    def save(self) -> None:
        """Write a checkpoint of the steps done, and the history beside it."""
        tensors, state = stored(self._identity(), self._parts())
        state["history"] = self.history.rows
        checkpoint.save(self.folder, self.step, tensors, state)
        self.history.write(self.folder / "losses.jsonl")

    def _identity(self) -> dict[str, Any]:  # Any: plain JSON
        """Return what must be equal for a checkpoint to be gone on with."""
        return {
            "space": files.to_plain(self.supernet.space),
            "supernet_seed": self.supernet.seed,
            "start": self.supernet.start,
            "data": self.data.digest,
            "steps": self.schedule.steps,
            "config": files.to_plain(self.config),
        }

    def _parts(self) -> dict[str, Any]:  # Any: what has a state
        return {
            "supernet": self.supernet,
            "choice": self.choice,
            "optimizer": self.optimizer,
            "choice_optimizer": self.choice_optimizer,
        }

    # ------------------------------------------------------------ the loop
    def go(self, progress: Progress | None) -> None:
        """Run the steps that are left."""
        total, first = self.schedule.steps, self.step
        if first == total:
            return
        begun = time.perf_counter()
        images = self._stream("train", self.config.batch_size, first)
        choices = self._stream("choice", self.choice_batch, self.schedule.choices_before(first))
        while self.step < total:
            step = self.step
            if self.schedule.is_preceded_by_ordering(step):
                self._order()
            self.history.add(step, self._weight_step(step, next(images)))
            if self.schedule.is_followed_by_choice(step) and self.choice.logits:
                self.history.add(step, {"choice": self._choice_step(step, next(choices))})
            self.step += 1
            is_saved = self.step % self.config.checkpoint_steps == 0 or self.step == total
            if is_saved or self.step % self.config.log_steps == 0:
                self._close_row()
            if is_saved:
                self.save()
            if progress is not None:
                progress(self.step, total, f"{self.history.last()}, {self._left(first, begun)}")

    def _left(self, first: int, begun: float) -> str:
        """Return the time left: as much a path as since step `first`, which began at `begun`."""
        before, so_far, in_all = (
            self.schedule.paths_before(step) for step in (first, self.step, self.schedule.steps)
        )
        left_s = (time.perf_counter() - begun) / (so_far - before) * (in_all - so_far)
        return f"{left_s:.0f} s left"

    def _stream(self, split: str, batch_size: int, start: int) -> Iterator[Batch]:
        """Yield a split's batches epoch after epoch, from batch number `start` on."""
        images = self.data.split(split)
        epoch, first = divmod(start, steps_per_epoch(images, batch_size))
        while True:
            yield from batches(
                images,
                self.data,
                batch_size=batch_size,
                seed=stage_seed(self.config.seed, f"{split} batches"),
                epoch=epoch,
                augment=self.data.augment if self.config.augment else None,
                start_batch=first,
                device=self.device,
            )
            epoch, first = epoch + 1, 0

    def _close_row(self) -> None:
        """Average the losses since the last row; raise TrainingDiverged if one was not finite."""
        bad = self.history.close_row(self.step, lr=self.schedule.learning_rate(self.step - 1))
        if bad is not None:
            step, role, loss = bad
            before = self.step - 1 - (self.step - 1) % self.config.checkpoint_steps
            kept = f"The checkpoint of step {before} is intact. " if before else ""
            raise TrainingDiverged(
                f"the loss of the {role} path must be finite, but is {loss} at step {step} of "
                f"{self.schedule.steps}. {kept}Train in a new folder with a lower lr (it is "
                f"{self.config.lr:g}) or clip_grad (it is {self.config.clip_grad:g})."
            )

    # ------------------------------------------------------------ one step
    def _order(self) -> None:
        """Put important channels first; a training that goes on from before does it again."""
        importance = measure_importance(
            self.supernet,
            covering_paths(self.supernet.space),
            self.data,
            TaylorConfig(images=self.config.order_images, batch_size=self.config.batch_size),
        )
        orders = order(self.supernet, importance, optimizer=self.optimizer)
        log.info(
            "put the channels of %d dimensions in order before step %d", len(orders), self.step
        )

    def _weight_step(self, step: int, batch: Batch) -> dict[str, Tensor]:
        """Update the weights on one batch; return the mean loss of each role."""
        images, labels = batch
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.learning_rate(step)
        self.optimizer.zero_grad(set_to_none=True)  # kinds that are not run stay as they are
        paths = step_paths(self.supernet.space, self.schedule, step)
        losses: dict[str, Tensor] = {}
        teacher: Tensor | None = None
        for path in paths:
            with self._autocast():
                scores = self.supernet(images, path.architecture)
                loss = self._loss(scores, labels, teacher)
            (loss / len(paths)).backward()  # type: ignore[no-untyped-call]
            if path.role == "largest" and self.schedule.distills(step):
                teacher = scores.detach()
            share = 1 / sum(other.role == path.role for other in paths)
            losses[path.role] = losses.get(path.role, 0) + share * loss.detach()
        if self.config.clip_grad:
            torch.nn.utils.clip_grad_norm_(self.supernet.parameters(), self.config.clip_grad)
        self.optimizer.step()
        return losses

    def _loss(self, scores: Tensor, labels: Tensor, teacher: Tensor | None) -> Tensor:
        """Return the cross-entropy with the labels, or with the largest path's scores."""
        if teacher is not None:
            return F.cross_entropy(scores.float(), teacher.float().softmax(1))
        smoothing = self.config.label_smoothing
        return F.cross_entropy(scores.float(), labels, label_smoothing=smoothing)

    def _choice_step(self, step: int, batch: Batch) -> Tensor:
        """Update the logits of the kinds on a batch of the choice split; return the loss."""
        images, labels = batch
        number = self.schedule.choices_before(step)
        generator = torch.Generator().manual_seed(stage_seed(self.config.seed, f"gumbel {number}"))
        weights = self.choice.sample(generator, temperature=self.schedule.temperature(number))
        path = spots(
            self.supernet.space,
            choice_path(self.supernet.space, seed=self.config.seed, number=number),
        )
        with self._autocast():
            loss = self._loss(self.supernet.forward_mixed(images, path, weights), labels, None)
        logits = list(self.choice.logits.values())
        for value, gradient in zip(logits, torch.autograd.grad(loss, logits), strict=True):
            value.grad = gradient
        self.choice_optimizer.step()
        return loss.detach()

    def _autocast(self) -> contextlib.AbstractContextManager[Any]:
        """Return bfloat16 autocast where the device is a GPU that has it."""
        is_on = self.config.amp and self.device.type == "cuda" and torch.cuda.is_bf16_supported()
        if not is_on:
            return contextlib.nullcontext()
        return torch.autocast("cuda", dtype=torch.bfloat16)

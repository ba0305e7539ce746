"""The steps of a training: many cheap paths, then a short sandwich; kinds chosen along the way."""

import logging
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from nas import checkpoint, files
from nas.data import Data, batches, steps_per_epoch
from nas.errors import ConfigError, TrainingDiverged
from nas.seeds import stage_seed
from nas.supernet.average import Average, mean_loss
from nas.supernet.choice import Choice
from nas.supernet.choosing import sampled_scores, update
from nas.supernet.evaluate import check_fit
from nas.supernet.history import History
from nas.supernet.model import SuperNet
from nas.supernet.passes import Passes
from nas.supernet.paths import drawn_path, step_paths
from nas.supernet.peers import Peers
from nas.supernet.schedule import Schedule, TrainConfig
from nas.supernet.stored import Trained, restored, stored
from nas.supernet.taylor import TaylorConfig, covering_paths, measure_importance, order

log = logging.getLogger(__name__)

Progress = Callable[[int, int, str], None]
Batch = tuple[Tensor, Tensor]

COMPARED = ("largest", "smallest", *("random",) * 6)  # paths that say whether the average is better
FREE = ("path_threads", "restarts")  # settings that change no result


class Training:
    """The state of one training, and its steps.

    Args:
        supernet: What to train.
        data: What on.
        config: How.
        folder: Where checkpoints are.
        teacher: Whom paths learn from, if `config` says so.
        peers: The processes that divide each batch; all of them make the same calls.
    """

    def __init__(
        self,
        supernet: SuperNet,
        data: Data,
        config: TrainConfig,
        folder: Path,
        *,
        teacher: nn.Module | None = None,
        peers: Peers | None = None,
    ) -> None:
        check_fit(supernet, data)
        train_split = data.split("train")
        self.supernet, self.data, self.config, self.folder = supernet, data, config, folder
        self.peers = peers or Peers()
        self.teacher = _needed(teacher, config)
        self.schedule = Schedule.of(
            config, steps_per_epoch=steps_per_epoch(train_split, config.batch_size)
        )
        self.choice_batch = _choice_batch(data, config)
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
        self.average = Average(supernet, config.ema_decay) if config.ema_decay else None
        self.passes = Passes(
            supernet, config, model=self.peers.wrapped(supernet), teacher=self.teacher
        )
        self.history = History()
        self.is_averaged = False
        self.step = 0

    def trained(self) -> Trained:
        """Return what there is so far."""
        return Trained(
            supernet=self.supernet,
            choice=self.choice,
            history=tuple(self.history.rows),
            is_averaged=self.is_averaged,
        )

    # ------------------------------------------------------------ checkpoints
    def resume(self) -> None:
        """Go on from the newest whole checkpoint, if there is one."""
        found = checkpoint.load(self.folder)
        if found is not None:
            restored(found, self._identity(), self._parts(), source=self.folder)
            self.step = found.step
            self.history = History(found.state["history"])
            self.is_averaged = found.state["is_averaged"]
            log.info("going on after step %d of %d", self.step, self.schedule.steps)

    def save(self) -> None:
        """Write a checkpoint of the steps done, and the history beside it."""
        tensors, state = stored(self._identity(), self._parts())
        state |= {"history": self.history.rows, "is_averaged": self.is_averaged}
        checkpoint.save(self.folder, self.step, tensors, state)
        self.history.write(self.folder / "losses.jsonl")

    def _identity(self) -> dict[str, Any]:  # Any: plain JSON
        """Return what must be equal for a checkpoint to be gone on with."""
        settings = files.to_plain(self.config)
        teacher = None
        if self.teacher is not None:
            teacher = checkpoint.digest_tensors(self.teacher.state_dict())
        return {
            "space": files.to_plain(self.supernet.space),
            "supernet_seed": self.supernet.seed,
            "start": self.supernet.start,
            "data": self.data.digest,
            "steps": self.schedule.steps,
            "config": {name: settings[name] for name in settings if name not in FREE},
            "teacher": teacher,
        }

    def _parts(self) -> dict[str, Any]:  # Any: what has a state
        parts = {
            "supernet": self.supernet,
            "choice": self.choice,
            "optimizer": self.optimizer,
            "choice_optimizer": self.choice_optimizer,
        }
        return parts if self.average is None else parts | {"average": self.average}

    # ------------------------------------------------------------ the loop
    def go(self, progress: Progress | None) -> None:
        """Run the steps that are left."""
        total, first = self.schedule.steps, self.step
        if first == total:
            return
        begun = time.perf_counter()
        images = self._stream("train", self.config.batch_size, first)
        choices = self._stream("choice", self.choice_batch, self.schedule.choices_before(first))
        try:
            while self.step < total:
                self._one_step(images, choices)
                self._keep(self.step)
                if progress is not None:
                    progress(self.step, total, f"{self.history.last()}, {self._left(first, begun)}")
        finally:
            self.passes.close()

    def _one_step(self, images: Iterator[Batch], choices: Iterator[Batch]) -> None:
        """Take step number `self.step`, and the choice step behind it if one is due."""
        step = self.step
        if self.schedule.is_preceded_by_ordering(step):
            self._order()
        self.history.add(step, self._weight_step(step, next(images)))
        if self.schedule.is_followed_by_choice(step) and self.choice.logits:
            self.history.add(step, {"choice": self._choice_step(step, next(choices))})
        self.step += 1

    def _keep(self, done: int) -> None:
        """Close the history's row, settle on the weights and save, where that is due."""
        is_last = done == self.schedule.steps
        is_saved = done % self.config.checkpoint_steps == 0 or is_last
        if is_saved or done % self.config.log_steps == 0:
            self._close_row()
        if is_last:
            self._settle()
        if is_saved and self.peers.is_first:
            self.save()

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
        rate = self.schedule.learning_rate(self.step - 1)
        bad = self.history.close_row(self.step, lr=rate, over=self.peers.mean)
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
        importance = self.peers.of_first(importance)  # a last bit could turn two channels round
        orders = order(self.supernet, importance, optimizer=self.optimizer)
        if self.average is not None:
            order(self.average.supernet, importance)
        log.info(
            "put the channels of %d dimensions in order before step %d", len(orders), self.step
        )

    def _weight_step(self, step: int, batch: Batch) -> dict[str, Tensor]:
        """Update the weights on one batch; return the mean loss of each role."""
        for group in self.optimizer.param_groups:
            group["lr"] = self.schedule.learning_rate(step)
        paths = step_paths(self.supernet.space, self.schedule, step)
        taught_by = self.schedule.teacher(step)
        losses = self.passes.run(paths, self.peers.share(batch), taught_by=taught_by)
        if self.config.clip_grad:
            nn.utils.clip_grad_norm_(self.supernet.parameters(), self.config.clip_grad)
        self.optimizer.step()
        if self.average is not None:
            self.average.update(self.supernet)
        return losses

    def _choice_step(self, step: int, batch: Batch) -> Tensor:
        """Update the logits of the kinds on a batch of the choice split; return the loss."""
        images, labels = self.peers.share(batch)
        number = self.schedule.choices_before(step)
        temperature = self.schedule.temperature(number)
        with self.passes.autocast():
            scores, _ = sampled_scores(
                self.supernet, self.choice, images,
                seed=self.config.seed, number=number, temperature=temperature,
            )  # fmt: skip
            loss = self.passes.loss("choice", scores, labels, None)
        update(self.choice, self.choice_optimizer, loss, over=self.peers.mean)
        return loss.detach()

    def _settle(self) -> None:
        """Take the averaged weights for the result if they do better on the choice split."""
        if self.average is None:
            return
        first = self.schedule.paths_before(self.step)
        paths = [
            drawn_path(self.supernet.space, role, config=self.config, draw=first + number)
            for number, role in enumerate(COMPARED)
        ]
        now, averaged = (
            mean_loss(each, paths, self.data) for each in (self.supernet, self.average.supernet)
        )
        self.is_averaged = bool(self.peers.of_first(averaged < now))
        if self.is_averaged:
            self.supernet.load_state_dict(self.average.supernet.state_dict())
        log.info(
            "the %s weights are the result: a loss of %.4f, averaged %.4f on the choice split",
            "averaged" if self.is_averaged else "last", now, averaged,
        )  # fmt: skip


def _needed(teacher: nn.Module | None, config: TrainConfig) -> nn.Module | None:
    """Return the teacher in eval mode, None where nobody learns from it."""
    if not config.needs_teacher:
        return None
    if teacher is None:
        raise ConfigError(
            "distill_from is teacher, so a trained network must be given, but there is none. "
            "Pass train(..., teacher=network), or distill from the largest path."
        )
    return teacher.eval()


def _choice_batch(data: Data, config: TrainConfig) -> int:
    """Return the images of a choice step: as many for each worker, and at least two."""
    images = len(data.split("choice"))
    size = min(config.batch_size, images) // config.workers * config.workers
    if config.choice_every and size < 2 * config.workers:
        raise ConfigError(
            f"a choice step needs at least 2 images for each of {config.workers} workers, but the "
            f"choice split has {images}. Use fewer workers, or choice_every=0."
        )
    return max(1, size)

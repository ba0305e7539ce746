"""Training a network on the train split: alone, as a teacher, or taught by one - one loop for all.

AdamW with a cosine schedule and warm-up by the step, gradient clipping, label smoothing, and a
moving average of weights and BatchNorm statistics that becomes the result. Every random number
follows from the seed, so a training that was killed and goes on from its checkpoint ends with the
weights of one that was not, bit for bit.
"""

import logging
import math
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from timm.optim._optim_factory import create_optimizer_v2
from timm.scheduler.cosine_lr import CosineLRScheduler
from timm.utils.model_ema import ModelEmaV3
from torch import Tensor, nn

from nas import checkpoint, files
from nas.data import Augment, Data, Progress, batches, steps_per_epoch
from nas.errors import ConfigError, TrainingDiverged
from nas.winner.objective import KINDS, Objective, Teacher
from nas.winner.score import Score, evaluate

__all__ = ["DistillConfig", "Score", "TrainResult", "evaluate", "train"]

LOWEST_LR = 0.01  # of the peak, at the first and the last step

log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True, kw_only=True)
class DistillConfig:
    """How a network is trained.

    Attributes:
        epochs: Passes over the train split.
        batch_size: Images a step.
        lr: Peak learning rate.
        weight_decay: Of weights; norms, biases and attention bias tables are spared.
        warmup_epochs: Linear rise of the learning rate; may be a fraction.
        label_smoothing: Share of each label spread over all classes.
        ema_decay: Of the moving average that becomes the result, approached from below
            (1 - (1 + step)^(-2/3)) so that short trainings have a short memory; 0 is off.
        clip_grad: Largest norm of the gradient; None does not clip.
        distill_type: soft (the teacher's scores) or hard (its best class).
        alpha: Weight of the teacher.
        task_loss_weight: Weight of the labels beside a teacher; None is 1 - alpha.
        temperature: Of soft distillation.
        augment: What happens to images; None is the data set's own augmentation.
        seed: What every random number follows from.
        checkpoint_steps: Steps between two checkpoints.
    """

    epochs: int = 40
    batch_size: int = 64
    lr: float = 2e-3
    weight_decay: float = 0.025
    warmup_epochs: float = 2.0
    label_smoothing: float = 0.1
    ema_decay: float = 0.999
    clip_grad: float | None = 1.0
    distill_type: str = "soft"
    alpha: float = 0.5
    task_loss_weight: float | None = None
    temperature: float = 2.0
    augment: Augment | None = None
    seed: int = 0
    checkpoint_steps: int = 200

    def __post_init__(self) -> None:
        for name in ("epochs", "checkpoint_steps"):
            self._must(name, getattr(self, name) >= 1, "at least 1")
        self._must("batch_size", self.batch_size >= 2, "at least 2 (BatchNorm needs a variance)")
        for name in ("lr", "temperature"):
            value = getattr(self, name)
            self._must(name, 0 < value < math.inf, "a number above 0")
        for name in ("weight_decay", "seed"):
            self._must(name, 0 <= getattr(self, name) < math.inf, "at least 0")
        for name in ("label_smoothing", "ema_decay"):
            self._must(name, 0 <= getattr(self, name) < 1, "from 0 to below 1")
        is_short = 0 <= self.warmup_epochs < self.epochs
        self._must("warmup_epochs", is_short, f"from 0 to below epochs ({self.epochs})")
        clip = self.clip_grad
        self._must("clip_grad", clip is None or 0 < clip < math.inf, "above 0, or none")
        self._must("distill_type", self.distill_type in KINDS, f"one of {', '.join(KINDS)}")
        self._must("alpha", 0 <= self.alpha <= 1, "from 0 to 1")
        weight = self.task_loss_weight
        self._must(
            "task_loss_weight", weight is None or 0 <= weight < math.inf, "at least 0, or none"
        )

    def _must(self, name: str, holds: bool, rule: str) -> None:
        if not holds:
            value = getattr(self, name)
            default = next(item.default for item in fields(self) if item.name == name)
            raise ConfigError(
                f"{name} must be {rule}, but is {value!r}; the default is {default!r}."
            )

    @property
    def objective(self) -> Objective:
        """Return the loss these settings describe."""
        weight = self.task_loss_weight
        return Objective(
            kind=self.distill_type,
            task_weight=1 - self.alpha if weight is None else weight,
            teacher_weight=self.alpha,
            temperature=self.temperature,
            label_smoothing=self.label_smoothing,
        )


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class TrainResult:
    """A trained network.

    Attributes:
        model: The network that was given, in eval mode, with its final weights.
        steps: Steps it was trained for.
        score: On the search split.
        losses: Mean training loss of each epoch.
        digest: sha256 of the weights.
    """

    model: nn.Module
    steps: int
    score: Score
    losses: tuple[float, ...]
    digest: str


def train(
    model: nn.Module,
    data: Data,
    config: DistillConfig,
    *,
    teacher: Teacher | nn.Module | None = None,
    folder: Path | str | None = None,
    progress: Progress | None = None,
) -> TrainResult:
    """Train `model` in place, on the device it is on.

    Args:
        model: Any classifier; it is turned to channels_last.
        data: Its train split is learnt from, its search split is scored at the end.
        config: How.
        teacher: A network that knows the classes, on the same device.
        folder: Where checkpoints go. If it holds some of this very training, that goes on from
            the newest; if that had ended, it is returned at once.
        progress: Told after every step.

    Raises:
        TrainingDiverged: a loss became NaN or infinite; the last checkpoint is intact.
        ConfigError: the folder holds another training, or the batch size or teacher does not fit.
        StorageError: a checkpoint could not be written.
        CorruptFile: every checkpoint in the folder is damaged.
    """
    if teacher is not None and not isinstance(teacher, Teacher):
        teacher = Teacher(teacher, data)
    run = _Run(model, data, config, teacher)
    with _own_random_state(run.device, config.seed):
        if folder is not None:
            run.resume(Path(folder))
        while run.step < run.total:
            epoch, start = divmod(run.step, run.steps_per_epoch)
            for images, labels in run.batches(epoch, start):
                loss = run.learn(images, labels, folder)
                is_last = run.step == run.total
                if folder is not None and not is_last and run.step % config.checkpoint_steps == 0:
                    run.save(Path(folder))
                if progress:
                    text = f"epoch {epoch + 1}/{config.epochs}, loss {loss:.3f}"
                    progress(run.step, run.total, text)
        run.take_average()
        if run.score is None:
            run.score = evaluate(model, data.split("search"), data)
            if folder is not None:
                run.save(Path(folder))
    return TrainResult(
        model=model,
        steps=run.step,
        score=run.score,
        losses=tuple(run.losses),
        digest=checkpoint.digest_tensors(model.state_dict()),
    )


@contextmanager
def _own_random_state(device: torch.device, seed: int) -> Iterator[None]:
    """Seed torch's generators while the body runs; the caller's go on as if nothing had been."""
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.manual_seed(seed)
        yield


class _Run:
    """A training under way: all that a checkpoint holds, and one step of it."""

    def __init__(
        self, model: nn.Module, data: Data, config: DistillConfig, teacher: Teacher | None
    ) -> None:
        self.model, self.data, self.config = model, data, config
        self.device = next(model.parameters()).device
        self.teacher = teacher.to(self.device) if teacher is not None else None
        self.augment = data.augment if config.augment is None else config.augment
        self.steps_per_epoch = steps_per_epoch(data.split("train"), config.batch_size)
        self.total = config.epochs * self.steps_per_epoch
        self.identity = self._identity()
        self.step = 0
        self.losses: list[float] = []
        self.loss_sum = 0.0
        self.score: Score | None = None

        _set_two_heads(model, teacher is not None)
        model.to(memory_format=torch.channels_last)
        model.train()
        self.objective = config.objective
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.optimizer = create_optimizer_v2(
            model, "adamw", lr=config.lr, weight_decay=config.weight_decay, fused=True
        )
        warmup = round(config.warmup_epochs * self.steps_per_epoch)
        self.schedule = CosineLRScheduler(
            self.optimizer,
            t_initial=max(1, self.total - warmup),
            warmup_t=warmup,
            warmup_prefix=True,
            warmup_lr_init=LOWEST_LR * config.lr,
            lr_min=LOWEST_LR * config.lr,
            t_in_epochs=False,
        )
        self.average = (
            ModelEmaV3(model, decay=config.ema_decay, use_warmup=True) if config.ema_decay else None
        )
        is_half = self.device.type == "cuda" and not torch.cuda.is_bf16_supported(False)
        self.half = torch.float16 if is_half else torch.bfloat16
        self.scaler = torch.amp.GradScaler(self.device.type, enabled=is_half)

    def _identity(self) -> dict[str, Any]:
        """Return what tells this training from every other; plain JSON."""
        settings = files.to_plain(replace(self.config, augment=self.augment))
        del settings["checkpoint_steps"]
        return {
            **settings,
            "data": self.data.digest,
            "normalisation": [list(self.data.mean), list(self.data.std)],
            "starting weights": checkpoint.digest_tensors(self.model.state_dict()),
            "teacher": self.teacher.digest if self.teacher else None,
        }

    # ------------------------------------------------------------ learning
    def batches(self, epoch: int, start: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield the batches of an epoch that are still to be learnt."""
        return batches(
            self.data.split("train"),
            self.data,
            batch_size=self.config.batch_size,
            seed=self.config.seed,
            epoch=epoch,
            augment=self.augment,
            start_batch=start,
            device=self.device,
        )

    def learn(self, images: Tensor, labels: Tensor, folder: Path | str | None) -> float:
        """Take one step and return its loss; nothing has changed if that is not finite."""
        self.schedule.step_update(self.step)
        with self._precision():
            output = self.model(images)
            taught = self.teacher(images) if self.teacher is not None else None
            loss = self.objective(output, labels, taught)
        self._check("loss", loss, folder)
        self.optimizer.zero_grad()
        torch.autograd.backward(self.scaler.scale(loss))
        self.scaler.unscale_(self.optimizer)
        limit = self.config.clip_grad or math.inf
        norm = nn.utils.clip_grad_norm_(self.parameters, limit)
        if not self.scaler.is_enabled():  # which lowers its scale after an infinite gradient
            self._check("gradient", norm, folder)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        self.step += 1
        if self.average is not None:
            self.average.update(self.model, step=self.step)
        self.loss_sum += loss.item()
        if self.step % self.steps_per_epoch == 0:
            self.losses.append(self.loss_sum / self.steps_per_epoch)
            self.loss_sum = 0.0
        return loss.item()

    def _precision(self) -> AbstractContextManager[Any]:
        """Return 16-bit arithmetic on a GPU, and plain float32 elsewhere."""
        if self.device.type == "cuda":
            return torch.autocast("cuda", dtype=self.half)
        return nullcontext()

    def _check(self, name: str, value: Tensor, folder: Path | str | None) -> None:
        if math.isfinite(value.item()):
            return
        kept = f" The last checkpoint in {folder} is intact." if folder is not None else ""
        raise TrainingDiverged(
            f"the {name} became {value.item()} at step {self.step + 1} of {self.total}.{kept} "
            f"Lower lr ({self.config.lr:g}) or clip_grad ({self.config.clip_grad}), or raise "
            f"warmup_epochs ({self.config.warmup_epochs:g}), and train into another folder."
        )

    def take_average(self) -> None:
        """End: give the model the averaged weights, one output, and eval mode."""
        if self.average is not None:
            self.model.load_state_dict(self.average.module.state_dict())
        _set_two_heads(self.model, False)
        self.model.eval()

    # ------------------------------------------------------------ checkpoints
    def save(self, folder: Path) -> None:
        """Write a checkpoint of everything that changes."""
        moving = {"optimizer": self.optimizer.state_dict(), "scaler": self.scaler.state_dict()}
        tensors, packed = checkpoint.pack(moving, "state")
        for prefix, values in self._named_states().items():
            tensors |= {f"{prefix}.{name}": value for name, value in values.items()}
        state = {
            "training": self.identity,
            "packed": packed,
            "losses": self.losses,
            "loss_sum": self.loss_sum,
            "score": files.to_plain(self.score),
        }
        checkpoint.save(folder, self.step, tensors, state)

    def _named_states(self) -> dict[str, dict[str, Tensor]]:
        states = {"model": self.model.state_dict(), "random": checkpoint.random_state()}
        if self.average is not None:
            states["average"] = self.average.module.state_dict()
        return states

    def resume(self, folder: Path) -> None:
        """Go on from the newest checkpoint of `folder`, if there is one."""
        found = checkpoint.load(folder)
        if found is None:
            return
        known = found.state.get("training", {})
        others = [key for key, value in self.identity.items() if known.get(key, ...) != value]
        if others:
            raise ConfigError(
                f"{folder} holds a training with another {', another '.join(others)}. "
                "Choose another folder, or delete that one to train anew."
            )
        parts: dict[str, dict[str, Tensor]] = {}
        for name, value in found.tensors.items():
            prefix, _, rest = name.partition(".")
            parts.setdefault(prefix, {})[rest] = value
        self.model.load_state_dict(parts["model"])
        if self.average is not None:
            self.average.module.load_state_dict(parts["average"])
        moving = checkpoint.unpack(found.state["packed"], found.tensors)
        checkpoint.restore_optimizer(self.optimizer, moving["optimizer"])
        self.scaler.load_state_dict(moving["scaler"])
        checkpoint.restore_random_state(parts["random"])
        self.step = found.step
        self.losses, self.loss_sum = found.state["losses"], found.state["loss_sum"]
        if found.state["score"] is not None:
            self.score = Score(**found.state["score"])
        log.info("training goes on after step %d of %d in %s", self.step, self.total, folder)


def _set_two_heads(model: nn.Module, enable: bool) -> None:
    """Let a model with a distillation head give both heads' scores in training, or their mean."""
    switch = getattr(model, "set_distilled_training", None)
    if switch is not None and isinstance(model.get_classifier(), tuple):  # type: ignore[operator]
        switch(enable)

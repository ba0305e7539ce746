"""TrainConfig, and what it says about each step: phase, learning rate, temperature, choice step.

Everything is a function of the configuration and the number of the step, so that training can go
on in the middle.
"""

import math
from dataclasses import dataclass

from nas.errors import ConfigError

SANDWICH_RATE = 0.25  # the sandwich's learning rate as a share of `lr` (LOG of the first trial)
END_RATE = 0.01  # where a cosine ends, as a share of where it began


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainConfig:
    """How a supernet is trained. Lengths are counts, never minutes.

    Training has three phases: paths of the largest numbers, while all kinds find their feet; one
    random path a step, cheap and fair; a short sandwich of the largest, the smallest and a random
    path at a quarter of the learning rate. Kinds are drawn fairly in all of them. Every
    `choice_every`-th step of the last two is followed by a choice step: the logits of the kinds
    are updated on the choice split while the weights stay as they are.

    Attributes:
        epochs: Steps in passes over the train split; each step sees one batch.
        steps: Steps as a number; 0 means by `epochs`.
        batch_size: Images a step.
        lr: Peak of the learning rate of AdamW; linear warm-up, then a cosine.
        warmup: Share of the steps before the sandwich during which it rises.
        weight_decay: Of matrices and kernels; norms, biases, scales and bias tables are spared.
        clip_grad: Largest norm of a gradient; 0 leaves it as it is.
        label_smoothing: Share of a label spread over all classes.
        augment: Whether images are augmented as their data set says.
        largest: Share of the steps in the first phase.
        order_images: Training images that the importance of channels is measured on after the
            first phase, to put the important ones first; 0 leaves channels where they are.
        sandwich: Share of the steps in the last phase; a step costs three paths there.
        paths_per_step: Random paths a step.
        distill_start: Share of the sandwich after which small and random paths learn from the
            largest path's scores instead of the labels; 1 is never. (From step 0 on it was the
            worst recipe of our first trial.)
        choice_every: Steps between choice steps; 0 is none.
        choice_lr: Learning rate of the logits (Adam).
        tau_start: Temperature of the Gumbel-softmax at the first choice step.
        tau_end: The same at the last one; it falls geometrically.
        checkpoint_steps: Steps between checkpoints.
        log_steps: Steps that a row of the history averages over.
        channels_last: Memory format of the weights; that of the images is always channels_last.
        amp: Whether CUDA devices that have bfloat16 compute in it.
        seed: What order, augmentation, paths and noise are drawn from.
    """

    epochs: float = 40.0
    steps: int = 0
    batch_size: int = 64
    lr: float = 3e-3
    warmup: float = 0.05
    weight_decay: float = 0.02
    clip_grad: float = 1.0
    label_smoothing: float = 0.1
    augment: bool = True
    largest: float = 0.05
    order_images: int = 256
    sandwich: float = 0.1
    paths_per_step: int = 1
    distill_start: float = 1.0
    choice_every: int = 10
    choice_lr: float = 0.05
    tau_start: float = 5.0
    tau_end: float = 0.5
    checkpoint_steps: int = 200
    log_steps: int = 50
    channels_last: bool = False
    amp: bool = True
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("warmup", "largest", "sandwich", "distill_start", "label_smoothing"):
            self._check(name, 0, 1)
        for name in ("batch_size", "paths_per_step", "checkpoint_steps", "log_steps"):
            self._check(name, 1, 1_000_000)
        for name in ("steps", "choice_every", "seed"):
            self._check(name, 0, 2**63)
        for name in ("epochs", "clip_grad", "weight_decay"):
            self._check(name, 0, 1_000_000)
        if self.order_images:
            self._check("order_images", 2, 1_000_000)
        for name in ("lr", "choice_lr", "tau_start", "tau_end"):
            self._check(name, 1e-9, 1000)
        if not self.steps and not self.epochs:
            raise ConfigError("epochs or steps must be above 0, but both are 0.")
        if self.largest + self.sandwich > 1:
            raise ConfigError(
                "largest and sandwich are shares of all steps and may add up to at most 1, "
                f"but are {self.largest} and {self.sandwich}."
            )
        if self.tau_end > self.tau_start:
            raise ConfigError(
                f"tau_end must be at most tau_start, but is {self.tau_end} > {self.tau_start}."
            )

    def _check(self, name: str, low: float, high: float) -> None:
        value = getattr(self, name)
        if not low <= value <= high:  # false for NaN too
            raise ConfigError(f"{name} must be from {low:g} to {high:g}, but is {value}.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Schedule:
    """A configuration on a data set: `steps` in all, the first is number 0."""

    config: TrainConfig
    steps: int

    @classmethod
    def of(cls, config: TrainConfig, *, steps_per_epoch: int) -> "Schedule":
        """Return the schedule of a data set with so many batches an epoch."""
        steps = config.steps or max(1, round(config.epochs * steps_per_epoch))
        return cls(config=config, steps=steps)

    @property
    def first_single(self) -> int:
        """The number of the first step after the largest paths."""
        return round(self.config.largest * self.steps)

    @property
    def first_sandwich(self) -> int:
        """The number of the first step of the sandwich."""
        return self.steps - round(self.config.sandwich * self.steps)

    def phase(self, step: int) -> str:
        """Return "largest", "single" or "sandwich"."""
        if step >= self.first_sandwich:
            return "sandwich"
        return "single" if step >= self.first_single else "largest"

    def is_preceded_by_ordering(self, step: int) -> bool:
        """Return whether the channels are put in order before this step.

        That is once, behind the largest paths; without them nothing is known of the channels yet.
        """
        return 0 < step == self.first_single and self.config.order_images > 0

    def distills(self, step: int) -> bool:
        """Return whether small paths learn from the largest one's scores."""
        length = self.steps - self.first_sandwich
        start = self.first_sandwich + math.ceil(self.config.distill_start * length)
        return self.phase(step) == "sandwich" and step >= start

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step: up, a cosine down, then the sandwich's own cosine."""
        lr, turn = self.config.lr, self.first_sandwich
        if step >= turn:
            return SANDWICH_RATE * lr * _cosine((step - turn) / (self.steps - turn))
        rise = round(self.config.warmup * turn)
        if step < rise:
            return lr * (step + 1) / (rise + 1)
        return lr * _cosine((step - rise) / max(1, turn - rise))

    # ------------------------------------------------------------ choice steps
    def is_followed_by_choice(self, step: int) -> bool:
        """Return whether a choice step comes after this step."""
        every = self.config.choice_every
        return every > 0 and step >= self.first_single and (step + 1) % every == 0

    def choices_before(self, step: int) -> int:
        """Return how many choice steps come before this step."""
        every = self.config.choice_every
        if not every or step <= self.first_single:
            return 0
        return step // every - self.first_single // every

    def temperature(self, number: int) -> float:
        """Return the temperature of a choice step, counted from 0."""
        last = max(1, self.choices_before(self.steps) - 1)
        start, end = self.config.tau_start, self.config.tau_end
        return float(start * (end / start) ** min(1.0, number / last))

    # ------------------------------------------------------------ paths
    def paths_before(self, step: int) -> int:
        """Return how many paths were run before this step: each draws its kinds in turn."""
        each = self.config.paths_per_step
        largest = min(step, self.first_single)
        single = min(max(step - self.first_single, 0), self.first_sandwich - self.first_single)
        sandwich = max(step - self.first_sandwich, 0)
        return largest + each * single + (2 + each) * sandwich


def _cosine(share: float) -> float:
    """Return a half cosine from 1 at share 0 down to END_RATE at share 1."""
    return END_RATE + (1 - END_RATE) * (1 + math.cos(math.pi * share)) / 2

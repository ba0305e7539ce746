"""TrainConfig, and what it says about each step: phase, learning rate, temperature, choice step.

Everything is a function of the configuration and the number of the step, so that training can go
on in the middle.
"""

import math
from dataclasses import dataclass

from nas.errors import ConfigError

SAMPLINGS = ("uniform", "level")
REGULARISED = ("all", "largest")
DISTILLED_FROM = ("largest", "teacher")


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
        batch_size: Images a step, of all workers together. A pass sees batch_size / (workers x
            accumulate) of them, at least 2: BatchNorm has no variance of one image, and torch 2.14
            gives it wrong gradients on the CPU.
        accumulate: Passes that a batch is run in, one after another; BatchNorm normalises each by
            itself. Saves memory, not time.
        lr: Peak of the learning rate of AdamW; linear warm-up, then a cosine.
        sandwich_lr: Peak of the last phase, as a share of `lr`; a cosine of its own.
        end_lr: Where both cosines end, as a share of where they began.
        warmup: Share of the steps before the sandwich during which it rises.
        weight_decay: Of matrices and kernels; norms, biases, scales and bias tables are spared.
        clip_grad: Largest norm of a gradient, 1 as AttentiveNAS has it; 0 leaves it as it is.
        label_smoothing: Share of a label spread over all classes.
        regularise: Whose labels are smoothed: those of all paths, or of the largest alone (BigNAS,
            arXiv 2003.11142: small networks underfit).
        augment: Whether images are augmented as their data set says.
        largest: Share of the steps in the first phase.
        order_images: Training images that the importance of channels is measured on after the
            first phase, to put the important ones first; 0 leaves channels where they are.
        sandwich: Share of the steps in the last phase; a step costs three paths there.
        paths_per_step: Random paths a step.
        sampling: How the numbers of random paths are drawn: uniform in each gene, which
            concentrates in the middle; or near a level of MACs that is uniform on a log scale from
            the smallest to the largest network (after AttentiveNAS, arXiv 2011.09011), for spaces
            that are wide. On the narrow space of the digits uniform did better (LOG.md).
        distill_start: Share of the steps after which paths learn from a teacher's scores; 1 is
            never. (In-place from step 0 on was the worst recipe of our first trial.)
        distill_from: Who teaches: the largest path, the small and random ones of a sandwich alone
            (in-place distillation, US-Nets, arXiv 1903.05134); or a network that `train` is given,
            every path of every step.
        distill_weight: Weight of the teacher's scores in the loss; the labels have the rest.
        ema_decay: Of a moving average of the weights, approached from below
            (1 - (1 + step)^(-2/3)) so that short trainings have a short memory; the average
            becomes the result if it does better on the choice split. 0 is off: behind a cosine
            it never did better on digits (LOG.md).
        choice_every: Steps between choice steps; 0 is none.
        choice_lr: Learning rate of the logits (Adam).
        tau_start: Temperature of the Gumbel-softmax at the first choice step; 5 as in FBNet (arXiv
            1812.03443).
        tau_end: The same at the last one; it falls geometrically.
        checkpoint_steps: Steps between checkpoints.
        log_steps: Steps that a row of the history averages over.
        channels_last: Memory format of the weights; that of the images is always channels_last.
        amp: Whether CUDA devices that have bfloat16 compute in it.
        path_threads: Python threads that share the paths of a step on the CPU, which changes no
            bit of the result; 0 is as many as there are cores for, given torch's own threads.
        workers: Processes that share each batch, by Ray Train; 1 is this process, without Ray.
        restarts: How often lost workers are replaced before training gives up.
        seed: What order, augmentation, paths and noise are drawn from.
    """

    epochs: float = 40.0
    steps: int = 0
    batch_size: int = 64
    accumulate: int = 1
    lr: float = 3e-3
    sandwich_lr: float = 0.25
    end_lr: float = 0.01
    warmup: float = 0.05
    weight_decay: float = 0.02
    clip_grad: float = 1.0
    label_smoothing: float = 0.1
    regularise: str = "all"
    augment: bool = True
    largest: float = 0.05
    order_images: int = 256
    sandwich: float = 0.1
    paths_per_step: int = 1
    sampling: str = "uniform"
    distill_start: float = 1.0
    distill_from: str = "largest"
    distill_weight: float = 1.0
    ema_decay: float = 0.0
    choice_every: int = 10
    choice_lr: float = 0.05
    tau_start: float = 5.0
    tau_end: float = 0.5
    checkpoint_steps: int = 200
    log_steps: int = 50
    channels_last: bool = False
    amp: bool = True
    path_threads: int = 0
    workers: int = 1
    restarts: int = 3
    seed: int = 0

    def __post_init__(self) -> None:
        shares = ("warmup", "largest", "sandwich", "label_smoothing", "sandwich_lr", "end_lr")
        for name in (*shares, "distill_start", "distill_weight", "ema_decay"):
            self._check(name, 0, 1)
        for name in ("paths_per_step", "checkpoint_steps", "log_steps", "workers", "accumulate"):
            self._check(name, 1, 1_000_000)
        for name in ("steps", "choice_every", "seed"):
            self._check(name, 0, 2**63)
        for name in ("epochs", "clip_grad", "weight_decay", "path_threads", "restarts"):
            self._check(name, 0, 1_000_000)
        if self.order_images:
            self._check("order_images", 2, 1_000_000)
        for name in ("lr", "choice_lr", "tau_start", "tau_end"):
            self._check(name, 1e-9, 1000)
        self._check_word("regularise", REGULARISED)
        self._check_word("sampling", SAMPLINGS)
        self._check_word("distill_from", DISTILLED_FROM)
        self._check_batch()
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

    def _check_word(self, name: str, known: tuple[str, ...]) -> None:
        value = getattr(self, name)
        if value not in known:
            raise ConfigError(f"{name} must be {' or '.join(known)}, but is {value!r}.")

    def _check_batch(self) -> None:
        """Raise ConfigError unless every pass gets as many images, and at least two."""
        if self.batch_size < 2:
            raise ConfigError(
                f"batch_size must be at least 2, but is {self.batch_size}: BatchNorm has no "
                "variance of one image, and torch gives it wrong gradients on the CPU."
            )
        self._check("batch_size", 2, 1_000_000)
        passes = self.workers * self.accumulate
        if self.batch_size % passes or self.batch_size < 2 * passes:
            raise ConfigError(
                f"batch_size must be a multiple of workers x accumulate, at least 2 images for "
                f"each of these {passes} passes, but is {self.batch_size}. "
                f"Take {max(2, round(self.batch_size / passes)) * passes}."
            )

    @property
    def needs_teacher(self) -> bool:
        """Whether `train` has to be given a network to learn from."""
        return self.distill_from == "teacher" and self.distill_start < 1


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

    def teacher(self, step: int) -> str:
        """Return who teaches in a step: "largest", "teacher", or "" for the labels alone."""
        source = self.config.distill_from
        if step < math.ceil(self.config.distill_start * self.steps):
            return ""
        return source if source == "teacher" or self.phase(step) == "sandwich" else ""

    def learning_rate(self, step: int) -> float:
        """Return the learning rate of a step: up, a cosine down, then the sandwich's own cosine."""
        lr, turn = self.config.lr, self.first_sandwich
        if step >= turn:
            return self.config.sandwich_lr * lr * self._cosine((step - turn) / (self.steps - turn))
        rise = round(self.config.warmup * turn)
        if step < rise:
            return lr * (step + 1) / (rise + 1)
        return lr * self._cosine((step - rise) / max(1, turn - rise))

    def _cosine(self, share: float) -> float:
        """Return a half cosine from 1 at share 0 down to `end_lr` at share 1."""
        end = self.config.end_lr
        return end + (1 - end) * (1 + math.cos(math.pi * share)) / 2

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
        return annealed(self.config.tau_start, self.config.tau_end, number / last)

    # ------------------------------------------------------------ paths
    def paths_before(self, step: int) -> int:
        """Return how many paths were run before this step: each draws its kinds in turn."""
        each = self.config.paths_per_step
        largest = min(step, self.first_single)
        single = min(max(step - self.first_single, 0), self.first_sandwich - self.first_single)
        sandwich = max(step - self.first_sandwich, 0)
        return largest + each * single + (2 + each) * sandwich


def annealed(start: float, end: float, share: float) -> float:
    """Return a temperature that falls geometrically from `start` at share 0 to `end` at 1."""
    return float(start * (end / start) ** min(1.0, share))

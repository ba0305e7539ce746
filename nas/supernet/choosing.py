"""Choosing: the logits of the kinds learn on the choice split, weights frozen, for one target."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from nas.block import Block
from nas.data import Data, batches
from nas.errors import ConfigError, TrainingDiverged
from nas.seeds import stage_seed
from nas.supernet.choice import Choice, Spot, spots
from nas.supernet.evaluate import check_fit
from nas.supernet.model import SuperNet
from nas.supernet.paths import choice_path
from nas.supernet.schedule import annealed

FORMS = ("linear", "log")
US_PER_MS = 1000.0

Price = Callable[[Block], float]
Progress = Callable[[int, int, str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class FitChoiceConfig:
    """How logits are fitted to a target.

    Attributes:
        steps: Choice steps.
        batch_size: Images a step, at most those of the choice split.
        lr: Learning rate of the logits (Adam).
        tau_start: Temperature of the Gumbel-softmax at the first step.
        tau_end: The same at the last one; it falls geometrically.
        form: How the expected latency E joins the cross-entropy CE, `reference` being a latency;
            linear: CE + weight (E - reference) / reference (ProxylessNAS, arXiv 1812.00332);
            log: weight CE (log E / log reference)^exponent (FBNet, arXiv 1812.03443), in
            microseconds, since the logarithm of a network below 1 ms would be negative.
        weight: 0.1 is ProxylessNAS's for linear, 0.2 FBNet's for log.
        exponent: Of the form log; 0.6 is FBNet's.
        seed: What order, paths and noise are drawn from.
    """

    steps: int = 200
    batch_size: int = 64
    lr: float = 0.05
    tau_start: float = 5.0
    tau_end: float = 0.5
    form: str = "linear"
    weight: float = 0.1
    exponent: float = 0.6
    seed: int = 0

    def __post_init__(self) -> None:
        limits: dict[str, tuple[float, float]] = {
            "steps": (1, 1_000_000),
            "batch_size": (2, 1_000_000),
            "weight": (0, 1000),
            "exponent": (0, 100),
            "seed": (0, 2**63),
        }
        limits |= dict.fromkeys(("lr", "tau_start", "tau_end"), (1e-9, 1000))
        for name, (low, high) in limits.items():
            value = getattr(self, name)
            if not low <= value <= high:
                raise ConfigError(f"{name} must be from {low:g} to {high:g}, but is {value}.")
        if self.form not in FORMS:
            raise ConfigError(f"form must be {' or '.join(FORMS)}, but is {self.form!r}.")
        if self.tau_end > self.tau_start:
            raise ConfigError(
                f"tau_end must be at most tau_start, but is {self.tau_end} > {self.tau_start}."
            )


def fit_choice(
    supernet: SuperNet,
    data: Data,
    price: Price,
    reference_ms: float,
    config: FitChoiceConfig | None = None,
    *,
    start: Choice | None = None,
    progress: Progress | None = None,
) -> Choice:
    """Return logits of the kinds that weigh accuracy against latency on one target.

    The weights stay as they are. Each step draws a path of random numbers and a kind for each
    place (hard Gumbel-softmax), and follows the gradient of the loss with E = sum over places of
    sum over kinds of probability x price, as ProxylessNAS has it (arXiv 1812.00332, section 3.3).

    Args:
        supernet: Trained.
        data: Its choice split is learnt from.
        price: Latency in ms that one block adds to a network on the target.
        reference_ms: What latencies are relative to: the budget, say.
        config: How.
        start: Logits to begin with, which stay as they are; zeros where not given.
        progress: Told (steps done, steps in all, loss and expected latency).

    Raises:
        ConfigError: data and space do not fit, the reference or a price is no latency, or the
            choice split has fewer than two images.
        TrainingDiverged: a loss is NaN or infinite.
    """
    config = config or FitChoiceConfig()
    check_fit(supernet, data)
    if not 0 < reference_ms < float("inf"):
        raise ConfigError(f"reference_ms must be a time above 0, but is {reference_ms}.")
    choice = Choice(supernet.space)
    if start is not None:
        choice.load_state_dict(start.state_dict())
    if not choice.logits:
        return choice
    optimizer = torch.optim.Adam(list(choice.logits.values()), lr=config.lr)
    stream = _batches(supernet, data, config)
    for step in range(config.steps):
        images, labels = next(stream)
        share = step / max(1, config.steps - 1)
        temperature = annealed(config.tau_start, config.tau_end, share)
        scores, path = sampled_scores(
            supernet, choice, images, seed=config.seed, number=step, temperature=temperature
        )
        expected_ms = expected_latency(choice, path, price)
        task = F.cross_entropy(scores.float(), labels).cpu()
        loss = _joined(task, expected_ms, reference_ms, config)
        if not loss.isfinite():
            raise _diverged(loss.item(), step, config)
        update(choice, optimizer, loss)
        if progress is not None:
            text = f"loss {task.item():.3f}, expected {expected_ms.item():.4g} ms"
            progress(step + 1, config.steps, text)
    return choice


def _diverged(loss: float, step: int, config: FitChoiceConfig) -> TrainingDiverged:
    return TrainingDiverged(
        f"the loss of the choice must be finite, but is {loss} at step {step} of {config.steps}. "
        "The supernet may have diverged; train it with a lower lr."
    )


def sampled_scores(
    supernet: SuperNet,
    choice: Choice,
    images: Tensor,
    *,
    seed: int,
    number: int,
    temperature: float,
) -> tuple[Tensor, tuple[Spot, ...]]:
    """Return the class scores of choice step `number`, with a gradient for each logit; its path."""
    generator = torch.Generator().manual_seed(stage_seed(seed, f"gumbel {number}"))
    weights = choice.sample(generator, temperature=temperature)
    path = spots(supernet.space, choice_path(supernet.space, seed=seed, number=number))
    return supernet.forward_mixed(images, path, weights), path


def update(
    choice: Choice,
    optimizer: torch.optim.Optimizer,
    loss: Tensor,
    *,
    over: Callable[[Tensor], Tensor] | None = None,
) -> None:
    """Take one step of the logits down a loss.

    Args:
        choice: Whose logits.
        optimizer: Of the logits, in the order of their genes.
        loss: A scalar.
        over: Returns the mean of a vector over processes that have other losses.
    """
    logits = list(choice.logits.values())
    flat = torch.cat([each.flatten() for each in torch.autograd.grad(loss, logits)])
    flat = flat if over is None else over(flat)
    sizes = [len(value) for value in logits]
    for value, gradient in zip(logits, torch.split(flat, sizes), strict=True):
        value.grad = gradient.clone()
    optimizer.step()


def expected_latency(choice: Choice, path: Sequence[Spot], price: Price) -> Tensor:
    """Return the latency in ms to expect of a path whose kinds are drawn by the logits.

    Raises:
        ConfigError: a price is not finite, or below 0.
    """
    total = torch.zeros(())
    for spot in path:
        prices_ms = [price(block) for _, block in spot.candidates]
        for (_, block), price_ms in zip(spot.candidates, prices_ms, strict=True):
            if not 0 <= price_ms < float("inf"):
                raise ConfigError(f"a price must be a time in ms, but {block} has {price_ms}.")
        own = torch.tensor(prices_ms)
        shares = choice.logits[spot.gene].softmax(0) if spot.gene is not None else torch.ones(1)
        total = total + (shares * own).sum()
    return total


def _joined(
    task: Tensor, expected_ms: Tensor, reference_ms: float, config: FitChoiceConfig
) -> Tensor:
    """Return the loss of cross-entropy and expected latency together."""
    if config.form == "linear":
        return task + config.weight * (expected_ms - reference_ms) / reference_ms
    if min(reference_ms, expected_ms.item()) * US_PER_MS <= 1:
        raise ConfigError(
            "the form log needs latencies above 0.001 ms, but the reference is "
            f"{reference_ms:g} ms and {expected_ms.item():g} ms are expected. Use form=linear."
        )
    reference = torch.tensor(reference_ms * US_PER_MS)
    ratio = (expected_ms * US_PER_MS).log() / reference.log()
    return config.weight * task * ratio**config.exponent


def _batches(
    supernet: SuperNet, data: Data, config: FitChoiceConfig
) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield batches of the choice split for ever, images as they are."""
    split = data.split("choice")
    if len(split) < 2:
        raise ConfigError(f"the choice split must have at least 2 images, but has {len(split)}.")
    size = min(config.batch_size, len(split))
    device = next(supernet.parameters()).device
    seed = stage_seed(config.seed, "choice batches")
    epoch = 0
    while True:
        yield from batches(
            split, data, batch_size=size, seed=seed, epoch=epoch, augment=None, device=device
        )
        epoch += 1

"""Importance of whole blocks, and from it what each option of each gene is predicted to lose."""

from collections.abc import Iterator, Mapping

import torch
import torch.nn.functional as F
from torch import Tensor

from nas.data import Data, eval_batches
from nas.space import Architecture, SearchSpace
from nas.supernet.choice import Option
from nas.supernet.evaluate import EvaluateConfig, first_images, fit_statistics
from nas.supernet.model import Statistics, SuperNet
from nas.supernet.taylor.importance import TaylorConfig

Lost = dict[str, dict[Option, float]]  # gene -> option -> nats


def fitted_path(
    space: SearchSpace, probabilities: Mapping[str, Mapping[Option, float]]
) -> Architecture:
    """Return the path of the largest numbers with the most probable kind at every place."""
    genes = space.genes()
    largest = space.choice(space.largest())  # how many mb3d at the end: as many as it has
    choice = {
        gene: largest[gene] if gene.endswith(".tail") else options[-1]
        for gene, options in genes.items()
    }
    for gene, known in probabilities.items():
        choice[gene] = max(genes[gene], key=lambda option: known[option])
    return space.architecture(choice)


def measure_branches(
    supernet: SuperNet, architecture: Architecture, data: Data, config: TaylorConfig | None = None
) -> dict[str, float]:
    """Return how much the loss depends on each residual block of a path, {slot: nats}.

    I = sqrt(mean over images i of (dL_i / dz)^2) at z = 1, for a gate z on what the block adds:
    y = x + z (f(x) - x), so that dL / dz is the inner product of dL / dy with f(x) - x. To first
    order it is the change of an image's loss when the block is left out (Molchanov et al., arXiv
    1906.10771, equation 8 is its square). Blocks that change shapes have no such gate.

    Args:
        supernet: Its weights are not changed.
        architecture: The path.
        data: Its train split is measured on.
        config: How many images.

    Raises:
        ConfigError: data and space do not fit.
    """
    config = config or TaylorConfig()
    refit = EvaluateConfig(refit_images=config.images)
    statistics = fit_statistics(supernet, architecture, data, refit)
    images = first_images(data.split("train"), config.images)
    device = next(supernet.parameters()).device
    squares: dict[str, float] = {}
    for batch, labels in eval_batches(images, data, batch_size=config.batch_size, device=device):
        for slot, slopes in branch_slopes(supernet, batch, labels, architecture, statistics):
            squares[slot] = squares.get(slot, 0.0) + float(slopes.double().square().sum())
    return {slot: (total / len(images)) ** 0.5 for slot, total in squares.items()}


def branch_slopes(
    supernet: SuperNet,
    images: Tensor,
    labels: Tensor,
    architecture: Architecture,
    statistics: Statistics,
) -> Iterator[tuple[str, Tensor]]:
    """Yield (slot, derivatives of each image's loss by its own gate, shape (batch,))."""
    if len(images) == 1:  # torch's BatchNorm on the CPU: see `sample_gradients`
        images, labels = images.repeat(2, 1, 1, 1), labels.repeat(2)
        for slot, slopes in branch_slopes(supernet, images, labels, architecture, statistics):
            yield slot, slopes[:1]
        return
    slots, outputs, added = [], [], []
    with torch.enable_grad():
        x = images.detach().requires_grad_()
        for place, (slot, block) in enumerate(supernet.walk(architecture)):
            before, x = x, supernet.run_block(x, slot, block, statistics[place])
            if before.shape == x.shape:
                slots.append(slot)
                outputs.append(x)
                added.append((x - before).detach())
        loss = F.cross_entropy(x, labels, reduction="sum")
        found = torch.autograd.grad(loss, outputs)
    for slot, slope, what in zip(slots, found, added, strict=True):
        yield slot, (slope * what).flatten(1).sum(1)


def predicted_losses(
    space: SearchSpace,
    architecture: Architecture,
    branches: Mapping[str, float],
    probabilities: Mapping[str, Mapping[Option, float]],
) -> Lost:
    """Return what each option of each gene loses against the path, in nats, for slimming.

    A smaller depth loses the blocks in the middle that it drops; a shorter tail the first of its
    blocks; a kind the share of its block's importance by which it is less probable than the best
    one, and so does a transition, of the mean block of its stage. A smaller number (a width, an
    expansion, a key) loses the share it drops of all blocks that it belongs to: those of the
    stage, or of the stage's kind. These are bounds from above rather than estimates: they order
    steps by loss for what they save (EfficientFormer, arXiv 2206.01191, section 3.3).

    Args:
        space: The space.
        architecture: The path that `branches` were measured on, from `fitted_path`.
        branches: {slot: nats}.
        probabilities: {gene: {kind: probability}} of a fitted choice.
    """
    path = space.choice(architecture)
    lost: Lost = {}
    for gene, options in space.genes().items():
        stage, _, rest = gene.partition(".")
        own = {slot: value for slot, value in branches.items() if slot.startswith(f"{stage}.")}
        if gene in probabilities:
            known = probabilities[gene]
            place = [value for slot, value in own.items() if slot.startswith(gene[: -len("kind")])]
            weight = sum(place) if gene.endswith(".kind") else sum(own.values()) / max(len(own), 1)
            most = max(known.values())
            lost[gene] = {option: weight * (1 - known[option] / most) for option in options}
        elif rest == "depth":
            front = [value for slot, value in own.items() if slot.startswith(f"{stage}.b")]
            full = max(options)
            lost[gene] = {
                option: sum(front[max(0, len(front) - (full - option)) :]) for option in options
            }
        elif rest == "tail":
            tail = [value for slot, value in own.items() if slot.startswith(f"{stage}.t")]
            most_tail = path[gene]  # tail blocks stand first to last, t0 being the last
            lost[gene] = {option: sum(tail[: max(0, most_tail - option)]) for option in options}
        else:
            lost[gene] = _by_share(options, _owned(own, rest))
    return lost


def _owned(own: Mapping[str, float], rest: str) -> float:
    """Return the importance of the blocks of a stage that a gene belongs to."""
    kind = rest.partition(".")[0]
    ours = [value for slot, value in own.items() if slot.endswith(f".{kind}")]
    return sum(ours) if "." in rest and ours else sum(own.values())


def _by_share(options: tuple[Option, ...], weight: float) -> dict[Option, float]:
    """Return what options lose by the share of the largest number that they drop."""
    if any(isinstance(option, str | tuple) for option in options):
        return dict.fromkeys(options, 0.0)
    numbers = {option: float(option) for option in options}
    most = max(numbers.values())
    if min(numbers.values()) <= 0:  # squeeze-and-excitation or none: a share of nothing
        return dict.fromkeys(options, 0.0)
    return {option: weight * (1 - number / most) for option, number in numbers.items()}

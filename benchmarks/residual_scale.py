"""What residual branches start at: how well short trainings of a supernet learn, by the scale.

    python benchmarks/residual_scale.py [SCALE ...] [--data folder:DIR] [--steps N]

`nas.supernet.train` without its other phases: one random path a step, constant learning rate behind
a short warm-up, the same batches and paths for every scale. Told are the mean training loss of the
last quarter, of which chance is ln(classes), and the mean gradient of the logits that choose
between kinds of residual blocks (transitions have no such branch alone) before any step: kinds that
start as the identity have none to be chosen by. Digits and the space `tiny` by default; with an
image folder hybrid-64 at 64 px. The supernet's own scale is always compared.
"""

import argparse
import math
import tempfile
from typing import Any

import torch
from record import Figure, record
from torch import nn

from nas.data import Data, batches, load
from nas.network import scale_residuals
from nas.space import SearchSpace
from nas.supernet import SuperNet, TrainConfig, train
from nas.supernet.choice import Choice
from nas.supernet.choosing import sampled_scores
from nas.supernet.model import RESIDUAL_SCALE

BATCH, LR, WARM_UP = 64, 3e-3, 30
SCALES = (1e-5, 0.01, RESIDUAL_SCALE, 0.2, 1.0)
DRAWS = 20  # of kinds, for their gradients


def started(space: SearchSpace, scale: float) -> SuperNet:
    """Return an untrained supernet whose branches all start at this scale."""
    supernet = SuperNet(space, seed=0)
    scale_residuals(supernet.hulls, scale)
    return supernet


def choice_gradient(supernet: SuperNet, data: Data) -> float:
    """Return the mean size of the gradient of a residual kind's logit before training."""
    choice = Choice(supernet.space)
    stream = batches(data.split("choice"), data, batch_size=BATCH, seed=0, epoch=0, augment=None)
    images, labels = next(iter(stream))
    total = {gene: torch.zeros(len(logits)) for gene, logits in choice.logits.items()}
    for number in range(DRAWS):
        scores, _ = sampled_scores(supernet, choice, images, seed=0, number=number, temperature=5.0)
        loss = nn.functional.cross_entropy(scores, labels)
        gradients = torch.autograd.grad(loss, list(choice.logits.values()), allow_unused=True)
        for gene, gradient in zip(choice.logits, gradients, strict=True):
            if gradient is not None:
                total[gene] += gradient.abs() / DRAWS
    return float(torch.cat([own for gene, own in total.items() if gene.endswith(".kind")]).mean())


def trained_loss(supernet: SuperNet, data: Data, steps: int) -> float:
    """Return the mean training loss of the last quarter of the steps, in nats."""
    config = TrainConfig(
        steps=steps, batch_size=BATCH, lr=LR, end_lr=1.0, warmup=min(WARM_UP / steps, 0.5),
        largest=0.0, order_images=0, sandwich=0.0, choice_every=0, log_steps=steps // 4,
        checkpoint_steps=steps, path_threads=1,
    )  # fmt: skip
    with tempfile.TemporaryDirectory() as folder:
        trained = train(supernet, data, config, folder)
    return float(trained.history[-1]["random"])


def main() -> None:
    """Train with every scale; record."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("scales", nargs="*", type=float, default=SCALES, metavar="SCALE")
    parser.add_argument("--data", default="digits", help="digits, or folder:DIR")
    parser.add_argument("--steps", type=int, default=300)
    options = parser.parse_args()
    if options.steps < 4 or options.steps % 4:
        parser.error("--steps must be a multiple of 4: the last quarter is told.")
    torch.set_num_threads(1)
    is_toy = options.data == "digits"
    data = load(options.data, image_size=32 if is_toy else 64)
    space = SearchSpace.load("tiny" if is_toy else "hybrid-64").replace(
        num_classes=data.num_classes, in_chans=data.in_chans
    )
    found: dict[float, dict[str, Any]] = {}
    for scale in sorted({*options.scales, RESIDUAL_SCALE}):
        gradient = choice_gradient(started(space, scale), data)
        loss = trained_loss(started(space, scale), data, options.steps)
        found[scale] = {"loss": round(loss, 3), "choice_gradient": float(f"{gradient:.2g}")}
        print(f"scale {scale:g}: loss {loss:.3f}, gradient of choices {gradient:.2g}", flush=True)
    lowest = min(each["loss"] for each in found.values())
    own = found[RESIDUAL_SCALE]
    chance = math.log(data.num_classes)
    figures = [
        Figure(
            figure=f"mean loss of {space.name}'s random paths behind {options.steps} steps by the "
            f"scale branches start at (chance {chance:.3f})",
            asked=f"that of {RESIDUAL_SCALE:g} within 0.05 of the lowest",
            measured={f"{scale:g}": each["loss"] for scale, each in found.items()},
            holds=own["loss"] <= lowest + 0.05,
        ),
        Figure(
            figure="mean gradient of a choice between kinds before training",
            asked=f"at least 1e-5 at {RESIDUAL_SCALE:g}",
            measured={f"{scale:g}": each["choice_gradient"] for scale, each in found.items()},
            holds=own["choice_gradient"] >= 1e-5,
        ),
    ]
    record("residual_scale", figures, notes={"data": data.name.partition(":")[0]})


if __name__ == "__main__":
    main()

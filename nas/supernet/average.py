"""Average: an exponential moving average of a supernet's weights, and whether it is better."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from nas.data import Data, eval_batches
from nas.space import Architecture
from nas.supernet.evaluate import EvaluateConfig, first_images, fit_statistics
from nas.supernet.model import SuperNet

COMPARED_IMAGES = 2048  # of the choice split, at most


class Average:
    """Weights averaged over the steps of a training.

    After n updates the decay is min(decay, 1 - (1 + n)^(-2/3)): a short training has a short
    memory, and the first weights are forgotten soon. Ordering the channels of `supernet` like
    those of the weights it follows keeps it their average.

    Args:
        followed: Whose weights are averaged; copied, memory layouts included.
        decay: What the decay goes up to.

    Attributes:
        supernet: With the averaged weights.
    """

    def __init__(self, followed: SuperNet, decay: float) -> None:
        self.supernet = copy.deepcopy(followed).requires_grad_(False)
        self.decay = decay
        self.updates = 0

    @torch.no_grad()
    def update(self, followed: SuperNet) -> None:
        """Move towards the weights as they are now."""
        self.updates += 1
        decay = min(self.decay, 1 - (1 + self.updates) ** (-2 / 3))
        own: list[Tensor] = list(self.supernet.parameters())
        now: list[Tensor] = list(followed.parameters())
        torch._foreach_lerp_(own, now, 1 - decay)

    def state_dict(self) -> dict[str, Any]:  # Any: tensors and a number
        """Return the averaged weights and how many updates they have seen."""
        return {"updates": self.updates, "weights": self.supernet.state_dict()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned."""
        self.updates = int(state["updates"])
        self.supernet.load_state_dict(state["weights"])


@torch.no_grad()
def mean_loss(supernet: SuperNet, paths: Sequence[Architecture], data: Data) -> float:
    """Return the mean cross-entropy in nats of some sub-networks on the choice split.

    Each has BatchNorm statistics fitted for it. The search split is not looked at: what ranks
    candidates later must not have chosen the weights.
    """
    device = next(supernet.parameters()).device
    images = first_images(data.split("choice"), COMPARED_IMAGES)
    size = EvaluateConfig().batch_size
    total = 0.0
    for path in paths:
        statistics = fit_statistics(supernet, path, data)
        for batch, labels in eval_batches(images, data, batch_size=size, device=device):
            scores = supernet(batch, path, statistics).double()
            total += float(F.cross_entropy(scores, labels, reduction="sum"))
    return total / (len(paths) * len(images))

"""How well a network classifies a split."""

from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import nn

from nas.data import Normalised, Split, eval_batches


@dataclass(frozen=True, slots=True, kw_only=True)
class Score:
    """Share of right answers in 0..1, and mean cross-entropy."""

    accuracy: float
    loss: float


@torch.no_grad()
def evaluate(model: nn.Module, split: Split, data: Normalised, *, batch_size: int = 256) -> Score:
    """Score `model` in eval mode, on the device it is on; it is left in the mode it was in.

    Args:
        model: A classifier.
        split: The images.
        data: Tells how the network wants them normalised.
        batch_size: Images at once; the score does not depend on it but for rounding.
    """
    device = next(model.parameters()).device
    was_training = model.training
    model.eval()  # in which timm's attention drops biases that it cached from old weights
    right, loss = 0, 0.0
    for images, labels in eval_batches(split, data, batch_size=batch_size, device=device):
        scores = model(images).float()
        right += int((scores.argmax(dim=1) == labels).sum())
        loss += float(F.cross_entropy(scores, labels, reduction="sum"))
    model.train(was_training)
    return Score(accuracy=right / len(split), loss=loss / len(split))

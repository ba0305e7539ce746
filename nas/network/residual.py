"""What the residual branches share: stochastic depth, and the scale a branch starts at."""

from typing import Protocol, runtime_checkable

import torch
import torch.nn as nn
from timm.layers.drop import DropPath


@runtime_checkable
class Scaled(Protocol):
    """A part whose residual branch has a scale."""

    def residual_scale(self) -> torch.Tensor:
        """Return the tensor that scales the branch, shape (channels,)."""


def drop_branch(rate: float) -> nn.Module:
    """Return the module that drops a sample's whole branch with probability `rate` in training."""
    return DropPath(rate) if rate > 0.0 else nn.Identity()


@torch.no_grad()
def scale_residuals(module: nn.Module, value: float = 1.0) -> None:
    """Set the scale of every residual branch inside `module` to `value`, in place.

    The published networks start near the identity: EfficientFormer's layer scales at 1e-5,
    EfficientViT's last BatchNorm weights at 0. With 300 epochs that is good; in a supernet it
    hides which branch is better (gradients of 1e-8), and a short training never leaves it. A
    part tells its scale by a method `residual_scale()`: the layer scale where it has one, else
    the weight of its last BatchNorm.
    """
    for part in module.modules():
        if isinstance(part, Scaled):
            part.residual_scale().fill_(value)

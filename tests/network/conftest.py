"""What the tests of networks share: weights that leave nothing at its trivial initial value."""

import math
from collections.abc import Callable

import pytest
import torch
from torch import nn


@torch.no_grad()
def _randomize(module: nn.Module, seed: int = 0) -> nn.Module:
    """Draw every parameter and float buffer so that signals keep their size and nothing is 0 or 1.

    Scales (BatchNorm, LayerNorm, LayerScale weights) and variances are U(0.5, 1.5).
    """
    generator = torch.Generator().manual_seed(seed)
    for name, tensor in [*module.named_parameters(), *module.named_buffers()]:
        if not tensor.is_floating_point():
            continue
        uniform = torch.rand(tensor.shape, generator=generator, dtype=torch.float64)
        if tensor.ndim == 1 and name.endswith(("weight", "gamma", "running_var")):
            drawn = uniform + 0.5
        elif tensor.ndim == 1:
            drawn = 0.6 * (uniform - 0.5)
        elif "bias" in name:  # attention biases
            drawn = 2 * (uniform - 0.5)
        else:
            drawn = 1.6 * (uniform - 0.5) / math.sqrt(tensor[0].numel() / 3)
        tensor.copy_(drawn)
    return module


@pytest.fixture
def randomize() -> Callable[..., nn.Module]:
    """Return `randomize(module, seed=0)`, which draws its parameters and buffers in place."""
    return _randomize

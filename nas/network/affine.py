"""What every part is made of: a convolution with its BatchNorm, a linear layer, an activation."""

from typing import Any

import torch.nn as nn
from timm.layers.weight_init import trunc_normal_

ACTIVATION_MODULES: dict[str, type[nn.Module]] = {
    "relu": nn.ReLU,
    "gelu": nn.GELU,
    "hardswish": nn.Hardswish,
    "silu": nn.SiLU,
    "relu6": nn.ReLU6,
}


def activation(name: str) -> nn.Module:
    """Return the activation called `name` in block strings."""
    return ACTIVATION_MODULES[name]()


def linear(inputs: int, outputs: int, **factory: Any) -> nn.Linear:
    """Return a linear layer as both families start it: weight truncated normal 0.02, bias 0."""
    module = nn.Linear(inputs, outputs, **factory)
    trunc_normal_(module.weight, std=0.02)
    nn.init.zeros_(module.bias)
    return module


class ConvNorm(nn.Sequential):
    """A convolution (`conv`) that keeps its input's side over stride, and its BatchNorm (`bn`).

    Args:
        inputs: Channels in.
        outputs: Channels out.
        kernel: Odd side of the kernel.
        stride: Step; the output side is (side - 1) // stride + 1.
        groups: 1, or `inputs` for a depthwise convolution.
        bias: Whether the convolution has a bias of its own.
        gamma: What the BatchNorm's weight starts at.
        factory: `device` and `dtype`, as torch's modules take them.
    """

    def __init__(
        self,
        inputs: int,
        outputs: int,
        *,
        kernel: int = 1,
        stride: int = 1,
        groups: int = 1,
        bias: bool = False,
        gamma: float = 1.0,
        **factory: Any,
    ) -> None:
        super().__init__()
        padding = kernel // 2
        conv = nn.Conv2d(
            inputs, outputs, kernel, stride, padding, groups=groups, bias=bias, **factory
        )
        norm = nn.BatchNorm2d(outputs, **factory)
        nn.init.constant_(norm.weight, gamma)
        self.add_module("conv", conv)
        self.add_module("bn", norm)

"""What the tests of networks share: small networks, and weights that are nowhere trivial."""

import math
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import nn

from nas.network import NasHybrid, build

# Every kind in every place it may stand, small enough for a fast test.
STEM = ["stem_r32_i3_c8-16_b1_a1"]
NETWORKS = {
    "mb4d": [
        *STEM,
        "mb4d_r8_c16_h32_p3",
        "downsample_r8_i16_o24",
        "mb4d_r4_c24_h24_p3_relu",
        "downsample_r4_i24_o32",
        "mb4d_r2_c32_h64_p3",
        "head_r2_i32_o10_ln_d0",
    ],
    "mb3d": [
        *STEM,
        "mb3d_r8_c16_n2_k4_v8_h32",
        "downsample_r8_i16_o24",
        "downsample_r4_i24_o32",
        "mb3d_r2_c32_n2_k4_v8_h32",
        "mb3d_r2_c32_n1_k8_v8_h32",
        "head_r2_i32_o10_ln_d1",
    ],
    "cga": [
        "stem_r32_i3_c8-16_b0_a0",
        "cga_r8_c16_n2_k4_q5-3_w3_h32-32",
        "patch_merge_r8_i16_o24_h32_s8_f32-48",
        "cga_r4_c24_n3_k4_q7-5-3_w7_h48-48",
        "patch_merge_r4_i24_o32_h48_s8_f48-64",
        "head_r2_i32_o10_bn_d0",
    ],
    "mbconv": [
        *STEM,
        "mbconv_r8_c16_h32_k3_s0_a1_gelu",
        "mbconv_r8_c16_h32_k5_s8_a0",
        "downsample_r8_i16_o24",
        "mbconv_r4_c24_h24_k7_s0_a0_silu",
        "downsample_r4_i24_o32",
        "mbconv_r2_c32_h64_k5_s16_a1",
        "head_r2_i32_o10_bn_d0",
    ],
    "all": [
        *STEM,
        "patch_merge_r8_i16_o24_h32_s8_f32-48",
        "mb4d_r4_c24_h48_p3",
        "cga_r4_c24_n2_k4_q3-3_w3_h48-48",
        "mbconv_r4_c24_h48_k3_s8_a0",
        "mb3d_r4_c24_n2_k4_v4_h48",
        "downsample_r4_i24_o32",
        "cga_r2_c32_n2_k4_q3-3_w7_h64-64",
        "mb3d_r2_c32_n2_k4_v8_h64",
        "head_r2_i32_o10_bn_d1",
    ],
}


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


@pytest.fixture(params=NETWORKS)
def name(request: pytest.FixtureRequest) -> str:
    """Return the name of each small network in turn."""
    assert isinstance(request.param, str)
    return request.param


@pytest.fixture
def texts() -> Callable[[str], list[str]]:
    """Return `texts(name)`, the block strings of a small network."""
    return lambda name: list(NETWORKS[name])


@pytest.fixture
def make() -> Callable[..., Any]:  # Any: a NasHybrid, whose timm attributes have no types
    """Return `make(name, **options)`: a small network in evaluation mode, weights drawn."""

    def make(name: str, **options: Any) -> Any:
        model = _randomize(build(NETWORKS[name], **options))
        assert isinstance(model, NasHybrid)
        return model.eval()

    return make


@pytest.fixture
def images() -> torch.Tensor:
    """Return two images for the small networks, shape (2, 3, 32, 32)."""
    return torch.randn(2, 3, 32, 32, generator=torch.Generator().manual_seed(0))

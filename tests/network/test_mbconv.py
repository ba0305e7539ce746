"""The inverted residual is TinyViT's, MobileNetV2's and MnasNet's: timm's weights, its outputs."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import nn

from nas.block import parse
from nas.network import build_block

Randomize = Callable[..., nn.Module]

TINY_VIT = {"expand": "conv1", "depthwise": "conv2", "project": "conv3"}
INVERTED = {
    "expand.conv": "conv_pw",
    "expand.bn": "bn1",
    "depthwise.conv": "conv_dw",
    "depthwise.bn": "bn2",
    "se.fc1": "se.conv_reduce",
    "se.fc2": "se.conv_expand",
    "project.conv": "conv_pwl",
    "project.bn": "bn3",
}
# timm's network, its block, our string, {our name: timm's}.
BLOCKS = [
    ("tiny_vit_5m_224", "stages.0.blocks.0", "mbconv_r56_c64_h256_k3_s0_a1_gelu", TINY_VIT),
    ("tiny_vit_5m_224", "stages.0.blocks.1", "mbconv_r56_c64_h256_k3_s0_a1_gelu", TINY_VIT),
    ("mobilenetv2_100", "blocks.1.1", "mbconv_r56_c24_h144_k3_s0_a0", INVERTED),
    ("mobilenetv2_100", "blocks.5.2", "mbconv_r7_c160_h960_k3_s0_a0", INVERTED),
    ("semnasnet_100", "blocks.2.1", "mbconv_r28_c40_h120_k5_s10_a0_relu", INVERTED),
    ("semnasnet_100", "blocks.4.1", "mbconv_r14_c112_h672_k3_s28_a0_relu", INVERTED),
]
every_block = pytest.mark.parametrize(("network", "place", "text", "names"), BLOCKS)


def converted(theirs: nn.Module, text: str, names: dict[str, str]) -> nn.Module:
    """Return our block with the tensors of timm's, every one of them used."""
    state = theirs.state_dict()
    ours = build_block(parse(text)).to(next(theirs.parameters()).dtype)
    taken = {}
    for key in ours.state_dict():
        (our,) = [name for name in names if key.startswith(name + ".")]
        taken[key] = names[our] + key.removeprefix(our)
    assert sorted(taken.values()) == sorted(state)
    ours.load_state_dict({key: state[their] for key, their in taken.items()})
    return ours.train(theirs.training)


@every_block
def test_timms_weights_give_timms_outputs(
    network: str, place: str, text: str, names: dict[str, str], randomize: Randomize
) -> None:
    model: Any = timm.create_model(network).eval()
    for dtype, bound in ((torch.float64, 1e-9), (torch.float32, 1e-5)):
        theirs = randomize(model.get_submodule(place).to(dtype))
        ours = converted(theirs, text, names)
        block = parse(text)
        shape = (2, block.channels, block.resolution, block.resolution)
        x = torch.randn(shape, generator=torch.Generator().manual_seed(0), dtype=dtype)
        with torch.no_grad():
            expected, given = theirs(x.clone()), ours(x)  # timm works in place
        assert (given - expected).abs().max() <= bound * expected.abs().max()
        assert (expected - x).abs().max() > 0.1  # the branch says something
        assert block.params == sum(value.numel() for value in theirs.parameters())


@every_block
def test_it_trains_as_timms(
    network: str, place: str, text: str, names: dict[str, str], randomize: Randomize
) -> None:
    model: Any = timm.create_model(network, dtype=torch.float64)
    theirs = randomize(model.get_submodule(place)).train()
    ours = converted(theirs, text, names)
    block = parse(text).at(7)
    x = torch.randn(4, block.in_channels, 7, 7, dtype=torch.float64)
    for module in (theirs, ours):
        optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
        for _ in range(2):
            optimizer.zero_grad()
            module(x.clone()).square().mean().backward()
            optimizer.step()
    after = converted(theirs, text, names).state_dict()  # running statistics too
    for key, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, after[key], rtol=1e-6, atol=1e-9)


def test_hidden_channels_may_be_put_in_another_order(randomize: Randomize) -> None:
    block = parse("mbconv_r5_c8_h24_k3_s16_a1_gelu")
    module = randomize(build_block(block)).double().eval()
    x = torch.randn(2, 8, 5, 5, dtype=torch.float64)
    with torch.no_grad():
        before = module(x)
        generator = torch.Generator().manual_seed(0)
        hidden, inner = (torch.randperm(n, generator=generator) for n in (24, 16))
        for name, value in module.state_dict().items():
            if value.ndim == 0:
                continue
            if name.startswith(("expand.", "depthwise.", "se.fc2.")):
                value.copy_(value[hidden].clone())
            if name in ("project.conv.weight", "se.fc1.weight"):
                value.copy_(value[:, hidden].clone())
            if name.startswith("se.fc1."):
                value.copy_(value[inner].clone())
            if name == "se.fc2.weight":
                value.copy_(value[:, inner].clone())
        torch.testing.assert_close(module(x), before, rtol=1e-10, atol=1e-10)

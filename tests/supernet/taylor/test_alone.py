"""Importance of one network's channels, and cutting it: what does not matter leaves no trace."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from nas import network
from nas.block import Block, parse_network
from nas.data import Data, eval_batches
from nas.network import NasHybrid
from nas.pipeline.cuts import with_numbers
from nas.supernet.gates import GATES, dims
from nas.supernet.taylor import Importance, TaylorConfig
from nas.supernet.taylor.alone import (
    channel_orders,
    cut,
    inner_places,
    kept_importance,
    network_importance,
    refit,
)

BLOCKS = [
    "stem_r16_i3_c4-8_b1_a1",
    "mb4d_r4_c8_h16_p3",
    "patch_merge_r4_i8_o16_h16_s8_f16-24",
    "cga_r2_c16_n2_k8_q5-3_w7_h24-16",
    "mbconv_r2_c16_h24_k3_s8_a0",
    "mb3d_r2_c16_n4_k8_v8_h24",
    "head_r2_i16_o4_ln_d1",
]
SMALLER = {
    "mb4d": {"hidden": 8},
    "patch_merge": {"ffn.0": 8, "hidden": 8, "squeeze": 4, "ffn.1": 8},
    "cga": {"hidden.0": 8, "key": 4, "hidden.1": 8},
    "mbconv": {"hidden": 8, "squeeze": 4},
    "mb3d": {"key": 4, "value": 4, "heads": 2, "hidden": 8},
}


@pytest.fixture
def model() -> NasHybrid:
    """Return a network of every kind with every tensor drawn."""
    torch.manual_seed(0)
    found = network.build(BLOCKS)
    for name, value in found.state_dict().items():
        if value.is_floating_point():
            low = 0.5 if name.endswith(("running_var", "gamma", "bn.weight")) else -0.4
            value.uniform_(low, low + 0.8)
    return found.eval()


def smaller(blocks: tuple[Block, ...]) -> tuple[Block, ...]:
    return tuple(with_numbers(block, SMALLER.get(block.kind, {})) for block in blocks)


def dead_channels(model: NasHybrid, seed: int = 1) -> dict[str, list[int]]:
    """Take so many channels out of each dimension by zeros that `smaller` has the others.

    Written on the tensors by hand, without gates or slices: which tensors a channel has is what
    is tested.
    """
    rng = np.random.default_rng(seed)
    dead: dict[str, list[int]] = {}

    def draw(place: str, field: str, count: int, drop: int) -> list[int]:
        chosen = sorted(rng.permutation(count)[:drop].tolist())
        dead[f"{place}.{field}"] = chosen
        return chosen

    state = model.state_dict()

    def columns(name: str, chosen: list[int]) -> None:
        state[name][:, chosen] = 0

    s = "stages."
    columns(f"{s}0.0.parts.1.project.conv.weight", draw(f"{s}0.0", "hidden", 16, 8))
    merge = f"{s}1.0"
    columns(f"{merge}.parts.1.project.conv.weight", draw(merge, "ffn.0", 16, 8))
    hidden = draw(merge, "hidden", 16, 8)
    columns(f"{merge}.parts.2.project.conv.weight", hidden)
    columns(f"{merge}.parts.2.se.fc1.weight", hidden)
    columns(f"{merge}.parts.2.se.fc2.weight", draw(merge, "squeeze", 8, 4))
    columns(f"{merge}.parts.4.project.conv.weight", draw(merge, "ffn.1", 24, 16))
    cga = f"{s}1.1"
    columns(f"{cga}.parts.1.project.conv.weight", draw(cga, "hidden.0", 24, 16))
    columns(f"{cga}.parts.4.project.conv.weight", draw(cga, "hidden.1", 16, 8))
    for head in range(2):
        chosen = draw(cga, f"key.{head}", 8, 4)
        for tensor in ("weight", "bias"):
            state[f"{cga}.parts.2.queries.{head}.bn.{tensor}"][chosen] = 0
    mbconv = f"{s}1.2"
    hidden = draw(mbconv, "hidden", 24, 16)
    columns(f"{mbconv}.project.conv.weight", hidden)
    columns(f"{mbconv}.se.fc1.weight", hidden)
    columns(f"{mbconv}.se.fc2.weight", draw(mbconv, "squeeze", 8, 4))
    attn = f"{s}1.3"
    columns(f"{attn}.parts.1.project.weight", draw(attn, "hidden", 24, 16))
    gone = draw(attn, "heads", 4, 2)
    qkv = state[f"{attn}.parts.0.qkv.weight"].view(4, 24, -1)  # heads, queries + keys + values
    qkv_bias = state[f"{attn}.parts.0.qkv.bias"].view(4, 24)
    project = state[f"{attn}.parts.0.project.weight"].view(-1, 4, 8)
    project[:, gone] = 0
    for head in range(4):
        keys = draw(attn, f"key.{head}", 8, 4)
        qkv[head, keys] = 0
        qkv_bias[head, keys] = 0
        project[:, head, draw(attn, f"value.{head}", 8, 4)] = 0
    return dead


def scores(model: NasHybrid, data: Data) -> torch.Tensor:
    images, _ = next(eval_batches(data.split("search"), data, batch_size=48))
    with torch.no_grad():
        found: torch.Tensor = model.eval()(images)
    return found


def test_dead_channels_have_no_importance_and_are_cut_without_a_change(
    model: NasHybrid, quarters: Data
) -> None:
    dead = dead_channels(model)
    importance = network_importance(model, quarters, TaylorConfig(images=32, batch_size=31))
    gone = dead["stages.1.3.heads"]
    for name, chosen in dead.items():
        place, _, last = name.rpartition(".")
        if last.isdigit() and place in importance:
            values = importance[place][int(last)]
            if "1.3" in place and int(last) in gone:
                continue  # all of that head is dead
        else:
            values = importance[name]
        assert not values[chosen].any(), name
        assert values.any(), name
    fewer = smaller(model.blocks_spec)
    pruned = cut(model, fewer, channel_orders(importance))
    assert pruned.blocks_spec == fewer
    before, after = scores(model, quarters), scores(pruned, quarters)
    assert before.std() > 1e-2
    torch.testing.assert_close(after, before, rtol=1e-5, atol=1e-5)
    wrong = cut(model, fewer, channel_orders({n: -v for n, v in importance.items()}))
    assert (scores(wrong, quarters) - before).abs().max() > 1e-2


def test_what_is_not_cut_is_bit_for_bit_what_it_was(model: NasHybrid, quarters: Data) -> None:
    importance = network_importance(model, quarters, TaylorConfig(images=16))
    same = cut(model, model.blocks_spec, channel_orders(importance))
    assert all(torch.equal(v, same.state_dict()[n]) for n, v in model.state_dict().items())
    one = list(model.blocks_spec)
    one[1] = with_numbers(one[1], {"hidden": 8})
    pruned = cut(model, one, channel_orders(importance)).state_dict()
    changed = [n for n, v in model.state_dict().items() if not torch.equal(v, pruned[n])]
    assert changed and all(name.startswith("stages.0.0.parts.1.") for name in changed)


def test_cut_channels_of_cga_stay_in_their_heads_and_its_values_where_they_were(
    model: NasHybrid, quarters: Data
) -> None:
    importance = network_importance(model, quarters, TaylorConfig(images=16))
    pruned = cut(model, smaller(model.blocks_spec), channel_orders(importance)).state_dict()
    for head in range(2):
        name = f"stages.1.1.parts.2.qkvs.{head}.conv.weight"
        before, after = model.state_dict()[name], pruned[name]
        best = np.argsort(-importance["stages.1.1.key"][head], kind="stable")[:4]
        rows = [*best, *(8 + best), *range(16, 24)]
        assert torch.equal(after, before[rows])


def test_gradients_are_the_change_of_the_loss_when_a_channel_is_scaled(
    model: NasHybrid, quarters: Data
) -> None:
    """Finite differences of the project's weights, in double precision and without gates."""
    model.double()
    images, labels = next(eval_batches(quarters.split("train"), quarters, batch_size=3))
    weight = model.get_parameter("stages.0.0.parts.1.project.conv.weight")

    def losses(scale: float, channel: int) -> torch.Tensor:
        kept = weight.detach().clone()
        with torch.no_grad():
            weight[:, channel] *= scale
            found = F.cross_entropy(model(images.double()), labels, reduction="none")
            weight.copy_(kept)
        return found

    step = 1e-5
    from nas.supernet.taylor.alone import _sample_gradients

    gradients = _sample_gradients(model, images.double(), labels)["stages.0.0.hidden"]
    for channel in range(16):
        expected = (losses(1 + step, channel) - losses(1 - step, channel)) / (2 * step)
        torch.testing.assert_close(gradients[:, channel], expected, rtol=1e-4, atol=1e-8)
    alone = _sample_gradients(model, images[:1].double(), labels[:1])["stages.0.0.hidden"]
    torch.testing.assert_close(alone, gradients[:1])


def test_kept_importance_is_of_the_channels_that_a_cut_keeps(
    model: NasHybrid, quarters: Data
) -> None:
    importance = network_importance(model, quarters, TaylorConfig(images=16))
    kept = kept_importance(model, importance)
    places = dict(inner_places(model.blocks_spec, model.block_prefixes))
    assert set(kept) == {f"{place}.{d.field}" for place, b in places.items() for d in dims(b)}
    hidden = importance["stages.0.0.hidden"]
    assert kept["stages.0.0.hidden"].kept["0"]["5"] == pytest.approx(np.sort(hidden)[-5:].sum())
    attn: Importance = {n: importance[f"stages.1.3.{n}"] for n in ("heads", "value")}
    first = np.argsort(-attn["heads"], kind="stable")[:3]
    best = -np.sort(-attn["value"][first], axis=1)[:, :2]
    assert kept["stages.1.3.value"].kept["3"]["2"] == pytest.approx(best.sum())
    assert GATES[kept["stages.1.3.value"].kind].shape(places["stages.1.3"].parts()[0]) == (4, 8)


def test_statistics_are_fitted_to_the_training_images_and_nothing_else_changes(
    model: NasHybrid, quarters: Data
) -> None:
    before = {name: value.clone() for name, value in model.state_dict().items()}
    refit(model, quarters)
    assert not model.training
    images, _ = next(eval_batches(quarters.split("train"), quarters, batch_size=64))
    stem: nn.Module = model.get_submodule("stem.convs.0.conv")
    with torch.no_grad():
        out = stem(images)
    norm = model.get_submodule("stem.convs.0.bn")
    torch.testing.assert_close(norm.running_mean, out.mean((0, 2, 3)), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(norm.running_var, out.var((0, 2, 3)), rtol=1e-4, atol=1e-5)
    assert norm.momentum is not None
    for name, value in model.state_dict().items():
        if "running" not in name and "num_batches" not in name:
            assert torch.equal(value, before[name]), name


def test_cutting_by_importance_loses_less_than_at_random(quarters: Data) -> None:
    from nas.winner.distill import DistillConfig, train
    from nas.winner.score import evaluate

    torch.manual_seed(0)
    blocks = parse_network(BLOCKS)
    model = network.build(blocks)
    train(model, quarters, DistillConfig(epochs=20, warmup_epochs=1, batch_size=32, lr=5e-3))
    importance = network_importance(model, quarters)

    def lost(values: Importance) -> float:
        pruned = cut(model, smaller(blocks), channel_orders(values))
        refit(pruned, quarters)
        return evaluate(pruned, quarters.split("search"), quarters).loss

    rng = np.random.default_rng(0)
    draws = [{n: rng.random(v.shape) for n, v in importance.items()} for _ in range(5)]
    by_random = np.mean([lost(values) for values in draws])
    assert lost(importance) < by_random and math.isfinite(by_random)

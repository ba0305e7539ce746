import re
from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nas.data import eval_batches
from nas.errors import ConfigError
from nas.network import part_prefixes
from nas.space import Architecture, SearchSpace
from nas.supernet import Statistics, SuperNet, score
from nas.supernet.gates import dims
from nas.supernet.taylor import (
    TaylorConfig,
    covering_paths,
    gated_losses,
    measure_importance,
    sample_gradients,
    unit_gates,
)

IMAGES = 6


def doubled(supernet: SuperNet, architecture: Architecture, x: Tensor) -> Statistics:
    """Statistics fitted in single precision, as exact doubles; leaves the supernet in doubles."""
    supernet.float()
    statistics = supernet.empty_statistics(architecture)
    with torch.no_grad():
        supernet(x.float(), architecture, statistics, fit=True)
    supernet.double()
    return tuple(
        {name: v.double() if v.is_floating_point() else v for name, v in block.items()}
        for block in statistics
    )


def some_images(space: SearchSpace) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(IMAGES, 3, space.image_size, space.image_size, generator=generator)
    return x.double(), torch.arange(IMAGES) % space.num_classes


def rough(space: SearchSpace) -> SuperNet:
    """A supernet whose norms and biases are no longer 1 and 0."""
    supernet = SuperNet(space, seed=1)
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for value in supernet.parameters():
            value.add_(torch.randn(value.shape, generator=generator), alpha=0.1)
    return supernet


@pytest.fixture(scope="module")
def smooth(tiny: SearchSpace) -> SearchSpace:
    """Every kind, with an activation that has a derivative everywhere, in windows with borders."""
    stages = tuple(replace(stage, depth=(2,)) for stage in tiny.stages)
    cga = stages[1].blocks.cga
    assert cga is not None
    blocks = replace(stages[1].blocks, cga=replace(cga, window=(3,)))
    stages = (stages[0], replace(stages[1], blocks=blocks))
    stem = replace(tiny.stem, act="gelu")
    return tiny.replace(act="gelu", stem=stem, stages=stages, image_size=32)


@pytest.fixture(scope="module")
def free(smooth: SearchSpace) -> SearchSpace:
    """The same without cga, so that both streams are gated."""
    first, second = smooth.stages
    return smooth.replace(stages=(first, replace(second, kinds=("mb4d",))))


def kinds_of(names: list[str]) -> dict[str, str]:
    """One dimension of every kind: its slot without the place, and its field."""
    place = re.compile(r"s\d\.((b|t)\d\.|by\.)?|stem\.")
    return {place.sub("", name, count=1): name for name in names}


def readers(space: SearchSpace, architecture: Architecture, stream: str) -> int:
    stage = int(stream[1])
    return len(architecture.stages[stage - 1].blocks) + 1  # and what stands behind the stage


def central_difference(
    supernet: SuperNet,
    batch: tuple[Tensor, Tensor],
    path: tuple[Architecture, Statistics],
    name: str,
    channel: tuple[Any, ...],
) -> Tensor:
    """Each image's derivative by one channel's gates, from losses at 1 +- 1e-3."""
    gates = unit_gates(supernet, path[0], batch[0])
    losses = []
    for step in (1e-3, -1e-3):
        changed = gates[name].clone()
        changed[(slice(None), *channel)] += step
        with torch.no_grad():
            losses.append(gated_losses(supernet, *batch, *path, {**gates, name: changed}))
    return (losses[0] - losses[1]) / 2e-3


@pytest.mark.parametrize("name", ["smooth", "free"])
def test_derivatives_are_central_differences_for_every_kind_of_gate(name, request):
    space = request.getfixturevalue(name)
    supernet = rough(space)
    batch = some_images(space)
    rng = np.random.default_rng(0)
    seen = set()
    for architecture in covering_paths(space):
        statistics = doubled(supernet, architecture, batch[0])
        gradients = sample_gradients(supernet, *batch, architecture, statistics)
        for kind, dimension in kinds_of(list(gradients)).items():
            if kind in seen:
                continue
            seen.add(kind)
            own = gradients[dimension]
            share = readers(space, architecture, dimension) if kind == "width" else 1
            strongest = np.unravel_index(int(own.abs().sum(0).argmax()), own.shape[1:])
            for channel in (strongest, tuple(rng.integers(0, own.shape[1:]))):
                wanted = central_difference(
                    supernet, batch, (architecture, statistics), dimension, channel
                )
                found = own[(slice(None), *channel)] * share
                scale = float(wanted.abs().max())
                assert scale > 0, dimension
                assert float((found - wanted).abs().max()) < 1e-4 * scale + 1e-9, dimension
    if name == "smooth":
        assert seen >= {
            *("mb4d.hidden", "mb3d.key", "mb3d.value", "mb3d.heads", "mb3d.hidden", "cga.key"),
            *("cga.hidden.0", "cga.hidden.1", "patch_merge.ffn.0", "patch_merge.ffn.1"),
            *("patch_merge.hidden", "patch_merge.squeeze", "widths.0", "width"),
        }


def test_a_gate_of_zero_is_the_network_without_the_channel(smooth):
    """Behind a gate at 0 the weights that read or make the channel do not matter any more."""
    supernet = rough(smooth)
    batch = some_images(smooth)
    for architecture in covering_paths(smooth)[:2]:
        statistics = doubled(supernet, architecture, batch[0])
        for slot, block in supernet.walk(architecture):
            if block.kind != "patch_merge":
                continue
            gates = unit_gates(supernet, architecture, batch[0])
            gates[f"{slot}.hidden"][:, 3] = 0
            before = gated_losses(supernet, *batch, architecture, statistics, gates)
            tensors = supernet.tensors(slot)
            with torch.no_grad():
                tensors["parts.2.depthwise.bn.bias"][3] += 1
                tensors["parts.2.expand.bn.bias"][3] += 1
                tensors["parts.2.project.conv.weight"][:, 3] += 1
                tensors["parts.2.se.fc1.weight"][:, 3] += 1
            after = gated_losses(supernet, *batch, architecture, statistics, gates)
            assert torch.equal(before, after)


def test_the_derivatives_of_an_image_do_not_depend_on_its_batch(smooth):
    supernet = rough(smooth)
    x, labels = some_images(smooth)
    for architecture in covering_paths(smooth):
        statistics = doubled(supernet, architecture, x)
        together = sample_gradients(supernet, x, labels, architecture, statistics)
        for image in (0, 4):
            rows = slice(image, image + 1)
            alone = sample_gradients(supernet, x[rows], labels[rows], architecture, statistics)
            assert alone.keys() == together.keys()
            for name, own in alone.items():
                torch.testing.assert_close(own, together[name][rows], rtol=1e-9, atol=1e-12)


def test_a_head_counts_as_all_its_values_at_once(smooth):
    supernet = rough(smooth)
    x, labels = some_images(smooth)
    architecture = covering_paths(smooth)[-1]
    statistics = doubled(supernet, architecture, x)
    gradients = sample_gradients(supernet, x, labels, architecture, statistics)
    heads = [name for name in gradients if name.endswith("mb3d.heads")]
    assert heads
    for name in heads:
        values = gradients[name.replace("heads", "value")]
        torch.testing.assert_close(gradients[name], values.sum(2), rtol=1e-9, atol=1e-12)


# ---------------------------------------------------------------- another way to the same numbers
def test_importance_is_weight_times_gradient_of_the_extracted_network_image_by_image(
    tiny, quarters
):
    """No gates, no batches, no supernet: plain networks, their weights' gradients, a loop.

    A channel behind a ReLU scales with the weights that read it, or with the norm that makes it
    (Molchanov et al., arXiv 1906.10771, section 3: weights and gates agree).
    """
    supernet = rough(tiny)
    pictures, classes = next(eval_batches(quarters.split("train"), quarters, batch_size=5))
    for architecture in covering_paths(tiny):
        statistics = doubled(supernet, architecture, pictures)
        found = sample_gradients(supernet, pictures.double(), classes, architecture, statistics)
        model = supernet.float().extract(architecture, statistics).double()
        supernet.double()
        inputs: dict[str, Tensor] = {}
        for place, prefix in enumerate(model.block_prefixes):
            slot = tiny.slots(architecture)[place]
            model.get_submodule(prefix.rstrip(".")).register_forward_pre_hook(
                partial(keep_input, inputs, slot)
            )
        for image in range(5):
            model.zero_grad()
            twice = [image, image]  # a batch of one: see sample_gradients
            F.cross_entropy(model(pictures[twice].double()), classes[twice]).backward()  # type: ignore[no-untyped-call]
            for place, (slot, block) in enumerate(supernet.walk(architecture)):
                parts = list(zip(part_prefixes(block), block.parts(), strict=True))
                for dim in dims(block):
                    prefix, part = parts[dim.part]
                    parameters = {
                        name.removeprefix(model.block_prefixes[place] + prefix): value
                        for name, value in model.named_parameters()
                        if name.startswith(model.block_prefixes[place] + prefix)
                    }
                    wanted = by_weights(dim.gate, part, parameters)
                    assert_near(found[f"{slot}.{dim.field}"][image], wanted)
            stream = [slot for slot in inputs if slot.startswith(("s1.b", "s2.by"))]
            products = torch.stack([product(inputs[slot]).sum((0, 2, 3)) for slot in stream])
            assert_near(found["s1.width"][image], products.mean(0))


def product(value: Tensor) -> Tensor:
    assert value.grad is not None
    return value.detach() * value.grad


def keep_input(
    inputs: dict[str, Tensor], slot: str, module: torch.nn.Module, given: tuple[Tensor]
) -> None:
    (inputs[slot],) = given
    if inputs[slot].requires_grad:
        inputs[slot].retain_grad()


def assert_near(found: Tensor, wanted: Tensor) -> None:
    assert found.shape == wanted.shape
    assert float((found - wanted).abs().max()) <= 1e-6 * float(wanted.abs().max()) + 1e-12


def by_weights(gate: str, part: Any, parameters: Mapping[str, Tensor]) -> Tensor:
    """One image's derivatives by the channels of a dimension, from weights and their gradients."""
    products = {name: product(value) for name, value in parameters.items()}
    if gate in ("mlp.hidden", "ffn.hidden"):
        return products["project.conv.weight"].sum((0, 2, 3))
    if gate == "token_mlp.hidden":
        return products["project.weight"].sum(0)
    if gate in ("merge.hidden", "mbconv.hidden"):
        return products["depthwise.bn.weight"] + products["depthwise.bn.bias"]
    if gate in ("merge.squeeze", "mbconv.squeeze"):
        return products["se.fc2.weight"].sum((0, 2, 3))
    if gate == "attn.value":
        return products["project.weight"].sum(0).view(part.heads, part.value)
    if gate == "attn.heads":
        return products["project.weight"].sum(0).view(part.heads, part.value).sum(1)
    if gate == "attn.key":
        rows = products["qkv.weight"].sum(1) + products["qkv.bias"]
        return rows.view(part.heads, -1)[:, : part.key]
    if gate == "group_attn.key":
        norms = [f"queries.{head}.bn." for head in range(part.heads)]
        return torch.stack([products[n + "weight"] + products[n + "bias"] for n in norms])
    place = int(gate.removeprefix("stem."))
    return products[f"convs.{place + 1}.conv.weight"].sum((0, 2, 3))


# ---------------------------------------------------------------- over a data set
def test_importance_is_the_mean_square_over_images_and_paths(small, quarters):
    supernet = rough(small)
    paths = covering_paths(small)[:2]
    whole = measure_importance(supernet, paths, quarters, TaylorConfig(images=48))
    in_parts = measure_importance(supernet, paths, quarters, TaylorConfig(images=48, batch_size=13))
    alone = [measure_importance(supernet, [p], quarters, TaylorConfig(images=48)) for p in paths]
    assert whole.keys() == alone[0].keys() | alone[1].keys()
    for name, own in whole.items():
        assert own.dtype == np.float64 and own.min() >= 0 and own.max() > 0
        each = [values[name] for values in alone if name in values]
        np.testing.assert_allclose(own, np.mean(each, 0), rtol=1e-12)
        np.testing.assert_allclose(own, in_parts[name], rtol=1e-3, atol=1e-4 * own.max())


def test_measuring_leaves_the_supernet_and_its_templates_as_they_were(small, quarters):
    supernet = rough(small)
    architecture = small.largest()
    before = score(supernet, architecture, quarters)
    measure_importance(supernet, [architecture], quarters, TaylorConfig(images=8))
    gates = unit_gates(supernet, architecture, torch.zeros(2, 3, 16, 16))
    with pytest.raises(RuntimeError):  # in the middle of a forward pass
        gated_losses(
            supernet,
            torch.zeros(2, 5, 16, 16),
            torch.zeros(2, dtype=torch.int64),
            architecture,
            before.statistics,
            gates,
        )
    after = score(supernet, architecture, quarters)
    assert (before.loss, before.accuracy) == (after.loss, after.accuracy)
    assert all(value.grad is None for value in supernet.parameters())


@pytest.mark.parametrize("name", SearchSpace.names())
def test_covering_paths_stand_in_every_slot_at_its_largest(name):
    space = SearchSpace.load(name)
    hulls = space.hulls()
    seen = set()
    for path in covering_paths(space):
        for slot, block in zip(space.slots(path), space.blocks(path), strict=True):
            seen.add(slot)
            sizes = [(dim.size(block), dim.size(hulls[slot])) for dim in dims(block)]
            assert block.out_channels == hulls[slot].out_channels
            assert all(own == largest for own, largest in sizes), slot
    assert seen == hulls.keys()


def test_what_cannot_be_measured_is_refused(small, quarters):
    supernet = SuperNet(small)
    with pytest.raises(ConfigError, match="images must be from 2 to 1000000, but is 1"):
        TaylorConfig(images=1)
    with pytest.raises(ConfigError, match="at least one path"):
        measure_importance(supernet, [], quarters)
    with pytest.raises(ConfigError, match="paths must have equal blocks in one slot"):
        measure_importance(supernet, [small.smallest(), small.largest()], quarters)
    other = small.replace(num_classes=9)
    with pytest.raises(ConfigError, match="num_classes"):
        measure_importance(SuperNet(other), [other.largest()], quarters)

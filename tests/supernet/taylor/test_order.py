import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nas.errors import ConfigError
from nas.space import Architecture, SearchSpace
from nas.supernet import SuperNet
from nas.supernet.taylor import Importance, covering_paths, order, slot_moves, unit_gates


def any_importance(supernet: SuperNet, *, seed: int = 0) -> Importance:
    """Random importance for every dimension there is."""
    rng = np.random.default_rng(seed)
    image = torch.zeros(1, 3, 8, 8)
    shapes: dict[str, tuple[int, ...]] = {}
    for path in covering_paths(supernet.space):
        gates = unit_gates(supernet, path, image)
        shapes |= {name: tuple(own.shape[1:]) for name, own in gates.items()}
    return {name: rng.random(shape) for name, shape in shapes.items()}


def rough(space: SearchSpace) -> SuperNet:
    supernet = SuperNet(space, seed=3).double()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for value in supernet.parameters():
            value.add_(torch.randn(value.shape, generator=generator, dtype=value.dtype), alpha=0.1)
    return supernet


def some_images(space: SearchSpace, count: int = 4) -> Tensor:
    generator = torch.Generator().manual_seed(5)
    side = space.image_size
    return torch.randn(count, 3, side, side, generator=generator, dtype=torch.float64)


def two_widths(name: str) -> SearchSpace:
    """A shipped space with two widths a stage, in small pictures and few places."""
    space = SearchSpace.load(name)
    stages = tuple(
        replace(stage, width=stage.width[:2], depth=stage.depth[:2], tail=stage.tail[:2])
        for stage in space.stages
    )
    return space.replace(stages=stages, image_size=min(space.image_size, 64), num_classes=7)


@pytest.mark.parametrize("name", SearchSpace.names())
@pytest.mark.slow
def test_the_largest_networks_of_every_space_stay_what_they_are(name):
    space = two_widths(name)
    supernet = rough(space)
    x = some_images(space)
    paths = covering_paths(space)
    importance = any_importance(supernet)
    before = {key: value.detach().clone() for key, value in supernet.named_parameters()}
    smallest = space.smallest()
    with torch.no_grad():
        scores = [supernet(x, path) for path in paths]
        small_scores = supernet(x, smallest)
        orders = order(supernet, importance)
        for path, own in zip(paths, scores, strict=True):
            assert float((supernet(x, path) - own).abs().max()) < 1e-5
        assert float((supernet(x, smallest) - small_scores).abs().max()) > 1e-3
    assert orders.keys() == importance.keys()
    changed = {k for k, v in supernet.named_parameters() if not torch.equal(v, before[k])}
    kinds = {key.split(".")[1].rpartition("-")[2] for key in changed}
    assert kinds >= set(space.stages[-1].kinds) - {"cga"} | {"stem"}
    streams = [f"s{n}.width" for n, s in enumerate(space.stages, 1) if "cga" not in s.kinds]
    assert sorted(name for name in orders if name.endswith("width")) == streams


def test_what_cga_sees_in_a_row_stays_in_its_row(tiny):
    supernet = rough(tiny)
    before = {key: value.detach().clone() for key, value in supernet.named_parameters()}
    order(supernet, any_importance(supernet))
    after = dict(supernet.named_parameters())
    cga = "hulls.s2-b0-cga.parts.2."
    hull = supernet.hull_blocks["s2.b0.cga"]
    values = slice(2 * hull.parts()[2].key, None)  # type: ignore[attr-defined]
    for name in ("qkvs.1.conv.weight", "qkvs.1.bn.weight"):
        assert torch.equal(after[cga + name][values], before[cga + name][values])
        assert not torch.equal(after[cga + name], before[cga + name])
    for name in ("bias.table", "project.conv.weight", "project.bn.weight"):
        assert torch.equal(after[cga + name], before[cga + name])


def hidden_of(architecture: Architecture, hidden: int) -> Architecture:
    """The same network with another hidden size in its first block."""
    stage = architecture.stages[0]
    first = stage.blocks[0]
    dims = tuple((name, hidden if name == "hidden" else dim) for name, dim in first.dims)
    blocks = (replace(first, dims=dims), *stage.blocks[1:])
    return replace(architecture, stages=(replace(stage, blocks=blocks), *architecture.stages[1:]))


def test_a_slice_is_then_the_network_without_its_least_important_channels(tiny):
    supernet = rough(tiny)
    architecture = covering_paths(tiny)[0]
    x = some_images(tiny)
    weight = supernet.tensors("s1.b0.mb4d")["parts.1.project.conv.weight"]
    kept = weight.shape[1] // 2
    values = np.random.default_rng(1).random(weight.shape[1])
    without = copy.deepcopy(supernet)
    with torch.no_grad():
        dropped = np.argsort(-values)[kept:].tolist()
        own = without.tensors("s1.b0.mb4d")["parts.1.project.conv.weight"]
        own[:, dropped] = 0
        wanted = without(x, architecture)
        order(supernet, {"s1.b0.mb4d.hidden": values})
        found = supernet(x, hidden_of(architecture, kept))
        assert not torch.allclose(wanted, supernet(x, architecture))
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-9)


def test_equal_channels_keep_their_places_and_nothing_else_is_touched(tiny):
    supernet = rough(tiny)
    before = {key: value.detach().clone() for key, value in supernet.named_parameters()}
    everything = {name: np.ones_like(own) for name, own in any_importance(supernet).items()}
    order(supernet, everything)
    assert all(torch.equal(value, before[k]) for k, value in supernet.named_parameters())
    order(supernet, {"s1.b1.mb4d.hidden": np.random.default_rng(0).random(128)})
    changed = {k for k, value in supernet.named_parameters() if not torch.equal(value, before[k])}
    assert {name.partition(".parts.1.")[0] for name in changed} == {"hulls.s1-b1-mb4d"}


# ---------------------------------------------------------------- optimizers
def steps(supernet: SuperNet, optimizer: torch.optim.Optimizer, first: int, count: int) -> None:
    space = supernet.space
    paths = covering_paths(space)
    x = some_images(space, 8)
    for step in range(first, first + count):
        optimizer.zero_grad(set_to_none=True)
        scores = supernet(x + 0.1 * step, paths[step % len(paths)])
        F.cross_entropy(scores, torch.arange(8) % space.num_classes).backward()  # type: ignore[no-untyped-call]
        optimizer.step()


def adam(supernet: SuperNet) -> torch.optim.Optimizer:
    return torch.optim.AdamW(supernet.weight_groups(0.1), lr=1e-2)


def distance(one: SuperNet, other: SuperNet) -> float:
    pairs = zip(one.state_dict().values(), other.state_dict().values(), strict=True)
    return max(float((a - b).abs().max()) for a, b in pairs)


def test_moments_follow_their_parameters_through_an_ordering(small):
    """Steps, order, steps is what steps, steps, order is."""
    one, other = rough(small), rough(small)
    first, second = adam(one), adam(other)
    steps(one, first, 0, 3)
    steps(other, second, 0, 3)
    importance = any_importance(one)
    order(one, importance, optimizer=first)
    steps(one, first, 3, 3)
    steps(other, second, 3, 3)
    assert distance(one, other) > 0.01
    order(other, importance, optimizer=second)
    parameters = dict(other.named_parameters())
    for name, value in one.named_parameters():
        torch.testing.assert_close(value, parameters[name], rtol=0, atol=1e-6, msg=name)
        here, there = first.state[value], second.state[parameters[name]]
        assert here.keys() == there.keys()
        for key in here:
            torch.testing.assert_close(here[key], there[key], rtol=1e-6, atol=1e-9)


def test_moments_left_behind_would_be_noticed(small):
    one, other = rough(small), rough(small)
    first, second = adam(one), adam(other)
    steps(one, first, 0, 3)
    steps(other, second, 0, 3)
    importance = any_importance(one)
    order(one, importance)  # without its optimizer
    steps(one, first, 3, 1)
    order(other, importance, optimizer=second)
    steps(other, second, 3, 1)
    assert distance(one, other) > 1e-3


def test_memory_layouts_and_identities_are_kept(small):
    supernet = SuperNet(small).to(memory_format=torch.channels_last)
    before = {name: (id(v), v.stride(), v.data_ptr()) for name, v in supernet.named_parameters()}
    order(supernet, any_importance(supernet))
    after = {name: (id(v), v.stride(), v.data_ptr()) for name, v in supernet.named_parameters()}
    assert before == after


def test_importance_of_something_else_is_refused_and_nothing_moves(tiny):
    supernet = rough(tiny)
    before = {key: value.detach().clone() for key, value in supernet.named_parameters()}
    good = any_importance(supernet)
    for name, values in (
        ("s1.b0.mb4d.hidden", np.ones(5)),
        ("s2.width", np.ones(64)),
        ("s9.b0.mb4d.hidden", np.ones(128)),
    ):
        with pytest.raises(ConfigError, match=f"{name} has the shape.*covering_paths"):
            order(supernet, {**good, name: values})
    assert all(torch.equal(value, before[k]) for k, value in supernet.named_parameters())


def test_every_slot_with_channels_of_its_own_is_moved(tiny):
    supernet = rough(tiny)
    importance = any_importance(supernet)
    orders = {name: np.argsort(-own, -1).astype(np.int64) for name, own in importance.items()}
    moves = dict(slot_moves(supernet, orders))
    assert moves.keys() == supernet.hull_blocks.keys()
    fixed = {slot for slot, own in moves.items() if not own}
    assert fixed == {"head"}  # its stage may hold cga

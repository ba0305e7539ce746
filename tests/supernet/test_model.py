from concurrent.futures import ThreadPoolExecutor
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from nas import network
from nas.network.residual import Scaled
from nas.space import Architecture, SearchSpace
from nas.supernet import Statistics, SuperNet
from nas.supernet.template import template_of


def images(count: int, side: int, *, seed: int = 0) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    pixels = torch.randn(count, 3, side, side, generator=generator)
    return pixels.contiguous(memory_format=torch.channels_last)


def trained(space: SearchSpace, *, steps: int, batch: int) -> SuperNet:
    """Return a supernet after a few steps of plain gradient descent on noise."""
    supernet = SuperNet(space, seed=1)
    rng = np.random.default_rng(1)
    optimizer = torch.optim.SGD(supernet.parameters(), lr=0.01)
    labels = torch.arange(batch) % space.num_classes
    for step in range(steps):
        x = images(batch, space.image_size, seed=step)
        loss = F.cross_entropy(supernet(x, space.sample(rng)), labels)
        optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]
        optimizer.step()
    return supernet


def fitted(supernet: SuperNet, architecture: Architecture, x: Tensor) -> Statistics:
    statistics = supernet.empty_statistics(architecture)
    with torch.no_grad():
        supernet(x, architecture, statistics, fit=True)
    return statistics


def sliced_fields(supernet: SuperNet, architectures: list[Architecture]) -> set[tuple[str, str]]:
    """Which numbers of which kinds are below their maximum in some architecture."""
    below = set()
    for architecture in architectures:
        for slot, block in supernet.walk(architecture):
            hull = supernet.hull_blocks[slot]
            for item in fields(block):
                if getattr(block, item.name) != getattr(hull, item.name):
                    below.add((block.kind, item.name))
    return below


def elastic_fields(space: SearchSpace) -> set[tuple[str, str]]:
    return {
        (blocks[0].kind, item.name)
        for _, blocks in space.variants()
        for item in fields(blocks[0])
        if len({getattr(block, item.name) for block in blocks}) > 1
    }


def assert_extraction_is_bit_equal(space: SearchSpace, *, batch: int) -> None:
    supernet = trained(space, steps=6, batch=batch)
    rng = np.random.default_rng(2)
    architectures = [space.sample(rng) for _ in range(20)]
    assert sliced_fields(supernet, architectures) == elastic_fields(space)
    x = images(batch, space.image_size, seed=99)
    for architecture in architectures:
        statistics = fitted(supernet, architecture, x)
        model = supernet.extract(architecture, statistics)
        assert model.blocks_spec == space.blocks(architecture)
        with torch.no_grad():
            scores = supernet(x[:3], architecture, statistics)
            assert scores.isfinite().all() and scores.std() > 0
            assert torch.equal(scores, model(x[:3]))


def test_an_extracted_network_gives_the_supernets_scores_bit_for_bit(tiny):
    assert_extraction_is_bit_equal(tiny, batch=8)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "hybrid-64", "hybrid", "efficientvit", "efficientformer"])
def test_extraction_is_bit_equal_in_every_shipped_space(name):
    space = SearchSpace.load(name)
    stages = tuple(replace(stage, width=stage.width[:2]) for stage in space.stages)
    assert_extraction_is_bit_equal(
        space.replace(image_size=64, num_classes=5, stages=stages), batch=4
    )


def test_weights_in_channels_last_change_nothing_about_extraction(tiny):
    supernet = trained(tiny, steps=2, batch=8).to(memory_format=torch.channels_last)
    architecture = tiny.sample(np.random.default_rng(3))
    x = images(8, tiny.image_size)
    statistics = fitted(supernet, architecture, x)
    model = supernet.extract(architecture, statistics)
    with torch.no_grad():
        assert torch.equal(supernet(x, architecture, statistics), model(x))


def test_a_path_computes_what_a_plain_network_with_the_same_weights_does(tiny):
    supernet = SuperNet(tiny, seed=0)
    x = images(8, tiny.image_size)
    for architecture in (tiny.smallest(), tiny.largest()):
        model = supernet.extract(architecture, fitted(supernet, architecture, x))
        loss = model.train()(x).square().mean()
        loss.backward()
        supernet.zero_grad()
        own = supernet(x, architecture).square().mean()
        own.backward()
        torch.testing.assert_close(own, loss)
        stem = supernet.hulls["stem"].get_parameter("convs.0.conv.weight").grad
        plain = model.get_parameter("stem.convs.0.conv.weight").grad
        assert stem is not None and plain is not None
        torch.testing.assert_close(stem[: len(plain)], plain)
        assert not stem[len(plain) :].any()


def test_kinds_that_are_not_run_get_no_gradient(tiny):
    supernet = SuperNet(tiny, seed=0)
    architecture = tiny.largest()
    supernet(images(4, tiny.image_size), architecture).sum().backward()
    run = {slot.replace(".", "-") for slot, _ in supernet.walk(architecture)}
    for name, parameter in supernet.named_parameters():
        assert (parameter.grad is not None) == (name.split(".")[1] in run)


def test_the_supernet_holds_weights_and_nothing_else(tiny):
    supernet = SuperNet(tiny, seed=0)
    assert supernet.state_dict().keys() == dict(supernet.named_parameters()).keys()
    before = {name: value.clone() for name, value in supernet.state_dict().items()}
    fitted(supernet, tiny.largest(), images(4, tiny.image_size))
    supernet(images(4, tiny.image_size), tiny.largest())
    for name, value in supernet.state_dict().items():
        assert torch.equal(value, before[name])


def test_statistics_over_one_batch_are_those_of_the_batch(tiny):
    supernet = SuperNet(tiny, seed=0)
    architecture = tiny.smallest()
    x = images(16, tiny.image_size)
    statistics = fitted(supernet, architecture, x)
    stem = supernet.extract(architecture, statistics).stem
    with torch.no_grad():
        first = stem.get_submodule("convs.0.conv")(x)
    torch.testing.assert_close(statistics[0]["convs.0.bn.running_mean"], first.mean((0, 2, 3)))
    torch.testing.assert_close(statistics[0]["convs.0.bn.running_var"], first.var((0, 2, 3)))


def test_statistics_over_several_batches_are_their_mean(tiny):
    supernet = SuperNet(tiny, seed=0)
    architecture = tiny.largest()
    x = images(16, tiny.image_size)
    halves = (x[:8], x[8:])
    both = supernet.empty_statistics(architecture)
    with torch.no_grad():
        for half in halves:
            supernet(half, architecture, both, fit=True)
    each = [fitted(supernet, architecture, half) for half in halves]
    for block, first, second in zip(both, *each, strict=True):
        for name, value in block.items():
            if name.endswith("num_batches_tracked"):
                assert value == 2
            else:
                torch.testing.assert_close(value, (first[name] + second[name]) / 2)


def test_every_residual_branch_starts_at_the_same_scale(tiny):
    supernet = SuperNet(tiny, seed=0)
    scales = [part.residual_scale() for part in supernet.modules() if isinstance(part, Scaled)]
    assert len(scales) > 20
    assert all((scale == scales[0][0]).all() for scale in scales)


def test_weights_follow_from_the_seed_and_leave_the_callers_randomness_alone(tiny):
    torch.manual_seed(7)
    expected = torch.rand(3)
    torch.manual_seed(7)
    first, again, other = (SuperNet(tiny, seed=seed).state_dict() for seed in (0, 0, 1))
    assert torch.equal(torch.rand(3), expected)
    assert all(torch.equal(value, again[name]) for name, value in first.items())
    assert any(not torch.equal(value, other[name]) for name, value in first.items())


def test_weight_decay_spares_all_but_matrices_and_kernels(tiny):
    supernet = SuperNet(tiny, seed=0)
    names = {id(value): name for name, value in supernet.named_parameters()}
    decayed, spared = supernet.weight_groups(0.1)
    assert decayed["weight_decay"] == 0.1 and spared["weight_decay"] == 0
    of_decayed = {names[id(value)].rpartition(".")[2] for value in decayed["params"]}
    of_spared = {names[id(value)].rpartition(".")[2] for value in spared["params"]}
    assert of_decayed == {"weight"}
    assert of_spared == {"weight", "bias", "gamma", "table"}
    assert len(decayed["params"]) + len(spared["params"]) == len(names)


def test_templates_index_with_real_memory(tiny):
    blocks = [block for block in tiny.every_block() if block.kind in ("cga", "mb3d")]
    for block in blocks:
        module = template_of(block, torch.device("cpu")).module
        tables = [buffer for name, buffer in module.named_buffers() if name.endswith("index")]
        assert tables and not any(table.is_meta for table in tables)


def test_memory_that_was_in_use_does_not_leak_into_scores(tiny):
    """Uninitialised memory would show the poison; fresh memory is often zero."""
    supernet = SuperNet(tiny, seed=0)
    x = images(4, tiny.image_size)
    rng = np.random.default_rng(0)
    for architecture in [tiny.largest(), *(tiny.sample(rng) for _ in range(5))]:
        with torch.no_grad():
            clean = supernet(x, architecture, fitted(supernet, architecture, x))
            poison = [torch.full((size,), torch.nan) for size in range(1, 5000, 7)]
            del poison
            again = supernet(x, architecture, fitted(supernet, architecture, x))
        assert torch.equal(clean, again)


def test_two_threads_give_what_one_does(tiny):
    supernet = SuperNet(tiny, seed=0)
    x = images(8, tiny.image_size)
    rng = np.random.default_rng(5)
    architectures = [tiny.sample(rng) for _ in range(24)]

    def scores(architecture: Architecture) -> Tensor:
        with torch.no_grad():
            result: Tensor = supernet(x, architecture, fitted(supernet, architecture, x))
            return result

    alone = [scores(architecture) for architecture in architectures]
    with ThreadPoolExecutor(2) as threads:
        together = list(threads.map(scores, architectures))
    assert all(torch.equal(a, b) for a, b in zip(alone, together, strict=True))


def test_an_extracted_network_is_a_timm_model_that_knows_its_blocks(tiny):
    supernet = SuperNet(tiny, seed=0)
    architecture = tiny.smallest()
    model = supernet.extract(architecture, fitted(supernet, architecture, images(4, 16)))
    assert isinstance(model, network.NasHybrid) and not model.training
    assert model.num_classes == 4
    before = [value.clone() for value in supernet.parameters()]
    with torch.no_grad():
        for value in model.parameters():
            value.fill_(3.0)
    pairs = zip(supernet.parameters(), before, strict=True)
    assert all(torch.equal(value, old) for value, old in pairs)

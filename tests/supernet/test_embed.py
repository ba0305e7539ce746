"""A network put into a supernet: its path computes the same, and nothing else has moved."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from torch import Tensor

from nas.errors import ConfigError
from nas.network import NasHybrid, build, stock
from nas.network.timm_models import save
from nas.space import Architecture, SearchSpace
from nas.supernet import Statistics, SuperNet, TrainConfig, embed, train

FORMER: dict[str, Any] = {
    "depths": (2, 1, 1, 3),
    "embed_dims": (8, 12, 16, 24),
    "num_vit": 1,
    "num_classes": 7,
}


@pytest.fixture(scope="module")
def former() -> SearchSpace:
    """A space of EfficientFormer's blocks with room for FORMER, hardly above it."""
    widths = ([8], [8, 12], [16, 24], [16, 24])
    stages: list[dict[str, Any]] = [
        {"width": width, "depth": [1, 2, 3], "kinds": ["mb4d", "mbconv"]} for width in widths
    ]
    stages[3]["tail"] = [0, 1, 2]
    plain = {
        "schema": 1,
        "name": "former",
        "image_size": 224,
        "num_classes": 7,
        "act": "gelu",
        "blocks": {
            "mb4d": {"expand": [2, 4]},
            "mb3d": {"expand": [2, 4, 5], "heads": [8], "key": [32, 40], "value": [128]},
            "mbconv": {"expand": [2]},
        },
        "stages": stages,
    }
    return SearchSpace.from_plain(plain)


def drawn(model: Any, *, seed: int = 0) -> Any:  # Any: timm's modules
    """Return the model with all that starts at a constant moved from it, in evaluation."""
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for value in model.state_dict().values():
            if value.is_floating_point() and (value.ndim == 1 or not value.any()):
                value += 0.3 * torch.rand(value.shape, generator=generator)
    return model.train().eval()  # timm's attention biases are cached


def images(space: SearchSpace, count: int = 2) -> Tensor:
    shape = (count, space.in_chans, space.image_size, space.image_size)
    return torch.randn(shape, generator=torch.Generator().manual_seed(0))


def statistics_of(model: NasHybrid) -> Statistics:
    """Return a network's own BatchNorm statistics as `supernet(...)` takes them."""
    parameters = dict(model.named_parameters())
    state = {name: value for name, value in model.state_dict().items() if name not in parameters}
    return tuple(
        {name.removeprefix(p): value for name, value in state.items() if name.startswith(p)}
        for p in model.block_prefixes
    )


def close(given: Tensor, expected: Tensor) -> bool:
    return bool((given - expected).abs().max() <= 1e-5 * expected.abs().max())


def test_a_published_network_in_a_timm_folder_is_a_path_with_its_scores(
    tmp_path: Path, former: SearchSpace
) -> None:
    theirs = drawn(timm.create_model("efficientformer_l1", **FORMER))
    folder = save(theirs, tmp_path / "published")
    supernet = SuperNet(former)
    model = stock.pretrained(str(folder), image_size=224, in_chans=3)
    architecture = embed(supernet, model)
    assert [len(stage.blocks) for stage in architecture.stages] == [2, 1, 1, 3]
    assert former.contains(architecture)
    x = images(former)
    with torch.no_grad():
        scores = supernet(x, architecture, statistics_of(model))
        expected = theirs(x)  # the mean of its two classifiers; the space has one
    assert expected.std() > 1e-3
    assert close(scores, expected)
    assert stock.pretrained(f"local-dir:{folder}", image_size=224, in_chans=1).in_chans == 1


@pytest.mark.slow
def test_the_hybrid_space_takes_efficientformer_l1(tmp_path: Path) -> None:
    theirs = drawn(timm.create_model("efficientformer_l1"))
    folder = save(theirs, tmp_path / "l1")
    space = SearchSpace.load("hybrid")
    supernet = SuperNet(space)
    model = stock.pretrained(str(folder), image_size=space.image_size, in_chans=space.in_chans)
    architecture = embed(supernet, model)
    assert space.contains(architecture)
    x = images(space, count=1)
    with torch.no_grad():
        assert close(supernet(x, architecture, statistics_of(model)), theirs(x))


@pytest.mark.slow
def test_what_was_extracted_goes_back_bit_for_bit_into_every_kind_of_slice(
    tiny: SearchSpace,
) -> None:
    source = SuperNet(tiny, seed=1)
    rng = np.random.default_rng(0)
    kinds = set()
    for _ in range(12):
        architecture = tiny.sample(rng)
        model = source.extract(architecture, source.empty_statistics(architecture))
        supernet = SuperNet(tiny, seed=2)
        assert embed(supernet, model) == architecture
        back = supernet.extract(architecture, supernet.empty_statistics(architecture))
        for name, value in back.state_dict().items():
            assert torch.equal(value, model.state_dict()[name]), name
        kinds |= {block.kind for block in model.blocks_spec}
    assert {"mb4d", "mb3d", "cga", "mbconv", "patch_merge", "downsample"} <= kinds


def test_what_lies_outside_the_path_stays_as_it_was(tiny: SearchSpace) -> None:
    architecture = tiny.smallest()
    source, supernet, before = (SuperNet(tiny, seed=seed) for seed in (1, 2, 2))
    model = source.extract(architecture, source.empty_statistics(architecture))
    embed(supernet, model)
    slots = {slot.replace(".", "-") for slot, _ in supernet.walk(architecture)}
    num_changed = 0
    old = before.state_dict()
    for name, value in supernet.state_dict().items():
        changed = value != old[name]
        assert name.split(".")[1] in slots or not changed.any(), name
        num_changed += int(changed.sum())
    parameters = sum(value.numel() for value in model.parameters())
    assert 0.5 * parameters < num_changed <= parameters  # some start at the same 0 or 1


def test_weights_in_channels_last_take_an_embedding_too(tiny: SearchSpace) -> None:
    architecture = tiny.largest()
    source = SuperNet(tiny, seed=1)
    model = source.extract(architecture, source.empty_statistics(architecture))
    supernet = SuperNet(tiny, seed=2).to(memory_format=torch.channels_last)
    embed(supernet, model)
    back = supernet.extract(architecture, supernet.empty_statistics(architecture))
    assert all(torch.equal(v, model.state_dict()[n]) for n, v in back.state_dict().items())


@pytest.mark.parametrize(("distilled", "of_space"), [(0, True), (1, True), (1, False), (0, False)])
def test_one_classifier_and_two_give_the_same_scores(
    distilled: int, of_space: bool, tiny: SearchSpace
) -> None:
    space = tiny.replace(head=replace(tiny.head, distilled=of_space))
    *texts, head = (str(block) for block in space.blocks(space.smallest()))
    model: Any = drawn(build([*texts, f"{head[:-1]}{distilled}"]))
    supernet = SuperNet(space)
    architecture = embed(supernet, model)
    x = images(space)
    with torch.no_grad():
        assert close(supernet(x, architecture, statistics_of(model)), model(x))


def test_other_classes_leave_the_classifier_as_it_was_drawn(tiny: SearchSpace) -> None:
    blocks = tiny.blocks(tiny.smallest())
    for classes in (0, 9):
        model: Any = drawn(build(blocks, num_classes=classes))
        supernet, before = SuperNet(tiny), SuperNet(tiny)
        architecture = embed(supernet, model)
        hulls = (supernet.hulls["head"], before.hulls["head"])
        after, drawn_first = (hull.get_parameter("fc.weight") for hull in hulls)
        assert torch.equal(after, drawn_first)
        own = supernet.extract(architecture, statistics_of(model))
        x = images(tiny)
        with torch.no_grad():
            assert torch.equal(own.forward_features(x), model.forward_features(x))
            assert torch.equal(
                own.head.pool(own.forward_features(x)), model.head.pool(own.forward_features(x))
            )


def changed(space: SearchSpace, change: Callable[[list[str]], list[str]]) -> NasHybrid:
    texts = [str(block) for block in space.blocks(space.smallest())]
    return build(change(texts))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda t: [*t[:1], t[1].replace("h32", "h200"), *t[2:]],
            r"mb4d_r4_c16_h200_p3_relu at s1\.b0\.mb4d: the largest there is mb4d_r4_c32_h128",
        ),
        (
            lambda t: [*t[:1], t[1].replace("_relu", ""), *t[2:]],
            r"mb4d_r4_c16_h32_p3 at s1\.b0\.mb4d: it has mb4d_r4_c16_h32_p3_relu there",
        ),
        (
            lambda t: [*t[:1], *t[1:2] * 4, *t[2:]],
            r"at s1\.b3\.mb4d: it has no such place",
        ),
        (
            lambda t: [*t[:1], "mbconv_r4_c16_h32_k3_s0_a0_relu", *t[2:]],
            r"mbconv_r4_c16_h32_k3_s0_a0_relu at s1\.b0\.mbconv: it has no such place",
        ),
        (
            lambda t: [*t[:3], "cga_r2_c32_n1_k8_q5_w7_h32-32", t[-1]],
            r"w7_h32-32 at s2\.b0\.cga: group_attn_.* has chunks of 32 channels, but",
        ),
        (
            lambda t: [t[0].replace("a1", "a0"), *t[1:]],
            r"stem_r16_i3_c8-16_b1_a0 at stem: it has stem_r16_i3_c8-16_b1_a1 there",
        ),
        (
            lambda t: [*t[:-1], t[-1].replace("_bn_", "_ln_")],
            r"at head: it has head_r2_i32_o4_bn_d0 there",
        ),
        (
            lambda t: [*t[:-1], "downsample_r2_i32_o32", "head_r1_i32_o4_bn_d0"],
            "must have its 2 stages, but this one has 3",
        ),
    ],
    ids=["hidden", "act", "depth", "kind", "head dim", "stem", "norm", "stages"],
)
def test_a_network_there_is_no_room_for_is_refused_by_its_first_difference(
    tiny: SearchSpace, change: Callable[[list[str]], list[str]], message: str
) -> None:
    supernet, before = SuperNet(tiny), SuperNet(tiny)
    with pytest.raises(ConfigError, match=message):
        embed(supernet, changed(tiny, change))
    assert all(torch.equal(v, before.state_dict()[n]) for n, v in supernet.state_dict().items())
    assert supernet.start is None


def test_images_of_another_size_are_refused_with_the_way_out(tiny: SearchSpace) -> None:
    model = build(tiny.blocks(tiny.smallest()), img_size=32)
    with pytest.raises(ConfigError, match=r"size, 16, but takes 32.*set_input_size\(16\)"):
        embed(SuperNet(tiny), model)
    model.set_input_size(16)
    embed(SuperNet(tiny), model)


def test_a_source_that_is_none_is_refused(tmp_path: Path) -> None:
    def load(source: str) -> NasHybrid:
        return stock.pretrained(source, image_size=16, in_chans=3)

    with pytest.raises(ConfigError, match="did you mean efficientformer_l1"):
        load("eficientformer_l1")
    with pytest.raises(ConfigError, match="cannot be made.*local-dir:DIR"):
        load(str(tmp_path))  # an empty folder
    folder = save(timm.create_model("resnet10t", num_classes=2), tmp_path / "resnet")
    with pytest.raises(ConfigError, match="this is a ResNet"):
        load(str(folder))


class Stopped(Exception):
    pass


def test_a_training_goes_on_from_the_same_network_only(
    tmp_path: Path, small: SearchSpace, quarters: Any
) -> None:
    def stop(done: int, *_: Any) -> None:
        if done == 4:
            raise Stopped

    def started(seed: int) -> SuperNet:
        source, supernet = SuperNet(small, seed=seed), SuperNet(small)
        largest: Architecture = small.largest()
        embed(supernet, source.extract(largest, source.empty_statistics(largest)))
        return supernet

    config = TrainConfig(steps=6, batch_size=16, checkpoint_steps=2)
    whole = train(started(1), quarters, config, tmp_path / "whole").supernet
    with pytest.raises(Stopped):
        train(started(1), quarters, config, tmp_path / "cut", progress=stop)
    for other in (SuperNet(small), started(3)):
        with pytest.raises(ConfigError, match="differs in start"):
            train(other, quarters, config, tmp_path / "cut")
    again = train(started(1), quarters, config, tmp_path / "cut").supernet
    for name, value in again.state_dict().items():
        assert torch.equal(value, whole.state_dict()[name])

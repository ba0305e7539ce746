"""A network as a citizen of timm: its arguments, its configuration, and what it refuses."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from timm.data.config import resolve_data_config
from timm.models import group_parameters
from timm.models._manipulate import reinit_non_persistent_buffers
from torch import nn

from nas.block import BLOCKS
from nas.errors import ConfigError
from nas.network import build
from nas.network.chain import drop_path_rates
from nas.network.model import DEFAULT_BLOCKS
from nas.network.stock import blocks_of

Texts = Callable[[str], list[str]]
Make = Callable[..., Any]  # Any: a NasHybrid, whose timm attributes have no types


def same_weights(into: Any, source: nn.Module) -> Any:
    into.load_state_dict(source.state_dict())
    return into


def test_another_size_moves_blocks_and_attention_biases(
    name: str, make: Make, texts: Texts
) -> None:
    images = torch.randn(1, 3, 48, 48)
    moved, built = make(name), build(texts(name), img_size=48).eval()
    moved.set_input_size((48, 48))
    assert moved.blocks_spec == built.blocks_spec
    assert [block.resolution for block in built.blocks_spec[:2]] == [48, 12]
    same_weights(built, moved)
    assert torch.equal(moved(images), built(images))
    moved.set_input_size(32)
    assert [str(block) for block in moved.blocks_spec] == texts(name)
    assert moved(images[:, :, :32, :32]).shape == (1, 10)


def test_channels_classes_and_pooling_are_what_is_asked(
    name: str, make: Make, texts: Texts, images: torch.Tensor
) -> None:
    assert make(name, in_chans=1)(images[:, :1]).shape == (2, 10)
    model = make(name, num_classes=7)
    assert model(images).shape == (2, 7) and model.num_classes == 7
    assert model.forward_head(model.forward_features(images), pre_logits=True).shape == (2, 32)
    model.reset_classifier(0)
    assert model(images).shape == (2, 32)
    without = make(name, num_classes=0)
    assert torch.equal(same_weights(without, model)(images), model(images))
    model.reset_classifier(0, "")
    unpooled = same_weights(make(name, num_classes=0, global_pool=""), model)
    assert torch.equal(unpooled(images), model(images))
    assert model(images).shape == (2, 32, 2, 2)
    model.reset_classifier(5)  # as timm: the pooling stays what it was; every place is scored
    assert model(images).shape == (2, 5, 2, 2)
    model.reset_classifier(5, "avg")
    assert model(images).shape == (2, 5)
    assert str(model.blocks_spec[-1]) == texts(name)[-1].replace("o10", "o5")


def test_precision_and_device_of_the_whole_network_follow_the_arguments(
    name: str, texts: Texts
) -> None:
    on_meta = build(texts(name), device="meta", dtype=torch.float64)
    on_meta.reset_classifier(3)
    tensors = [*on_meta.named_parameters(), *on_meta.named_buffers()]
    assert all(tensor.is_meta for _, tensor in tensors)
    assert {t.dtype for _, t in tensors} <= {torch.float64, torch.int64}
    half = build(texts(name), dtype=torch.bfloat16).eval()
    assert half(torch.randn(1, 3, 32, 32, dtype=torch.bfloat16)).dtype == torch.bfloat16


def test_each_block_is_found_by_its_prefix(name: str, make: Make) -> None:
    model = make(name)
    state = model.state_dict()
    counts = [
        sum(model.get_parameter(k).numel() for k in state if k.startswith(p) and is_parameter(k))
        for p in model.block_prefixes
    ]
    assert counts == [block.params for block in model.blocks_spec]
    assert sum(counts) == sum(p.numel() for p in model.parameters())


def is_parameter(name: str) -> bool:
    return not name.endswith(("running_mean", "running_var", "num_batches_tracked"))


def test_optimizer_groups_follow_depth_and_spare_the_biases(name: str, make: Make) -> None:
    model = make(name)
    groups = group_parameters(model, model.group_matcher(coarse=False), reverse=True)
    depths = [
        {group for key, group in groups.items() if key.startswith(prefix)}
        for prefix in model.block_prefixes
    ]
    assert depths == [{place} for place in range(len(model.blocks_spec))]
    tables = {key for key, _ in model.named_parameters() if "bias.table" in key}
    assert model.no_weight_decay() == tables
    has_attention = any(block.kind in ("mb3d", "cga") for block in model.blocks_spec)
    assert bool(tables) == has_attention


def test_images_of_another_size_are_refused_with_the_way_out(make: Make) -> None:
    model = make("all")
    for shape in ((1, 3, 48, 48), (1, 3, 32, 48), (1, 3, 48, 32)):
        with pytest.raises(AssertionError, match="takes images of 32x32; resize them, or the"):
            model(torch.zeros(shape))


def test_weights_loaded_without_building_memory_first_compute_the_same(
    make: Make, texts: Texts, images: torch.Tensor
) -> None:
    source = make("all")
    empty = build(texts("all"), device="meta").to_empty(device="cpu").eval()
    reinit_non_persistent_buffers(empty)
    assert torch.equal(same_weights(empty, source)(images), source(images))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"img_size": (32, 48)}, r"must be square, but is \(32, 48\)"),
        ({"img_size": 0}, "stem.resolution"),
        ({"in_chans": -1}, "stem.channels"),
        ({"num_classes": -1}, "head.classes"),
        ({"global_pool": "max"}, "global_pool must be 'avg' or '', but is 'max'"),
    ],
)
def test_bad_arguments_are_refused_by_name(
    options: dict[str, Any], message: str, texts: Texts
) -> None:
    with pytest.raises(ConfigError, match=message):
        build(texts("mb4d"), **options)


@pytest.mark.parametrize("blocks", ["mb4d_r8_c16_h32_p3", [], None, 3, ["mb4d"]])
def test_something_else_than_a_list_of_blocks_is_refused(blocks: Any) -> None:
    with pytest.raises(ConfigError):
        build(blocks)


def test_arguments_that_do_not_exist_are_no_silent_noise(texts: Texts) -> None:
    with pytest.raises(TypeError, match="not_an_argument"):
        build(texts("all"), not_an_argument=1)


def test_set_input_size_refuses_what_is_not_square(make: Make) -> None:
    with pytest.raises(ConfigError, match="must be square"):
        make("all").set_input_size((32, 64))


def test_two_classifiers_give_their_mean_unless_told_to_train_apart(
    make: Make, images: torch.Tensor
) -> None:
    model = make("mb3d").train()
    assert model(images).shape == (2, 10)
    first, second = model.get_classifier()
    model.eval()
    seen = model.forward_head(model.forward_features(images), pre_logits=True)
    torch.testing.assert_close(model(images), (first(seen) + second(seen)) / 2)
    model.set_distilled_training()
    assert isinstance(model(images), torch.Tensor)
    scores, distilled = model.train()(images)
    assert scores.shape == distilled.shape == (2, 10)
    model.set_distilled_training(False)
    assert isinstance(model(images), torch.Tensor)
    with pytest.raises(ConfigError, match="two classifiers"):
        make("cga").set_distilled_training()
    model.set_distilled_training()
    model.reset_classifier(10, "")  # every place scored: a map, not a pair
    assert model(images).shape == (2, 10, 2, 2)
    assert isinstance(make("cga").get_classifier(), nn.Linear)


def test_frozen_networks_stay_frozen_when_they_are_resized(make: Make) -> None:
    for name in ("mb3d", "cga", "all"):
        model = make(name).requires_grad_(False)
        model.set_input_size(64)
        model.reset_classifier(0, "")
        assert not [n for n, p in model.named_parameters() if p.requires_grad]


def test_stochastic_depth_grows_as_in_timms_efficientformer() -> None:
    ours = build(blocks_of("efficientformer_l1"), device="meta", drop_path_rate=0.3)
    theirs = timm.create_model("efficientformer_l1", device="meta", drop_path_rate=0.3)

    def rates(model: Any) -> list[float]:
        return [m.drop_prob for m in model.modules() if type(m).__name__ == "DropPath"]

    assert rates(ours) == pytest.approx(rates(theirs))
    mixed = drop_path_rates(build(DEFAULT_BLOCKS, device="meta").blocks_spec, 0.7)
    assert mixed == pytest.approx([0, 0, 0.1, 0.2, 0.3, 0.4, 0.5, 0, 0.6, 0.7])


def test_training_with_every_dropout_runs_and_evaluation_is_certain(
    make: Make, images: torch.Tensor
) -> None:
    torch.manual_seed(0)
    model = make("all", drop_rate=0.5, drop_path_rate=0.5)
    assert torch.equal(model(images), model(images))
    model.train()
    assert not torch.equal(model(images), model(images))


def test_the_entrypoint_alone_gives_a_network_of_every_kind() -> None:
    model: Any = timm.create_model("nas_hybrid", device="meta")
    assert [str(block) for block in model.blocks_spec] == list(DEFAULT_BLOCKS)
    kinds = {block.kind for block in model.blocks_spec}
    assert kinds == set(BLOCKS)
    config = model.pretrained_cfg
    assert (config["tag"], config["license"]) == ("nas", "apache-2.0")
    assert "nas_hybrid" in timm.list_models("nas_*")


def test_the_configuration_says_what_the_blocks_say(name: str, texts: Texts) -> None:
    model: Any = build(texts(name), device="meta")
    config = model.pretrained_cfg
    assert config["input_size"] == (3, 32, 32) and config["pool_size"] == (2, 2)
    assert (config["num_classes"], model.num_classes, model.in_chans) == (10, 10, 3)
    for key in (config["first_conv"], *([config["classifier"]] if name in ("mb4d", "cga") else [])):
        assert f"{key}.weight" in model.state_dict()
    if name in ("mb3d", "all"):
        assert config["classifier"] == ("head.fc", "head.fc_dist")
    data = resolve_data_config(model=model)  # type: ignore[no-untyped-call]
    assert data["input_size"] == (3, 32, 32)

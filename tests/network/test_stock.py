"""timm's EfficientFormer and EfficientViT as our blocks: the same function, tensor for tensor."""

from collections.abc import Callable
from typing import Any

import pytest
import timm
import torch
from torch import nn

from nas.block import parse_network
from nas.errors import ConfigError
from nas.network import build
from nas.network.stock import PUBLISHED, blocks_of, from_timm, stock_args, to_timm

Randomize = Callable[..., nn.Module]

# The two classes with every structural case, small: a block of either kind before and after the
# switch to tokens, a stage of tokens only, windows that need padding, odd sides, other widths.
SMALL: dict[str, tuple[str, dict[str, Any]]] = {
    "former": (
        "efficientformer_l1",
        {"depths": (1, 1, 0, 2), "embed_dims": (8, 12, 16, 20), "num_vit": 1, "num_classes": 7},
    ),
    "former of tokens": (
        "efficientformer_l1",
        {
            "depths": (1, 0, 1, 1),
            "embed_dims": (8, 8, 12, 16),
            "num_vit": 1,
            "mlp_ratios": 1.3,
            "pool_size": 5,
            "img_size": 200,
            "num_classes": 7,
            "in_chans": 1,
        },
    ),
    "vit": (
        "efficientvit_m0",
        {
            "embed_dim": (16, 24),
            "depth": (1, 1),
            "num_heads": (2, 3),
            "key_dim": (4, 5),
            "window_size": (3, 7),
            "kernels": (5, 3, 1),
            "down_ops": (("", 1), ("subsample", 2)),
            "img_size": 80,
            "num_classes": 7,
        },
    ),
    "vit at an odd size": (
        "efficientvit_m0",
        {
            "embed_dim": (8, 16),
            "depth": (1, 2),
            "num_heads": (1, 2),
            "key_dim": (4, 4),
            "window_size": (7, 7),
            "kernels": (3, 5),
            "down_ops": (("", 1), ("subsample", 2)),
            "img_size": 72,  # 72 // 16 = 4, but four convolutions make 5
            "num_classes": 7,
        },
    ),
}
every_small = pytest.mark.parametrize("name", SMALL)


def stock(name: str, **options: Any) -> Any:  # Any: the two timm classes
    entrypoint, args = SMALL[name]
    return timm.create_model(entrypoint, **{**args, **options}).eval()


def images_for(model: Any, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    side = model.pretrained_cfg["input_size"][1]
    side = model._traits["img_size"][0] if model._traits.get("img_size") else side
    generator = torch.Generator().manual_seed(0)
    return torch.randn(2, model.in_chans, side, side, generator=generator, dtype=dtype)


def refresh(model: Any) -> Any:
    """Make timm's attention biases read the tables again (they are cached in evaluation)."""
    model.train()
    return model.eval()


@every_small
def test_with_every_tensor_drawn_both_compute_the_same(name: str, randomize: Randomize) -> None:
    bounds = {torch.float64: 1e-10}  # which says more, and one of each family in what people use
    if name in ("efficientvit_m0", "efficientformer_l1"):
        bounds[torch.float32] = 1e-5
    for dtype, bound in bounds.items():
        theirs = refresh(randomize(stock(name, dtype=dtype)))
        ours = from_timm(theirs)
        x = images_for(theirs, dtype)
        with torch.no_grad():
            a, b = theirs(x), ours(x)
        assert a.dtype == b.dtype == dtype
        assert a.std() > 1e-3
        assert (a - b).abs().max() <= bound * max(1.0, float(a.abs().max()))


@every_small
def test_both_train_alike(name: str, randomize: Randomize) -> None:
    theirs = randomize(stock(name, dtype=torch.float64)).train()
    ours = from_timm(theirs)
    x = images_for(theirs, torch.float64)
    for model in (theirs, ours):
        optimizer = torch.optim.SGD(model.parameters(), lr=0.01)
        for _ in range(2):
            optimizer.zero_grad()
            model(x).square().mean().backward()
            optimizer.step()
    after = from_timm(theirs).state_dict()  # running statistics too
    for key, tensor in ours.state_dict().items():
        torch.testing.assert_close(tensor, after[key], rtol=1e-6, atol=1e-9)


@every_small
def test_there_and_back_is_bit_equal(name: str, randomize: Randomize) -> None:
    theirs = refresh(randomize(stock(name)))
    ours = from_timm(theirs)
    back = to_timm(ours)
    assert type(back) is type(theirs)
    x = images_for(theirs)
    with torch.no_grad():
        torch.testing.assert_close(back(x), theirs(x), rtol=1e-6, atol=1e-6)
    again = from_timm(back)
    assert again.blocks_spec == ours.blocks_spec
    state = again.state_dict()
    assert state.keys() == ours.state_dict().keys()
    assert all(torch.equal(value, state[key]) for key, value in ours.state_dict().items())


@pytest.mark.parametrize(
    "name", ["former", "vit", pytest.param("former of tokens", marks=pytest.mark.slow)]
)
def test_every_single_tensor_of_the_source_has_its_place(name: str, randomize: Randomize) -> None:
    theirs = refresh(randomize(stock(name, dtype=torch.float64)))
    ours = from_timm(theirs)
    x = images_for(theirs, torch.float64)[:1]
    by_content = {content(tensor): tensor for tensor in ours.state_dict().values()}
    with torch.no_grad():
        before = ours(x)
        for key, tensor in theirs.state_dict().items():
            if not tensor.is_floating_point():
                continue
            mine = by_content.pop(content(tensor))  # drawn at random: no two are alike
            kept = tensor.clone()
            noise = 0.1 + 0.1 * torch.rand(tensor.shape, dtype=tensor.dtype)
            for side in (tensor, mine):
                side += noise
            expected, given = refresh(theirs)(x), ours(x)
            assert not torch.equal(given, before), f"{key} does nothing"
            assert (given - expected).abs().max() <= 1e-9 * max(1, expected.abs().max()), key
            for side in (tensor, mine):
                side.copy_(kept)
    assert all(tensor.dtype == torch.int64 for tensor in by_content.values())


def content(tensor: torch.Tensor) -> bytes:
    return tensor.detach().contiguous().numpy().tobytes()


@every_small
def test_stock_arguments_give_the_blocks_and_their_strings_suffice(name: str) -> None:
    blocks = blocks_of(stock(name, device="meta"))
    assert parse_network([str(block) for block in blocks]) == blocks
    expressed = stock_args([str(block) for block in blocks])
    assert expressed is not None
    entrypoint, args = expressed
    assert entrypoint == SMALL[name][0]
    assert blocks_of(timm.create_model(entrypoint, device="meta", **args)) == blocks


@pytest.mark.parametrize("name", PUBLISHED)
def test_a_published_network_is_its_own_entrypoint(name: str) -> None:
    blocks = blocks_of(name)
    assert stock_args(blocks) == (name, {})
    ten = build(blocks, device="meta", num_classes=10, in_chans=1).blocks_spec
    assert stock_args(ten) == (name, {"num_classes": 10, "in_chans": 1})


@pytest.mark.parametrize(
    "name",
    [
        name if name == "efficientvit_m0" else pytest.param(name, marks=pytest.mark.slow)
        for name in PUBLISHED
    ],
)
def test_published_networks_with_every_tensor_drawn(name: str, randomize: Randomize) -> None:
    bounds = {torch.float64: 1e-10}  # which says more, and one of each family in what people use
    if name in ("efficientvit_m0", "efficientformer_l1"):
        bounds[torch.float32] = 1e-5
    for dtype, bound in bounds.items():
        theirs: Any = refresh(randomize(timm.create_model(name, dtype=dtype)))
        ours = from_timm(theirs)
        x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0), dtype=dtype)
        with torch.no_grad():
            expected, given = theirs(x), ours(x)
        scale = float(expected.abs().max())
        assert (given - expected).abs().max() <= bound * scale
        back = to_timm(ours).state_dict()
        state = theirs.state_dict()
        assert back.keys() == state.keys()
        assert all(torch.equal(value, back[key]) for key, value in state.items())
        del theirs, ours, back, state


@pytest.mark.parametrize(
    "texts",
    [
        # kinds of two families
        [
            "stem_r224_i3_c8-16_b1_a1",
            "mb4d_r56_c16_h64_p3",
            "downsample_r56_i16_o32",
            "cga_r28_c32_n2_k16_q5-5_w7_h64-64",
            "head_r28_i32_o10_ln_d1",
        ],
        # two different ratios
        [
            "stem_r28_i3_c8-16_b1_a1",
            "mb4d_r7_c16_h64_p3",
            "mb3d_r7_c16_n8_k32_v128_h32",
            "head_r7_i16_o10_ln_d1",
        ],
        # no token block: timm's class builds it and cannot run it
        ["stem_r28_i3_c8-16_b1_a1", "mb4d_r7_c16_h64_p3", "head_r7_i16_o10_ln_d1"],
        # other attention dims, other head, other stem, one hidden width of two
        ["stem_r28_i3_c8-16_b1_a1", "mb3d_r7_c16_n4_k32_v128_h64", "head_r7_i16_o10_ln_d1"],
        ["stem_r28_i3_c8-16_b1_a1", "mb3d_r7_c16_n8_k32_v128_h64", "head_r7_i16_o10_ln_d0"],
        ["stem_r28_i3_c4-16_b1_a1", "mb3d_r7_c16_n8_k32_v128_h64", "head_r7_i16_o10_ln_d1"],
        [
            "stem_r64_i3_c2-4-8-16_b0_a0",
            "cga_r4_c16_n1_k4_q5_w7_h32-16",
            "head_r4_i16_o10_bn_d0",
        ],
    ],
)
def test_what_timm_cannot_express_is_none_and_says_so(texts: list[str]) -> None:
    assert stock_args(texts) is None
    with pytest.raises(ConfigError, match="no stock timm class"):
        to_timm(build(texts))


@pytest.mark.parametrize("hidden", [61, 115, 122])
def test_the_hidden_width_survives_timms_rounding(hidden: int) -> None:
    assert int(28 * (hidden / 28)) == hidden - 1
    expressed = stock_args(
        [
            "stem_r28_i3_c14-28_b1_a1",
            f"mb3d_r7_c28_n8_k32_v128_h{hidden}",
            "head_r7_i28_o10_ln_d1",
        ]
    )
    assert expressed is not None


def test_preprocessing_licence_dropout_and_mode_are_kept() -> None:
    theirs = stock("vit", drop_rate=0.3).train()
    ours: Any = from_timm(theirs)
    assert ours.training and ours.head.drop.p == 0.3
    assert ours.pretrained_cfg["license"] == "mit"  # EfficientViT's weights stay their authors'
    assert ours.pretrained_cfg["tag"] == "r224_in1k"
    assert ours.pretrained_cfg["input_size"] == (3, 80, 80)
    back: Any = to_timm(ours)
    assert back.training and back.head.drop.p == 0.3
    former: Any = from_timm(stock("former"), drop_path_rate=0.1)
    assert former.pretrained_cfg["crop_pct"] == 0.95


def test_sources_that_are_no_list_of_blocks_are_refused() -> None:
    with pytest.raises(ConfigError, match="this is a ResNet"):
        from_timm(timm.create_model("resnet10t"))
    with pytest.raises(ConfigError, match="'resnet18' is not one of efficientformer_l1"):
        blocks_of("resnet18")
    with pytest.raises(ConfigError, match="no classifier"):
        from_timm(stock("vit", num_classes=0))
    with pytest.raises(ConfigError, match="no stock timm class"):
        to_timm(build(blocks_of(stock("vit")), num_classes=0))
    with pytest.raises(ConfigError, match="activation must be one of"):
        from_timm(stock("former", act_layer=nn.Mish))
    with pytest.raises(ConfigError, match="eps 1e-5"):
        from_timm(stock("former", norm_layer_cl=lambda c, **dd: nn.LayerNorm(c, eps=1e-6, **dd)))
    shuffled = stock("former")
    shuffled.stages[3].blocks[2].token_mixer.attention_bias_idxs += 1
    with pytest.raises(ConfigError, match="not the order rows"):
        from_timm(shuffled)
    with pytest.raises(ConfigError, match="global_pool='max'"):
        from_timm(stock("vit", global_pool="max"))
    extended = stock("vit")
    extended.extra = nn.Linear(2, 2)
    with pytest.raises(ConfigError, match="no block has a place for extra.bias, extra.weight"):
        from_timm(extended)
    with pytest.raises(ConfigError, match="bias table for 49 distances"):
        blocks_of(stock("former", img_size=256))


def test_our_own_networks_tell_their_blocks() -> None:
    ours = build(blocks_of("efficientvit_m0"), device="meta")
    assert blocks_of(ours) == blocks_of("efficientvit_m0")

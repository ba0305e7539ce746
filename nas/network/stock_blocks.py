"""What timm's EfficientFormer and EfficientVitMsra are made of: our blocks, and their names.

Everything is read off the modules, so that any depth, width or window of the two classes will
do. What the blocks cannot say is an error, never left out.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn as nn
from timm.layers.squeeze_excite import SqueezeExcite
from timm.models._input import _get_global_pool, get_model_input_config
from timm.models.efficientformer import EfficientFormer, Flat, MetaBlock1d
from timm.models.efficientvit_msra import EfficientVitMsra

from nas.block import Block, Cga, Downsample, Head, Mb3d, Mb4d, PatchMerge, Stem, check_chain
from nas.errors import ConfigError
from nas.network.affine import ACTIVATION_MODULES
from nas.network.attention_bias import bias_index
from nas.network.chain import square_side

INDEX = "attention_bias_idxs"


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """One block of a timm model.

    `names` maps names inside our block to full names in the timm model; a name stands for
    everything below it: {"conv": "stages.1.downsample.conv"}.
    """

    block: Block
    names: dict[str, str]


def walk(model: nn.Module) -> list[Found]:
    """Return the blocks of a timm model in order, from stem to head.

    Raises:
        ConfigError: another class of model, or one with something that no block can say.
    """
    if isinstance(model, EfficientFormer):
        found = list(_efficientformer(model))
    elif isinstance(model, EfficientVitMsra):
        found = list(_efficientvit(model))
    else:
        raise ConfigError(
            f"only timm's EfficientFormer and EfficientVitMsra are lists of our blocks, "
            f"but this is a {type(model).__name__}."
        )
    if _get_global_pool(model) != "avg":
        raise ConfigError(
            f"only average pooling is a head of ours, but this {type(model).__name__} has "
            f"global_pool={_get_global_pool(model)!r}."
        )
    _check_norms(model)
    check_chain(tuple(item.block for item in found))
    return found


def _check_norms(model: nn.Module) -> None:
    for name, module in model.named_modules():
        is_norm = "norm" in type(module).__name__.lower() and hasattr(module, "eps")
        ours = isinstance(module, nn.BatchNorm2d | nn.BatchNorm1d | nn.LayerNorm)
        if is_norm and not (ours and module.eps == 1e-5):
            raise ConfigError(
                f"norms must be torch's BatchNorm or LayerNorm with eps 1e-5, "
                f"but {name} is {module}."
            )


def _act(module: nn.Module) -> str:
    for name, kind in ACTIVATION_MODULES.items():
        if type(module) is kind and getattr(module, "approximate", "none") == "none":
            return name
    known = ", ".join(ACTIVATION_MODULES)
    raise ConfigError(f"the activation must be one of {known}, but is {module}.")


def _classes(model: nn.Module) -> int:
    if not model.num_classes:
        raise ConfigError("the model has no classifier; create it with num_classes of 1 or more.")
    assert isinstance(model.num_classes, int)
    return model.num_classes


def _image_side(model: nn.Module) -> int:
    size: tuple[int, int, int] = get_model_input_config(model)["input_size"]
    return square_side(size[1:])


# ---------------------------------------------------------------- EfficientFormer
# `Any` below: timm's modules, whose attributes have no types.
def _efficientformer(model: Any) -> Iterator[Found]:
    stem = model.stem
    last: Block = Stem(
        resolution=_image_side(model),
        channels=stem.conv1.in_channels,
        widths=(stem.conv1.out_channels, stem.conv2.out_channels),
        act=_act(stem.act1),
    )
    names = {
        f"convs.{i}.{ours}": f"stem.{theirs}{i + 1}"
        for i in range(2)
        for ours, theirs in (("conv", "conv"), ("bn", "norm"))
    }
    yield Found(block=last, names=names)
    for index, stage in enumerate(model.stages):
        if not isinstance(stage.downsample, nn.Identity):
            last = Downsample(
                resolution=last.out_resolution,
                channels=last.out_channels,
                out=stage.downsample.conv.out_channels,
            )
            prefix = f"stages.{index}.downsample."
            yield Found(block=last, names={"conv": prefix + "conv", "bn": prefix + "norm"})
        for position, module in enumerate(stage.blocks):
            if isinstance(module, Flat):
                continue
            read = _mb3d if isinstance(module, MetaBlock1d) else _mb4d
            found = read(module, last, f"stages.{index}.blocks.{position}.")
            last = found.block
            yield found
    head = Head(
        resolution=last.out_resolution,
        channels=last.out_channels,
        classes=_classes(model),
        norm="ln",
        distilled=1,
    )
    yield Found(block=head, names={"norm": "norm", "fc": "head", "fc_dist": "head_dist"})


def _mb4d(module: Any, last: Block, prefix: str) -> Found:
    spec = Mb4d(
        resolution=last.out_resolution,
        channels=last.out_channels,
        hidden=module.mlp.fc1.out_channels,
        pool=module.token_mixer.pool.kernel_size,
        act=_act(module.mlp.act),
    )
    names = {
        "parts.0.scale": "ls1",
        "parts.1.expand.conv": "mlp.fc1",
        "parts.1.expand.bn": "mlp.norm1",
        "parts.1.project.conv": "mlp.fc2",
        "parts.1.project.bn": "mlp.norm2",
        "parts.1.scale": "ls2",
    }
    return Found(block=spec, names={ours: prefix + theirs for ours, theirs in names.items()})


def _mb3d(module: Any, last: Block, prefix: str) -> Found:
    mixer = module.token_mixer
    spec = Mb3d(
        resolution=last.out_resolution,
        channels=last.out_channels,
        heads=mixer.num_heads,
        key=mixer.key_dim,
        value=mixer.val_dim,
        hidden=module.mlp.fc1.out_features,
        act=_act(module.mlp.act),
    )
    _check_bias(mixer, spec.resolution, prefix)
    names = {
        "parts.0.norm": "norm1",
        "parts.0.qkv": "token_mixer.qkv",
        "parts.0.bias.table": "token_mixer.attention_biases",
        "parts.0.project": "token_mixer.proj",
        "parts.0.scale": "ls1",
        "parts.1.norm": "norm2",
        "parts.1.expand": "mlp.fc1",
        "parts.1.project": "mlp.fc2",
        "parts.1.scale": "ls2",
    }
    return Found(block=spec, names={ours: prefix + theirs for ours, theirs in names.items()})


def _check_bias(attention: Any, side: int, name: str) -> None:
    entries = attention.attention_biases.shape[1]
    if entries != side * side:
        raise ConfigError(
            f"{name} has a bias table for {entries} distances, but its feature map is "
            f"{side}x{side} at this image size."
        )
    index = attention.attention_bias_idxs
    if not index.is_meta and not torch.equal(index.cpu(), bias_index(side)):
        raise ConfigError(f"{name}{INDEX} is not the order rows * side + columns.")


# ---------------------------------------------------------------- EfficientViT
def _efficientvit(model: Any) -> Iterator[Found]:
    convs = [getattr(model.patch_embed, f"conv{i}").conv for i in range(1, 5)]
    last: Block = Stem(
        resolution=_image_side(model),
        channels=convs[0].in_channels,
        widths=tuple(conv.out_channels for conv in convs),
        bias=0,
        act_last=0,
    )
    yield Found(block=last, names={f"convs.{i}": f"patch_embed.conv{i + 1}" for i in range(4)})
    for index, stage in enumerate(model.stages):
        if not isinstance(stage.downsample, nn.Identity):
            found = _patch_merge(stage.downsample, last, f"stages.{index}.downsample.")
            last = found.block
            yield found
        for position, module in enumerate(stage.blocks):
            found = _cga(module, last, f"stages.{index}.blocks.{position}.")
            last = found.block
            yield found
    head = Head(
        resolution=last.out_resolution,
        channels=last.out_channels,
        classes=_classes(model),
        norm="bn",
    )
    yield Found(block=head, names={"norm": "head.bn", "fc": "head.linear"})


def _pair(first: int, dw: str, ffn: str) -> dict[str, str]:
    return {
        f"parts.{first}.conv": f"{dw}.m",
        f"parts.{first + 1}.expand": f"{ffn}.m.pw1",
        f"parts.{first + 1}.project": f"{ffn}.m.pw2",
    }


def _patch_merge(module: Any, last: Block, prefix: str) -> Found:
    merge = module.patchmerge
    assert isinstance(merge.se, SqueezeExcite)
    spec = PatchMerge(
        resolution=last.out_resolution,
        channels=last.out_channels,
        out=merge.conv3.conv.out_channels,
        hidden=merge.conv1.conv.out_channels,
        squeeze=merge.se.fc1.out_channels,
        ffn=tuple(pair[1].m.pw1.conv.out_channels for pair in (module.res1, module.res2)),
    )
    names = {
        **_pair(0, "res1.0", "res1.1"),
        "parts.2.expand": "patchmerge.conv1",
        "parts.2.depthwise": "patchmerge.conv2",
        "parts.2.se": "patchmerge.se",
        "parts.2.project": "patchmerge.conv3",
        **_pair(3, "res2.0", "res2.1"),
    }
    return Found(block=spec, names={ours: prefix + theirs for ours, theirs in names.items()})


def _cga(module: Any, last: Block, prefix: str) -> Found:
    windows = module.mixer.m
    attention = windows.attn
    side = last.out_resolution
    fits = min(windows.window_resolution, side) == attention.resolution
    spec = Cga(
        resolution=side,
        channels=last.out_channels,
        heads=attention.num_heads,
        key=attention.key_dim,
        kernels=tuple(dw.conv.kernel_size[0] for dw in attention.dws),
        # timm derives the windows from image side // 16, which odd sides do not have.
        window=windows.window_resolution if fits else attention.resolution,
        hidden=(module.ffn0.m.pw1.conv.out_channels, module.ffn1.m.pw1.conv.out_channels),
    )
    if attention.val_dim * attention.num_heads != last.out_channels:
        raise ConfigError(
            f"{prefix}mixer: {attention.num_heads} heads of {attention.val_dim} value channels "
            f"do not make {last.out_channels} channels."
        )
    _check_bias(attention, attention.resolution, f"{prefix}mixer.m.attn.")
    names = {
        **_pair(0, "dw0", "ffn0"),
        "parts.2.qkvs": "mixer.m.attn.qkvs",
        "parts.2.queries": "mixer.m.attn.dws",
        "parts.2.bias.table": "mixer.m.attn.attention_biases",
        "parts.2.project": "mixer.m.attn.proj.1",
        **_pair(3, "dw1", "ffn1"),
    }
    return Found(block=spec, names={ours: prefix + theirs for ours, theirs in names.items()})

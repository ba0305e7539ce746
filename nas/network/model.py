"""A list of blocks as a timm model, registered as `nas_hybrid`.

Submodules, and so state dict keys: `stem` is the first block, `stages.<stage>.<position>` the
ones between, `head` the last. A stage begins at every block that changes the side; the first
one, in front of which only the stem stands, is `stages.0` (empty if a network begins with a
transition). `model.blocks_spec` holds the blocks and `model.block_prefixes` the prefix of each.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
import torch.nn as nn
from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
from timm.layers.helpers import get_device_dtype
from timm.models._builder import build_model_with_cfg
from timm.models._features import feature_take_indices
from timm.models._input import update_model_args, update_model_input_size
from timm.models._manipulate import checkpoint_seq
from timm.models._registry import generate_default_cfgs, register_model
from torch import _assert

from nas import block
from nas.block import Block
from nas.errors import ConfigError, CorruptFile
from nas.network import chain
from nas.network.attention_bias import resize_bias_table
from nas.network.cga import GroupAttention
from nas.network.head import Head
from nas.network.kinds import build_block, part_prefixes
from nas.network.mb3d import Attention

__all__ = ["DEFAULT_BLOCKS", "NasHybrid", "build", "checkpoint_filter_fn", "load_folder"]

TABLE = "bias.table"
# What `timm.create_model("nas_hybrid")` gives: every kind, 2.6 M parameters.
DEFAULT_BLOCKS = (
    "stem_r224_i3_c16-32_b1_a1",
    "mb4d_r56_c32_h96_p3",
    "downsample_r56_i32_o64",
    "mbconv_r28_c64_h192_k3_s0_a0",
    "cga_r28_c64_n4_k16_q7-5-3-3_w7_h128-128",
    "patch_merge_r28_i64_o128_h256_s64_f128-256",
    "mb4d_r14_c128_h384_p3",
    "cga_r14_c128_n4_k16_q7-5-3-3_w7_h256-256",
    "downsample_r14_i128_o256",
    "cga_r7_c256_n4_k16_q7-5-3-3_w7_h512-512",
    "mb3d_r7_c256_n8_k16_v32_h768",
    "head_r7_i256_o1000_ln_d1",
)


class Stage(nn.Sequential):
    """Blocks on feature maps of one side, in order."""

    def __init__(self, *blocks: nn.Module) -> None:
        super().__init__(*blocks)
        self.grad_checkpointing = False

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the feature map after the last block."""
        if self.grad_checkpointing and not torch.jit.is_scripting():  # type: ignore[attr-defined]
            x = checkpoint_seq(self, x)
        else:
            for module in self:
                x = module(x)
        return x


class NasHybrid(nn.Module):
    """A network of blocks, with the methods that timm expects of its models.

    Args:
        blocks: Block strings (or blocks), from stem to head.
        img_size: Side of the images, or (side, side); the blocks are moved to it. Default: the
            side the blocks were written for.
        num_classes: Classes of the head, 0 for none. Default: as in the head's string.
        in_chans: Channels of the images. Default: as in the stem's string.
        global_pool: "avg", or "" for maps: of scores, or without classes of features.
        drop_rate: Dropout in front of the classifier.
        drop_path_rate: Stochastic depth of the last block; it grows linearly from 0 over all
            blocks that have residual branches and holds for each of their branches. (timm does
            the same for EfficientFormer; EfficientViT was trained without, hence the default 0.)
        factory: `device` and `dtype`, as torch's modules take them.

    Raises:
        ConfigError: blocks that do not fit, images that are not square, a pooling there is not.
    """

    def __init__(
        self,
        blocks: Sequence[Block | str],
        img_size: int | Sequence[int] | None = None,
        num_classes: int | None = None,
        in_chans: int | None = None,
        global_pool: str = "avg",
        drop_rate: float = 0.0,
        drop_path_rate: float = 0.0,
        **factory: Any,
    ) -> None:
        super().__init__()
        spec = chain.adapt(chain.read_blocks(blocks), img_size, num_classes, in_chans)
        head = spec[-1]
        assert isinstance(head, block.Head)
        rates = iter(chain.drop_path_rates(spec, drop_path_rate))
        self.stem = build_block(spec[0], **factory)
        self.stages = nn.Sequential(
            *(
                Stage(*(build_block(inner, next(rates), **factory) for inner in stage))
                for stage in chain.split_stages(spec)
            )
        )
        self.head = Head(head, drop=drop_rate, **factory)
        self._hold(spec)
        self.feature_info = chain.feature_info(spec)
        self.num_stages = len(self.stages)
        self.num_features = self.head_hidden_size = head.channels
        self.in_chans = spec[0].in_channels
        self.num_classes = head.classes if num_classes is None else num_classes
        if self.num_classes != head.classes or global_pool != "avg":
            self.head.reset(self.num_classes, global_pool, **factory)
        update_model_args(self, blocks=[str(inner) for inner in spec])

    def _hold(self, blocks: tuple[Block, ...]) -> None:
        self.blocks_spec = blocks
        self.block_prefixes = chain.block_prefixes(blocks)
        side = blocks[0].resolution
        self.img_size = side
        self.size_rule = (
            f"This network takes images of {side}x{side}; resize them, or the network: "
            "create it with img_size=, or call set_input_size()."
        )

    # ------------------------------------------------------------ running
    def forward_features(self, x: torch.Tensor) -> torch.Tensor:
        """Return the last feature map of images (batch, channels, side, side), not normalised."""
        x = self._forward_stem(x)
        x = self.stages(x)
        return x

    def _forward_stem(self, x: torch.Tensor) -> torch.Tensor:
        if not torch.jit.is_tracing():  # type: ignore
            _assert(x.shape[2] == self.img_size, self.size_rule)
            _assert(x.shape[3] == self.img_size, self.size_rule)
        x = self.stem(x)
        return x

    def forward_head(self, x: torch.Tensor, pre_logits: bool = False) -> torch.Tensor:
        """Return scores of a feature map, or what the classifier would see if `pre_logits`."""
        if pre_logits:
            return self.head.pool(x)
        x = self.head(x)
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return class scores (batch, classes) of images (batch, channels, side, side)."""
        x = self.forward_features(x)
        x = self.forward_head(x)
        return x

    def forward_intermediates(
        self,
        x: torch.Tensor,
        indices: int | list[int] | None = None,
        norm: bool = False,
        stop_early: bool = False,
        output_fmt: str = "NCHW",
        intermediates_only: bool = False,
    ) -> list[torch.Tensor] | tuple[torch.Tensor, list[torch.Tensor]]:
        """Return the feature maps after the stages, and the last one before it unless told not to.

        Args:
            x: Images.
            indices: Stages to take: the last n if an int, all if None.
            norm: Normalise the last stage's map, where the head's norm works on maps (`ln`).
            stop_early: Run no stage behind the last one taken.
            output_fmt: "NCHW", the only one there is.
            intermediates_only: Return only the list of maps.
        """
        _assert(output_fmt == "NCHW", "output_fmt must be NCHW.")
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        intermediates: list[torch.Tensor] = []
        x = self._forward_stem(x)
        if torch.jit.is_scripting() or not stop_early:  # type: ignore[attr-defined]
            stages = self.stages
        else:
            stages = self.stages[: max_index + 1]
        for index, stage in enumerate(stages):
            x = stage(x)
            if index in take_indices:
                is_last = index == self.num_stages - 1
                intermediates.append(self.head.normalize(x) if norm and is_last else x)
        if intermediates_only:
            return intermediates
        return x, intermediates

    # ------------------------------------------------------------ changing
    def prune_intermediate_layers(
        self,
        indices: int | list[int] = 1,
        prune_norm: bool = False,
        prune_head: bool = True,
    ) -> list[int]:
        """Drop what the feature maps asked for do not need; return their indices."""
        take_indices, max_index = feature_take_indices(len(self.stages), indices)
        is_shorter = max_index < len(self.stages) - 1
        if is_shorter:
            self.stages = self.stages[: max_index + 1]
            self.num_features = self.head_hidden_size = self.feature_info[max_index]["num_chs"]
            kept = 1 + sum(len(list(stage.children())) for stage in self.stages)
            self._hold(self.blocks_spec[:kept])
        if is_shorter or prune_norm:
            self.head.drop_norm(self.num_features)
        if is_shorter or prune_head:
            self.reset_classifier(0, "")
        return list(take_indices)

    def reset_classifier(self, num_classes: int, global_pool: str | None = None) -> None:
        """Put a new classifier in, or none for 0 classes; change the pooling if one is given."""
        pool = self.head.global_pool if global_pool is None else global_pool
        self.head.reset(num_classes, pool, **get_device_dtype(self))  # type: ignore[no-untyped-call]
        self.num_classes = num_classes
        last = self.blocks_spec[-1]
        if num_classes and isinstance(last, block.Head):
            self._hold((*self.blocks_spec[:-1], replace(last, classes=num_classes)))

    def set_input_size(self, img_size: int | Sequence[int] | None = None) -> None:
        """Move the network to another side of (square) images; attention biases are resized."""
        if img_size is None:
            return
        side = chain.square_side(img_size)
        self._hold(block.resize(self.blocks_spec, side))
        for spec, prefix in zip(self.blocks_spec, self.block_prefixes, strict=True):
            for part, part_prefix in zip(spec.parts(), part_prefixes(spec), strict=True):
                module = self.get_submodule((prefix + part_prefix).removesuffix("."))
                if isinstance(module, Attention | GroupAttention):
                    module.resize(part)  # type: ignore[arg-type]  # the part it was built from
        update_model_input_size(self, (side, side))

    def set_grad_checkpointing(self, enable: bool = True) -> None:
        """Recompute each block's activations in the backward pass instead of keeping them."""
        for stage in self.stages:
            stage.grad_checkpointing = enable  # type: ignore[assignment]  # a Stage

    def set_distilled_training(self, enable: bool = True) -> None:
        """Let training give the pair (scores, distilled scores) instead of their mean."""
        if enable and not (self.head.is_distilled and self.head.global_pool):
            raise ConfigError(
                "distilled training needs pooling and a head with two classifiers; build the "
                "network with a head block that ends in d1, and global_pool='avg'."
            )
        self.head.distilled_training = enable

    # ------------------------------------------------------------ asking
    def get_classifier(self) -> nn.Module | tuple[nn.Module, nn.Module]:
        """Return the classifier, or both where the head is distilled."""
        return (self.head.fc, self.head.fc_dist) if self.head.is_distilled else self.head.fc

    def no_weight_decay(self) -> set[str]:
        """Return the names of the attention bias tables."""
        return {name for name, _ in self.named_parameters() if name.endswith(TABLE)}

    def group_matcher(self, coarse: bool = False) -> dict[str, Any]:
        """Return how timm groups parameters by depth: by stage if `coarse`, else by block."""
        return {
            "stem": r"^stem",
            "blocks": r"^stages\.(\d+)" if coarse else [(r"^stages\.(\d+)\.(\d+)", None)],
        }


def checkpoint_filter_fn(state_dict: dict[str, torch.Tensor], model: nn.Module) -> Any:
    """Return a checkpoint's tensors with the attention biases resized to the model's sides."""
    wanted = model.state_dict()
    return {
        name: resize_bias_table(tensor, round(wanted[name].shape[1] ** 0.5))
        if name.endswith(TABLE) and name in wanted and tensor.shape != wanted[name].shape
        else tensor
        for name, tensor in state_dict.items()
    }


def build(blocks: Sequence[Block | str], **timm_kwargs: Any) -> NasHybrid:
    """Return a network of `blocks` through `timm.create_model`, which records how it was made.

    Args:
        blocks: Block strings or blocks, from stem to head.
        timm_kwargs: What `timm.create_model` takes: `img_size`, `num_classes`, `in_chans`,
            `global_pool`, `drop_rate`, `drop_path_rate`, `pretrained_cfg_overlay`, ...

    Raises:
        ConfigError: as `NasHybrid`.
    """
    texts = [str(item) for item in chain.read_blocks(blocks)]
    model = timm.create_model("nas_hybrid", blocks=texts, **timm_kwargs)
    assert isinstance(model, NasHybrid)
    return model


def load_folder(folder: Path) -> nn.Module:
    """Return the network in a timm folder, with its weights, through `timm.create_model`.

    Raises:
        CorruptFile: timm cannot load it.
    """
    try:
        model: nn.Module = timm.create_model(f"local-dir:{folder}", pretrained=True)
    except Exception as error:  # timm, torch and safetensors each have their own
        raise CorruptFile(f"timm cannot load {folder}: {error}.") from error
    return model


def nas_hybrid(pretrained: bool = False, **kwargs: Any) -> nn.Module:
    """Return a `NasHybrid` (timm's entrypoint; see there for the arguments)."""
    blocks = chain.read_blocks(kwargs.pop("blocks", DEFAULT_BLOCKS))
    config = kwargs.get("pretrained_cfg")
    if not pretrained or config is None or isinstance(config, str):
        # A saved configuration describes its own weights; without one the blocks say it.
        overlay = chain.timm_config(blocks) | (kwargs.get("pretrained_cfg_overlay") or {})
        kwargs["pretrained_cfg_overlay"] = overlay
    out_indices = kwargs.pop("out_indices", tuple(range(len(chain.split_stages(blocks)))))
    model: nn.Module = build_model_with_cfg(
        NasHybrid,
        "nas_hybrid",
        pretrained,
        pretrained_filter_fn=checkpoint_filter_fn,
        feature_cfg={"out_indices": out_indices, "feature_cls": "getter"},
        blocks=blocks,
        **kwargs,
    )
    return model


default_cfgs = generate_default_cfgs(
    {
        "nas_hybrid.nas": {
            "mean": IMAGENET_DEFAULT_MEAN,
            "std": IMAGENET_DEFAULT_STD,
            "interpolation": "bicubic",
            "crop_pct": 0.95,
            "fixed_input_size": True,
            "first_conv": "stem.convs.0.conv",
            "license": "apache-2.0",
            **chain.timm_config(chain.read_blocks(DEFAULT_BLOCKS)),
        }
    }
)
register_model(nas_hybrid)

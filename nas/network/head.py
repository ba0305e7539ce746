"""Head: pooled features to class scores, with one classifier or two (distilled)."""

from typing import Any

import torch
import torch.nn as nn

from nas import block
from nas.errors import ConfigError
from nas.network.affine import linear

POOLS = ("avg", "")


class Head(nn.Module):
    """Part and block `head`: parameters `norm`, `fc` and, where distilled, `fc_dist`.

    `ln` normalises each place and then averages; `bn` averages and then normalises. A distilled
    head gives the mean of its two classifiers, also in training, unless `distilled_training` is
    set: then training gives the pair. Without pooling every place is scored.
    """

    def __init__(self, part: block.Head, *, drop: float = 0.0, **factory: Any) -> None:
        super().__init__()
        self.channels = part.channels
        self.norm_kind = part.norm
        self.is_distilled = bool(part.distilled)
        self.distilled_training = False
        self.global_pool = "avg"
        self.norm = self._make_norm(**factory)
        self.drop = nn.Dropout(drop)
        self.fc: nn.Module = nn.Identity()
        self.fc_dist: nn.Module = nn.Identity()
        self.reset(part.classes, "avg", **factory)

    def _make_norm(self, **factory: Any) -> nn.Module:
        if self.norm_kind == "ln":
            return nn.LayerNorm(self.channels, **factory)
        return nn.BatchNorm1d(self.channels, **factory)

    def reset(self, num_classes: int, global_pool: str, **factory: Any) -> None:
        """Put new classifiers in, or none for `num_classes` 0; set the pooling.

        Raises:
            ConfigError: a pooling there is not.
        """
        if global_pool not in POOLS:
            raise ConfigError(f"global_pool must be 'avg' or '', but is {global_pool!r}.")
        self.global_pool = global_pool
        self.num_classes = num_classes
        self.distilled_training = self.distilled_training and bool(global_pool)
        self.fc, self.fc_dist = nn.Identity(), nn.Identity()
        if num_classes:
            self.fc = linear(self.channels, num_classes, **factory)
            if self.is_distilled:
                self.fc_dist = linear(self.channels, num_classes, **factory)
        if self.norm_kind == "bn":
            # It normalises pooled features: without pooling there is nothing for it to do.
            if not global_pool:
                self.norm = nn.Identity()
            elif isinstance(self.norm, nn.Identity):
                self.norm = self._make_norm(**factory)
        self.train(self.training)

    def drop_norm(self, channels: int) -> None:
        """Take features of `channels` as they are: no norm from now on."""
        self.channels, self.norm_kind, self.norm = channels, "", nn.Identity()

    def normalize(self, x: torch.Tensor) -> torch.Tensor:
        """Return a feature map (batch, channels, side, side) normalised where `ln` does it."""
        if self.norm_kind == "ln":
            tokens: torch.Tensor = self.norm(x.permute(0, 2, 3, 1))
            return tokens.permute(0, 3, 1, 2)
        return x

    def pool(self, x: torch.Tensor) -> torch.Tensor:
        """Return what the classifiers see: normalised, pooled to (batch, channels), dropped out.

        With `global_pool` '' it stays a map of shape (batch, channels, side, side).
        """
        if self.global_pool == "":
            x = self.normalize(x)
        elif self.norm_kind == "ln":
            x = self.norm(x.permute(0, 2, 3, 1)).mean((1, 2))
        else:
            x = self.norm(x.mean((2, 3)))
        x = self.drop(x)
        return x

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return class scores of a feature map, or what is pooled where there are no classes."""
        x = self.pool(x)
        if self.num_classes == 0:
            return x
        if self.global_pool == "":
            return self.classify(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)
        return self.classify(x)

    def classify(self, x: torch.Tensor) -> torch.Tensor:
        """Return the scores (..., classes) of features (..., channels)."""
        scores: torch.Tensor = self.fc(x)
        if not self.is_distilled:
            return scores
        distilled: torch.Tensor = self.fc_dist(x)
        # A pair in training only, as timm's distilled models give; scripts always give the mean.
        if self.distilled_training and self.training and not torch.jit.is_scripting():  # type: ignore[attr-defined]
            return scores, distilled  # type: ignore[return-value]
        return (scores + distilled) / 2

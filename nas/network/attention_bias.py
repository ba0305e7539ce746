"""The learned bias of attention between two places, by their distance in rows and columns."""

from typing import Any

import torch
import torch.nn as nn
from timm.layers.pos_embed_rel import resize_rel_pos_bias_table_levit


def bias_index(side: int, device: torch.device | str | None = None) -> torch.Tensor:
    """Return which entry of the table belongs to two places: shape (side^2, side^2), int64.

    Places are numbered row by row; the entry is |rows apart| * side + |columns apart|.
    """
    place = torch.arange(side * side, device=device)
    row, column = place // side, place % side
    rows_apart = (row[:, None] - row[None, :]).abs()
    columns_apart = (column[:, None] - column[None, :]).abs()
    return rows_apart * side + columns_apart


def resize_bias_table(table: torch.Tensor, side: int) -> torch.Tensor:
    """Return a bias table of shape (heads, side^2) interpolated from one for another side."""
    heads = table.shape[0]
    resized: torch.Tensor = resize_rel_pos_bias_table_levit(table.T, (side * side, heads))
    return resized.T.contiguous()


class AttentionBias(nn.Module):
    """Bias table of shape (heads, side^2); `forward()` spreads it to (heads, side^2, side^2).

    Nothing derived from the table is kept between calls, so that weights may be swapped under
    the module (`torch.func.functional_call`). `index` is computed, not saved: a real tensor on
    the device of the table, except where the whole module was built on the meta device.
    """

    index: torch.Tensor

    def __init__(self, heads: int, side: int, **factory: Any) -> None:
        super().__init__()
        self.side = side
        self.table = nn.Parameter(torch.zeros(heads, side * side, **factory))
        self.init_non_persistent_buffers(self.table.device)

    def init_non_persistent_buffers(self, device: torch.device | str | None = None) -> None:
        """Compute `index` again, on `device` (default: where it is now)."""
        place = self.index.device if device is None else device
        self.register_buffer("index", bias_index(self.side, place), persistent=False)

    @torch.no_grad()
    def resize(self, side: int) -> None:
        """Interpolate the table for another side, in place of the old parameter."""
        if side == self.side:
            return
        table = resize_bias_table(self.table, side)
        self.table = nn.Parameter(table, requires_grad=self.table.requires_grad)
        self.side = side
        self.init_non_persistent_buffers()

    def forward(self) -> torch.Tensor:
        """Return the bias of every pair of places, shape (heads, side^2, side^2)."""
        # Twice to four times as fast as table[:, index], forward and backward.
        spread = self.table.index_select(1, self.index.flatten())
        return spread.view(-1, self.side * self.side, self.side * self.side)

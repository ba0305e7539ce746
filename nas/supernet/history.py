"""History: the losses of a training, averaged over a few steps a row, each role apart."""

import json
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nas import files

Row = dict[str, Any]  # Any: plain JSON numbers


class History:
    """Rows {"step", "lr", and the mean loss of each role that ran}; the open row is not in them.

    Losses stay on their device until a row is closed, so that no step waits for it.
    """

    def __init__(self, rows: list[Row] | None = None) -> None:
        self.rows: list[Row] = list(rows or [])
        self._open: list[tuple[int, str, Tensor]] = []

    def add(self, step: int, losses: dict[str, Tensor]) -> None:
        """Add the losses of one step by role."""
        self._open += [(step, role, loss) for role, loss in losses.items()]

    def close_row(
        self,
        steps_done: int,
        *,
        lr: float,
        over: Callable[[Tensor], Tensor] | None = None,
    ) -> tuple[int, str, float] | None:
        """Average what was added since the last row.

        Args:
            steps_done: Number of the row.
            lr: Of the last step.
            over: Returns the mean of losses over processes that have other images, so that all
                of them find the same one not finite.

        Returns:
            None, or (step, role, loss) of the first loss that is not finite; no row is added then.
        """
        if not self._open:
            return None
        losses = torch.stack([loss.float() for _, _, loss in self._open])
        values = (losses if over is None else over(losses)).tolist()
        by_role: dict[str, list[float]] = {}
        for (step, role, _), value in zip(self._open, values, strict=True):
            if not math.isfinite(value):
                return step, role, value
            by_role.setdefault(role, []).append(value)
        means = {role: sum(each) / len(each) for role, each in by_role.items()}
        self.rows.append({"step": steps_done, "lr": lr, **means})
        self._open = []
        return None

    def last(self) -> str:
        """Return the newest row's losses in words."""
        if not self.rows:
            return "loss to come"
        row = self.rows[-1]
        losses = [f"{role} {row[role]:.3f}" for role in row if role not in ("step", "lr")]
        return "loss: " + ", ".join(losses)

    def write(self, path: Path) -> None:
        """Write one JSON object a line, atomically."""
        files.write_atomic(path, "".join(json.dumps(row) + "\n" for row in self.rows))

"""Templates: one block without weights of its own, run with the weights it is handed."""

import threading
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from nas.block import Block
from nas.network import template

# Templates kept by each thread: about 0.1 MB each; a space has 50 to 1,100 different blocks.
KEPT = 512

# BatchNorm's running means, variances and counts of one block, by their names in the block.
BlockStatistics = dict[str, Tensor]

_of_thread = threading.local()


class Template:
    """A block's plain module on the meta device, and how to run it.

    Attributes:
        module: The block without weights; hooks may stand on it while it runs.
        shapes: Name -> shape of every parameter that `run` wants.
    """

    def __init__(self, block: Block, device: torch.device) -> None:
        self.module = template(block, device)
        self._norms = [inner for inner in self.module.modules() if isinstance(inner, _BatchNorm)]
        for norm in self._norms:
            norm.momentum = None  # running statistics are plain means over the batches seen
        self._mode: tuple[bool, bool] | None = None
        self.shapes = {name: value.shape for name, value in self.module.named_parameters()}

    def run(
        self,
        x: Tensor,
        tensors: Mapping[str, Tensor],
        statistics: Mapping[str, Tensor] | None = None,
        *,
        fit: bool = False,
    ) -> Tensor:
        """Return the block's output of a batch.

        Args:
            x: Feature maps of shape (batch, channels, side, side).
            tensors: Every parameter in `shapes`.
            statistics: BatchNorm's running statistics. Without them it normalises by the batch
                and nothing is kept.
            fit: Normalise by the batch, and add the batch to `statistics` in place.
        """
        self._set_mode(is_training=fit or statistics is None, is_tracking=statistics is not None)
        given = {**tensors, **(statistics or {})}
        output: Tensor = functional_call(self.module, given, (x,), tie_weights=False)
        return output

    def _set_mode(self, *, is_training: bool, is_tracking: bool) -> None:
        """Set what a BatchNorm reads: untracked in training, it leaves its buffers alone."""
        if self._mode != (is_training, is_tracking):
            self._mode = (is_training, is_tracking)
            self.module.train(is_training)
            for norm in self._norms:
                norm.track_running_stats = is_tracking

    def empty_statistics(self, device: torch.device) -> BlockStatistics:
        """Return statistics of no batch at all, for `run` to be fitted on."""
        state: dict[str, Any] = self.module.state_dict()  # Any: torch's stubs
        return {
            name: torch.zeros(value.shape, dtype=value.dtype, device=device)
            for name, value in state.items()
            if name not in self.shapes
        }


def template_of(block: Block, device: torch.device) -> Template:
    """Return this thread's template of a block.

    `functional_call` puts the tensors into the module while it runs, so that a template shared by
    two threads would mix their weights up.
    """
    if not hasattr(_of_thread, "template"):
        _of_thread.template = lru_cache(maxsize=KEPT)(Template)
    kept: Template = _of_thread.template(block, device)
    return kept


def drop_running_statistics(module: nn.Module) -> None:
    """Take BatchNorm's running statistics out of a module whose weights are only stored there."""
    for inner in module.modules():
        if isinstance(inner, _BatchNorm):
            inner.track_running_stats = False
            for name in ("running_mean", "running_var", "num_batches_tracked"):
                inner.register_buffer(name, None)

"""Peers: the processes that train one supernet together, each on its share of every batch."""

from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True, slots=True)
class Peers:
    """How many processes there are and which one this is; alone, nothing is exchanged.

    All of them run the same architectures in the same order: kinds that differ between processes
    would get half their gradients.

    Attributes:
        rank: Number of this process; the first one, 0, writes checkpoints.
        count: How many there are.
    """

    rank: int = 0
    count: int = 1

    @classmethod
    def joined(cls) -> "Peers":
        """Return those of torch's default process group, which must be there."""
        return cls(dist.get_rank(), dist.get_world_size())

    @property
    def is_first(self) -> bool:
        """Whether this process writes what all of them share."""
        return self.rank == 0

    def wrapped(self, supernet: nn.Module) -> nn.Module:
        """Return a model whose backward passes leave the gradients' mean over all processes.

        A path leaves most slots unused, so that torch has to look for what took part. Parameters
        that no pass of a step used keep no gradient, as in one process.
        """
        if self.count == 1:
            return supernet
        device = next(supernet.parameters()).device
        own = [device] if device.type == "cuda" else None
        return DistributedDataParallel(
            supernet, device_ids=own, find_unused_parameters=True, broadcast_buffers=False
        )

    def share(self, batch: tuple[Tensor, Tensor]) -> tuple[Tensor, Tensor]:
        """Return this process's images and labels of a batch that all of them have."""
        if self.count == 1:
            return batch
        size = len(batch[1]) // self.count
        rows = slice(self.rank * size, (self.rank + 1) * size)
        return batch[0][rows], batch[1][rows]

    def mean(self, values: Tensor) -> Tensor:
        """Return the mean over the processes, the same in each of them."""
        if self.count == 1:
            return values
        total = values.detach().to(_exchange_device(), copy=True)
        dist.all_reduce(total)
        return (total / self.count).to(values.device)

    def of_first(self, value: Any) -> Any:  # Any: a number, or a dict of arrays
        """Return what the first process has, in each of them."""
        if self.count == 1:
            return value
        held = [value]
        dist.broadcast_object_list(held, src=0, device=_exchange_device())
        return held[0]


def _exchange_device() -> torch.device:
    """Return where the process group exchanges tensors."""
    return torch.device("cuda" if dist.get_backend() == "nccl" else "cpu")

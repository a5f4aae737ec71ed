"""The processes that train together: one alone, or those that `torchrun` started.

They exchange tensors in a fixed order, so that sums have the same bits in every process and for every number of them.
"""

from __future__ import annotations

import contextlib
import datetime as dt
import os
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Final, TypeVar

import torch
from torch import Tensor, distributed

from densenet_deploy.errors import DeviceError, UsageError

T = TypeVar("T")

_TIMEOUT: Final = dt.timedelta(hours=2)
"""One process may decode and evaluate for so long while the others wait."""


@dataclass(frozen=True)
class Processes:
    """This process among those that train together, and where it computes.

    Attributes:
        rank: its number, from 0; the process 0 alone writes files.
        count: how many there are.
        device: its own.
    """

    rank: int
    count: int
    device: torch.device

    @property
    def is_first(self) -> bool:
        return self.rank == 0

    def share(self, items: list[T]) -> list[T]:
        """Return this process's part of `items`: every `count`-th."""
        return items[self.rank :: self.count]

    def gathered(self, value: Any) -> list[Any]:
        """Return what each process gave, in the order of ranks; values must be picklable."""
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        distributed.all_gather_object(values, value)
        return values

    def gathered_tensors(self, tensor: Tensor) -> list[Tensor]:
        """Return the tensors of all processes, of one shape, in the order of ranks."""
        if self.count == 1:
            return [tensor]
        parts = [torch.empty_like(tensor) for _ in range(self.count)]
        distributed.all_gather(parts, tensor)
        return parts


@contextlib.contextmanager
def joined(device: str | None) -> Iterator[Processes]:
    """Join the processes that torchrun started, for the block; without torchrun, be one alone.

    Args:
        device: `cpu`, `cuda`, `cuda:1`, or None: a GPU where there is one. Several processes with GPUs take one each.

    Raises:
        UsageError: if the device is not one that PyTorch trains on here.
        DeviceError: if it is missing.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1 or distributed.is_initialized():
        known = distributed.is_initialized()
        rank, size = (distributed.get_rank(), distributed.get_world_size()) if known else (0, 1)
        yield Processes(rank, size, _device(device, size))
        return
    chosen = _device(device, count)
    distributed.init_process_group("nccl" if chosen.type == "cuda" else "gloo", timeout=_TIMEOUT)
    try:
        yield Processes(distributed.get_rank(), count, chosen)
    finally:
        distributed.destroy_process_group()


def _device(name: str | None, count: int) -> torch.device:
    if name is None:
        name = "cuda" if torch.cuda.is_available() else "cpu"
    kind, _, index = name.partition(":")
    if kind not in ("cpu", "cuda") or (index and not index.isdecimal()) or name == "cpu:":
        raise UsageError(f"device={name}", "is not one to train on", "give cpu, cuda, cuda:1 or auto")
    if kind == "cpu":
        return torch.device("cpu")
    number = int(index or (os.environ.get("LOCAL_RANK", "0") if count > 1 else 0))
    found = torch.cuda.device_count()
    if number >= found:
        raise DeviceError(f"cuda:{number}", f"PyTorch finds {found} CUDA devices", "use --device cpu")
    torch.cuda.set_device(number)
    return torch.device("cuda", number)

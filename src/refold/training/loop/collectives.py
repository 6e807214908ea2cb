"""Collective operations across processes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn


def total(accelerator: Any, value: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes of an accelerator."""
    if accelerator.num_processes == 1:
        return value
    return accelerator.reduce(value.to(accelerator.device), "sum").cpu()


def summed(value: Tensor, device: torch.device) -> Tensor:
    """Return the sum of a tensor over all processes, wherever training has begun with several.

    Examples:
        >>> summed(torch.ones(2), torch.device("cpu"))
        tensor([1., 1.])
    """
    if _is_alone():
        return value
    moved = value.to(device)
    dist.all_reduce(moved)
    return moved.cpu()


def gathered(parts: list[Tensor]) -> Tensor | None:
    """Return the rows that all processes hold, in the order of the processes; None without any.

    Examples:
        >>> gathered([torch.ones(1, 2), torch.zeros(1, 2)])
        tensor([[1., 1.],
                [0., 0.]])
    """
    everything = [parts]
    if not _is_alone():
        everything = [list[Tensor]() for _ in range(dist.get_world_size())]
        dist.all_gather_object(everything, parts)
    rows = [part for own in everything for part in own]
    return torch.cat(rows) if rows else None


def _is_alone() -> bool:
    return not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1


def align(accelerator: Any, module: nn.Module) -> None:
    """Copy a module's parameters and buffers from the first process to all others, in place."""
    if accelerator.num_processes > 1:
        for value in (*module.parameters(), *module.buffers()):
            dist.broadcast(value.detach(), 0)


def union(accelerator: Any, numbers: Iterable[int]) -> list[int]:
    """Return the numbers that any process of an accelerator has, each once, in order."""
    found = list(numbers)
    if accelerator.num_processes > 1:
        from accelerate.utils import gather_object

        found = gather_object(found)
    return sorted(set(found))

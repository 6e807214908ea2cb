"""Collective operations across processes."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch.distributed as dist
from torch import Tensor, nn


def total(accelerator: Any, value: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes of an accelerator."""
    if accelerator.num_processes == 1:
        return value
    return accelerator.reduce(value.to(accelerator.device), "sum").cpu()


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

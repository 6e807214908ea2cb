"""What the processes of a run know together."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from torch import Tensor


def total(accelerator: Any, value: Tensor) -> Tensor:
    """Return the sum of a tensor over all processes of an accelerator."""
    if accelerator.num_processes == 1:
        return value
    return accelerator.reduce(value.to(accelerator.device), "sum").cpu()


def union(accelerator: Any, numbers: Iterable[int]) -> list[int]:
    """Return the numbers that any process of an accelerator has, each once, in order."""
    found = list(numbers)
    if accelerator.num_processes > 1:
        from accelerate.utils import gather_object

        found = gather_object(found)
    return sorted(set(found))

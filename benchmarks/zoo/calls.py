"""Convolutions and linear layers (matrix products) that one call of a network runs.

Counted as calls, not as modules: a traced network holds `F.linear` where the original has a layer,
a product with a stored matrix is a layer too, and one that is called on five maps is five.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

_LAYERS = {
    F.linear, torch.conv1d, torch.conv2d, torch.conv3d, F.conv1d, F.conv2d, F.conv3d,
    F.conv_transpose1d, F.conv_transpose2d, F.conv_transpose3d,
    torch.matmul, torch.mm, torch.Tensor.matmul, torch.Tensor.__matmul__, torch.Tensor.mm,
}  # fmt: skip


class _Counter(TorchFunctionMode):
    def __init__(self) -> None:
        super().__init__()
        self.count = 0

    def __torch_function__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        self.count += func in _LAYERS
        return func(*args, **(kwargs or {}))


def run_counting(model: nn.Module, example: tuple[Any, ...]) -> tuple[Any, int]:
    """Return what the network answers, and how many convolutions and linear layers it ran."""
    with torch.no_grad(), _Counter() as counter:
        return model(*example), counter.count

"""Activations that differ from channel to channel: some work, others hand their value on."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ChannelSlope(nn.Module):
    """Multiply negative values by the slope of their channel: 0 is a ReLU, 1 changes nothing.

    The slopes are a buffer: they say which channels are carried along, and are not trained.

    Args:
        slope: slope per channel.

    Shape:
        (N, C, *spatial) -> the same.

    Source: PReLU, arXiv:1502.01852, as RMNet, arXiv:2111.00687, uses it.

    Examples:
        >>> ChannelSlope(torch.tensor([0.0, 1.0]))(torch.tensor([[-1.0, -1.0]])).tolist()
        [[-0.0, -1.0]]
    """

    slope: Tensor

    def __init__(self, slope: Tensor) -> None:
        super().__init__()
        self.register_buffer("slope", slope)

    def forward(self, x: Tensor) -> Tensor:
        """Return x where it is positive, else x times the slope."""
        return F.prelu(x, self.slope)

    def extra_repr(self) -> str:
        """Return the channels for `print(model)`."""
        return f"{self.slope.numel()}, carries={int((self.slope == 1).sum())}"


class ChannelClamp(nn.Module):
    """Clamp every channel to bounds of its own; infinite bounds change nothing.

    Args:
        low: lower bound per channel.
        high: upper bound per channel.
        rank: spatial axes after the channel axis.

    Shape:
        (N, C, *spatial) -> the same.

    Examples:
        >>> from math import inf
        >>> relu6 = ChannelClamp(torch.tensor([0.0, -inf]), torch.tensor([6.0, inf]), 0)
        >>> relu6(torch.tensor([[9.0, 9.0]])).tolist()
        [[6.0, 9.0]]
    """

    low: Tensor
    high: Tensor

    def __init__(self, low: Tensor, high: Tensor, rank: int) -> None:
        super().__init__()
        self.register_buffer("low", low.reshape(-1, *(1,) * rank))
        self.register_buffer("high", high.reshape(-1, *(1,) * rank))

    def forward(self, x: Tensor) -> Tensor:
        """Return x within the bounds of its channel."""
        return torch.clamp(x, self.low, self.high)

    def extra_repr(self) -> str:
        """Return the channels for `print(model)`."""
        return f"{self.low.numel()}, carries={int(torch.isinf(self.low).sum())}"


class WholeWindows(nn.Module):
    """Let maps pass whose sides divide by the window of a pool that was folded away.

    A pool with `ceil_mode` divides its border windows by less where they reach over the edge.
    What took its place is equal only where none does.

    Args:
        sizes: window per spatial axis.

    Examples:
        >>> WholeWindows((2, 2))(torch.ones(1, 1, 2, 4)).shape
        torch.Size([1, 1, 2, 4])
    """

    def __init__(self, sizes: tuple[int, ...]) -> None:
        super().__init__()
        self.sizes = sizes

    def forward(self, x: Tensor) -> Tensor:
        """Return the map, or fail where its size does not divide."""
        for axis, size in enumerate(self.sizes):
            torch._assert(
                x.shape[axis + 2] % size == 0,
                f"without its residual the network needs maps whose sides divide by {self.sizes}",
            )
        return x

    def extra_repr(self) -> str:
        """Return the windows for `print(model)`."""
        return str(self.sizes)

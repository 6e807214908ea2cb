"""The layers that torch.nn lacks and a folded network may need.

Some differ from channel to channel: they work on some and hand on the values of others. All can be
scripted, for which annotations of classes have to be types: no `annotations` of the future here.
"""

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ScaleShift(nn.Module):
    """Multiply and shift every channel: what is left of norms that no convolution took in.

    Args:
        scale: factor per channel, or None.
        shift: addend per channel, or None.
        rank: spatial axes after the channel axis.

    Shape:
        (N, C, *spatial) -> the same.

    Examples:
        >>> ScaleShift(torch.tensor([2.0]), None, 2)(torch.ones(1, 1, 1, 1)).item()
        2.0
    """

    def __init__(self, scale: Tensor | None, shift: Tensor | None, rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.weight = None if scale is None else nn.Parameter(scale)
        self.bias = None if shift is None else nn.Parameter(shift)

    def forward(self, x: Tensor) -> Tensor:
        """Return x * weight + bias, channel by channel."""
        if self.weight is not None:
            x = x * self._laid(self.weight)
        return x if self.bias is None else x + self._laid(self.bias)

    def _laid(self, vector: Tensor) -> Tensor:
        """Lay a vector along the channels; a number has no axes and so no precision of its own."""
        return vector if vector.ndim == 0 else vector.reshape([-1] + [1] * self.rank)

    def extra_repr(self) -> str:
        """Return the channels for `print(model)`."""
        sized = self.weight if self.weight is not None else self.bias
        return f"{0 if sized is None else sized.numel()}, rank={self.rank}"


class Crop(nn.Module):
    """Add rings of a constant or crop the map, each side by its own amount.

    Args:
        amounts: (before, after) per spatial axis; negative crops.
        mode: torch's `padding_mode`.
        value: the constant of mode "zeros".

    Examples:
        >>> Crop(((-1, 0),))(torch.arange(3.0)[None, None]).tolist()
        [[[1.0, 2.0]]]
    """

    def __init__(
        self, amounts: tuple[tuple[int, int], ...], mode: str = "zeros", value: float = 0.0
    ) -> None:
        super().__init__()
        self.amounts, self.mode, self.value = amounts, mode, value
        self.flat = [amount for pair in reversed(amounts) for amount in pair]

    def forward(self, x: Tensor) -> Tensor:
        """Return the padded or cropped map."""
        if self.mode == "zeros":
            return F.pad(x, self.flat, value=self.value)
        return F.pad(x, self.flat, mode=self.mode)

    def extra_repr(self) -> str:
        """Return the amounts for `print(model)`."""
        return f"{self.amounts}, mode={self.mode}"


class Cropped(nn.Sequential):
    """A convolution or pool with the padding or cropping that its own arguments cannot say.

    Examples:
        >>> Cropped(Crop(((0, 1),)), nn.AvgPool1d(2, 1))(torch.ones(1, 1, 2)).tolist()
        [[[1.0, 0.5]]]
    """

    def parts(self) -> tuple[Crop, nn.Module]:
        """Return the crop and the layer, whichever runs first."""
        first, second = self
        return (first, second) if isinstance(first, Crop) else (cast(Crop, second), first)


class DepthToSpace(nn.Module):
    """Lay blocks of channels side by side in the map, as TensorFlow orders them.

    `nn.PixelShuffle` gives each channel neighbouring ones of its input; here each takes one of
    every block.

    Args:
        factor: by which both sides of the map grow.

    Examples:
        >>> DepthToSpace(2)(torch.arange(8.0).reshape(1, 8, 1, 1)).flatten().tolist()
        [0.0, 2.0, 4.0, 6.0, 1.0, 3.0, 5.0, 7.0]
    """

    def __init__(self, factor: int) -> None:
        super().__init__()
        self.factor = factor

    def forward(self, x: Tensor) -> Tensor:
        """Return the larger map (N, C / factor², H factor, W factor)."""
        n, c, h, w = x.shape
        side = self.factor
        blocks = x.reshape(n, side, side, c // (side * side), h, w)
        return blocks.permute(0, 3, 4, 1, 5, 2).reshape(n, -1, h * side, w * side)

    def extra_repr(self) -> str:
        """Return the factor for `print(model)`."""
        return str(self.factor)


class SelectChannels(nn.Module):
    """Choose channels in some order.

    Args:
        index: input channel of each output channel.
        rank: spatial axes after the channel axis.

    Examples:
        >>> SelectChannels((1, 0), 0)(torch.tensor([[3.0, 4.0]])).tolist()
        [[4.0, 3.0]]
    """

    index: Tensor

    def __init__(self, index: tuple[int, ...], rank: int) -> None:
        super().__init__()
        self.rank = rank
        self.register_buffer("index", torch.tensor(index, dtype=torch.int64), persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """Return the chosen channels."""
        return x.index_select(x.ndim - 1 - self.rank, self.index)


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


class HardGate(nn.Module):
    """A line that is cut off at 0 and 1: a hard sigmoid of any slope.

    Args:
        slope: of the line.
        offset: its value at 0.

    Examples:
        >>> HardGate(0.2, 0.5)(torch.tensor([-9.0, 0.0, 1.0, 9.0]))
        tensor([0.0000, 0.5000, 0.7000, 1.0000])
    """

    def __init__(self, slope: float, offset: float) -> None:
        super().__init__()
        self.slope, self.offset = slope, offset

    def forward(self, x: Tensor) -> Tensor:
        """Return min(max(slope * x + offset, 0), 1)."""
        return hard_gate(x, self.slope, self.offset)


def hard_gate(x: Tensor, slope: float = 1 / 6, offset: float = 0.5) -> Tensor:
    """Return min(max(slope * x + offset, 0), 1)."""
    return (slope * x + offset).clamp(0.0, 1.0)


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

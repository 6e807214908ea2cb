"""The layers that torch.nn lacks and a folded network may need."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn

from refold.algebra.apply import pad


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
        return vector if vector.ndim == 0 else vector.reshape(-1, *(1,) * self.rank)

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

    def forward(self, x: Tensor) -> Tensor:
        """Return the padded or cropped map."""
        return pad(x, self.amounts, self.mode, self.value)

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

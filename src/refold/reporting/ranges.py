"""What the numbers of a weight are like: their range, their outliers, and how channels differ."""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil

import torch
from torch import Tensor

_MOST = 1_000_000
"""Numbers of a weight that a quantile is taken of; of larger ones, so many at even distances."""

_BINS = 41


@dataclass(frozen=True)
class Range:
    """The numbers of one weight.

    Args:
        low: the smallest.
        high: the largest.
        deviation: their standard deviation.
        bulk: the magnitude that 99.9 % of them do not exceed.
        outliers: how many lie more than six standard deviations from the mean.
        stretch: the largest magnitude over `bulk`: what a few numbers cost a quantizer.
        spread: the largest magnitude of a channel over that of the median channel: what one scale
            for all channels costs.
        histogram: shares of the largest bin in percent, over even bins from minus the largest
            magnitude to the largest; the cube root is taken, so that rare numbers show.
    """

    low: float
    high: float
    deviation: float
    bulk: float
    outliers: int
    stretch: float
    spread: float
    histogram: tuple[int, ...]


def range_of(weight: Tensor, *, channel_axis: int = 0) -> Range | None:
    """Return what the numbers of a weight are like, None where it has none or they are not finite.

    Args:
        weight: of a layer.
        channel_axis: the axis of its outputs.

    Examples:
        >>> found = range_of(torch.tensor([[1.0, -1.0], [4.0, 2.0]]))
        >>> (found.low, found.high, found.spread)
        (-1.0, 4.0, 1.6)
    """
    numbers = weight.detach().double().flatten().cpu()
    if not numbers.numel() or not bool(torch.isfinite(numbers).all()):
        return None
    peak = float(numbers.abs().max())
    spread, mean = float(numbers.std(correction=0)), float(numbers.mean())
    some = numbers[:: ceil(numbers.numel() / _MOST)].abs()
    bulk = float(torch.quantile(some, 0.999))
    channels = weight.detach().abs().transpose(0, channel_axis).flatten(1).amax(1).double()
    middle = float(channels.quantile(0.5))
    return Range(
        low=float(numbers.min()),
        high=float(numbers.max()),
        deviation=spread,
        bulk=bulk,
        outliers=int(((numbers - mean).abs() > 6 * spread).sum()) if spread else 0,
        stretch=peak / bulk if bulk else 1.0,
        spread=peak / middle if middle else 1.0,
        histogram=_histogram(numbers, peak),
    )


def _histogram(numbers: Tensor, peak: float) -> tuple[int, ...]:
    if not peak:
        return tuple(100 if i == _BINS // 2 else 0 for i in range(_BINS))
    counts = torch.histc(numbers, _BINS, -peak, peak)
    return tuple(int(share) for share in (100 * (counts / counts.max()) ** (1 / 3)).ceil())

"""Nonlinear steps of a branch for a value with channels that ride along."""

from __future__ import annotations

from math import inf
from typing import Any

import torch
from torch import Tensor, nn

from refold.errors import RefusedError
from refold.graph import Activation, ChannelClamp, ChannelSlope, Interval, Like, Limit
from refold.residuals.reserve import Slots


def wider_function(act: Activation, slots: Slots, riding: Interval, like: Like) -> nn.Module | None:
    """Return a function that leaves the channels that ride alone; None where it does already.

    Args:
        act: the function.
        slots: the channels of the value that it reads.
        riding: what is proven of those that ride.
        like: precision and device.

    Raises:
        RefusedError: when no such function exists.
    """
    uniform = all(_is_uniform(limit) for limit in (*(act.bounds or ()), act.slope))
    if uniform and act.keeps is not None and riding.lies_in(act.keeps):
        return None
    if act.bounds is not None or act.slope is not None:
        return sliced_function(act, slots, like)
    if act.keeps is not None:
        raise RefusedError(f"{act.name} changes negative values, and its shortcut may be negative")
    raise RefusedError(f"{act.name} changes every value, so nothing can be carried through it")


def sliced_function(act: Activation, slots: Slots, like: Like) -> nn.Module:
    """Return a clamp or leaky ReLU for these channels; those that ride pass unchanged."""
    if act.bounds is not None:
        return _clamp(act.bounds, slots, like)
    return _slopes(0.0 if act.slope is None else act.slope, slots, like)


def _clamp(bounds: tuple[Limit, Limit], slots: Slots, like: Like) -> nn.Module:
    low, high = bounds
    if not isinstance(low, Tensor) and not isinstance(high, Tensor) and (low, high) == (0.0, inf):
        return ChannelSlope(_vector(0.0, 1.0, slots, like))
    lows, highs = _vector(low, -inf, slots, like), _vector(high, inf, slots, like)
    return ChannelClamp(lows, highs, like.rank)


def _slopes(slope: Limit, slots: Slots, like: Like) -> nn.Module:
    vector = _vector(slope, 1.0, slots, like)
    if not isinstance(slope, nn.Parameter):
        return ChannelSlope(vector)
    learned = nn.PReLU(len(slots), device=vector.device, dtype=vector.dtype)
    learned.weight = nn.Parameter(vector, requires_grad=like.requires_grad)
    return learned


def _vector(limit: Limit, other: float, slots: Slots, like: Like) -> Tensor:
    """Return a number per channel: the limit on the branch's own, else the other number."""
    options: Any = {"dtype": like.dtype, "device": like.device}
    vector = torch.full((len(slots),), other, **options)
    places = [place for place, (main, _) in enumerate(slots) if main >= 0]
    exact = torch.as_tensor(limit, dtype=torch.float64)
    values = exact.detach().flatten()
    if values.numel() > 1:
        values = values[[main for main, _ in slots if main >= 0]]
    vector[places] = values.to(vector)
    return vector


def _is_uniform(limit: Limit | None) -> bool:
    return not isinstance(limit, Tensor) or limit.numel() == 1

"""Split one folded convolution into the convolution and norm that it came from."""

from __future__ import annotations

import copy
from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor, nn

from refold.algebra.operator import Conv
from refold.branches.origin import Origin
from refold.errors import RefusedError
from refold.graph import like_of

_TINY = 1e-6
"""Below this ratio of scale to deviation, a norm's scale is not divided by."""


@dataclass(frozen=True)
class Norm:
    """The numbers of a norm in eval mode, float64: scale (x - mean) / deviation + shift."""

    scale: Tensor
    shift: Tensor
    mean: Tensor
    var: Tensor
    eps: float

    @classmethod
    def of(cls, norm: nn.Module | None, eps: float, channels: int, like: Tensor) -> Norm:
        """Return a norm's numbers; those of a fresh one when it is gone."""
        ones = torch.ones(channels, dtype=torch.float64, device=like.device)
        if not isinstance(norm, nn.modules.batchnorm._BatchNorm) or norm.running_mean is None:
            return cls(ones * (1 + eps) ** 0.5, ones * 0, ones * 0, ones, eps)
        has_scale = cast("Tensor | None", norm.weight) is not None
        has_shift = cast("Tensor | None", norm.bias) is not None
        scale = norm.weight.double() if has_scale else ones
        shift = norm.bias.double() if has_shift else ones * 0
        var = cast(Tensor, norm.running_var).double()
        return cls(scale, shift, norm.running_mean.double(), var, eps)

    @property
    def deviation(self) -> Tensor:
        """What it divides by."""
        return (self.var + self.eps).sqrt()


@dataclass(frozen=True)
class Fitted:
    """A convolution's weights and the norm after it, float64."""

    weight: Tensor
    bias: Tensor | None
    norm: Norm | None


def fit(folded: Conv, origin: Origin, norm: Norm | None, bias: Tensor | None) -> Fitted:
    """Return weights and norm that together compute a folded convolution.

    The norm keeps its scale, mean and variance where it can be divided by, and the convolution its
    bias: an expansion that was never trained gives back the very numbers. The norm's shift takes
    in the rest, or its mean where it has no shift.

    Args:
        folded: what the block computes.
        origin: what it came from.
        norm: the norm's numbers, or None without norm.
        bias: the convolution's own bias where it is known.

    Raises:
        RefusedError: when the folded convolution has a bias and nothing is there to hold it.
    """
    total = folded.weight.new_zeros(_channels(folded)) if folded.bias is None else folded.bias
    if norm is None:
        if not origin.biased and bool((total != 0).any()):
            raise RefusedError(
                "it now adds a bias, and the convolution it came from has neither norm nor bias"
            )
        return Fitted(folded.weight, total if origin.biased else None, None)
    own = bias.double() if origin.biased and bias is not None else torch.zeros_like(total)
    small = norm.scale.abs() <= _TINY * norm.deviation
    scale = torch.where(small, norm.deviation, norm.scale)
    if "weight" not in origin.learned:
        scale = torch.ones_like(norm.scale)
    slope, mean, shift = scale / norm.deviation, norm.mean, norm.shift
    if "bias" in origin.learned:
        shift = total - slope * (own - mean)
    else:
        mean = own - total / slope
    refit = Norm(scale, shift, mean, norm.var, norm.eps)
    return Fitted(_scaled(folded, 1 / slope), own if origin.biased else None, refit)


def _channels(conv: Conv) -> int:
    return conv.weight.shape[1] * conv.groups if conv.transposed else conv.weight.shape[0]


def _scaled(conv: Conv, factor: Tensor) -> Tensor:
    """Return a convolution's weight with each output channel multiplied."""
    rest = (1,) * len(conv.axes)
    if not conv.transposed:
        return conv.weight * factor.reshape(-1, 1, *rest)
    rows = conv.weight.unflatten(0, (conv.groups, -1))
    return (rows * factor.reshape(conv.groups, 1, -1, *rest)).flatten(0, 1)


def rebuilt_conv(origin: Origin, fitted: Fitted, like: Tensor) -> nn.Module:
    """Return the convolution with its new tensors, in the dtype and layout of others.

    Raises:
        RefusedError: when a value does not fit the precision.
    """
    conv = copy.deepcopy(origin.conv)
    conv._parameters["weight"] = _parameter(fitted.weight, like)
    conv._parameters["bias"] = None if fitted.bias is None else _parameter(fitted.bias, like)
    return conv.to(memory_format=like_of([like], like.ndim - 2).memory_format)  # pyright: ignore


def rebuilt_norm(origin: Origin, numbers: Norm, old: nn.Module | None, like: Tensor) -> nn.Module:
    """Return the norm with its new tensors, in the dtype of the old one's where it is known.

    Raises:
        RefusedError: when a value does not fit the precision.
    """
    norm = copy.deepcopy(cast(nn.Module, origin.norm))
    held = {} if old is None else {**old._parameters, **old._buffers}
    kept = {name: tensor for name, tensor in held.items() if tensor is not None}
    for name, value in (("weight", numbers.scale), ("bias", numbers.shift)):
        if name in origin.learned:
            norm._parameters[name] = _parameter(value, kept.get(name, like))
    norm._buffers["running_mean"] = _rounded(numbers.mean, kept.get("running_mean", like))
    norm._buffers["running_var"] = _rounded(numbers.var, kept.get("running_var", like))
    fresh = torch.tensor(0, device=like.device)
    norm._buffers["num_batches_tracked"] = kept.get("num_batches_tracked", fresh)
    return norm


def _parameter(value: Tensor, like: Tensor) -> nn.Parameter:
    return nn.Parameter(_rounded(value, like), requires_grad=like.requires_grad)


def _rounded(value: Tensor, like: Tensor) -> Tensor:
    rounded = value.detach().to(device=like.device, dtype=like.dtype)
    if not bool(rounded.isfinite().all()):
        raise RefusedError(f"a value of the collapsed layers does not fit {like.dtype}")
    return rounded.clone()

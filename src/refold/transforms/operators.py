"""Tensors in and out of the algebra: what every transform shares."""

from __future__ import annotations

import torch
from torch import Tensor

from refold.algebra.geometry import Axes, Axis
from refold.algebra.operator import Conv, Refusal
from refold.errors import GeometryError, RefusedError
from refold.rules.rule import Outcome

Branch = tuple[Tensor, Tensor | None]
"""A convolution's weight (O, I/groups, *kernel) and bias (O,) or None."""


def convolution(
    weight: Tensor,
    bias: Tensor | None,
    groups: int = 1,
    *,
    axes: Axes | None = None,
    transposed: bool = False,
) -> Conv:
    """Return weight and bias as an operator; unpadded with stride 1 where no windows are given.

    Raises:
        GeometryError: when weight, bias and groups do not fit together.
    """
    if weight.ndim < 2:
        raise GeometryError(
            f"a weight has at least 2 axes (O, I/groups, *kernel), got {tuple(weight.shape)}"
        )
    if groups < 1 or weight.shape[0] % groups:
        raise GeometryError(
            f"groups {groups} does not divide the weight's {weight.shape[0]} channels"
        )
    windows = tuple(Axis(size) for size in weight.shape[2:]) if axes is None else axes
    conv = Conv(weight, bias, windows, groups, transposed=transposed)
    if bias is not None and tuple(bias.shape) != (conv.out_channels,):
        raise GeometryError(
            f"bias {tuple(bias.shape)} does not fit {conv.out_channels} output channels"
        )
    return conv


def accepted(outcome: Outcome, name: str) -> Conv:
    """Return the convolution a rule made.

    Raises:
        RefusedError: with the rule's reason when it made none.
    """
    if isinstance(outcome, Conv):
        return outcome
    reason = (
        outcome.reason if isinstance(outcome, Refusal) else "the channels of the two do not fit"
    )
    raise RefusedError(f"{name}: {reason}")


def tensors(conv: Conv, dtype: torch.dtype) -> Branch:
    """Return an operator's weight and bias, rounded once to `dtype`."""
    return conv.weight.to(dtype), None if conv.bias is None else conv.bias.to(dtype)


def biased(conv: Conv, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return weight and bias, zeros for a missing bias."""
    weight, bias = tensors(conv, dtype)
    return weight, weight.new_zeros(conv.out_channels) if bias is None else bias

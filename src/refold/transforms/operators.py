"""Tensors in and out of the algebra: what every transform shares."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from refold.algebra.geometry import Axes, Axis
from refold.algebra.operator import Conv, Refusal
from refold.errors import GeometryError, RefusedError
from refold.rules.rule import Outcome

Branch = tuple[Tensor, Tensor | None]
"""A convolution's weight (O, I/groups, *kernel) and bias (O,) or None."""
Size = int | Sequence[int]
"""torch's `int or tuple`: one number for every axis, or one an axis."""


def sizes(value: Size, ndim: int, name: str) -> tuple[int, ...]:
    """Return one int an axis.

    Raises:
        GeometryError: when there are neither one nor `ndim` of them.
    """
    numbers = (value,) * ndim if isinstance(value, int) else tuple(value)
    if len(numbers) != ndim:
        raise GeometryError(
            f"{name} {value} does not fit {ndim} spatial axes: give an int or {ndim} of them"
        )
    return numbers


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

"""Leaves that the tables of cases are made of, all on maps of four channels."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

import torch
from torch import Tensor

from helpers.strategies import Maker
from refold.algebra.geometry import Axis
from refold.algebra.operator import (
    Affine,
    AvgPool,
    Conv,
    Operator,
    Pad,
    Resample,
    Select,
    Sequence,
    points,
)

MAKER = Maker(Random(7), 2)
SHAPE = (4, 6, 5)
NEAR, BARE = (Axis(3, 1, 1, 1, 1),) * 2, (Axis(3),) * 2
HALF, SIDE = (Axis(3, 2, 1, 1, 1),) * 2, (Axis(3, 1, 1, 1, 1), Axis())
CROPPED = (Axis(1, 1, 1, -1, 0), Axis(1, 1, 1, 0, -1))
CROP, RING = Pad(((-1, -1), (-1, 0))), Pad(((1, 1), (0, 1)))


@dataclass(frozen=True)
class Row:
    """Windows that a rule rewrites, and windows that it refuses (reason) or passes over (None)."""

    accepts: tuple[Operator, ...]
    refuses: tuple[tuple[Operator, str | None], ...]


def tensor(*shape: int) -> Tensor:
    return MAKER.tensor(*shape)


def conv(
    axes: tuple[Axis, ...], groups: int = 1, out: int = 4, bias: bool = True, mode: str = "zeros"
) -> Conv:
    weight = tensor(out, 4 // groups, *(axis.kernel for axis in axes))
    return Conv(weight, tensor(out) if bias else None, axes, groups, mode)


def scatter(axes: tuple[Axis, ...], groups: int = 1, bias: bool = True) -> Conv:
    weight = tensor(4, 4 // groups, *(axis.kernel for axis in axes))
    return Conv(weight, tensor(4) if bias else None, axes, groups, transposed=True)


def pair(*parts: Operator) -> Sequence:
    return Sequence(parts)


def mean_of(x: Tensor) -> Tensor:
    return x.flatten(2).mean(2)


NORM, SCALE, SHIFT = Affine(tensor(4), tensor(4)), Affine(tensor(4)), Affine(None, tensor(4))
FACTOR, OTHER = Affine(torch.tensor(-1.5)), Affine(tensor(3), tensor(3))
POINT, PLAIN = conv(points(2)), conv(points(2), bias=False)
KERNEL, POOL, PADDED_POOL = conv(NEAR), AvgPool((Axis(2, 2),) * 2), AvgPool(NEAR)
FULL = conv((Axis(3, 1, 1, 2, 2),) * 2, bias=False)
DEEP, TURN = scatter((Axis(2, 2),) * 2), scatter(points(2), bias=False)
MEAN, CHOICE = Resample(mean_of, 0, 0.0), Select((3, 1, 0, 2), 4)
SOME, LAST = Select((0, 2), 4), Select((2, 3), 4)
FIRST = Select((0, 1), 4)


def half_conv(axes: tuple[Axis, ...], out: int = 2, bias: bool = True) -> Conv:
    weight = tensor(out, 2, *(axis.kernel for axis in axes))
    return Conv(weight, tensor(out) if bias else None, axes)

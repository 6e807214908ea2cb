"""Cases of the rule for convolutions beside a linear layer on the flattened map."""

from __future__ import annotations

from torch import Tensor

from refold.algebra.geometry import Axis
from refold.algebra.operator import (
    AvgPool,
    Conv,
    Flatten,
    Identity,
    Input,
    Operator,
    Sum,
    points,
    sequence,
)
from refold.algebra.row import Reshaped, Unflatten
from rules.parts import HALF, KERNEL, MEAN, NEAR, NORM, POINT, Row, conv, scatter, tensor

SIZE = (6, 5)


def row_of(x: Tensor) -> Tensor:
    return x.flatten(1)


def line_of(x: Tensor) -> Tensor:
    return x.flatten(2)


def matrix(out: int = 120, rank: int = 0, groups: int = 1) -> Conv:
    weight = tensor(out, 120 // groups, *(1,) * rank)
    return Conv(weight, tensor(out), points(rank), groups)


def full(rank: int = 0, groups: int = 1) -> Operator:
    return sequence(Flatten(SIZE, rank), matrix(120, rank, groups), Unflatten(SIZE, rank))


def line(x: str, *parts: Operator) -> Operator:
    return sequence(Input(x, 4), *parts)


SMALLER = sequence(Flatten(SIZE), matrix(36), Unflatten((3, 3)))
LARGER = sequence(Flatten(SIZE, 2), matrix(480, 2, 2), Unflatten((12, 10), 2))
SQUEEZED = (Flatten(SIZE, 2), matrix(120, 2, 2), Reshaped(row_of, 0, 1.0, 2), Unflatten(SIZE))

ROWS: dict[str, Row] = {
    "add_to_matrix": Row(
        (
            Sum((full(), KERNEL, POINT, Identity(), NORM, AvgPool(NEAR))),
            Sum((conv(NEAR, 2), sequence(*SQUEEZED), conv(points(2), 4), Identity())),
            Sum((full(2, 4), sequence(KERNEL, NORM, conv(points(2), 2)))),
            Sum((full(), full(2, 2), Identity())),
            Sum((conv(NEAR, mode="circular"), conv(NEAR, 2, mode="reflect"), full())),
            Sum((SMALLER, conv(HALF), sequence(KERNEL, conv((Axis(1, 2),) * 2)))),
            Sum((LARGER, scatter((Axis(2, 2),) * 2, 2))),
            Sum(
                (
                    sequence(Flatten(SIZE), matrix(7)),
                    sequence(KERNEL, Flatten(SIZE), matrix(7)),
                    sequence(Flatten(SIZE, 2), matrix(7, 2), Reshaped(row_of, 0, 1.0, 2)),
                    sequence(
                        *SQUEEZED, conv((Axis(6), Axis(5))), Flatten((1, 1)), Conv(tensor(7, 4))
                    ),
                )
            ),
            Sum((sequence(NORM, Flatten(SIZE)), sequence(Flatten(SIZE), matrix()))),
        ),
        (
            (Sum((full(), conv(HALF))), r"gives maps of \(3, 3\) where the linear layer gives"),
            (Sum((sequence(Flatten(SIZE), matrix()), KERNEL)), r"gives maps of \(6, 5\) where"),
            (Sum((full(), conv(NEAR, out=3))), r"different channels \(in, out\)"),
            (Sum((full(), sequence(MEAN, Conv(tensor(4, 4))))), "Resample is not a convolution"),
            (Sum((full(), sequence(KERNEL, Reshaped(line_of, 1)))), "change their layout"),
            (Sum((KERNEL, sequence(Flatten(SIZE), Unflatten(SIZE)))), None),
            (Sum((KERNEL, sequence(Flatten(SIZE), matrix(), MEAN))), None),
            (Sum((line("x", full()), line("y", KERNEL))), None),
            (full(), None),
        ),
    ),
}

"""Cases of the rules for sums and concatenations."""

from __future__ import annotations

from refold.algebra.geometry import Axis
from refold.algebra.operator import (
    Affine,
    AvgPool,
    Concat,
    Conv,
    Identity,
    Input,
    Pad,
    Sum,
    Zero,
    points,
    sequence,
)
from rules.parts import (
    BARE,
    CHOICE,
    DEEP,
    FACTOR,
    FIRST,
    HALF,
    KERNEL,
    LAST,
    MEAN,
    NEAR,
    NORM,
    OTHER,
    PLAIN,
    POINT,
    SIDE,
    TURN,
    Row,
    conv,
    half_conv,
    scatter,
    tensor,
)

JOINS: dict[str, Row] = {
    "drop_zero_branches": Row(
        (Sum((KERNEL, Zero())), Sum((Zero(), Zero())), Sum((sequence(NORM, Zero()), NORM, POINT))),
        ((Sum((KERNEL, KERNEL)), None),),
    ),
    "add_branches": Row(
        (
            Sum((KERNEL, POINT, Identity(), NORM, AvgPool(NEAR))),
            Sum((KERNEL, KERNEL)),
            Sum((conv(NEAR, 4), conv((Axis(3, 1, 2, 2, 2),) * 2, 2), conv(SIDE))),
            Sum((conv(NEAR, mode="reflect"), POINT, Identity())),
            Sum((NORM, FACTOR, Identity())),
            Sum(
                (
                    conv((Axis(5, 2, 1, 2, 2),) * 2),
                    conv((Axis(2, 2, 1, 0, 1),) * 2, 2),
                    conv((Axis(1, 2),) * 2),
                )
            ),
            Sum((scatter(NEAR), POINT, Identity(), scatter(SIDE, 2))),
            Sum((KERNEL, TURN)),
            Sum((conv(BARE), Pad(((-1, -1), (-1, -1))))),
            Sum((KERNEL, sequence(AvgPool(NEAR), FACTOR), CHOICE)),
        ),
        (
            (Sum((KERNEL, conv((Axis(1, 2),) * 2))), r"strides differ: \[1, 2\]"),
            (
                Sum((conv(HALF), conv((Axis(2, 2),) * 2))),
                "do not have the same size for every input",
            ),
            (
                Sum((conv(NEAR, mode="reflect"), KERNEL)),
                r"branches pad differently: \['reflect', 'zeros'\]",
            ),
            (Sum((conv(NEAR, mode="reflect"), AvgPool(NEAR))), "branches pad differently"),
            (Sum((conv(NEAR, out=2), Identity())), "needs equal channels, got 4 in and"),
            (Sum((AvgPool(NEAR), FACTOR)), "the number of channels is unknown"),
            (Sum((AvgPool(NEAR), CHOICE)), "no branch holds a weight"),
            (
                Sum((scatter(NEAR), KERNEL)),
                "a transposed convolution does not add to an ordinary one",
            ),
            (Sum((KERNEL, OTHER)), "3 scales do not fit 4 channels"),
            (Sum((KERNEL, sequence(POINT, KERNEL))), "a bias meets"),
            (Sum((sequence(Input("a"), KERNEL), sequence(Input("b"), KERNEL))), None),
            (Sum((KERNEL, MEAN)), None),
        ),
    ),
    "concat_slices": Row(
        (
            Concat((sequence(FIRST, half_conv(NEAR)), sequence(LAST, half_conv(NEAR)))),
            Concat((sequence(FIRST, half_conv(NEAR)), sequence(LAST, half_conv(points(2))))),
            Concat((sequence(FIRST, Affine(tensor(2), tensor(2))), LAST)),
            Concat((FIRST, LAST)),
        ),
        (
            (
                Concat((sequence(FIRST, half_conv(NEAR)), sequence(LAST, half_conv(HALF)))),
                "strides differ",
            ),
            (Concat((sequence(FIRST, half_conv(NEAR)), sequence(LAST, half_conv(NEAR, 4)))), None),
            (Concat((sequence(LAST, half_conv(NEAR)), sequence(FIRST, half_conv(NEAR)))), None),
            (
                Concat(
                    (
                        FIRST,
                        sequence(
                            LAST, Conv(tensor(2, 2, 2, 2), None, (Axis(2, 2),) * 2, transposed=True)
                        ),
                    )
                ),
                "stay apart",
            ),
        ),
    ),
    "concat_branches": Row(
        (
            Concat((KERNEL, POINT, conv(NEAR, 4, out=8))),
            Concat((KERNEL, Identity(), NORM, AvgPool(NEAR))),
            Concat((conv(NEAR, mode="circular"), POINT)),
            Concat((KERNEL, TURN, CHOICE)),
        ),
        (
            (Concat((KERNEL, conv(HALF))), "strides differ"),
            (Concat((KERNEL, conv(NEAR, mode="reflect"))), "branches pad differently"),
            (Concat((KERNEL, DEEP)), "stay apart"),
            (Concat((KERNEL, half_conv(NEAR))), "branches read different numbers of channels"),
            (Concat((NORM, NORM)), None),
        ),
    ),
    "stack_heads": Row(
        (
            Concat((sequence(KERNEL, POINT), sequence(conv(NEAR, out=2), half_conv(SIDE)))),
            Sum((sequence(POINT, KERNEL), sequence(PLAIN, conv(NEAR, 2)))),
            Concat((sequence(FIRST, half_conv(NEAR), MEAN), sequence(LAST, half_conv(NEAR), MEAN))),
            Concat((sequence(PLAIN, MEAN), sequence(POINT, MEAN), sequence(POINT, NORM, MEAN))),
        ),
        (
            (Concat((sequence(KERNEL, POINT), sequence(POINT, POINT))), None),
            (Concat((sequence(KERNEL, POINT), KERNEL)), None),
            (Sum((sequence(TURN, POINT), sequence(TURN, POINT))), None),
            (Sum((sequence(conv(NEAR, 2), POINT), sequence(conv(NEAR, 2), POINT))), None),
            (
                Sum((sequence(Input("a"), KERNEL, POINT), sequence(Input("b"), KERNEL, POINT))),
                None,
            ),
            (
                Sum((sequence(LAST, half_conv(NEAR), MEAN), sequence(LAST, half_conv(NEAR), MEAN))),
                None,
            ),
            (sequence(KERNEL, POINT), None),
        ),
    ),
}

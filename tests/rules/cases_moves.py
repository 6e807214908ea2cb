"""Cases of the rules that move operators: commuting, distributing, and the last resort."""

from __future__ import annotations

import torch

from refold.algebra.geometry import Axis
from refold.algebra.operator import (
    Affine,
    AvgPool,
    Concat,
    Conv,
    Flatten,
    Identity,
    Input,
    Pad,
    Patches,
    Select,
    Sum,
    Zero,
    blocks,
    points,
    sequence,
)
from rules.parts import (
    BARE,
    CHOICE,
    CROP,
    FACTOR,
    HALF,
    KERNEL,
    MEAN,
    NEAR,
    NORM,
    PADDED_POOL,
    PLAIN,
    POINT,
    POOL,
    RING,
    SCALE,
    SHIFT,
    SOME,
    Row,
    conv,
    pair,
    scatter,
    tensor,
)

EVEN, ODD = (AvgPool((Axis(1, 2, 1, -at), Axis())) for at in (0, 1))
BLOCKS = Patches(blocks(2, 1), (1, 0, 2))
WINDOWS = Patches((Axis(3, 2, 1), Axis(2, 1, 2)), (2, 0, 1))
RINGED = Patches((Axis(3, 2, 1, 1, 1), Axis(2)), (0, 1, 2))
SPREAD = (Axis(3, 1, 2, 2, 2), Axis())

MOVES: dict[str, Row] = {
    "pass_affine_forward": Row(
        (
            pair(NORM, MEAN),
            pair(NORM, POOL),
            pair(SCALE, PADDED_POOL),
            pair(NORM, CHOICE),
            pair(NORM, Flatten((6, 5))),
            pair(NORM, Pad(((1, 1), (0, 0)), "reflect")),
            pair(SCALE, RING),
            pair(NORM, CROP),
            pair(FACTOR, SOME),
            pair(NORM, WINDOWS),
            pair(SCALE, RINGED),
        ),
        (
            (pair(NORM, PADDED_POOL), "a constant meets the border zeros that the pool counts"),
            (pair(NORM, AvgPool((Axis(2, 2),) * 2, 3)), "a constant meets the border zeros"),
            (pair(NORM, RING), "a constant meets zero padding"),
            (pair(NORM, RINGED), "a constant meets the zeros in windows at the border"),
            (pair(SCALE, Pad(((1, 1), (0, 0)), value=2.0)), "the ring's constant would be scaled"),
            (pair(NORM, KERNEL), None),
        ),
    ),
    "pass_affine_backward": Row(
        (
            pair(MEAN, NORM),
            pair(POOL, NORM),
            pair(RING, SCALE),
            pair(CHOICE, NORM),
            pair(Flatten((6, 5)), FACTOR),
            pair(WINDOWS, FACTOR),
        ),
        (
            (pair(PADDED_POOL, NORM), "a constant meets the border zeros that the pool counts"),
            (pair(RING, SHIFT), "a constant meets zero padding"),
            (pair(SOME, Affine(tensor(2))), None),
            (pair(WINDOWS, Affine(tensor(24))), None),
            (
                pair(RINGED, Affine(None, torch.tensor(2.0))),
                "a constant meets the zeros in windows at the border",
            ),
            (pair(Flatten((6, 5)), Affine(tensor(120))), None),
        ),
    ),
    "pass_pointwise_forward": Row(
        (
            pair(POINT, MEAN),
            pair(POINT, POOL),
            pair(PLAIN, PADDED_POOL),
            pair(PLAIN, RING),
            pair(POINT, CROP),
        ),
        (
            (pair(POINT, PADDED_POOL), "a constant meets the border zeros that the pool counts"),
            (pair(POINT, RING), "a constant meets zero padding"),
            (pair(conv(points(2), 2), MEAN), "has no plain linear form"),
            (pair(KERNEL, MEAN), None),
        ),
    ),
    "pass_pointwise_backward": Row(
        (pair(MEAN, Conv(tensor(3, 4), tensor(3))), pair(POOL, POINT), pair(PADDED_POOL, PLAIN)),
        (
            (pair(PADDED_POOL, POINT), "a constant meets the border zeros that the pool counts"),
            (pair(RING, POINT), "a constant meets zero padding"),
            (pair(POOL, KERNEL), None),
        ),
    ),
    "distribute_over_sum": Row(
        (
            pair(Sum((KERNEL, Identity())), NORM),
            pair(Sum((POINT, NORM)), KERNEL),
            pair(Sum((NORM, POINT)), Pad(((1, 1), (1, 1)), value=2.0)),
        ),
        ((pair(KERNEL, NORM), None),),
    ),
    "distribute_over_concat": Row(
        (
            pair(Concat((KERNEL, POINT)), Conv(tensor(3, 8, 1, 1), tensor(3), points(2))),
            pair(
                Concat((conv(points(2), out=2), Identity())),
                Conv(tensor(6, 3, 3, 3), None, BARE, 2),
            ),
            pair(Concat((KERNEL, POINT)), Affine(tensor(8), tensor(8))),
            pair(Concat((KERNEL, NORM)), Affine(torch.tensor(2.0))),
            pair(Concat((KERNEL, POINT)), Select((1, 0, 5), 8)),
            pair(
                Concat((KERNEL, sequence(Sum((POINT, NORM)), FACTOR))),
                Conv(tensor(8, 3, 2, 2), None, (Axis(2, 2),) * 2, transposed=True),
            ),
        ),
        (
            (
                pair(Concat((Identity(), Identity())), Affine(tensor(8))),
                "numbers of channels are unknown",
            ),
            (pair(Concat((KERNEL, POINT)), POOL), None),
            (pair(Concat((KERNEL, POINT)), Select((0, 4, 1), 8)), None),
        ),
    ),
    "merge_phases": Row(
        (
            pair(Concat((EVEN, ODD)), Conv(tensor(3, 8, 3, 3), tensor(3), NEAR)),
            pair(Concat((ODD, EVEN)), Conv(tensor(3, 8, 2, 1), None, (Axis(2, 2), Axis()))),
            pair(Concat((EVEN, ODD)), Conv(tensor(3, 8, 1, 3), None, (Axis(), Axis(3, 1, 2)))),
        ),
        (
            (pair(Concat((EVEN, EVEN)), Conv(tensor(3, 8, 1, 1), None, points(2))), None),
            (pair(Concat((EVEN, ODD)), Conv(tensor(4, 4, 1, 1), None, points(2), 2)), None),
            (pair(Concat((EVEN, ODD)), Conv(tensor(3, 8, 3, 1), None, SPREAD)), None),
            (pair(Concat((EVEN, ODD)), Conv(tensor(3, 8, 3, 3), None, NEAR, 1, "reflect")), None),
            (pair(Concat((EVEN, KERNEL)), Conv(tensor(4, 8, 1, 1), None, points(2))), None),
            (pair(EVEN, KERNEL), None),
        ),
    ),
    "merge_patches": Row(
        (
            pair(BLOCKS, Conv(tensor(3, 8, 3, 3), tensor(3), NEAR)),
            pair(WINDOWS, Conv(tensor(3, 24, 1, 1), tensor(3), points(2))),
            pair(RINGED, Conv(tensor(4, 12, 1, 1), None, points(2), 2)),
            pair(
                Patches(blocks(3, 1), (1, 2, 0)),
                Conv(tensor(2, 12, 1, 2), None, (Axis(), Axis(2, 2))),
            ),
            pair(
                Patches(blocks(1, 5), (2, 0, 1)), Conv(tensor(2, 20, 2, 1), None, (Axis(2), Axis()))
            ),
        ),
        (
            (pair(BLOCKS, Conv(tensor(4, 4, 1, 1), None, points(2), 2)), None),
            (pair(WINDOWS, Conv(tensor(3, 24, 2, 1), None, (Axis(2), Axis()))), None),
            (pair(RINGED, Conv(tensor(8, 3, 1, 1), None, points(2), 8)), None),
            (pair(WINDOWS, scatter(points(2))), None),
            (pair(BLOCKS, Conv(tensor(3, 8, 3, 1), None, SPREAD)), None),
            (pair(BLOCKS, Conv(tensor(3, 8, 3, 3), None, NEAR, 1, "reflect")), None),
            (pair(BLOCKS, NORM), None),
        ),
    ),
    "gather_from_concat": Row(
        (
            pair(
                Concat((KERNEL, sequence(POINT, NORM))), Conv(tensor(3, 8, 1, 1), None, points(2))
            ),
            pair(
                Concat((sequence(NORM, CROP), sequence(POINT, SCALE, CROP))),
                Conv(tensor(3, 8, 1, 1), None, points(2)),
            ),
            pair(Concat((NORM, SCALE)), Conv(tensor(6, 4, 3, 3), tensor(6), BARE, 2)),
            pair(Concat((KERNEL, sequence(PLAIN, FACTOR))), Conv(tensor(5, 8, 3, 3), None, NEAR)),
            pair(Concat((NORM, sequence(POINT, SCALE))), Conv(tensor(4, 8, 3, 3), None, NEAR)),
            pair(Concat((SHIFT, KERNEL)), Conv(tensor(4, 8, 3, 3), None, NEAR, mode="reflect")),
            pair(
                Concat((sequence(KERNEL, SCALE), NORM)),
                Conv(tensor(8, 3, 2, 2), None, (Axis(2, 2),) * 2, transposed=True),
            ),
        ),
        (
            (
                pair(Concat((KERNEL, NORM)), Conv(tensor(4, 8, 3, 3), None, NEAR)),
                "a shift meets the convolution's zero padding",
            ),
            (
                pair(Concat((FACTOR, Identity())), Conv(tensor(4, 8, 1, 1), None, points(2))),
                "numbers of channels are unknown",
            ),
            (pair(Concat((KERNEL, POINT)), Conv(tensor(4, 8, 1, 1), None, points(2))), None),
            (pair(Concat((KERNEL, NORM)), NORM), None),
            (
                pair(
                    Concat((sequence(NORM, PADDED_POOL), KERNEL)),
                    Conv(tensor(4, 8, 1, 1), None, points(2)),
                ),
                None,
            ),
        ),
    ),
    "distribute_into_join": Row(
        (
            pair(KERNEL, Sum((Identity(), AvgPool(NEAR)))),
            pair(NORM, Concat((KERNEL, Identity()))),
            pair(RING, Sum((NORM, POINT, Zero()))),
        ),
        ((pair(KERNEL, Sum((Input("x"), NORM))), None), (pair(Sum((KERNEL, NORM)), NORM), None)),
    ),
    "merge_into_conv": Row(
        (
            pair(POOL, NORM),
            pair(AvgPool(NEAR, 5), SCALE),
            pair(CROP, SCALE),
            pair(NORM, Pad(((1, 1), (1, 1)), "reflect")),
        ),
        (
            (pair(NORM, PADDED_POOL), "a bias meets the second convolution's zero padding"),
            (pair(Pad(((1, 0), (0, 0)), value=2.0), NORM), "the ring is filled with 2.0"),
            (pair(NORM, CHOICE), "the number of spatial axes is unknown"),
            (pair(POOL, FACTOR), None),
            (pair(CHOICE, POOL), None),
            (pair(KERNEL, NORM), None),
        ),
    ),
    "pass_select_forward": Row(
        (
            pair(CHOICE, conv(NEAR, 4)),
            pair(CHOICE, conv(HALF, 4, bias=False)),
            pair(CHOICE, PADDED_POOL),
            pair(CHOICE, RING),
        ),
        (
            (pair(SOME, Conv(tensor(2, 1, 3, 3), None, NEAR, 2)), None),
            (pair(SOME, POOL), None),
            (pair(CHOICE, conv(NEAR, 2)), None),
            (pair(CHOICE, KERNEL), None),
        ),
    ),
    "pass_select_backward": Row(
        (
            pair(conv(NEAR, 4), CHOICE),
            pair(conv(NEAR, 4, bias=False), SOME),
            pair(conv(HALF, 4), Select((1, 1, 0), 4)),
            pair(PADDED_POOL, SOME),
            pair(RING, CHOICE),
        ),
        (
            (pair(conv(NEAR, 2), CHOICE), None),
            (pair(scatter(NEAR, 4), CHOICE), None),
            (pair(CHOICE, conv(NEAR, 4)), None),
        ),
    ),
}

"""Cases of the rules for two operators in series."""

from __future__ import annotations

from refold.algebra.geometry import Axis
from refold.algebra.operator import Affine, Conv, Pad, Select, points
from rules.parts import (
    BARE,
    CHOICE,
    CROP,
    CROPPED,
    DEEP,
    FACTOR,
    FIRST,
    FULL,
    HALF,
    KERNEL,
    NEAR,
    NORM,
    OTHER,
    PADDED_POOL,
    PLAIN,
    POINT,
    POOL,
    RING,
    SCALE,
    SHIFT,
    SIDE,
    SOME,
    TURN,
    Row,
    conv,
    half_conv,
    pair,
    scatter,
    tensor,
)

SERIES: dict[str, Row] = {
    "drop_empty_pad": Row(
        (
            pair(Pad(((0, 0), (0, 0)), "reflect"), KERNEL),
            pair(KERNEL, Pad(((0, 0), (0, 0)))),
            pair(RING, Pad(((1, 0), (2, 0)))),
            pair(Pad(((1, 1), (1, 1)), value=2.0), CROP),
            pair(CROP, Pad(((-1, 0), (0, 0)), "reflect")),
            pair(RING, Pad(((-1, -1), (0, -1)))),
        ),
        (
            (pair(CROP, RING), "what was cropped is filled with zeros again"),
            (
                pair(RING, Pad(((1, 0), (0, 0)), value=2.0)),
                "a ring of 0.0 lies inside a ring of 2.0",
            ),
            (pair(RING, Pad(((1, 1), (1, 1)), "reflect")), None),
        ),
    ),
    "merge_selects": Row(
        (
            pair(SOME, Select((1, 1, 0), 2)),
            pair(Select((0, 1, 2, 3), 4), KERNEL),
            pair(KERNEL, Select((0, 1, 2, 3), 4)),
        ),
        ((pair(SOME, NORM), None),),
    ),
    "merge_affines": Row(
        (pair(NORM, NORM), pair(SHIFT, FACTOR), pair(FACTOR, SHIFT), pair(Affine(), Affine())),
        ((pair(NORM, KERNEL), None),),
    ),
    "fold_affine_into_conv": Row(
        (
            pair(KERNEL, NORM),
            pair(conv(NEAR, 2), FACTOR),
            pair(DEEP, NORM),
            pair(scatter(BARE, 2), SCALE),
            pair(PLAIN, SHIFT),
        ),
        ((pair(KERNEL, OTHER), "3 factors do not fit 4 channels"), (pair(NORM, KERNEL), None)),
    ),
    "fold_affine_ahead_of_conv": Row(
        (
            pair(NORM, conv(BARE)),
            pair(NORM, conv(NEAR, 2, mode="reflect")),
            pair(SCALE, KERNEL),
            pair(SCALE, scatter(BARE, 2)),
            pair(NORM, TURN),
            pair(SHIFT, conv(BARE, 4)),
        ),
        (
            (pair(NORM, KERNEL), "a shift meets the convolution's zero padding"),
            (pair(SHIFT, DEEP), "a shift before a transposed convolution"),
            (pair(OTHER, PLAIN), "3 factors do not fit 4 channels"),
        ),
    ),
    "fold_pad_into_window": Row(
        (
            pair(RING, KERNEL),
            pair(RING, PADDED_POOL),
            pair(CROP, conv(BARE)),
            pair(Pad(((1, 2), (1, 0)), "reflect"), conv(BARE)),
            pair(Pad(((2, 2), (2, 2)), "circular"), conv((Axis(3, 1, 1, -1, 0),) * 2)),
            pair(CROP, conv(BARE, mode="reflect")),
        ),
        (
            (pair(RING, DEEP), "a pad before a transposed convolution adds outputs"),
            (pair(Pad(((1, 0), (0, 0)), value=2.0), KERNEL), "the ring is filled with 2.0"),
            (pair(Pad(((1, 1), (0, 0)), "reflect"), KERNEL), "reflect padding meets zeros padding"),
            (pair(Pad(((1, 1), (0, 0)), "reflect"), conv(NEAR, mode="reflect")), "does not add up"),
            (pair(CROP, conv(NEAR, mode="circular")), "circular padding of a cropped map"),
            (pair(CROP, KERNEL), "what was cropped is filled with zeros again"),
            (pair(Pad(((1, 1), (0, 0)), "replicate"), POOL), "does not add up"),
        ),
    ),
    "fold_crop_into_window": Row(
        (
            pair(KERNEL, CROP),
            pair(conv(HALF), CROP),
            pair(PADDED_POOL, CROP),
            pair(DEEP, CROP),
            pair(conv(BARE, mode="reflect"), CROP),
        ),
        (
            (pair(conv(NEAR, mode="reflect"), CROP), "cropping a reflect-padded map"),
            (pair(KERNEL, RING), None),
        ),
    ),
    "fold_select_into_conv": Row(
        (
            pair(KERNEL, CHOICE),
            pair(conv(NEAR, 2), FIRST),
            pair(conv(NEAR, 2), SOME),
            pair(scatter(BARE, 2), SOME),
        ),
        ((pair(SOME, half_conv(NEAR)), None),),
    ),
    "fold_select_ahead_of_conv": Row(
        (
            pair(SOME, half_conv(NEAR)),
            pair(Select((1, 1, 3, 0), 4), conv(NEAR, 2)),
            pair(CHOICE, DEEP),
        ),
        ((pair(KERNEL, SOME), None),),
    ),
    "merge_convs_in_series": Row(
        (
            pair(POINT, conv(BARE)),
            pair(PLAIN, KERNEL),
            pair(KERNEL, POINT),
            pair(conv(HALF, 2), conv((Axis(2, 2),) * 2, 4)),
            pair(POINT, conv(NEAR, mode="circular")),
            pair(conv(SIDE, bias=False), conv((Axis(), Axis(3, 1, 1, 1, 1)), bias=False)),
            pair(FULL, KERNEL),
            pair(conv((Axis(1, 2),) * 2, bias=False), KERNEL),
            pair(KERNEL, POOL),
            pair(PADDED_POOL, POINT),
            pair(PLAIN, DEEP),
            pair(DEEP, conv(points(2), 2)),
            pair(DEEP, conv(CROPPED)),
            pair(KERNEL, TURN),
            pair(TURN, conv(NEAR, 2)),
        ),
        (
            (pair(POINT, KERNEL), "a bias meets the second convolution's zero padding"),
            (pair(conv(NEAR, bias=False), KERNEL), "would have read beyond the border"),
            (pair(conv(BARE, bias=False), KERNEL), "would have read beyond the border"),
            (pair(POINT, PADDED_POOL), "a bias meets the second convolution's zero padding"),
            (pair(conv(NEAR), conv(NEAR, mode="reflect")), "reflect padding of what the first"),
            (
                pair(conv((Axis(1, 2),) * 2), conv(NEAR, mode="circular")),
                "circular padding of what the first",
            ),
            (
                pair(
                    conv(SIDE, mode="reflect"), conv((Axis(), Axis(3, 1, 1, 1, 1)), mode="circular")
                ),
                "reflect padding meets circular",
            ),
            (
                pair(conv(SIDE, mode="reflect", bias=False), conv((Axis(), Axis(3, 1, 1, 1, 1)))),
                "reflect padding meets zeros",
            ),
            (pair(POINT, DEEP), "a bias before a transposed convolution"),
            (pair(DEEP, KERNEL), "merges with pointwise convolutions only"),
            (pair(conv(CROPPED, bias=False), DEEP), "merges with pointwise convolutions only"),
            (pair(POOL, POOL), None),
            (pair(POINT, Conv(tensor(2, 3, 1, 1), None, points(2))), None),
        ),
    ),
}

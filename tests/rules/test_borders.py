"""Where the border decides: beside each case stands the naive fold that forgets it, shown wrong."""

from __future__ import annotations

from dataclasses import replace
from random import Random

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from helpers.strategies import Maker, gap, matrix_of
from refold.algebra.apply import apply
from refold.algebra.geometry import Axis
from refold.algebra.operator import (
    Affine,
    AvgPool,
    Conv,
    Operator,
    Pad,
    Refusal,
    add,
    leaves,
    points,
    sequence,
)
from refold.engine.simplify import simplify
from refold.rules.norm import fold_affine_ahead_of_conv, response
from refold.rules.series import merge_convs_in_series

WRONG = 1e-3
MAKER = Maker(Random(11), 2)
MAKER.dtype = torch.float64
SHAPE = (3, 6, 5)
RING = (Axis(3, 1, 1, 1, 1),) * 2
BARE, POINT = (Axis(3),) * 2, points(2)


def conv(axes: tuple[Axis, ...], bias: bool = True, mode: str = "zeros") -> Conv:
    weight = MAKER.tensor(3, 3, *(axis.kernel for axis in axes))
    return Conv(weight, MAKER.tensor(3) if bias else None, axes, 1, mode)


def distance(one: Operator, other: Operator) -> float:
    return gap(matrix_of(one, SHAPE, 2), matrix_of(other, SHAPE, 2))


def composed(first: Conv, second: Conv) -> Tensor:
    """Return the kernel of `second` after a pointwise `first`."""
    return torch.einsum("om...,mi->oi...", second.weight, first.weight.flatten(1))


def naive_series(first: Conv, second: Conv) -> Conv:
    """Fold 1x1 into kxk as if the border did not exist: the constant reaches every tap."""
    bias = second.bias
    if first.bias is not None:
        moved = response(second, first.bias)
        bias = moved if bias is None else bias + moved
    return replace(second, weight=composed(first, second), bias=bias)


def naive_norm_first(affine: Affine, second: Conv) -> Conv:
    scale = torch.ones(3, dtype=torch.float64) if affine.scale is None else affine.scale
    shift = torch.zeros(3, dtype=torch.float64) if affine.shift is None else affine.shift
    constant = response(second, shift) + (0 if second.bias is None else second.bias)
    return replace(second, weight=second.weight * scale.reshape(1, -1, 1, 1), bias=constant)


def refused(op: Operator, reason: str) -> bool:
    """Whether nothing was folded, in either mode, and the reason is on record."""
    for growth in (False, True):
        result = simplify(op, allow_growth=growth)
        if len(leaves(result.op)) != len(leaves(op)):
            return False
        if not any(reason in refusal.reason for refusal in result.refusals):
            return False
    return True


def folds(op: Operator) -> bool:
    result = simplify(op, allow_growth=True).op
    return len(leaves(result)) == 1 and distance(op, result) <= 1e-9


def test_biased_1x1_before_a_zero_padded_kernel() -> None:
    first, second = conv(POINT), conv(RING)
    op = sequence(first, second)
    assert refused(op, "a bias meets the second convolution's zero padding")
    assert distance(op, naive_series(first, second)) > WRONG
    assert folds(sequence(replace(first, bias=None), second))
    assert (
        distance(
            sequence(replace(first, bias=None), second),
            naive_series(replace(first, bias=None), second),
        )
        < 1e-12
    )


def test_bnandpad_is_the_accepted_form() -> None:
    """Padding before the biased 1x1 is what DBB's BNAndPad computes: the ring holds the bias."""
    first, second = conv(POINT), conv(BARE)
    ringed = replace(first, axes=(Axis(1, 1, 1, 1, 1),) * 2)
    assert folds(sequence(ringed, second))
    assert folds(sequence(Pad(((1, 1), (1, 1))), first, second))
    naive = naive_series(first, replace(second, axes=RING))
    assert distance(sequence(ringed, second), naive) < 1e-12
    assert distance(sequence(first, Pad(((1, 1), (1, 1))), second), naive) > WRONG
    assert refused(
        sequence(first, Pad(((1, 1), (1, 1)), value=0.5), second), "the ring is filled with 0.5"
    )


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_other_borders_keep_a_constant(mode: str) -> None:
    first, second = conv(POINT), conv(RING, mode=mode)
    assert folds(sequence(first, second))
    assert folds(sequence(Affine(MAKER.tensor(3), MAKER.tensor(3)), second))
    assert folds(sequence(first, Pad(((1, 1), (1, 1)), mode), conv(BARE)))
    assert (
        distance(sequence(first, second), naive_series(first, replace(second, mode="zeros")))
        > WRONG
    )


@pytest.mark.parametrize("mode", ["zeros", "reflect", "replicate", "circular"])
@pytest.mark.parametrize("bias", [False, True])
def test_kernel_before_a_padded_kernel(mode: str, bias: bool) -> None:
    first, second = conv(RING, bias, mode), conv(RING, bias, mode)
    op = sequence(first, second)
    result = merge_convs_in_series(op)
    assert isinstance(result, Refusal)
    reason = "beyond the border" if mode == "zeros" else "padding of what the first convolution"
    assert refused(op, reason)
    merged = merge_convs_in_series(sequence(first, replace(second, axes=BARE)))
    assert isinstance(merged, Conv)
    naive = replace(merged, axes=(Axis(5, 1, 1, 2, 2),) * 2)
    if mode != "circular":
        assert distance(op, naive) > WRONG
        return
    tiny = torch.ones(1, 3, 1, 1, dtype=torch.float64)  # where the wider ring would wrap twice
    assert apply(op, tiny).shape == tiny.shape
    with pytest.raises(RuntimeError, match="wrapping around more than once"):
        apply(naive, tiny)


def test_full_kernels_before_a_zero_padded_kernel() -> None:
    """A first kernel that already read all it could finds only zeros further out."""
    full = conv((Axis(3, 1, 1, 2, 2),) * 2, bias=False)
    assert folds(sequence(full, conv(RING)))
    assert refused(
        sequence(replace(full, axes=(Axis(3, 1, 1, 2, 1),) * 2), conv(RING)), "beyond the border"
    )
    assert folds(
        sequence(replace(full, axes=(Axis(3, 1, 1, 2, 1),) * 2), conv((Axis(2, 1, 1, 1, 0),) * 2))
    )


def test_axes_pad_apart() -> None:
    """1x3 then 3x1, each padded along its own axis, is one 3x3, unless a constant is between."""
    row, column = conv((Axis(), RING[0]), bias=False), conv((RING[0], Axis()))
    assert folds(sequence(row, column))
    biased = replace(row, bias=MAKER.tensor(3))
    assert refused(sequence(biased, column), "a bias meets")


def test_norm_before_a_zero_padded_kernel() -> None:
    affine, second = Affine(MAKER.tensor(3), MAKER.tensor(3)), conv(RING)
    op = sequence(affine, second)
    assert refused(op, "a shift meets the convolution's zero padding")
    assert distance(op, naive_norm_first(affine, second)) > WRONG
    assert folds(sequence(Affine(affine.scale), second))
    assert folds(sequence(affine, conv(BARE)))
    bare = conv(BARE)
    assert distance(sequence(affine, bare), naive_norm_first(affine, bare)) < 1e-12
    assert isinstance(fold_affine_ahead_of_conv(op), Refusal)


def test_norm_before_a_transposed_kernel() -> None:
    affine = Affine(MAKER.tensor(3), MAKER.tensor(3))
    second = Conv(MAKER.tensor(3, 3, 2, 2), None, (Axis(2),) * 2, transposed=True)
    op = sequence(affine, second)
    assert refused(op, "a shift before a transposed convolution")
    scaled = fold_affine_ahead_of_conv(sequence(Affine(affine.scale), second))
    assert isinstance(scaled, Conv)
    assert distance(op, replace(scaled, bias=response(second, affine.shift))) > WRONG  # type: ignore[arg-type]


def test_pools_that_count_zeros() -> None:
    affine, pool = Affine(MAKER.tensor(3), MAKER.tensor(3)), AvgPool(RING)
    op = sequence(affine, pool, conv(BARE))
    assert distance(op, sequence(pool, affine, conv(BARE))) > WRONG
    result = simplify(op, allow_growth=True).op
    assert len(leaves(result)) == 2
    assert distance(op, result) <= 1e-9
    assert folds(sequence(affine, AvgPool((Axis(3),) * 2), conv(BARE)))


def test_pool_branch_beside_a_reflected_kernel() -> None:
    kernel, pool = conv(RING, mode="reflect"), AvgPool(RING)
    op = add(kernel, pool)
    assert refused(op, "branches pad differently")
    naive = kernel.weight.clone()
    naive[range(3), range(3)] += 1 / 9
    assert distance(op, replace(kernel, weight=naive)) > WRONG


def test_cropped_then_padded_is_not_uncropped() -> None:
    op = sequence(Pad(((-1, -1), (0, 0))), conv(RING))
    assert refused(op, "what was cropped is filled with zeros again")
    bare = conv((Axis(3), RING[1]))
    assert distance(sequence(Pad(((-1, -1), (0, 0))), replace(bare, axes=RING)), bare) > WRONG


def test_strided_point_before_mirrored_border() -> None:
    strided = conv((Axis(1, 2),) * 2, bias=False)
    second = conv(RING, mode="reflect")
    op = sequence(strided, second)
    assert refused(op, "reflect padding of what the first convolution")
    weight = composed(strided, second)
    naive = Conv(weight, second.bias, (Axis(3, 2, 2, 2, 2),) * 2, 1, "reflect")
    assert distance(op, naive) > WRONG
    assert folds(sequence(strided, conv(RING)))


def test_a_circular_ring_repeats_what_is_left_after_the_crop() -> None:
    """So has `F.pad` it: as a window over the whole map the ring would repeat what is gone."""
    ring, bare = Pad(((1, -1), (0, 0)), "circular"), conv(BARE)
    x = torch.randn(1, *SHAPE, dtype=torch.float64)
    torch.testing.assert_close(apply(ring, x), F.pad(x, (0, 0, 1, -1), mode="circular"))
    assert refused(sequence(ring, bare), "a crop on one side changes what a circular ring")
    assert folds(sequence(Pad(((1, 0), (0, -1)), "circular"), bare))
    apart = sequence(Pad(((1, 0), (0, 0)), "circular"), Pad(((0, -1), (0, 0))))
    assert distance(sequence(ring, bare), sequence(apart, bare)) > WRONG

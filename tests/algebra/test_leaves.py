"""Every leaf: what `apply` runs, what the oracle says, and what torch's own module computes."""

from __future__ import annotations

from random import Random

import pytest
import torch
from torch import Tensor, nn

from helpers.nightly import some
from helpers.strategies import MODES, Maker, gap, matrix_of, oracle
from refold.algebra.apply import apply
from refold.algebra.dense import to_dense
from refold.algebra.geometry import Axis
from refold.algebra.norm import norm_affine
from refold.algebra.operator import (
    Affine,
    AvgPool,
    Concat,
    Conv,
    Flatten,
    Identity,
    Input,
    Operator,
    Pad,
    Resample,
    Select,
    Zero,
    add,
    sequence,
)
from refold.errors import GeometryError, NotAffineError

EXACT = 1e-12
SHAPES = {0: (4, 3), 1: (4, 6), 2: (4, 5, 4), 3: (4, 4, 3, 4)}
KERNELS = {1: [(1,), (2,), (3,)], 2: [(3, 3), (1, 3), (2, 1)], 3: [(3, 1, 2), (1, 1, 1)]}
WINDOWS = [  # stride, dilation, lo, hi
    (1, 1, 0, 0),
    (1, 1, 1, 1),
    (2, 1, 1, 1),
    (1, 2, 2, 1),
    (2, 2, 1, 2),
    (1, 1, 2, 0),
    (1, 1, -1, 1),
    (1, 1, 1, -1),
    (2, 1, -1, 2),
]


def agrees(op: Operator, shape: tuple[int, ...], rank: int) -> bool:
    return gap(oracle(op, shape), matrix_of(op, shape, rank)) <= EXACT


def axes_of(kernel: tuple[int, ...], window: tuple[int, int, int, int]) -> tuple[Axis, ...]:
    """Return the window on every axis, its crops left out where the map is too small for them."""
    stride, dilation, lo, hi = window
    return tuple(Axis(k, stride, dilation if k > 1 else 1, lo, hi) for k in kernel)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("window", WINDOWS)
@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("groups", some([1, 2, 4], keep=[2]))
def test_conv(rank: int, window: tuple[int, int, int, int], mode: str, groups: int) -> None:
    maker, shape = Maker(Random(rank), rank), SHAPES[rank]
    for kernel in KERNELS[rank]:
        axes = axes_of(kernel, window)
        torn = mode == "circular" and any(a.lo * a.hi < 0 for a in axes)
        if torn or min(a.out_size(n) for a, n in zip(axes, shape[1:], strict=True)) < 1:
            continue
        weight = maker.tensor(8 if groups == 4 else 2, 4 // groups, *kernel)
        assert agrees(Conv(weight, maker.tensor(len(weight)), axes, groups, mode), shape, rank)
        assert agrees(Conv(weight, None, axes, groups, mode), shape, rank)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
def test_linear_is_a_conv_of_rank_0(groups: int, transposed: bool) -> None:
    maker = Maker(Random(0), 0)
    weight = maker.tensor(4, 8 // groups) if transposed else maker.tensor(8, 4 // groups)
    op = Conv(weight, maker.tensor(8), (), groups, transposed=transposed)
    x = torch.randn(5, 7, 4, dtype=torch.float64, generator=maker.noise)  # tokens, channels last
    dense = to_dense(op, (4, 1))
    torch.testing.assert_close(apply(op, x, 0), x @ dense.matrix.T + dense.offset)


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize(
    ("stride", "dilation", "crop", "extra"),
    [(1, 1, 0, 0), (2, 1, 1, 1), (3, 1, 0, 2), (2, 2, 1, 0)],
)
@pytest.mark.parametrize("groups", [1, 2])
def test_transposed_conv(
    rank: int, stride: int, dilation: int, crop: int, extra: int, groups: int
) -> None:
    """Output padding is a negative crop at the end, as torch has it."""
    layer = [nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d][rank - 1](
        4, 6, 3, stride, crop, extra, groups, dilation=dilation, dtype=torch.float64
    )
    op = Conv(
        layer.weight.detach(),
        layer.bias.detach(),  # type: ignore[union-attr]
        (Axis(3, stride, dilation, crop, crop - extra),) * rank,
        groups,
        transposed=True,
    )
    assert op.in_channels == 4
    assert op.out_channels == 6
    shape = (4, *(3,) * rank)
    assert agrees(op, shape, rank)
    x = torch.randn(2, *shape, dtype=torch.float64)
    torch.testing.assert_close(apply(op, x, rank), layer(x))


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("rank", [1, 2, 3])
def test_conv_is_torchs(mode: str, rank: int) -> None:
    layer = [nn.Conv1d, nn.Conv2d, nn.Conv3d][rank - 1](
        4, 6, 3, 2, 1, 1, 2, padding_mode=mode, dtype=torch.float64
    )
    axes = (Axis(3, 2, 1, 1, 1),) * rank
    op = Conv(layer.weight.detach(), layer.bias.detach(), axes, 2, mode)  # type: ignore[union-attr]
    x = torch.randn(2, *SHAPES[rank], dtype=torch.float64)
    torch.testing.assert_close(apply(op, x, rank), layer(x))


@pytest.mark.parametrize(("divisor", "padding"), [(None, 0), (None, 1), (5, 1)])
def test_avg_pool(divisor: int | None, padding: int) -> None:
    layer = nn.AvgPool2d((3, 2), (2, 1), padding, divisor_override=divisor)
    axes = (Axis(3, 2, 1, padding, padding), Axis(2, 1, 1, padding, padding))
    op = AvgPool(axes, divisor)
    x = torch.randn(2, *SHAPES[2], dtype=torch.float64)
    torch.testing.assert_close(apply(op, x), layer(x))
    assert agrees(op, SHAPES[2], 2)
    assert agrees(AvgPool((Axis(2, 1, 1, -1, 2),), divisor), SHAPES[1], 1)
    assert agrees(AvgPool((Axis(2),) * 3, divisor), SHAPES[3], 3)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("amounts", [((1, 2), (0, 1)), ((-1, 0), (0, -2)), ((2, -1), (-1, 1))])
def test_pad(mode: str, amounts: tuple[tuple[int, int], ...]) -> None:
    assert agrees(Pad(amounts, mode, 1.5 if mode == "zeros" else 0.0), SHAPES[2], 2)
    assert agrees(Pad(amounts[:1], mode), SHAPES[1], 1)


def test_pad_is_torchs() -> None:
    x = torch.randn(2, *SHAPES[2], dtype=torch.float64)
    layers = {
        "zeros": nn.ConstantPad2d((0, 1, 1, 2), 1.5),
        "reflect": nn.ReflectionPad2d((0, 1, 1, 2)),
        "replicate": nn.ReplicationPad2d((0, 1, 1, 2)),
        "circular": nn.CircularPad2d((0, 1, 1, 2)),
    }
    for mode, layer in layers.items():
        op = Pad(((1, 2), (0, 1)), mode, 1.5 if mode == "zeros" else 0.0)
        torch.testing.assert_close(apply(op, x), layer(x))


@pytest.mark.parametrize("rank", [0, 1, 2, 3])
def test_channelwise_leaves(rank: int) -> None:
    maker, shape = Maker(Random(1), rank), (4, *SHAPES[rank][1:]) if rank else (4,)
    ops = [
        Affine(maker.tensor(4), maker.tensor(4)),
        Affine(maker.tensor(), None),
        Affine(None, maker.tensor()),
        Affine(),
        Select((3, 0, 0), 4),
        Identity(),
        Zero(),
        Input("x", 4),
    ]
    for op in ops:
        assert agrees(op, shape, rank), op


def test_norm_is_torchs() -> None:
    layer = nn.BatchNorm2d(4, eps=1e-3).double().eval()
    for tensor in (layer.running_mean, layer.weight, layer.bias):
        nn.init.normal_(tensor)  # type: ignore[arg-type]
    nn.init.uniform_(layer.running_var, 0.1, 3.0)  # type: ignore[arg-type]
    op = norm_affine(layer.running_mean, layer.running_var, layer.weight, layer.bias, layer.eps)
    x = torch.randn(2, *SHAPES[2], dtype=torch.float64)
    torch.testing.assert_close(apply(op, x), layer(x))
    with pytest.raises(ValueError, match="running statistics"):
        norm_affine(None, None, None, None, 0.0)


def mean_of(x: Tensor) -> Tensor:
    return x.flatten(2).mean(2)


def tokens_of(x: Tensor) -> Tensor:
    return x.flatten(2).transpose(1, 2)


def twice(x: Tensor) -> Tensor:
    return x.repeat_interleave(2, 2).repeat_interleave(2, 3)


def test_resample_and_flatten() -> None:
    maker, shape = Maker(Random(2), 2), (4, 2, 3)
    assert agrees(Resample(twice, 2, 4.0), shape, 2)
    assert agrees(Resample(mean_of, 0, 0.0), shape, 2)
    linear = Conv(maker.tensor(3, 24), maker.tensor(3))
    assert agrees(sequence(Flatten((2, 3)), linear), shape, 2)
    x = torch.randn(2, *shape, dtype=torch.float64)
    op = sequence(Resample(tokens_of, 0), Conv(maker.tensor(3, 4)))
    dense = to_dense(op, shape)
    expected = (dense.matrix @ x.flatten(1).T).T.reshape(2, 3, 6).transpose(1, 2)
    torch.testing.assert_close(apply(op, x), expected)


def test_nested_joins() -> None:
    maker, shape = Maker(Random(3), 2), SHAPES[2]
    near = (Axis(3, 1, 1, 1, 1),) * 2
    branch = sequence(maker.conv(4, 4, near), maker.affine(4, constant=True))
    nested = add(branch, Identity(), sequence(Select((3, 2, 1, 0), 4), AvgPool(near)))
    op = sequence(
        Concat((nested, Select((1, 2), 4))), maker.conv(6, 3, (Axis(2, 2),) * 2), Pad(((0, 1),) * 2)
    )
    assert agrees(op, shape, 2)


def test_several_inputs_are_applied_by_key() -> None:
    op = add(sequence(Input("a"), Affine(torch.tensor(2.0))), Input("b"))
    a, b = torch.randn(1, 2, 3), torch.randn(1, 2, 3)
    torch.testing.assert_close(apply(op, {"a": a, "b": b}, 1), 2 * a + b)


def test_what_does_not_fit_raises() -> None:
    wide = Conv(torch.ones(2, 3, 1), None, (Axis(),))
    with pytest.raises(GeometryError, match="3 channels are required, got 4"):
        to_dense(wide, SHAPES[1])
    with pytest.raises(GeometryError, match="branches of different shapes"):
        to_dense(add(Identity(), Pad(((0, 1),))), SHAPES[1])
    with pytest.raises(GeometryError, match="does not fit axes"):
        Conv(torch.ones(2, 3, 1), None, (Axis(2),))
    with pytest.raises(GeometryError, match="a crop on one side changes what a circular ring"):
        Conv(torch.ones(2, 3, 1), None, (Axis(lo=1, hi=-1),), 1, "circular")
    with pytest.raises(GeometryError, match="do not split into 2"):
        Conv(torch.ones(3, 1, 1), None, (Axis(),), 2)
    with pytest.raises(NotAffineError):
        to_dense(Operator(), SHAPES[1])
    with pytest.raises(NotAffineError):
        apply(Operator(), torch.ones(1, 1, 1))


def test_the_comparison_can_fail() -> None:
    """Moving one weight by a millionth is seen; so is a border in another mode."""
    maker = Maker(Random(4), 2)
    op = maker.conv(4, 3, (Axis(3, 1, 1, 1, 1),) * 2)
    moved = op.weight.double().clone()
    moved[0, 0, 1, 1] += 1e-6
    for other in (moved, op.weight):
        mode = "zeros" if other is moved else "replicate"
        changed = Conv(other, op.bias, op.axes, op.groups, mode)
        assert gap(oracle(op, SHAPES[2]), matrix_of(changed, SHAPES[2], 2)) > 1e-8

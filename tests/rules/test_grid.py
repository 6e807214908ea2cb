"""The main folds on grids: kernel, stride, dilation, groups, padding, channels, rank, dtype."""

from __future__ import annotations

from itertools import product
from random import Random

import pytest
import torch

from helpers.nightly import some
from helpers.strategies import Maker, gap, matrix_of, oracle
from refold.algebra.geometry import Axis
from refold.algebra.operator import Affine, AvgPool, Conv, Identity, Operator, add, leaves, sequence
from refold.engine.simplify import simplify

EXACT = 1e-9
KERNELS: dict[int, list[tuple[int, ...]]] = {
    1: [(1,), (2,), (3,), (5,)],
    2: [(1, 1), (2, 2), (3, 3), (5, 5), (1, 3), (3, 1)],
    3: [(1, 1, 1), (2, 2, 2), (3, 3, 3), (1, 3, 1)],
}
GRID = [
    (rank, kernel, stride, dilation)
    for rank in (1, 2, 3)
    for kernel, stride, dilation in product(KERNELS[rank], (1, 2), (1, 2))
    if max(kernel) > 1 or dilation == 1
]
# Of three dimensions, which the same code counts, a few; of large kernels the few that matter.
SAMPLE = some(
    GRID,
    keep=[case for n, case in enumerate(GRID) if (case[0] < 3 and max(case[1]) < 5) or n % 4 == 0],
)
CHANNELS = [(4, 4, 1), (4, 4, 2), (4, 4, 4), (4, 2, 1), (2, 6, 2)]


class Grid(Maker):
    """Convolutions of one point of the grid, in both dtypes, with and without a bias."""

    def __init__(self, rank: int, seed: int) -> None:
        super().__init__(Random(seed), rank)

    def layer(
        self, inputs: int, outputs: int, groups: int, axes: tuple[Axis, ...], bias: bool
    ) -> Conv:
        weight = self.tensor(outputs, inputs // groups, *(axis.kernel for axis in axes))
        return Conv(weight, self.tensor(outputs) if bias else None, axes, groups)

    def norm(self, channels: int) -> Affine:
        scale = self.tensor(channels)
        scale[0], scale[-1] = -abs(scale[0]), abs(scale[-1])
        return Affine(scale, self.tensor(channels))


def window(kernel: tuple[int, ...], stride: int, dilation: int, padding: int) -> tuple[Axis, ...]:
    return tuple(Axis(k, stride, dilation if k > 1 else 1, padding, padding) for k in kernel)


def shape_for(inputs: int, axes: tuple[Axis, ...]) -> tuple[int, ...]:
    """Return the smallest map that shows two outputs and every border on each axis."""
    return (inputs, *(max(2, a.span + a.stride - a.lo - a.hi) for a in axes))


def becomes_one(op: Operator, shape: tuple[int, ...], rank: int) -> bool:
    folded = simplify(op, allow_growth=True).op
    return (
        len(leaves(folded)) == 1
        and gap(matrix_of(op, shape, rank), matrix_of(folded, shape, rank)) <= EXACT
    )


@pytest.mark.parametrize(("rank", "kernel", "stride", "dilation"), SAMPLE)
def test_norm_after_and_scale_before(
    rank: int, kernel: tuple[int, ...], stride: int, dilation: int
) -> None:
    maker = Grid(rank, 1)
    for (inputs, outputs, groups), padding, bias in product(
        CHANNELS, range(max(kernel) + 1), (0, 1)
    ):
        maker.dtype = (torch.float32, torch.float64)[padding % 2]
        axes = window(kernel, stride, dilation, padding)
        conv = maker.layer(inputs, outputs, groups, axes, bool(bias))
        shape = shape_for(inputs, axes)
        scale = maker.norm(inputs) if padding == 0 else Affine(maker.tensor(inputs))
        assert becomes_one(sequence(scale, conv, maker.norm(outputs)), shape, rank)


@pytest.mark.parametrize(("rank", "kernel", "stride", "dilation"), SAMPLE)
def test_branches_of_one_grid(
    rank: int, kernel: tuple[int, ...], stride: int, dilation: int
) -> None:
    """The kernel, one of other groups, a 1x1, a centre row, and what needs equal channels."""
    maker = Grid(rank, 2)
    for (inputs, outputs, groups), padding in product(CHANNELS, range(max(kernel) + 1)):
        maker.dtype = (torch.float32, torch.float64)[padding % 2]
        axes = window(kernel, stride, dilation, padding)
        point = tuple(
            Axis(1, stride, 1, a.lo - a.span // 2, a.hi - a.span + 1 + a.span // 2) for a in axes
        )
        row = (axes[0], *point[1:])
        branches: list[Operator] = [
            sequence(maker.layer(inputs, outputs, groups, axes, False), maker.norm(outputs)),
            maker.layer(inputs, outputs, 1, point, True),
            maker.layer(inputs, outputs, 1, row, False),
        ]
        if inputs == outputs:
            branches.append(
                sequence(maker.layer(inputs, outputs, inputs, axes, True), maker.norm(outputs))
            )
            if dilation == 1:
                branches.append(AvgPool(axes))
            if all(a.is_point for a in point):
                branches += [Identity(), maker.norm(outputs)]
        assert becomes_one(add(*branches), shape_for(inputs, axes), rank)


@pytest.mark.parametrize(("rank", "kernel", "stride", "dilation"), SAMPLE)
def test_series(rank: int, kernel: tuple[int, ...], stride: int, dilation: int) -> None:
    """Pointwise before (padded itself where it has a bias), and pointwise after."""
    maker = Grid(rank, 3)
    for (inputs, outputs, groups), padding in product(CHANNELS, range(max(kernel) + 1)):
        maker.dtype = (torch.float32, torch.float64)[padding % 2]
        axes, middle = window(kernel, stride, dilation, padding), 2 * inputs
        bare, shape = window(kernel, stride, dilation, 0), shape_for(inputs, axes)
        plain = maker.layer(inputs, middle, groups, (Axis(),) * rank, False)
        ringed = maker.layer(inputs, middle, groups, window((1,) * rank, 1, 1, padding), True)
        last = maker.layer(outputs, inputs, 1, (Axis(),) * rank, True)
        for first, second in ((plain, axes), (ringed, bare)):
            kxk = maker.layer(middle, outputs, groups, second, True)
            assert becomes_one(sequence(first, kxk, last), shape, rank)


@pytest.mark.parametrize("strides", [(1, 1), (2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("dilations", [(1, 1), (2, 1), (1, 2), (2, 3)])
@pytest.mark.parametrize("rank", [1, 2])
def test_kernel_then_unpadded_kernel(
    strides: tuple[int, int], dilations: tuple[int, int], rank: int
) -> None:
    maker = Grid(rank, 4)
    for padding, second in product(range(3), (1, 2, 3)):
        first = maker.layer(2, 3, 1, window((3,) * rank, strides[0], dilations[0], padding), True)
        bare = window((second,) * rank, strides[1], dilations[1], 0)
        last = maker.layer(3, 2, 1, bare, True)
        op, shape = sequence(first, last), (2, *(13,) * rank) if rank == 1 else (2, 11, 12)
        if min(bare[0].out_size(first.axes[0].out_size(n)) for n in shape[1:]) > 0:
            assert becomes_one(op, shape, rank)


@pytest.mark.parametrize("groups", [1, 2, 4])
@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_transposed(groups: int, rank: int, stride: int) -> None:
    maker = Grid(rank, 5)
    for kernel, crop in product((1, 2, 3), (-1, 0, 1)):
        axes = (Axis(kernel, stride, 1, 0, crop),) * rank
        spread = Conv(
            maker.tensor(4, 4 // groups, *(kernel,) * rank),
            maker.tensor(4),
            axes,
            groups,
            transposed=True,
        )
        mix = maker.layer(4, 4, 2, (Axis(),) * rank, False)
        op = sequence(
            Affine(maker.tensor(4)),
            mix,
            spread,
            maker.layer(4, 6, 2, (Axis(),) * rank, True),
            maker.norm(6),
        )
        assert becomes_one(op, (4, *(3,) * rank), rank)


def test_linear() -> None:
    maker = Grid(0, 6)
    first, second = maker.layer(4, 6, 1, (), True), maker.layer(6, 2, 2, (), True)
    op = sequence(maker.norm(4), first, maker.norm(6), second, maker.norm(2))
    assert becomes_one(op, (4,), 0)
    assert becomes_one(add(maker.layer(4, 4, 1, (), True), Identity(), maker.norm(4)), (4,), 0)


def test_the_oracle_agrees_with_the_layers_used_here() -> None:
    maker = Grid(2, 7)
    op = maker.layer(4, 2, 2, window((3, 2), 2, 2, 1), True)
    assert gap(oracle(op, (4, 7, 8)), matrix_of(op, (4, 7, 8), 2)) <= 1e-12

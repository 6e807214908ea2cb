"""A convolution on maps of one size as a matrix, against the dense oracle."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from itertools import product
from random import Random

import pytest
import torch

from helpers.strategies import MODES, Maker, gap, matrix_of, oracle
from refold.algebra.cost import work
from refold.algebra.dense import to_dense
from refold.algebra.geometry import Axis
from refold.algebra.operator import Conv, Flatten, points, sequence
from refold.algebra.row import Taps, Unflatten, as_matrix
from refold.errors import GeometryError

SIZES = {1: (7,), 2: (6, 5), 3: (4, 5, 3)}
WINDOWS = [
    (Axis(3, 1, 1, 1, 1), Axis(3, 1, 1, 1, 1), Axis(3, 1, 1, 1, 1)),
    (Axis(1), Axis(5, 1, 1, 2, 2), Axis(2, 1, 1, 1, 0)),
    (Axis(3, 2, 1, 1, 1), Axis(2, 3), Axis(1, 2)),
    (Axis(2, 1, 2, 2, 2), Axis(3, 2, 2, 2, 1), Axis(2, 1, 2, 1, 1)),
    (Axis(1, 1, 1, 2, 2), Axis(4, 3, 1, 0, 1), Axis(1, 2, 1, 0, 0)),
]


def convs(rank: int) -> Iterator[Conv]:
    maker = Maker(Random(rank), rank)
    for axes, groups, out in product(WINDOWS, (1, 2), (4, 6)):
        window = axes[:rank]
        weight = maker.tensor(out, 4 // groups, *(a.kernel for a in window))
        yield Conv(weight, maker.tensor(out), window, groups)


def as_grouped(conv: Conv, size: tuple[int, ...]) -> torch.Tensor:
    """The whole matrix of a grouped one."""
    matrix = as_matrix(conv, size, torch.float64)
    return torch.block_diag(*matrix.weight.chunk(conv.groups))


@pytest.mark.slow
@pytest.mark.parametrize("rank", SIZES)
@pytest.mark.parametrize("mode", MODES)
def test_a_convolution_is_the_oracles_matrix(rank: int, mode: str) -> None:
    for plain in convs(rank):
        conv, size = replace(plain, mode=mode), SIZES[rank]
        dense, matrix = to_dense(conv, (4, *size)), as_matrix(conv, size, torch.float64)
        assert matrix.bias is not None
        pairs = (dense.matrix, dense.offset), (as_grouped(conv, size), matrix.bias)
        assert gap(*pairs) <= 1e-12, conv


@pytest.mark.parametrize("rank", SIZES)
def test_a_transposed_convolution_is_the_oracles_matrix(rank: int) -> None:
    maker = Maker(Random(rank), rank)
    for axes, groups in product(WINDOWS[:4], (1, 2)):
        window = tuple(replace(a, lo=min(a.lo, 1), hi=min(a.hi, 1)) for a in axes[:rank])
        weight = maker.tensor(4, 6 // groups, *(a.kernel for a in window))
        conv = Conv(weight, None, window, groups, transposed=True)
        dense = to_dense(conv, (4, *SIZES[rank]))
        assert gap((dense.matrix,), (as_grouped(conv, SIZES[rank]),)) <= 1e-12, conv


def test_rows_can_be_filled_a_few_at_a_time() -> None:
    for conv in convs(2):
        whole = as_matrix(conv, (6, 5), torch.float64).weight
        out = tuple(a.out_size(n) for a, n in zip(conv.axes, (6, 5), strict=True))
        parts = torch.zeros(conv.out_channels, *out, 4 // conv.groups, 6, 5, dtype=torch.float64)
        taps = Taps(conv)
        for first in range(0, out[0], 2):
            taps.add_to(parts[2:, first : first + 2], slice(2, None), first)
        left = 2 * out[0] * out[1]
        assert torch.equal(parts.reshape(whole.shape)[left:], whole[left:])
        assert not parts[:2].any()


def test_a_kernel_that_does_not_fit_is_refused() -> None:
    conv = Conv(torch.ones(2, 2, 5, 5), None, (Axis(5), Axis(5)))
    with pytest.raises(GeometryError, match=r"kernel \(5, 5\) does not fit maps of \(6, 4\)"):
        as_matrix(conv, (6, 4), torch.float64)
    with pytest.raises(GeometryError, match="do not have 2 spatial axes"):
        as_matrix(conv, (6,), torch.float64)
    far = Conv(torch.ones(1, 1, 7), None, (Axis(7, 1, 1, 3, 3),), mode="reflect")
    with pytest.raises(GeometryError, match="reflection reaches beyond a map of 2"):
        as_matrix(far, (2,), torch.float64)


@pytest.mark.parametrize("rank", [0, 2])
def test_flatten_and_unflatten_are_opposites(rank: int) -> None:
    maker, shape = Maker(Random(2), 2), (4, 2, 3)
    row = Conv(maker.tensor(6, 24, *(1,) * rank), maker.tensor(6), points(rank))
    op = sequence(Flatten((2, 3), rank), row, Unflatten((3,), rank))
    assert gap(oracle(op, shape), matrix_of(op, shape, 2)) <= 1e-12
    assert to_dense(op, shape).shape == (2, 3)
    there = sequence(Flatten((2, 3), rank), Unflatten((2, 3), rank))
    assert torch.equal(to_dense(there, shape).matrix, torch.eye(24, dtype=torch.float64))
    with pytest.raises(GeometryError, match=r"maps of \(3, 2\) are required"):
        to_dense(Flatten((3, 2)), shape)
    with pytest.raises(GeometryError, match=r"a map of \(5,\) is required"):
        to_dense(sequence(Flatten((2, 3)), Unflatten((5,))), shape)


def test_a_row_is_worked_on_once_a_map() -> None:
    """24 numbers in, 6 out: 144 multiply-adds for a map of 6 positions, then 3 positions."""
    row = Conv(torch.ones(6, 24))
    assert work(sequence(Flatten((2, 3)), row)) == 144 / 6
    after = Conv(torch.ones(5, 2, 1), None, points(1))
    assert work(sequence(Flatten((2, 3)), row, Unflatten((3,)), after)) == (144 + 3 * 10) / 6

"""What operators cost, against counts by hand and against the dense oracle's own non-zeros."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from refold.algebra.cost import measure, parameters, work
from refold.algebra.dense import to_dense
from refold.algebra.geometry import Axis
from refold.algebra.operator import (
    Affine,
    AvgPool,
    Concat,
    Conv,
    Identity,
    Input,
    Operator,
    Pad,
    Resample,
    Select,
    add,
    chain,
    leaves,
    linear_part,
    points,
    sequence,
    wide,
)

NEAR = (Axis(3, 1, 1, 1, 1),) * 2
HALF = (Axis(3, 2, 1, 1, 1),) * 2
CONV = Conv(torch.ones(8, 4, 3, 3), torch.ones(8), NEAR)
POINT = Conv(torch.ones(2, 8, 1, 1), None, points(2))
NORM = Affine(torch.ones(8), torch.ones(8))


@pytest.mark.parametrize(
    ("op", "expected"),
    [
        (CONV, 8 * 4 * 9),
        (Conv(torch.ones(8, 4, 3, 3), None, HALF), 8 * 4 * 9 / 4),
        (Conv(torch.ones(8, 2, 3, 3), None, NEAR, 2), 8 * 2 * 9),
        (Conv(torch.ones(4, 8, 2, 2), None, (Axis(2, 2),) * 2, transposed=True), 4 * 8 * 4),
        (sequence(Conv(torch.ones(8, 4, 3, 3), None, HALF), POINT), 76),
        (sequence(CONV, NORM), 8 * 4 * 9 + 8),
        (sequence(CONV, AvgPool((Axis(2, 2),) * 2)), 8 * 4 * 9 + 8 * 4 / 4),
        (add(CONV, CONV), 2 * 8 * 4 * 9 + 8),
        (Concat((CONV, CONV)), 2 * 8 * 4 * 9),
        (sequence(CONV, Resample(torch.relu, 0, 0.0), Conv(torch.ones(5, 8))), 8 * 4 * 9),
        (sequence(Select((0, 1), 4), Affine(None, torch.ones(()))), 2),
        (add(Identity(), sequence(Input("x", 4), Pad(((1, 1),)))), 0),
    ],
)  # fmt: skip
def test_work_by_hand(op: Operator, expected: float) -> None:
    assert work(op) == pytest.approx(expected)


def test_a_border_counts_where_all_else_is_equal() -> None:
    ring = Pad(((1, 1), (1, 1)))
    assert work(sequence(POINT, ring)) < work(sequence(ring, POINT))
    assert work(sequence(CONV, ring)) < work(replace(CONV, axes=(Axis(3, 1, 1, 2, 2),) * 2))
    assert work(sequence(ring, NORM)) < work(CONV)  # but never outweighs a layer


def test_work_is_what_the_dense_matrix_multiplies() -> None:
    """On a circular border every window is whole, so the counts agree exactly."""
    op = Conv(torch.ones(6, 2, 3, 3), None, NEAR, 2, "circular")
    dense = to_dense(op, (4, 5, 4))
    assert work(op) * 5 * 4 == int((dense.matrix != 0).sum())


def test_parameters() -> None:
    assert parameters(sequence(CONV, NORM, Pad(((0, 0), (0, 0))))) == 8 * 4 * 9 + 8 + 16
    assert parameters(Identity()) == 0


def test_measure_falls_with_leaves_then_joins_then_light_leaves() -> None:
    pair, one = sequence(CONV, NORM), CONV
    assert measure(one) < measure(pair)
    assert measure(sequence(add(CONV, CONV))) < measure(
        add(CONV, sequence(Identity(), CONV), Identity())
    )
    assert measure(add(CONV, CONV)) < measure(sequence(CONV, NORM, NORM))
    assert measure(sequence(CONV, CONV)) < measure(sequence(CONV, NORM))


def test_building_is_flat() -> None:
    assert len(chain(sequence(sequence(CONV, NORM), Identity(), NORM))) == 3
    assert len(add(add(CONV, CONV), CONV).parts) == 3  # type: ignore[attr-defined]
    assert isinstance(sequence(), Identity)
    assert leaves(add(sequence(Input(), CONV), Identity())) == (CONV,)


def test_linear_part_drops_every_constant() -> None:
    op = Concat((add(sequence(CONV, NORM), CONV), sequence(CONV, Affine(None, torch.ones(8)))))
    padded = sequence(Pad(((1, 0), (0, 0)), value=2.0), op)
    full, bare = to_dense(padded, (4, 3, 3)), to_dense(linear_part(padded), (4, 3, 3))
    assert full.offset.abs().max() > 0
    assert torch.equal(bare.offset, torch.zeros_like(bare.offset))
    assert torch.equal(bare.matrix, full.matrix)


def test_wide_is_float64() -> None:
    assert wide(torch.ones(1, dtype=torch.float16)).dtype == torch.float64
    assert wide(torch.ones(1, dtype=torch.complex64)).dtype == torch.complex64

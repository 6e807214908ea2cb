"""What the engine makes of linear layers on flattened maps: one, where that costs nothing."""

from __future__ import annotations

from random import Random

import pytest
import torch

from helpers.strategies import Maker, gap, matrix_of, oracle
from refold.algebra.operator import (
    Affine,
    Conv,
    Flatten,
    Identity,
    Operator,
    Sum,
    add,
    leaves,
    linear_part,
    points,
    sequence,
)
from refold.algebra.row import Reshaped, Unflatten
from refold.engine.simplify import simplify
from rules.cases_rows import SIZE, full, matrix, row_of
from rules.parts import KERNEL, NEAR, NORM, POINT, SHAPE, conv, tensor

EXACT = 1e-9


def kinds(op: Operator) -> list[str]:
    return [type(leaf).__name__ for leaf in leaves(op)]


def is_equal(before: Operator, after: Operator) -> bool:
    return gap(oracle(before, SHAPE), matrix_of(after, SHAPE, 2)) <= EXACT


@pytest.mark.parametrize("rank", [0, 2])
def test_the_norm_after_the_layout_folds(rank: int) -> None:
    op = sequence(full(rank), NORM)
    result = simplify(op).op
    assert kinds(result) == ["Flatten", "Conv", "Unflatten"]
    assert is_equal(op, result)


def test_the_norm_ahead_of_the_layout_folds() -> None:
    op = sequence(NORM, Flatten(SIZE), matrix(7))
    result = simplify(op).op
    assert kinds(result) == ["Flatten", "Conv"]
    assert is_equal(op, result)


def test_a_factor_passes_a_row_forward() -> None:
    op = sequence(Flatten(SIZE), Affine(torch.tensor(-2.0)), Unflatten(SIZE), KERNEL)
    result = simplify(op).op
    assert "Affine" not in kinds(result)
    assert is_equal(op, result)


def test_a_whole_block_is_one_linear_layer() -> None:
    """FC3 with its norm on the row, convolutions with theirs on the map."""
    norms = [Affine(tensor(n), tensor(n)) for n in (120, 4, 4)]
    squeezed = Reshaped(row_of, 0, 1.0, 2)
    middle = (matrix(120, 2, 2), squeezed, norms[0])
    fc = sequence(Flatten(SIZE, 2), *middle, Unflatten(SIZE))
    op = add(fc, sequence(conv(NEAR, 2), norms[1]), sequence(conv(points(2), 2), norms[2]))
    result = simplify(op).op
    assert kinds(result) == ["Flatten", "Conv", "Reshaped", "Unflatten"]
    assert leaves(result)[1].groups == 2  # type: ignore[attr-defined]
    assert is_equal(op, result)


def test_a_convolution_of_fewer_groups_would_fill_the_matrix() -> None:
    """The linear layer has 4 groups; dense, it would need four times the work."""
    op = add(full(2, 4), conv(points(2), 4), KERNEL)
    result = simplify(op)
    assert sorted(kinds(result.op)) == ["Conv", "Conv", "Flatten", "Unflatten"]
    assert is_equal(op, result.op)
    assert [r.costlier for r in result.refusals] == [True]
    grown = simplify(op, allow_growth=True).op
    assert kinds(grown) == ["Flatten", "Conv", "Unflatten"]
    assert is_equal(op, grown)


def test_a_depthwise_convolution_goes_into_a_plain_matrix() -> None:
    """A grouped matrix has no layer of its own, but a place in one without groups."""
    op = add(full(), sequence(conv(NEAR, 4), Affine(tensor(4))))
    result = simplify(op).op
    assert kinds(result) == ["Flatten", "Conv", "Unflatten"]
    matrix = leaves(result)[1]
    assert isinstance(matrix, Conv)
    assert (matrix.groups, matrix.axes) == (1, ())
    assert is_equal(op, result)


def test_what_does_not_fit_stays_with_a_reason() -> None:
    op = add(full(), sequence(POINT, conv(NEAR)))
    result = simplify(op)
    assert is_equal(op, result.op)
    assert len(leaves(result.op)) == 5
    assert "pads the map between the two" not in str(result.refusals[0])
    assert "bias meets" in result.refusals[0].reason


def test_convolutions_alone_are_no_matrix() -> None:
    op = Sum((KERNEL, POINT, Identity()))
    assert kinds(simplify(op, allow_growth=True).op) == ["Conv"]


@pytest.mark.parametrize("seed", range(30))
def test_random_blocks(seed: int) -> None:
    """Any branches beside a linear layer: equal, and one linear layer where growth is allowed."""
    rng = Random(seed)
    maker = Maker(rng, 2)
    groups = rng.choice([1, 2, 4])
    fc = [full(rng.choice([0, 2]) if groups == 1 else 2, groups)]
    others = [
        sequence(
            *(maker.affine(4, True) for _ in range(rng.choice([0, 0, 1]))),
            conv(rng.choice([NEAR, points(2)]), rng.choice([1, 2, 4]), bias=maker.coin()),
            *(maker.affine(4, True) for _ in range(rng.choice([0, 1, 2]))),
        )
        for _ in range(rng.choice([1, 2, 3]))
    ]
    branches = [linear_part(b) if rng.random() < 0.3 else b for b in (*fc, *others, Identity())]
    rng.shuffle(branches)
    op = add(*branches)
    lean, grown = simplify(op).op, simplify(op, allow_growth=True).op
    assert is_equal(op, lean)
    assert is_equal(op, grown)
    assert len([leaf for leaf in leaves(lean) if isinstance(leaf, Conv)]) <= 2 + len(others)

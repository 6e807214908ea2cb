"""Large matrices folded a slice at a time: the same numbers as folded whole, rounded once."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch

from helpers.strategies import gap, matrix_of, oracle
from refold.algebra.operator import (
    Affine,
    Conv,
    Flatten,
    Identity,
    Input,
    Operator,
    Sum,
    add,
    leaves,
    points,
    sequence,
)
from refold.algebra.row import Reshaped, Unflatten
from refold.engine import row_slices
from refold.engine.replay import Replay
from refold.engine.row_slices import fold_rows_in_slices
from refold.engine.simplify import simplify
from rules.cases_rows import SIZE, full, matrix, row_of
from rules.parts import HALF, KERNEL, NEAR, NORM, POINT, SCALE, SHAPE, conv, tensor

X = Input("x", 4)


def rows(count: int) -> Affine:
    return Affine(tensor(count), tensor(count))


def squeezed(groups: int, *after: Operator) -> Operator:
    middle = (matrix(120, 2, groups), Reshaped(row_of, 0, 1.0, 2), rows(120))
    return sequence(X, Flatten(SIZE, 2), *middle, Unflatten(SIZE), *after)


CASES: dict[str, Callable[[], Operator]] = {
    "row norm": lambda: squeezed(2),
    "map norm": lambda: sequence(X, full(), NORM),
    "both norms": lambda: squeezed(4, NORM, SCALE),
    "a factor": lambda: sequence(X, Flatten(SIZE), matrix(7), Affine(torch.tensor(-2.0))),
    "convolutions": lambda: add(
        squeezed(2),
        sequence(X, conv(NEAR, 2), NORM),
        sequence(X, conv(points(2), 4)),
        X,
    ),
    "sums of sums": lambda: Sum((Sum((Sum((sequence(X, KERNEL), X)), squeezed(1))), X)),
    "a layout on all": lambda: sequence(
        add(squeezed(2), sequence(X, conv(NEAR, 2))), Reshaped(torch.clone, 2, 1.0, 2)
    ),
    "dense": lambda: add(sequence(X, KERNEL, NORM), sequence(X, full()), sequence(X, NORM)),
    "stride": lambda: add(
        sequence(X, conv(HALF)),
        sequence(X, Flatten(SIZE), matrix(36), rows(36), Unflatten((3, 3))),
    ),
}
ALONE: dict[str, Callable[[], Operator]] = {
    "two matrices": lambda: add(sequence(X, full()), sequence(X, full(), NORM)),
    "a norm first": lambda: sequence(X, NORM, full()),
    "two kernels": lambda: add(sequence(X, full()), sequence(X, POINT, KERNEL)),
    "no matrix": lambda: add(sequence(X, POINT), sequence(X, KERNEL)),
    "a norm on all": lambda: sequence(add(sequence(X, full()), sequence(X, KERNEL)), NORM),
}


def folded(op: Operator) -> tuple[Operator | None, Operator]:
    """Return what slices give and what folding whole gives."""
    replay = Replay()
    rewrite = simplify(replay.stand_in(op))
    return fold_rows_in_slices(rewrite, op), replay.run(rewrite)


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("slice_size", [1, 700, 1 << 20])
def test_slices_are_the_whole(name: str, slice_size: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_slices, "_WORTH_IT", 1)
    monkeypatch.setattr(row_slices, "_PER_SLICE", slice_size)
    op = CASES[name]()
    mine, whole = folded(op)
    assert mine is not None
    assert [type(leaf) for leaf in leaves(mine)] == [type(leaf) for leaf in leaves(whole)]
    for one, other in zip(leaves(mine), leaves(whole), strict=True):
        assert not isinstance(one, Affine)
        if isinstance(one, Conv) and isinstance(other, Conv):
            torch.testing.assert_close(one.weight, other.weight, rtol=1e-12, atol=1e-12)
            assert one.groups == other.groups
    assert gap(oracle(op, SHAPE), matrix_of(mine, SHAPE, 2)) <= 1e-9


@pytest.mark.parametrize("name", ALONE)
def test_anything_else_is_folded_whole(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_slices, "_WORTH_IT", 1)
    op = ALONE[name]()
    mine, whole = folded(op)
    assert mine is None
    assert gap(oracle(op, SHAPE), matrix_of(whole, SHAPE, 2)) <= 1e-9


def test_small_matrices_are_folded_whole() -> None:
    assert folded(CASES["convolutions"]())[0] is None


def test_the_identity_is_a_branch(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(row_slices, "_WORTH_IT", 1)
    op = add(sequence(X, full()), X, sequence(X, Identity(), POINT))
    mine, whole = folded(op)
    assert mine is not None
    assert gap(matrix_of(whole, SHAPE, 2), matrix_of(mine, SHAPE, 2)) <= 1e-6

"""Norms at the ends of branches side by side go into the convolution that reads these.

Random widths, windows and ranks; the oracle is the dense matrix of the whole, and the control
leaves the norms out.
"""

from __future__ import annotations

from random import Random

import pytest

from helpers.strategies import MODES, SIZES, Case, Maker, gap
from refold.algebra.geometry import Axis
from refold.algebra.operator import (
    Affine,
    AvgPool,
    Concat,
    Input,
    Operator,
    Select,
    chain,
    leaves,
    points,
    sequence,
)
from refold.engine.simplify import simplify

EXACT, WRONG = 1e-9, 1e-3


def made(seed: int) -> Case:
    """Return branches from inputs of their own, some with a norm, before a convolution."""
    rng = Random(seed)
    maker = Maker(rng)
    widths = {name: rng.randint(1, 4) for name in "abc"[: rng.randint(2, 3)]}
    total, pads = sum(widths.values()), rng.choice([0, 1])
    near = (Axis(3, rng.choice([1, 2]), 1, pads, pads),) * maker.rank
    axes = rng.choice([near, points(maker.rank)])
    mode = rng.choice(MODES) if axes is near and pads and maker.rank else "zeros"
    constant = axes is not near or not pads or mode != "zeros" or not maker.rank
    ends = [maker.affine(width, constant) if maker.coin() else None for width in widths.values()]
    ends[0] = ends[0] or maker.affine(widths["a"], constant)
    branches = tuple(
        sequence(Input(name, width), *([end] if end else []))
        for (name, width), end in zip(widths.items(), ends, strict=True)
    )
    op = sequence(Concat(branches), maker.conv(total, rng.randint(1, 6), axes, mode))
    return Case(op, (total, *SIZES[maker.rank]), maker.rank, None, dict(widths))


@pytest.mark.parametrize("seed", range(12))
def test_no_norm_is_left(seed: int) -> None:
    case = made(seed)
    folded = simplify(case.op).op
    assert not any(isinstance(leaf, Affine) for leaf in leaves(folded))
    assert len(leaves(folded)) == 1
    assert gap(case.dense(case.op), case.dense(folded)) <= EXACT


def test_a_norm_passes_what_lies_behind_it() -> None:
    maker = Maker(Random(1), 2)
    pool, norm = AvgPool((Axis(2, 2),) * 2), Affine(maker.tensor(3), maker.tensor(3))
    turn = Select((2, 0, 1), 3)
    first, second = Input("a", 3), Input("b", 3)
    branches = Concat((sequence(first, norm, pool, turn), sequence(second, pool)))
    op = sequence(branches, maker.conv(6, 4, points(2)))
    folded = simplify(op).op
    assert not any(isinstance(leaf, Affine) for leaf in leaves(folded))
    case = Case(op, (6, 8, 7), 2, None, {"a": 3, "b": 3})
    assert gap(case.dense(op), case.dense(folded)) <= EXACT


def test_a_norm_left_out_would_show() -> None:
    case = made(3)
    whole, conv = chain(case.op)
    assert isinstance(whole, Concat)
    rows: list[Operator] = [sequence(*chain(part)[:1]) for part in whole.parts]
    naive = sequence(Concat(tuple(rows)), conv)
    assert gap(case.dense(case.op), case.dense(naive)) >= WRONG

"""Branches that begin alike become one chain where that costs no more; the oracle is dense."""

from __future__ import annotations

from random import Random

import pytest

from helpers.strategies import Maker, gap, matrix_of
from refold.algebra.cost import measure, work
from refold.algebra.geometry import Axis
from refold.algebra.operator import Affine, Concat, Conv, Operator, Select, Sum, chain, points
from refold.algebra.operator import sequence as row
from refold.engine.simplify import simplify

MAKER = Maker(Random(3), 2)
NEAR, POINT = (Axis(3, 1, 1, 1, 1),) * 2, points(2)
SHAPE = (8, 5, 4)


def conv(inputs: int, outputs: int, axes: tuple[Axis, ...] = POINT, groups: int = 1) -> Conv:
    weight = MAKER.tensor(outputs, inputs // groups, *(axis.kernel for axis in axes))
    return Conv(weight, MAKER.tensor(outputs), axes, groups)


def norm(channels: int) -> Affine:
    return Affine(MAKER.tensor(channels), MAKER.tensor(channels))


def folded(op: Operator, shape: tuple[int, ...] = SHAPE) -> list[Operator]:
    result = simplify(op).op
    assert gap(matrix_of(op, shape, 2), matrix_of(result, shape, 2)) <= 1e-9
    assert measure(result) <= measure(op)
    assert work(result) <= work(op) * (1 + 1e-9)
    return list(chain(result))


def groups(parts: list[Operator]) -> list[int]:
    return [part.groups for part in parts if isinstance(part, Conv)]


def test_towers_side_by_side_are_a_pointwise_and_a_grouped_convolution() -> None:
    """The simplified Inception module, without functions between its layers."""
    towers = tuple(row(conv(8, 4), norm(4), conv(4, 4, NEAR), norm(4)) for _ in range(3))
    parts = folded(Concat(towers))
    assert groups(parts) == [1, 3]
    assert len(parts) == 2


def test_a_sum_of_paths_is_one_path() -> None:
    """ResNeXt's form (a), without functions between its layers: its form (c)."""
    paths = [row(conv(8, 2), conv(2, 2, NEAR), conv(2, 6)) for _ in range(4)]
    total: Operator = paths[0]
    for path in paths[1:]:
        total = Sum((total, path))
    assert groups(folded(row(total, norm(6)))) == [1, 4, 1]


def test_towers_of_different_widths_share_their_head_alone() -> None:
    """Groups have one width: what is left of the towers goes on from the slices."""
    parts = folded(Concat((row(conv(8, 4), conv(4, 4, NEAR)), row(conv(8, 2), conv(2, 4, NEAR)))))
    assert groups(parts) in ([], [1])


def test_other_branches_stay_beside_them() -> None:
    op = Sum((row(conv(8, 2), conv(2, 8, NEAR)), norm(8), row(conv(8, 2), conv(2, 8, NEAR))))
    [total] = folded(op)
    assert isinstance(total, Sum)
    assert sorted(len(chain(part)) for part in total.parts) == [1, 2]


@pytest.mark.parametrize("out", [8, 6])
def test_a_shuffle_passes_a_depthwise_convolution(out: int) -> None:
    """In front it is that of columns, behind it that of rows; between groups it has to stay."""
    shuffle = Select(tuple(i % 2 * 4 + i // 2 for i in range(8)), 8)
    apart = conv(8, 8, NEAR, 8)
    assert groups(folded(row(shuffle, apart, conv(8, out)))) == [8, 1]
    assert groups(folded(row(conv(8, 8), apart, shuffle))) == [1, 8]
    kept = folded(row(conv(8, 8, POINT, 2), shuffle, apart, conv(8, out, POINT, 2)))
    assert sum(isinstance(part, Select) for part in kept) == 1
    assert groups(kept) == [2, 8, 2]


def test_an_order_within_groups_goes_into_the_grouped_convolution() -> None:
    within = Select((1, 0, 3, 2, 7, 6, 5, 4), 8)
    assert groups(folded(row(within, conv(8, 4, NEAR, 2)))) == [2]
    assert groups(folded(row(conv(8, 8, NEAR, 2), within))) == [2]


def test_heads_of_unlike_windows_stay_apart() -> None:
    """A 1x1 in a 3x3's window would cost nine times as much."""
    op = Concat((row(conv(8, 4), conv(4, 4, NEAR)), row(conv(8, 4, NEAR), conv(4, 4, NEAR))))
    [kept] = folded(op)
    assert isinstance(kept, Concat)

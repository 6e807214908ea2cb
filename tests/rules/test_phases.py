"""Even and odd rows and columns side by side before a convolution: one convolution of the map.

Random steps, windows and orders; the oracle is the dense matrix of the slices as they are, and the
control has them in another order. Networks have their own forward as the oracle.
"""

from __future__ import annotations

from itertools import product
from random import Random

import pytest
import torch
from torch import Tensor, nn

import refold
from helpers import traps
from helpers.strategies import Maker, gap, matrix_of
from refold.algebra.geometry import Axis
from refold.algebra.operator import AvgPool, Concat, Conv, Operator, leaves, sequence
from refold.engine.simplify import simplify
from refold.rules.phases import merge_phases

EXACT, WRONG = 1e-9, 1e-3


def made(seed: int) -> tuple[Operator, tuple[int, ...], int]:
    """Return slices before a convolution, the map that they cut, and its spatial axes."""
    rng = Random(seed)
    maker = Maker(rng, rng.choice([1, 2, 2, 3]))
    steps = [rng.choice([1, 2, 2, 3]) for _ in range(maker.rank)]
    steps[0] = max(2, steps[0]) if maker.rank < 3 else 2
    steps = steps if maker.rank < 3 else [2, 2, 1]
    offsets = list(product(*map(range, steps)))
    rng.shuffle(offsets)
    slices = [
        AvgPool(tuple(Axis(1, step, 1, -at) for step, at in zip(steps, offset, strict=True)))
        for offset in offsets
    ]
    channels = rng.randint(1, 2)
    axes = tuple(
        Axis(rng.randint(1, 3), rng.randint(1, 2), 1, rng.randint(0, 1), rng.randint(0, 2))
        for _ in steps
    )
    weight = maker.tensor(3, channels * len(slices), *(axis.kernel for axis in axes))
    op = sequence(Concat(tuple(slices)), Conv(weight, maker.tensor(3), axes))
    return op, (channels, *(step * rng.randint(3, 4) for step in steps)), maker.rank


@pytest.mark.parametrize("seed", range(12))
def test_it_is_one_convolution(seed: int) -> None:
    op, shape, rank = made(seed)
    folded = simplify(op).op
    assert len(leaves(folded)) == 1
    assert gap(matrix_of(op, shape, rank), matrix_of(folded, shape, rank)) <= EXACT


def test_another_order_would_show() -> None:
    op, shape, rank = made(2)
    [whole, conv] = op.parts
    turned = merge_phases(sequence(Concat(whole.parts[::-1]), conv))
    assert isinstance(turned, Conv)
    assert gap(matrix_of(op, shape, rank), matrix_of(turned, shape, rank)) >= WRONG


class Focus(nn.Module):
    """The stem of YOLOX, and of YOLOv5 before its sixth version."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(12, 8, 3, 1, 1, bias=False), nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        left = x[..., ::2, ::2], x[..., 1::2, ::2]
        right = x[..., ::2, 1::2], x[..., 1::2, 1::2]
        return torch.sigmoid(self.norm(self.conv(torch.cat((*left, *right), dim=1))))


def test_focus_is_a_convolution_of_six() -> None:
    x = traps.images(2, 3, 8, 10)
    model = traps.live(Focus())
    folded = refold.reparameterize(model, x)
    [conv] = [layer for layer in folded.modules() if isinstance(layer, nn.Conv2d)]
    assert (conv.kernel_size, conv.stride, conv.padding) == ((6, 6), (2, 2), (2, 2))
    for other in (x, traps.images(1, 3, 12, 6), traps.images(3, 3, 2, 4)):
        assert traps.gap(model, folded, other) <= EXACT


def test_some_of_the_phases_stay_apart() -> None:
    class Some(Focus):
        def forward(self, x: Tensor) -> Tensor:
            both = x[..., ::2, ::2], x[..., 1::2, 1::2], x[..., ::2, ::2], x[..., ::2, 1::2]
            return torch.sigmoid(self.norm(self.conv(torch.cat(both, dim=1))))

    x = traps.images(2, 3, 8, 10)
    model = traps.live(Some())
    assert traps.gap(model, refold.reparameterize(model, x), x) <= EXACT

"""Positions as channels before a convolution: one convolution of the map.

Slices side by side (Focus), blocks (`pixel_unshuffle`, in any spelling) and windows. Random
steps, windows and orders; the oracle is the dense matrix of what stands there, and the control has
another order. Networks have their own forward as the oracle.
"""

from __future__ import annotations

from itertools import product
from math import prod
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import refold
from helpers import traps
from helpers.strategies import Maker, gap, matrix_of, oracle
from refold.algebra.geometry import Axis
from refold.algebra.operator import AvgPool, Concat, Conv, Operator, Patches, leaves, sequence
from refold.algebra.operator import blocks as blocked
from refold.engine.simplify import simplify
from refold.rules.phases import merge_patches, merge_phases

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


def blocks(seed: int) -> tuple[Operator, tuple[int, ...], int]:
    """Return blocks before a convolution, the map that they cut, and its spatial axes."""
    op, shape, rank = made(seed)
    [whole, conv] = op.parts
    steps = tuple(axis.stride for axis in whole.parts[0].axes)
    order = Random(seed).sample(range(rank + 1), rank + 1)
    return sequence(Patches(blocked(*steps), tuple(order)), conv), shape, rank


@pytest.mark.parametrize("seed", range(8))
def test_blocks_are_one_convolution(seed: int) -> None:
    op, shape, rank = blocks(seed)
    folded = simplify(op).op
    assert len(leaves(folded)) == 1
    assert gap(matrix_of(op, shape, rank), matrix_of(folded, shape, rank)) <= EXACT


def windows(seed: int) -> tuple[Operator, tuple[int, ...], int]:
    """Return what windows read before a matrix, the map that they slide over, and its axes."""
    rng = Random(seed)
    maker = Maker(rng, rng.choice([1, 2, 2, 3]))
    axes = tuple(
        Axis(rng.randint(1, 3), *rng.choices((1, 2), k=2), rng.randint(0, 1), rng.randint(0, 2))
        for _ in range(maker.rank)
    )
    groups = rng.choice([1, 1, 2])
    rest = rng.sample(range(1 if groups > 1 else 0, maker.rank + 1), maker.rank + (groups == 1))
    patches = Patches(axes, (0, *rest) if groups > 1 else tuple(rest))
    points = (Axis(),) * maker.rank
    weight = maker.tensor(4, 2 * prod(patches.kernel) // groups, *(1,) * maker.rank)
    op = sequence(patches, Conv(weight, maker.tensor(4), points, groups))
    return op, (2, *(rng.randint(5, 7) for _ in axes)), maker.rank


@pytest.mark.parametrize("seed", range(16))
def test_windows_before_a_matrix_are_one_convolution(seed: int) -> None:
    op, shape, rank = windows(seed)
    folded = simplify(op).op
    assert len(leaves(folded)) == 1
    for meant in (matrix_of(op, shape, rank), oracle(op, shape)):
        assert gap(meant, matrix_of(folded, shape, rank)) <= EXACT


def test_blocks_in_another_order_would_show() -> None:
    [block, conv], shape, rank = blocks(3)[0].parts, *blocks(3)[1:]
    turned = merge_patches(sequence(Patches(block.axes, block.order[::-1]), conv))
    assert isinstance(turned, Conv)
    whole = matrix_of(sequence(block, conv), shape, rank)
    assert gap(whole, matrix_of(turned, shape, rank)) >= WRONG


def written(*turn: int) -> Any:
    """Return blocks of two by two as code spells them: view, permute, view."""

    def run(x: Tensor) -> Tensor:
        n, c, h, w = x.shape
        x = x.view(n, c, h // 2, 2, w // 2, 2).permute(0, *turn, 2, 4).contiguous()
        return x.view(n, 4 * c, h // 2, w // 2)

    return run


def of_rows(x: Tensor) -> Tensor:
    """Cut into halves: how large the blocks are depends on the map."""
    n, c, h, w = x.shape
    x = x.view(n, c, 2, h // 2, 2, w // 2).permute(0, 2, 4, 1, 3, 5)
    return x.reshape(n, 4 * c, h // 2, w // 2)


def halves(x: Tensor) -> Tensor:
    n, c, h, w = x.shape
    x = x.view(n, c, 2, h // 2, 2, w // 2).permute(0, 1, 3, 5, 2, 4)
    return x.reshape(n, -1, 2, 2)[:, : 4 * c]


class Behind(nn.Module):
    """A convolution and a norm behind blocks of positions."""

    def __init__(self, run: Any, groups: int = 1) -> None:
        super().__init__()
        self.run = run
        self.conv = nn.Conv2d(12, 8, 3, 1, 1, groups=groups, bias=False)
        self.norm = nn.BatchNorm2d(8)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(self.run(x))).relu()


SPELLED = {
    "layer": nn.PixelUnshuffle(2),
    "function": lambda x: nn.functional.pixel_unshuffle(x, 2),
    "channels first": written(1, 3, 5),
    "places first": written(3, 5, 1),
    "columns first": written(5, 3, 1),
}


@pytest.mark.parametrize("name", SPELLED)
def test_blocks_of_positions_in_any_spelling(name: str) -> None:
    x, model = traps.images(2, 3, 8, 10), traps.live(Behind(SPELLED[name]))
    folded = refold.reparameterize(model, x)
    [conv] = [layer for layer in folded.modules() if isinstance(layer, nn.Conv2d)]
    assert (conv.kernel_size, conv.stride, conv.padding) == ((6, 6), (2, 2), (2, 2))
    for other in (x, traps.images(1, 3, 12, 6), traps.images(3, 3, 2, 4)):
        assert traps.gap(model, folded, other) <= EXACT


@pytest.mark.parametrize(("run", "groups"), [(of_rows, 1), (halves, 1), (written(1, 3, 5), 4)])
def test_other_blocks_stay(run: Any, groups: int) -> None:
    x, model = traps.images(2, 3, 8, 10), traps.live(Behind(run, groups))
    folded = refold.reparameterize(model, x)
    [conv] = [layer for layer in folded.modules() if isinstance(layer, nn.Conv2d)]
    assert conv.kernel_size == (3, 3)
    for other in (x, traps.images(1, 3, 12, 16)):
        assert traps.gap(model, folded, other) <= EXACT


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

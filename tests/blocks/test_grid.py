"""Every block over the grid: folded to one convolution, or refused for a named reason.

The whole grid has the `zoo` mark; a sample with every two options together is always run.
"""

from __future__ import annotations

import pytest
import torch

import refold
from blocks.cells import (
    BLOCKS,
    CHANNELS,
    KERNELS,
    TRANSPOSED,
    Cell,
    cells,
    covering,
    enliven,
    error,
    layers,
    pairs,
)
from helpers.nightly import some
from refold.errors import GeometryError, RefusedError

pytestmark = pytest.mark.slow

LIMIT = 1e-9


def has_no_centre(name: str, cell: Cell) -> bool:
    """Whether the cell is even and the block has a branch to centre in it."""
    if not cell.is_even:
        return False
    whole = {
        "large_kernel": True,  # its small kernel is then the large one
        "dilated": True,  # no dilated kernel is small enough
        "acb": len(cell.kernel) == 1,  # its only flat kernel is the square one
        "dbb": cell.is_depthwise,  # has no 1x1 branch
    }
    return not whole.get(name, False)


def fold(name: str, cell: Cell, generator: torch.Generator) -> bool:
    """Fold one cell and check it; False where it is refused for want of a centre."""
    if has_no_centre(name, cell):
        with pytest.raises(GeometryError, match="centred"):
            cell.build(name)
        return False
    block, x = cell.build(name, activation=None), cell.map(generator)
    enliven(block, generator)
    with torch.no_grad():
        before = block(x)
        assert error(before, block.fuse()(x)) <= LIMIT, cell
    assert layers(block) == (1, 0), cell
    return True


EVEN = 2 * 3 * 2 * 3 * 2  # strides, paddings, dilations, groups, channels of the one even kernel
DEPTHWISE = 2 * 3 * 2  # of those with as many groups as channels in and out
ALL = {1: 552, 2: 744, 3: 744}


def expected(name: str, ndim: int) -> int:
    whole = name in ("large_kernel", "dilated") or (name == "acb" and ndim == 1)
    return ALL[ndim] if whole else ALL[ndim] - EVEN + (DEPTHWISE if name == "dbb" else 0)


@pytest.mark.zoo
@pytest.mark.parametrize("ndim", KERNELS)
@pytest.mark.parametrize("name", BLOCKS)
def test_every_cell_folds_or_has_no_centre(
    name: str, ndim: int, generator: torch.Generator
) -> None:
    assert sum(fold(name, cell, generator) for cell in cells(ndim)) == expected(name, ndim)


@pytest.mark.parametrize("ndim", some([1, 2, 3], keep=[2]))
@pytest.mark.parametrize("name", BLOCKS)
def test_every_two_options_fold_together(name: str, ndim: int, generator: torch.Generator) -> None:
    refused = sum(has_no_centre(name, cell) for cell in covering(ndim))
    folded = sum(fold(name, cell, generator) for cell in covering(ndim))
    assert folded == len(covering(ndim)) - refused > 20


@pytest.mark.parametrize("ndim", KERNELS)
def test_the_sample_covers_every_two_options(ndim: int) -> None:
    whole, few = list(cells(ndim)), covering(ndim)
    assert len(few) < len(whole) / 10
    for kept in (False, True):
        wanted, found = (
            {pair for cell in part if cell.keeps_shape or not kept for pair in pairs(cell)}
            for part in (whole, few)
        )
        assert found == wanted


def test_the_grid_is_whole() -> None:
    assert {ndim: len(list(cells(ndim))) for ndim in KERNELS} == ALL
    assert sum(expected(name, ndim) for name in BLOCKS for ndim in KERNELS) == 15_132


@pytest.mark.parametrize("ndim", some(KERNELS, keep=[2]))
@pytest.mark.parametrize("name", some(BLOCKS, keep=4))
def test_the_engine_folds_what_the_block_folds(
    name: str, ndim: int, generator: torch.Generator
) -> None:
    for cell in [cell for cell in cells(ndim) if not cell.is_even][:: 149 if ndim == 2 else 227]:
        block, x = cell.build(name), cell.map(generator)
        enliven(block, generator)
        folded = refold.reparameterize(block, x)
        with torch.no_grad():
            assert error(block(x), folded(x)) <= LIMIT, cell
        assert layers(folded) == (1, 0), cell


def spare_taps(name: str, kernel: tuple[int, ...]) -> int:
    """Return how many taps the kernel has more than the block's smallest branch spans."""
    some = {"dilated": {5: 2, 7: 2}, "large_kernel": {7: 2}, "orepa": {}}
    return max(some[name].get(size, 0) if name in some else size - 1 for size in kernel)


@pytest.mark.parametrize("name", TRANSPOSED)
def test_transposed_blocks_fold_unless_an_output_had_to_grow(
    name: str, generator: torch.Generator
) -> None:
    folded = refused = 0
    for cell in [cell for cell in cells(2) if not cell.is_even][::29]:
        if cell.padding < cell.dilation * spare_taps(name, cell.kernel) // 2:
            refused += 1
            with pytest.raises(GeometryError, match="too small for a transposed branch"):
                cell.build(name, transposed=True)
            continue
        block = cell.build(name, transposed=True, activation=None)
        x = cell.map(generator, transposed=True)
        enliven(block, generator)
        with torch.no_grad():
            before = block(x)
            assert error(before, block.fuse()(x)) <= LIMIT, cell
        assert layers(block) == (1, 0)
        folded += 1
    assert folded > 10
    assert (refused > 0) == (name != "orepa")


@pytest.mark.parametrize("name", ["repvgg", "mobileone", "qarepvgg"])
@pytest.mark.parametrize(("out_channels", "stride"), [(8, 1), (4, 2)])
def test_an_identity_that_cannot_be_is_refused(name: str, out_channels: int, stride: int) -> None:
    cell = Cell((3, 3), stride, 1, 1, 1, out_channels)
    with pytest.raises(RefusedError, match="identity branch needs equal channels and stride 1"):
        cell.build(name, identity=True)


def test_a_wrong_block_is_noticed(generator: torch.Generator) -> None:
    cell = Cell((3, 3), 1, 1, 1, 1, CHANNELS)
    block, x = cell.build("acb"), cell.map(generator)
    enliven(block, generator)
    with torch.no_grad():
        before = block(x)
        conv = block.fuse().get_submodule("fused_conv")
        assert isinstance(conv, torch.nn.Conv2d)
        conv.weight[0, 0, 0, 0] += 1e-6
        assert error(before, block(x)) > LIMIT

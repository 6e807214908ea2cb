"""RepMLP's blocks: exact for any channels, groups, sizes and kernels; plain when deployed."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import product
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

import refold
from blocks.cells import enliven, error
from helpers.nightly import some
from refold.blocks import RepMLPBlock, RepMLPNetBlock
from refold.errors import GeometryError, RefusedError

LIMIT = 1e-9
CHANNELS = [(4, 4, 1), (4, 4, 2), (4, 6, 1), (4, 6, 2), (6, 2, 2), (4, 4, 4), (2, 6, 1)]
SIZES = [  # map, partition
    ((5, 5), 5),
    ((3, 5), (3, 5)),
    ((10, 5), 5),
    ((6, 10), (3, 5)),
    ((7, 9), (5, 7)),
    ((3, 4), (5, 5)),
]
KERNELS = [(), (1,), (3,), (1, 3), (1, 3, 5), ((1, 3), (3, 5)), ((3, 1), 1, (1, 5), 3)]


def cells() -> Iterator[dict[str, Any]]:
    """Every cell of the grid whose kernels fit its partition."""
    for (c, o, g), (size, partition), kernels in product(CHANNELS, SIZES, KERNELS):
        h, w = partition if isinstance(partition, tuple) else (partition, partition)
        pairs = [k if isinstance(k, tuple) else (k, k) for k in kernels]
        if all(kh <= h and kw <= w for kh, kw in pairs):
            yield {
                "in_channels": c, "out_channels": o, "groups": g,
                "img_size": size, "partition": partition, "kernels": kernels,
            }  # fmt: skip


LARGE = {"in_channels": 4, "groups": 2, "partition": 10, "kernels": (1, 3, 5, 7)}  # at 320 pixels
CELLS = list(cells())
CELLS += [LARGE | {"out_channels": o, "img_size": s} for o, s in ((4, (10, 20)), (6, (10, 10)))]


def inputs(channels: int, size: tuple[int, int], generator: torch.Generator) -> Tensor:
    """A random, a constant and an impulse map."""
    maps = torch.randn(3, channels, *size, generator=generator, dtype=torch.float64)
    maps[1] = 1.5
    maps[2] = 0
    maps[2, 0, -1, 0] = 1
    return maps


def matrices(model: nn.Module) -> list[nn.Module]:
    return [m for m in model.modules() if isinstance(m, nn.Linear | nn.Conv2d)]


def norms(model: nn.Module) -> int:
    return sum(isinstance(m, nn.modules.batchnorm._BatchNorm) for m in model.modules())


def is_grouped_row(layer: nn.Module, groups: int) -> bool:
    pointwise = isinstance(layer, nn.Conv2d) and layer.kernel_size == (1, 1)
    return pointwise and layer.groups == groups and layer.bias is not None


def test_the_grid_is_whole() -> None:
    assert len(CELLS) == 7 * (4 * 7 + 2 * 6) + 2


PARTS = 13  # of the grid, each with every option: one is always run, the others by hand


@pytest.mark.slow
@pytest.mark.parametrize(
    "part", [0, *(pytest.param(n, marks=pytest.mark.zoo) for n in range(1, PARTS))]
)
def test_every_cell_is_three_linear_layers(part: int) -> None:
    generator = torch.Generator().manual_seed(part)
    for cell in CELLS[part::PARTS]:
        block = RepMLPBlock(**cell, reduction=2, dtype=torch.float64).eval()
        enliven(block, generator)
        x = inputs(cell["in_channels"], cell["img_size"], generator)
        with torch.no_grad():
            before = block(x)
            assert before.shape == (3, cell["out_channels"], *cell["img_size"])
            folded = refold.reparameterize(block, x)
            assert error(before, folded(x)) <= LIMIT, cell
            assert error(before[:1], folded(x[:1])) <= LIMIT, cell
            assert error(before, block.fuse()(x)) <= LIMIT, cell
        count = 1 if block.grid.is_one else 3
        for plain in (folded, block):
            assert len(matrices(plain)) == count, cell
            assert norms(plain) == 0, cell
        assert is_grouped_row(block.fc3, cell["groups"])
        assert any(is_grouped_row(layer, cell["groups"]) for layer in matrices(folded))


@pytest.mark.parametrize("size", [(6, 4), (5, 7)])
def test_the_plain_form_loads_the_deployed_weights(size: tuple[int, int]) -> None:
    options: dict[str, Any] = {
        "img_size": size, "partition": (3, 2), "groups": 2, "kernels": (1, (3, 1)),
    }  # fmt: skip
    block = RepMLPBlock(4, 6, **options).eval()
    enliven(block, torch.Generator().manual_seed(0))
    plain = RepMLPBlock(4, 6, **options, deploy=True).eval()
    x = torch.randn(2, 4, *size)
    with torch.no_grad():
        before = block(x)
        plain.load_state_dict(block.fuse().state_dict(), strict=True)
        assert error(before, plain(x)) <= 1e-5
    assert {"fc3.weight", "fc3.bias", "fc1_fc2.fc1.weight", "fc1_fc2.fc2.bias"} <= set(
        plain.state_dict()
    )
    assert plain.deploy
    assert block.deploy


def test_inspect_says_where_each_convolution_went() -> None:
    block = RepMLPBlock(4, 6, img_size=8, partition=4, groups=2, kernels=(1, (1, 3), 3)).eval()
    plan = refold.plan(nn.Sequential(block).eval(), torch.zeros(2, 4, 8, 8))
    text = str(plan)
    for name in ("fc3 + fc3_bn", "repconv1.conv", "repconv1x3.conv", "repconv3.bn", "avg.bn"):
        assert name in text, text
    assert not plan.refusals


def test_the_names_are_the_authors() -> None:
    keys = set(RepMLPBlock(4, 4, img_size=8, partition=4, kernels=(1, 3)).state_dict())
    expected = {
        "fc1_fc2.fc1.weight", "fc1_fc2.fc2.bias", "avg.bn.running_mean", "fc3.weight",
        "fc3_bn.weight", "repconv1.conv.weight", "repconv3.bn.running_var",
    }  # fmt: skip
    assert expected <= keys
    assert "fc3.bias" not in keys


@pytest.mark.parametrize("reduction", [1, 4])
def test_parameters_are_the_papers(reduction: int) -> None:
    """FC3 has C O (h w)^2 / g numbers, the global layers 2 (C H W / h w)^2 / r: section 3.1."""
    c, o, g, side, count = 4, 8, 2, 5, 9
    block = RepMLPBlock(c, o, img_size=15, partition=5, groups=g, reduction=reduction, deploy=True)
    fc3, summary = block.fc3, block.fc1_fc2
    assert fc3.weight.numel() == c * o * side**4 // g
    weights = sum(p.numel() for p in summary.parameters() if p.ndim == 2)
    assert weights == 2 * (c * count) ** 2 // reduction


def released(kernel: Tensor, size: tuple[int, int], groups: int) -> Tensor:
    """The authors' conversion: an identity pushed through, then laid out as O h w / g rows."""
    (outputs, width), positions = kernel.shape[:2], size[0] * size[1]
    shape = (outputs * positions // groups, width * groups * positions)
    return _pushed(kernel, size, groups).reshape(shape).T


def right(kernel: Tensor, size: tuple[int, int], groups: int) -> Tensor:
    return _pushed(kernel, size, groups).flatten(1).T


def _pushed(kernel: Tensor, size: tuple[int, int], groups: int) -> Tensor:
    (h, w), width = size, kernel.shape[1]
    units = torch.eye(width * h * w, dtype=kernel.dtype).repeat(1, groups)
    maps = units.reshape(-1, width * groups, h, w)
    return F.conv2d(maps, kernel, padding=kernel.shape[-1] // 2, groups=groups)


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize(("c", "o"), [(4, 4), (4, 8), (8, 4)])
def test_the_released_reshape_is_wrong_for_unequal_channels(c: int, o: int, groups: int) -> None:
    """Pinned: for C = O both layouts agree, else the released one scrambles the matrix."""
    size = (3, 3)
    kernel = torch.randn(o, c // groups, 3, 3, dtype=torch.float64)
    x = torch.randn(2, c, *size, dtype=torch.float64)
    expected = F.conv2d(x, kernel, padding=1, groups=groups).flatten(1)

    def answer(matrix: Tensor) -> Tensor:
        return F.conv2d(x.reshape(2, -1, 1, 1), matrix[..., None, None], groups=groups).flatten(1)

    assert error(expected, answer(right(kernel, size, groups))) <= LIMIT
    ours, _ = refold.transforms.conv_to_dense(
        kernel, None, size, padding=1, groups=groups, grouped=True
    )
    wanted = right(kernel, size, groups)  # by convolving, which some processors do in other sums
    assert error(wanted, ours) <= LIMIT
    scrambled = released(kernel, size, groups)
    if c == o:
        assert torch.equal(scrambled, wanted)
    else:
        wrong = scrambled.reshape(ours.shape)
        assert error(expected, answer(wrong)) > 0.5


@pytest.mark.parametrize(
    ("options", "count"), [({"global_perceptron": False}, 1), ({"fc3_window": (5, 9)}, 3)]
)
def test_the_papers_ablations_fold_too(options: dict[str, Any], count: int) -> None:
    generator = torch.Generator().manual_seed(3)
    block = RepMLPBlock(
        4, 6, img_size=(8, 4), partition=4, groups=2, kernels=(1, 3), dtype=torch.float64, **options
    )
    enliven(block, generator)
    x = inputs(4, (8, 4), generator)
    with torch.no_grad():
        before = block(x)
        folded = refold.reparameterize(block, x)
        assert error(before, folded(x)) <= LIMIT
        assert error(before, block.fuse()(x)) <= LIMIT
    assert len(matrices(folded)) == len(matrices(block)) == count
    assert norms(folded) == norms(block) == 0


# -- RepMLPNet ------------------------------------------------------------------------------------


@pytest.mark.parametrize("sets", some([1, 2, 4, 8], keep=[1, 4]))
@pytest.mark.parametrize("kernels", [(), (1,), (1, 3), ((3, 1), 3)])
@pytest.mark.parametrize(
    ("size", "partition"), [((4, 3), None), ((8, 6), (4, 3)), ((7, 5), (4, 3))]
)
def test_the_block_with_shared_sets(
    sets: int, kernels: Any, size: tuple[int, int], partition: Any
) -> None:
    generator = torch.Generator().manual_seed(sets)
    block = RepMLPNetBlock(
        8, img_size=size, partition=partition, sets=sets, kernels=kernels, dtype=torch.float64
    ).eval()
    enliven(block, generator)
    x = inputs(8, size, generator)
    with torch.no_grad():
        before = block(x)
        assert before.shape == x.shape
        folded = refold.reparameterize(block, x)
        assert error(before, folded(x)) <= LIMIT
        assert error(before, block.fuse()(x)) <= LIMIT
    for plain in (folded, block):
        assert len(matrices(plain)) == 3
        assert norms(plain) == 0
    assert is_grouped_row(block.fc3, sets)


def test_sets_share_their_weights() -> None:
    """Channels s and s + S go through the same numbers: swapping both groups swaps the result."""
    block = RepMLPNetBlock(4, img_size=3, sets=2).eval()
    enliven(block, torch.Generator().manual_seed(0))
    value = block.perceive(x := torch.randn(5, 2, 3, 3))
    assert torch.allclose(block.perceive(x.flip(0)), value.flip(0), atol=1e-5)
    keys = set(block.state_dict())
    assert {"gp.fc1.weight", "gp.fc2.bias", "fc3.weight", "fc3_bn.weight"} <= keys
    assert block.fc3_bn.num_features == 2


# -- what is refused ------------------------------------------------------------------------------


def test_training_mode_is_refused() -> None:
    block = RepMLPBlock(4, 4, img_size=4, partition=4, kernels=(1, 3))
    with pytest.raises(RefusedError, match="RepMLPBlock is in training mode"):
        block.switch_to_deploy()
    assert not block.deploy


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"kernels": (2,)}, r"kernel \(2, 2\) has no centre: it must be odd"),
        ({"kernels": (5,)}, r"kernel \(5, 5\) is larger than the partition"),
        ({"groups": 3}, "groups 3 must divide in_channels 4"),
        ({"partition": 0}, "partition must be an int or 2 ints of at least 1"),
        ({"img_size": (4, 4, 4)}, "img_size must be an int or 2 ints"),
        ({"img_size": 8, "reduction": 17}, "reduction 17 must be from 1 to 16"),
    ],
)
def test_what_does_not_fit_is_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(GeometryError, match=message):
        RepMLPBlock(4, 4, **{"img_size": 4, "partition": 4, "kernels": (1,), **options})


def test_maps_of_another_size_are_refused() -> None:
    block = RepMLPBlock(4, 4, img_size=(4, 8), partition=4, kernels=(1,)).eval()
    folded = refold.reparameterize(block, torch.zeros(1, 4, 4, 8))
    turned = torch.zeros(1, 4, 8, 4)
    for model in (block, folded):
        with pytest.raises(GeometryError, match=r"maps of \(4, 4, 8\) .* got \(4, 8, 4\)"):
            model(turned)
    with pytest.raises(RuntimeError, match="unflatten"):
        fx.symbolic_trace(block)(turned)
    with pytest.raises(GeometryError, match="sets 3 must divide channels 4"):
        RepMLPNetBlock(4, img_size=4, sets=3)


def test_it_trains_and_copies() -> None:
    block = RepMLPBlock(4, 6, img_size=8, partition=4, groups=2, kernels=(1, 3))
    block.orthogonal_init()
    columns = block.fc3.weight[:48].flatten(1)
    torch.testing.assert_close(columns.T @ columns, torch.eye(32), atol=1e-5, rtol=0)
    block(torch.randn(2, 4, 8, 8)).square().mean().backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in block.parameters())

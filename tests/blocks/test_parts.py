"""The parts of blocks: the padded norm, gates, first scales, and arguments that are refused."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import refold
from blocks.cells import BLOCKS, Cell, enliven, error, layers
from refold import blocks
from refold.blocks.layers import SqueezeExcite, WindowMean
from refold.blocks.spec import ConvSpec
from refold.branches import registry
from refold.errors import GeometryError, InputError, NotAffineError, RefusedError
from refold.transforms import equivalent_conv

CELL = Cell((3, 3), 1, 1, 1, 1, 4)


@pytest.fixture
def norm(generator: torch.Generator) -> nn.BatchNorm2d:
    layer = nn.BatchNorm2d(4, dtype=torch.float64)
    enliven(layer, generator)
    return layer


@pytest.fixture
def x(generator: torch.Generator) -> Tensor:
    return torch.randn(2, 4, 5, 6, generator=generator, dtype=torch.float64)


# -- BNAndPad -------------------------------------------------------------------------------------


def test_in_eval_it_is_the_norm_of_the_padded_map(norm: nn.BatchNorm2d, x: Tensor) -> None:
    layer = blocks.BNAndPad(norm, (1, 2)).eval()
    with torch.no_grad():
        # a vector and its rest may round differently, and the two maps are cut otherwise
        assert error(norm(F.pad(x, (2, 2, 1, 1))), layer(x)) < 1e-12


def test_in_training_the_ring_has_running_and_the_map_its_own_statistics(
    norm: nn.BatchNorm2d, x: Tensor
) -> None:
    layer, alone = blocks.BNAndPad(copy.deepcopy(norm), (1, 2)).train(), copy.deepcopy(norm).train()
    y, inside = layer(x), alone(x)
    assert error(inside, y[:, :, 1:-1, 2:-2]) < 1e-12
    assert error(alone.running_mean, layer.bn.running_mean) < 1e-12  # of the map without its ring
    scale = alone.weight / (alone.running_var + alone.eps).sqrt()
    ring = alone.bias - alone.running_mean * scale
    for side in (y[:, :, 0], y[:, :, -1], y[:, :, :, 0], y[:, :, :, 1], y[:, :, :, -1]):
        torch.testing.assert_close(side, ring[None, :, None].expand_as(side))


def test_no_gradient_flows_into_the_ring(norm: nn.BatchNorm2d, x: Tensor) -> None:
    layer = blocks.BNAndPad(norm, (1, 1)).train()
    layer(x)[:, :, 0].sum().backward()
    assert norm.bias.grad is None or not norm.bias.grad.any()


def test_a_ring_needs_running_statistics(x: Tensor) -> None:
    norm = nn.BatchNorm2d(4, dtype=torch.float64, track_running_stats=False)
    with pytest.raises(RefusedError, match="must track them"):
        blocks.BNAndPad(norm, (1, 1)).train()(x)


def test_without_it_the_border_would_be_wrong(generator: torch.Generator) -> None:
    """The naive sequence, whose 3x3 pads the normalised map with zeros, does not fold."""
    naive = nn.Sequential(
        nn.Conv2d(4, 4, 1, bias=False), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, padding=1)
    )
    enliven(naive, generator)
    with pytest.raises(RefusedError, match="bias meets the second convolution's zero padding"):
        equivalent_conv(naive, torch.zeros(1, 4, 5, 5))


# -- layers ---------------------------------------------------------------------------------------


def test_a_pointwise_branch_starts_as_the_identity(x: Tensor) -> None:
    block = blocks.DiverseBranchBlock(4, 4, 3, padding=1, groups=2, dtype=torch.float64).eval()
    branch = block.get_submodule("dbb_1x1_kxk")
    later = [branch.get_submodule(name) for name in ("bn1", "conv2", "bn2")]
    with torch.no_grad():
        assert error(nn.Sequential(*later)(x), branch(x)) < 1e-12


@pytest.mark.parametrize("dilation", [1, 2])
def test_a_window_mean_is_torchs_pool_with_gaps(dilation: int, x: Tensor) -> None:
    spec = ConvSpec.of(4, 4, (3, 1), (2, 1), (1, 0), dilation)
    layer = WindowMean(4, spec, dtype=torch.float64)
    weight = torch.full((4, 1, 3, 1), 1 / 3, dtype=torch.float64)
    expected = F.conv2d(x, weight, None, (2, 1), (1, 0), dilation, 4)
    torch.testing.assert_close(layer(x), expected)
    if dilation == 1:
        torch.testing.assert_close(layer(x), F.avg_pool2d(x, (3, 1), (2, 1), (1, 0)))


def test_a_gate_scales_channels(x: Tensor) -> None:
    gate = SqueezeExcite(4, 2, ("down", "up"), 2, dtype=torch.float64)
    ratio = gate(x) / x
    torch.testing.assert_close(ratio, ratio[:, :, :1, :1].expand_as(ratio))
    assert set(gate.state_dict()) == {"down.weight", "down.bias", "up.weight", "up.bias"}


@pytest.mark.parametrize(("se", "child"), [("before", "se"), ("after", "post_se")])
def test_the_gate_stands_where_it_is_asked_for(
    se: Any, child: str, x: Tensor, generator: torch.Generator
) -> None:
    block = blocks.RepVGGBlock(4, 8, 3, padding=1, se=se, se_channels=3, dtype=torch.float64)
    enliven(block, generator)
    gate = block.get_submodule(child)
    assert gate.get_submodule("down").out_channels == 3
    with torch.no_grad():
        y = block.linear(x)
        expected = gate(y).relu() if se == "before" else gate(y.relu())
        assert error(expected, block(x)) < 1e-12
        assert error(expected, refold.reparameterize(block, x)(x)) < 1e-12
        assert error(expected, block.fuse()(x)) < 1e-12
    assert layers(block) == (3, 0)


# -- how branches start ---------------------------------------------------------------------------


@pytest.mark.parametrize("name", BLOCKS)
def test_a_single_start_is_the_main_branch_alone(name: str, x: Tensor) -> None:
    block = CELL.build(name, activation=None).eval()
    block.single_init()
    weight, _ = block.get_equivalent_kernel_bias()
    block.init_gamma(0.0)
    rest, _ = block.get_equivalent_kernel_bias()
    if name == "qarepvgg":  # its other branches have no scale of their own
        return
    assert not rest.any()
    main = {
        "orepa": "weight_orepa_origin", "acb": "square_conv.weight", "dilated": "lk_origin.weight",
        "dbb": "dbb_origin.conv.weight", "repvgg": "rbr_dense.conv.weight",
        "mobileone": "rbr_conv.0.conv.weight", "large_kernel": "lkb_origin.conv.weight",
    }  # fmt: skip
    torch.testing.assert_close(
        weight, block.state_dict()[main[name]], rtol=1e-4, atol=0
    )  # fresh norms divide by sqrt(1 + eps)


@pytest.mark.parametrize("name", [name for name in BLOCKS if name != "orepa"])
def test_the_equal_kernel_is_differentiable_in_both_modes(
    name: str, generator: torch.Generator
) -> None:
    block = CELL.build(name)
    enliven(block, generator)
    expected = block.get_equivalent_kernel_bias()
    block.train()
    weight, bias = block.get_equivalent_kernel_bias()
    assert torch.equal(weight, expected[0])
    assert torch.equal(bias, expected[1])
    assert block.training
    (weight.square().sum() + bias.square().sum()).backward()
    assert all(p.grad is not None and p.grad.any() for p in block.parameters())


def test_mobileone_has_as_many_kernels_as_asked(x: Tensor, generator: torch.Generator) -> None:
    block = blocks.MobileOneBlock(4, 4, 3, padding=1, num_conv_branches=4, dtype=torch.float64)
    enliven(block, generator)
    assert len(block.last_norms()) == 6
    with torch.no_grad():
        expected = block(x)
        assert error(expected, block.fuse()(x)) < 1e-12
    assert "rbr_scale.conv.weight" not in blocks.MobileOneBlock(4, 8, 1).state_dict()


@pytest.mark.parametrize(("width", "key"), [(4, "idconv1"), (6, "conv1")])
def test_dbb_as_wide_as_its_input_starts_as_the_identity(width: int, key: str) -> None:
    block = blocks.DiverseBranchBlock(4, 8, 3, padding=1, internal_channels=width)
    assert f"dbb_1x1_kxk.{key}.weight" in block.state_dict()


def test_a_depthwise_dbb_has_three_branches() -> None:
    block = blocks.DiverseBranchBlock(4, 4, 3, padding=1, groups=4)
    assert list(block.last_norms()) == ["dbb_origin", "dbb_avg", "dbb_1x1_kxk"]
    assert block.state_dict()["dbb_1x1_kxk.conv1.weight"].shape == (8, 1, 1, 1)


def test_dilated_names_follow_the_official_checkpoints() -> None:
    block = blocks.DilatedReparamBlock(4, 4, 13, padding=6, groups=4)
    names = {name.split(".")[0] for name in block.state_dict()}
    pairs = ((5, 1), (7, 2), (3, 3), (3, 4), (3, 5))
    convs = {f"dil_{kind}_k{k}_{r}" for k, r in pairs for kind in ("conv", "bn")}
    assert names == {"lk_origin", "origin_bn"} | convs
    assert block.get_submodule("dil_conv_k7_2").padding == (6, 6)


# -- arguments ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"ndim": 4}, "ndim must be 1, 2 or 3"),
        ({"groups": 3}, "groups 3 must divide"),
        ({"stride": 0}, "stride must be an int or 2 ints of at least 1"),
        ({"padding": -1}, "padding must be an int or 2 ints of at least 0"),
        ({"kernel_size": (3, 3, 3)}, "kernel_size must be an int or 2 ints"),
        ({"padding_mode": "mirror"}, "padding_mode 'mirror' must be one of"),
        ({"output_padding": 1}, "belongs to transposed"),
        ({"padding": "same", "stride": 2}, "'same'"),
        ({"kernel_size": 4}, "use an odd kernel_size"),
    ],
)
def test_arguments_that_do_not_fit_are_named(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(GeometryError, match=message):
        blocks.RepVGGBlock(4, 4, **{"kernel_size": 3, **arguments})


def test_other_arguments_that_do_not_fit() -> None:
    wrong: Any = "inside"
    with pytest.raises(InputError, match="se must be"):
        blocks.RepVGGBlock(4, 4, 3, se=wrong)
    with pytest.raises(InputError, match="num_conv_branches"):
        blocks.MobileOneBlock(4, 4, 3, num_conv_branches=0)
    with pytest.raises(GeometryError, match="internal_channels"):
        blocks.DiverseBranchBlock(4, 4, 3, groups=2, internal_channels=5)
    with pytest.raises(GeometryError, match="internal_channels"):
        blocks.OREPABlock(4, 4, 3, groups=2, internal_channels=5)


def test_same_padding_is_torchs() -> None:
    assert ConvSpec.of(1, 1, (3, 5), dilation=2, padding="same").padding == (2, 4)
    assert ConvSpec.of(1, 1, 3, padding="valid").padding == (0, 0)


# -- the registry, and modules that are no convolution --------------------------------------------


def test_blocks_enter_themselves_by_name() -> None:
    assert set(BLOCKS) <= set(registry.list_blocks())
    assert {name: registry.block_factory(name) for name in BLOCKS} == BLOCKS
    with pytest.raises(InputError, match=r"no block 'dbbb'; the blocks are acb, .*repvgg"):
        registry.block_factory("dbbb")
    with pytest.raises(InputError, match="a block named 'dbb' exists"):
        registry.register_block("dbb")(nn.Module)


def test_what_is_no_convolution_is_refused() -> None:
    x = torch.zeros(1, 4, 5, 5)
    with pytest.raises(NotAffineError, match="not affine from its input to its output"):
        equivalent_conv(nn.Sequential(nn.ReLU(), nn.Conv2d(4, 4, 1)), x)
    with pytest.raises(NotAffineError, match="cannot be followed: it has no forward"):
        equivalent_conv(nn.ModuleList([nn.Conv2d(4, 4, 1)]), x)
    two = nn.Sequential(nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3, padding=1))
    with pytest.raises(RefusedError, match="is not one convolution: the second convolution pads"):
        equivalent_conv(two, x)

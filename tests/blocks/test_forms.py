"""The two forms of a block: their names, the ways from one to the other, and what stays."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from torch import nn

import refold
from blocks.cells import BLOCKS, Cell, enliven, error, layers
from refold import blocks
from refold.errors import RefusedError

CELL = Cell((3, 3), 1, 1, 1, 1, 4)
NORM = {"weight", "bias", "running_mean", "running_var", "num_batches_tracked"}

# The official layouts: convolution weights (and OREPA's own tensors), norms, and the deployed name.
KEYS: dict[str, tuple[set[str], set[str], str]] = {
    "acb": (
        {"square_conv.weight", "ver_conv.weight", "hor_conv.weight"},
        {"square_bn", "ver_bn", "hor_bn"},
        "fused_conv",
    ),
    "repvgg": (
        {"rbr_dense.conv.weight", "rbr_1x1.conv.weight"},
        {"rbr_dense.bn", "rbr_1x1.bn", "rbr_identity"},
        "rbr_reparam",
    ),
    "dbb": (
        {
            "dbb_origin.conv.weight", "dbb_1x1.conv.weight", "dbb_avg.conv.weight",
            "dbb_1x1_kxk.idconv1.weight", "dbb_1x1_kxk.conv2.weight",
        },
        {
            "dbb_origin.bn", "dbb_1x1.bn", "dbb_avg.bn.bn", "dbb_avg.avgbn", "dbb_1x1_kxk.bn1.bn",
            "dbb_1x1_kxk.bn2",
        },
        "dbb_reparam",
    ),
    "mobileone": (
        {"rbr_conv.0.conv.weight", "rbr_scale.conv.weight"},
        {"rbr_conv.0.bn", "rbr_scale.bn", "rbr_skip"},
        "reparam_conv",
    ),
    "qarepvgg": (
        {"rbr_dense.conv.weight", "rbr_1x1.weight"},
        {"rbr_dense.bn", "bn"},
        "rbr_reparam",
    ),
    "dilated": (
        {"lk_origin.weight", "dil_conv_k3_1.weight"},
        {"origin_bn", "dil_bn_k3_1"},
        "lk_origin",
    ),
    "large_kernel": (
        {"lkb_origin.conv.weight", "small_conv.conv.weight"},
        {"lkb_origin.bn", "small_conv.bn"},
        "lkb_reparam",
    ),
    "orepa": (
        {
            "weight_orepa_origin", "weight_orepa_avg_conv", "weight_orepa_avg_avg",
            "weight_orepa_pfir_conv", "weight_orepa_prior", "weight_orepa_1x1",
            "weight_orepa_1x1_kxk_idconv1", "weight_orepa_1x1_kxk_conv2", "weight_orepa_gconv_dw",
            "weight_orepa_gconv_pw", "id_tensor", "vector",
        },
        {"bn"},
        "orepa_reparam",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", BLOCKS)
def test_names_follow_the_official_checkpoints(name: str) -> None:
    weights, norms, deployed = KEYS[name]
    block = CELL.build(name)
    assert set(block.state_dict()) == weights | {f"{norm}.{key}" for norm in norms for key in NORM}
    folded, is_taken = refold.reparameterize(block.eval()), hasattr(block, deployed)
    block.switch_to_deploy()
    for plain, child in ((block, deployed), (folded, "reparam_conv" if is_taken else deployed)):
        assert set(plain.state_dict()) == {f"{child}.weight", f"{child}.bias"}


@pytest.mark.parametrize("name", BLOCKS)
def test_the_plain_form_is_built_as_it_is_folded(name: str, generator: torch.Generator) -> None:
    cell = Cell((3, 1), 2, 1, 2, 2, 8)
    built, folded = cell.build(name, deploy=True), cell.build(name)
    assert built.deploy
    assert built.training
    assert all(tensor.isfinite().all() for tensor in built.state_dict().values())
    enliven(folded, generator)
    x = cell.map(generator)
    with torch.no_grad():
        expected = folded(x)
        built.load_state_dict(folded.fuse().state_dict())
        assert error(expected, built(x)) < 1e-12


@pytest.mark.parametrize("name", BLOCKS)
def test_every_way_to_the_plain_form(name: str, generator: torch.Generator) -> None:
    block, x = CELL.build(name), CELL.map(generator)
    enliven(block, generator)
    by_switch, by_verb, by_fuse = (copy.deepcopy(block) for _ in range(3))
    assert by_switch.switch_to_deploy() is None
    by_verb.reparameterize()
    assert by_fuse.fuse() is by_fuse
    with torch.no_grad():
        expected = block(x)
        for plain in (by_switch, by_verb, by_fuse):
            assert plain.deploy
            assert error(expected, plain(x)) < 1e-12
            assert error(expected, plain.fuse()(x)) < 1e-12  # again changes nothing
        weight, bias = block.get_equivalent_kernel_bias()
        plain_weight, plain_bias = by_fuse.get_equivalent_kernel_bias()
        assert error(plain_weight, weight) < 1e-12
        assert error(plain_bias, bias) < 1e-12
    again = pickle.loads(pickle.dumps(by_fuse))
    assert error(expected, again(x)) < 1e-12


@pytest.mark.parametrize("name", BLOCKS)
def test_training_mode_is_refused_and_nothing_changes(name: str) -> None:
    block = CELL.build(name)
    before = set(block.state_dict())
    for convert in (block.switch_to_deploy, block.reparameterize, block.fuse):
        with pytest.raises(RefusedError, match=r"call eval\(\) first"):
            convert()
    assert set(block.state_dict()) == before
    assert block.training


@pytest.mark.parametrize("name", BLOCKS)
def test_every_parameter_trains(name: str, generator: torch.Generator) -> None:
    block, x = CELL.build(name), CELL.map(generator)
    optimizer = torch.optim.SGD(block.parameters(), lr=0.1)
    start = {key: tensor.clone() for key, tensor in block.named_parameters()}
    for _ in range(3):
        optimizer.zero_grad()
        (block(x) ** 2).mean().backward()
        optimizer.step()
    assert [
        key for key, tensor in block.named_parameters() if torch.equal(tensor, start[key])
    ] == []


@pytest.mark.parametrize("name", BLOCKS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_precision_and_gradients_are_kept(name: str, dtype: torch.dtype) -> None:
    block = CELL.build(name).to(dtype).requires_grad_(False).eval()
    block.fuse()
    assert {p.dtype for p in block.parameters()} == {dtype}
    assert not any(p.requires_grad for p in block.parameters())


def test_what_does_not_fit_half_precision_is_refused() -> None:
    block = CELL.build("repvgg").to(torch.float16).eval()
    nn.init.constant_(block.get_submodule("rbr_dense.bn").running_var, 1e-7)  # type: ignore[arg-type]
    nn.init.constant_(block.get_submodule("rbr_dense.conv").weight, 6e4)  # type: ignore[arg-type]
    before = set(block.state_dict())
    with pytest.raises(RefusedError, match=r"beyond .*float16"):
        block.fuse()
    assert set(block.state_dict()) == before


def net() -> nn.Sequential:
    """Return a network of our blocks."""
    return nn.Sequential(
        blocks.MobileOneBlock(3, 8, 3, stride=2, padding=1, num_conv_branches=2, se=True),
        blocks.RepVGGBlock(8, 8, 3, padding=1, se="before"),
        blocks.RepVGGBlock(8, 8, 3, padding=1, se="after"),
        blocks.QARepVGGBlock(8, 8, 3, padding=1),
        blocks.OREPABlock(8, 8, 3, padding=1),
        nn.Sequential(blocks.DiverseBranchBlock(8, 8, 3, padding=1, activation=nn.ReLU), nn.ReLU()),
        blocks.ACBlock(8, 8, 3, padding=1, activation=nn.GELU),
        blocks.DilatedReparamBlock(8, 8, 7, padding=3, groups=8),
        blocks.LargeKernelBlock(8, 8, 7, padding=3, groups=8, activation=nn.ReLU),
    ).to(torch.float64)


def test_timms_walker_converts_our_blocks(generator: torch.Generator) -> None:
    from timm.utils import reparameterize_model

    model = net()
    enliven(model, generator)
    x = torch.randn(2, 3, 16, 16, generator=generator, dtype=torch.float64)
    gates = 2 * 3  # squeeze-and-excite keeps its two convolutions
    for inplace in (False, True):
        converted = reparameterize_model(model, inplace=inplace)
        with torch.no_grad():
            expected = copy.deepcopy(model)(x)
            assert error(expected, converted(x)) < 1e-12
        assert layers(converted) == (9 + gates, 0)
        assert type(converted[1]) is blocks.RepVGGBlock
    assert layers(model) == (9 + gates, 0)


def test_the_engine_and_the_blocks_agree(generator: torch.Generator) -> None:
    from timm.utils import reparameterize_model

    model = net()
    enliven(model, generator)
    x = torch.randn(2, 3, 16, 16, generator=generator, dtype=torch.float64)
    folded = refold.reparameterize(model, x)
    with torch.no_grad():
        expected = model(x)
        assert error(expected, folded(x)) < 1e-12
        assert layers(folded) == (9 + 6, 0)
        assert len(folded) == len(model)
        walked = reparameterize_model(folded)  # what the engine folded stays as it is
        assert error(expected, walked(x)) < 1e-12
        assert folded[1].deploy
        assert folded[1].get_equivalent_kernel_bias()[0].shape == (8, 8, 3, 3)


@pytest.mark.parametrize(
    "name", ["repvgg", "mobileone", "acb", "qarepvgg", "dilated", "large_kernel"]
)
@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
@pytest.mark.parametrize("kernel", [3, 5])
def test_padding_modes_fold(name: str, mode: str, kernel: int, generator: torch.Generator) -> None:
    cell = Cell((kernel, kernel), 1, kernel // 2, 1, 1, 4)
    block, x = cell.build(name, padding_mode=mode), cell.map(generator)
    enliven(block, generator)
    with torch.no_grad():
        expected = block(x)
        assert error(expected, block.fuse()(x)) < 1e-12
    assert layers(block) == (1, 0)


def test_a_layout_in_memory_is_kept() -> None:
    block: Any = CELL.build("repvgg").to(memory_format=torch.channels_last).eval()
    block.fuse()
    assert block.rbr_reparam.weight.is_contiguous(memory_format=torch.channels_last)

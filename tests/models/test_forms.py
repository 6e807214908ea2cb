"""The form that deploys is what folding the form that trains gives, for every name."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

import pytest
import timm.utils
import torch
from torch import Tensor, nn

import refold
from helpers.nightly import some
from models.nets import FAMILIES, alive, build, error, image, is_written, structures
from refold.blocks import ACBlock, BranchedBlock
from refold.blocks.partition import PartitionBlock
from refold.errors import CheckpointError
from zoo.live import enliven

pytestmark = pytest.mark.slow


# The engine folds a sum and what follows it in one piece, and gives that piece a name of its own:
# test_modules has the one network whose sum is followed by more than its norm. Those whose norms
# stand outside blocks are in test_repmlp*, those that merge only under `allow_growth` in
# test_rmnet*.
ELSEWHERE = ("repmlpnet", "repmlp_cifar10", "wide_convnet", "mobilefacenet_gdc_gap", "rmrep")
WRITTEN = [name for name in FAMILIES if is_written(name)]
NAMES = [name for name in structures() if not name.startswith(ELSEWHERE)]
TOLERANCE = 1e-9


def shapes(model: nn.Module) -> dict[str, list[tuple[str, tuple[int, ...]]]]:
    """Return the state dict by layer, where a block is one layer and its gates are others."""
    kinds = BranchedBlock | PartitionBlock
    blocks = {path for path, part in model.named_modules() if isinstance(part, kinds)}
    found: dict[str, list[tuple[str, tuple[int, ...]]]] = {}
    for key, tensor in model.state_dict().items():
        path, _, role = key.rpartition(".")
        block = next((at for at in blocks if key.startswith(f"{at}.")), None)
        if block is not None:
            after = getattr(model.get_submodule(block), "after", ())
            own = key[len(block) + 1 :].split(".")[0] in after
            path = path if own else block
        found.setdefault(path, []).append((role, tuple(tensor.shape)))
    return {path: sorted(rows) for path, rows in found.items()}


def without_aux(state: dict[str, Tensor]) -> dict[str, Tensor]:
    return {key: tensor for key, tensor in state.items() if "_aux." not in key}


# Branches, gates, 1x1 before 3x3, crosses, groups, parallel paths: the others repeat these.
@pytest.mark.parametrize(
    "name",
    some(NAMES, keep=["repvgg_a0", "repvgg_plus_l2pse", "acnet_vgg16", "dbb_cifar_quick",
                      "mobilefacenet", "shufflenetv1_g3", "mobileone_s4"]),
)  # fmt: skip
def test_the_train_form_folds_exactly_into_the_deploy_form(name: str) -> None:
    """By the engine, and by timm's walker, which calls `fuse` and gives the very same names."""
    model, x = alive(name)
    folded = refold.reparameterize(model, x)
    fused = timm.utils.reparameterize_model(model)
    plain = build(name, deploy=True).eval()
    own = shapes(folded)
    assert {path: own[path] for path in own if "_aux" not in path} == shapes(plain)
    plain.load_state_dict(without_aux(fused.state_dict()))
    assert not any(isinstance(part, nn.BatchNorm2d) for part in plain.modules())
    with torch.no_grad():
        wanted = model(x)
        assert wanted.abs().max() > 0
        assert error(wanted, folded(x)) <= TOLERANCE
        assert error(wanted, plain(x)) <= TOLERANCE
        assert error(fused(x), plain(x)) <= TOLERANCE


@pytest.mark.parametrize(
    "name",
    some(
        WRITTEN,
        keep=[
            "repvgg_plus_l2pse",
            "acnet_vgg16",
            "dbb_cifar_quick",
            "faceresnet",
            "mobileone_s4",
            "repmlp_cifar10",
            "shufflenetv1_g3",
            "rmrep_21",
        ],
    ),
)
def test_a_train_form_file_loads_into_the_deploy_form(name: str, tmp_path: Path) -> None:
    model, x = alive(name)
    torch.save({"state_dict": model.state_dict()}, tmp_path / "train.pth")
    plain = build(name, deploy=True).eval()
    assert refold.load_checkpoint(plain, tmp_path / "train.pth").folded > 0
    torch.save(plain.state_dict(), tmp_path / "deploy.pth")
    again = build(name, deploy=True).eval()
    assert refold.load_checkpoint(again, tmp_path / "deploy.pth").folded == 0
    with torch.no_grad():
        wanted = model(x)
        assert error(wanted, plain(x)) <= TOLERANCE
        assert torch.equal(plain(x), again(x))
    with pytest.raises(CheckpointError, match="training form"):
        refold.load_checkpoint(model, tmp_path / "deploy.pth")


ENGINE = {
    "resnext50_32x4d_paths": {"depths": (1, 1, 1, 1), "cardinality": 2, "base": 8},
    "preact_resnet164": {"depths": (2, 1, 1), "widths": (4, 8, 16)},
    "resnet18": {},
}


@pytest.mark.parametrize("name", some(ENGINE, keep=["resnext50_32x4d_paths", "preact_resnet164"]))
def test_a_train_form_file_loads_where_the_engine_folds(name: str, tmp_path: Path) -> None:
    """`create_model` folds these as a whole: so is the file."""
    options: dict[str, Any] = {"num_classes": 10, **ENGINE[name]}
    torch.manual_seed(0)
    model = refold.create_model(name, **options).double()
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    enliven(model.eval(), (x,))
    torch.save(model.state_dict(), tmp_path / "train.pth")
    plain = refold.create_model(name, deploy=True, **options).double().eval()
    report = refold.load_checkpoint(plain, tmp_path / "train.pth")
    assert (report.folded > 0, report.loaded) == (True, len(plain.state_dict()))
    torch.save(plain.state_dict(), tmp_path / "deploy.pth")
    assert refold.load_checkpoint(plain, tmp_path / "deploy.pth").folded == 0
    with torch.no_grad():
        assert error(model(x), plain(x)) <= 1e-6  # the file was folded in the network's float32
    before = {key: tensor.clone() for key, tensor in plain.state_dict().items()}
    other = refold.create_model(name, **{**options, "num_classes": 11})
    torch.save(other.state_dict(), tmp_path / "other.pth")
    with pytest.raises(CheckpointError, match="does not fit the model"):
        refold.load_checkpoint(plain, tmp_path / "other.pth")
    assert all(torch.equal(before[key], tensor) for key, tensor in plain.state_dict().items())


def test_deployed_blocks_of_one_make_share_nothing_but_their_shape() -> None:
    make = partial(ACBlock, 4, 8, 3, deploy=True)
    one, two, wide = make(), make(), make(dtype=torch.float64)
    first, second, other = (block.get_equivalent_kernel_bias()[0] for block in (one, two, wide))
    assert (first.dtype, second.dtype, other.dtype) == (torch.float, torch.float, torch.double)
    assert first.data_ptr() != second.data_ptr()
    assert not torch.equal(first, second)
    assert make(padding=1)(torch.zeros(1, 4, 6, 6)).shape[-1] == 6
    assert one(torch.zeros(1, 4, 6, 6)).shape[-1] == 4


def test_structures_leave_out_widths_alone() -> None:
    assert {"repvgg_b1g4", "repvgg_d2se", "mobileone_s4", "dbb_resnet50"} <= set(NAMES)
    assert not {"repvgg_a1", "repvgg_b3g4", "mobileone_s2"} & set(NAMES)


@pytest.mark.parametrize("name", ["repvgg_b1g4", "mobileone_s4", "dbb_mobilenetv1", "acnet_vgg16"])
@pytest.mark.parametrize("deploy", [False, True])
def test_both_forms_train(name: str, deploy: bool) -> None:
    model = build(name, deploy=deploy).train()
    logits = model(image(model))
    logits.square().sum().backward()
    assert logits.shape == (2, 10)
    idle = [key for key, p in model.named_parameters() if p.grad is None or not p.grad.any()]
    # A single pixel has no border that DBB's inner shift could reach: the norm after it takes it.
    assert not [key for key in idle if not key.endswith(("bn.bn.bias", "bn1.bn.bias"))]


def test_repvggplus_returns_its_auxiliary_logits_in_training_only() -> None:
    model, x = alive("repvgg_plus_l2pse")
    logits = model(x)
    outputs = model.train()(torch.cat([x, -x]))
    assert list(outputs) == ["main", "stage1_aux", "stage2_aux", "stage3_first_aux"]
    assert all(value.shape == (2, 10) for value in outputs.values())
    plain = build("repvgg_plus_l2pse", deploy=True)
    assert plain.train()(x).shape == plain.eval()(x).shape == logits.shape
    assert not [key for key in plain.state_dict() if "_aux" in key]
    without = build("repvgg_plus_l2pse", aux=False)
    assert not [key for key in without.state_dict() if "_aux" in key]


@pytest.mark.parametrize("name", ["acnet_cifar_quick", "acnet_vgg16"])
def test_acnets_recipe_for_cifar_starts_the_norms_at_a_third(name: str) -> None:
    norms = [part for part in build(name).modules() if isinstance(part, nn.BatchNorm2d)]
    third = torch.tensor(1 / 3).double()
    assert all(torch.all(norm.weight == third) for norm in norms)
    ones = [part for part in build("acnet_resnet18").modules() if isinstance(part, nn.BatchNorm2d)]
    assert all(torch.all(norm.weight == 1) for norm in ones)

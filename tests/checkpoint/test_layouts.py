"""Every published layout, through files: into the form that trains and into the one that deploys.

Oracle: the output of the network that was saved, in float64, before anything was folded.
"""

from __future__ import annotations

import argparse
import copy
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

import refold
from helpers.layout_nets import (
    NETS,
    State,
    answer,
    deployed,
    error,
    live,
    refolded,
    repvgg,
    timm_mobileone,
    timm_repvgg,
)
from helpers.nightly import some
from refold.blocks import RepVGGBlock
from refold.checkpoint import deploy_state_dict, load_checkpoint, write_state_dict
from refold.checkpoint.families import FAMILIES, Family
from refold.checkpoint.names import common_names
from refold.errors import CheckpointError

pytestmark = pytest.mark.slow

EXACT = 1e-9
FORMS: dict[str, Callable[[str], nn.Module]] = {"official": deployed, "engine": refolded}
FOLDED = [("engine", "bare"), ("official", "optimizer"), ("official", "ema")]
each_layout = pytest.mark.parametrize("layout", NETS)
each_form = pytest.mark.parametrize("form", some(FORMS, keep=["official"]))


def optimizing(model: nn.Module) -> dict[str, object]:
    """Return a checkpoint as training scripts save it: optimizer, arguments and all."""
    parameters = [parameter.detach().clone().requires_grad_() for parameter in model.parameters()]
    optimizer = torch.optim.SGD(parameters, lr=0.1, momentum=0.9)
    sum(parameter.sum() for parameter in parameters).backward()
    optimizer.step()
    wrapped = {f"module.{key}": tensor for key, tensor in model.state_dict().items()}
    rest = {"optimizer": optimizer.state_dict(), "args": argparse.Namespace(lr=0.1), "epoch": 3}
    return {"model": wrapped, **rest}


def averaged(model: nn.Module) -> dict[str, object]:
    """Return a checkpoint that holds averaged weights beside others, of a compiled network."""
    state = {f"_orig_mod.{key}": tensor for key, tensor in model.state_dict().items()}
    zeros = {key: torch.zeros_like(tensor) for key, tensor in state.items()}
    return {"state_dict": zeros, "state_dict_ema": state, "epoch": 3}


WRAPPERS: dict[str, Callable[[nn.Module], object]] = {
    "bare": lambda model: model.state_dict(),
    "optimizer": optimizing,
    "ema": averaged,
}


@pytest.mark.parametrize("wrapper", some(WRAPPERS, keep=["ema"]))
@each_layout
def test_train_form_loads_into_train_form(tmp_path: Path, layout: str, wrapper: str) -> None:
    saved, model = live(NETS[layout]), live(NETS[layout], seed=7)
    assert error(answer(saved), answer(model)) > 1e-3
    torch.save(WRAPPERS[wrapper](saved), tmp_path / "a.pth")
    report = load_checkpoint(model, tmp_path / "a.pth")
    assert (report.layout, report.folded) == (layout, 0)
    assert torch.equal(answer(saved), answer(model))


@pytest.mark.parametrize(("form", "wrapper"), some(FOLDED, keep=2))
@each_layout
def test_train_form_is_folded_on_the_way(
    tmp_path: Path, layout: str, form: str, wrapper: str
) -> None:
    saved, model = live(NETS[layout]), FORMS[form](layout)
    assert error(answer(saved), answer(model)) > 1e-3
    torch.save(WRAPPERS[wrapper](saved), tmp_path / "a.pth")
    report = load_checkpoint(model, tmp_path / "a.pth")
    assert report.layout == layout
    assert report.folded >= 3
    assert f"in the layout of {layout} with {report.folded} blocks folded" in str(report)
    assert report.loaded == len(model.state_dict())
    assert error(answer(saved), answer(model)) <= EXACT


@each_layout
def test_a_state_dict_alone_is_folded(tmp_path: Path, layout: str) -> None:
    saved, model = live(NETS[layout]), deployed(layout)
    state = saved.state_dict()
    before = copy.deepcopy(state)
    folded = deploy_state_dict(state)
    assert all(torch.equal(before[key], state[key]) for key in before)
    assert {key for key in folded if not key.endswith("num_batches_tracked")} == {
        key for key in model.state_dict() if not key.endswith("num_batches_tracked")
    }
    model.load_state_dict(folded)
    assert error(answer(saved), answer(model)) <= EXACT
    again = deploy_state_dict(folded)
    assert list(again) == list(folded)
    assert all(torch.equal(again[key], folded[key]) for key in folded)


@each_form
@each_layout
def test_deploy_form_loads_into_deploy_form(tmp_path: Path, layout: str, form: str) -> None:
    saved = live(NETS[layout])
    file = write_state_dict(deploy_state_dict(saved.state_dict()), tmp_path / "a.safetensors")
    model = FORMS[form](layout)
    report = load_checkpoint(model, file)
    assert (report.layout, report.folded) == (layout, 0)
    assert error(answer(saved), answer(model)) <= EXACT
    torch.save(model.state_dict(), tmp_path / "own.pth")
    other = deployed(layout)
    load_checkpoint(other, tmp_path / "own.pth")
    assert error(answer(saved), answer(other)) <= EXACT


@each_form
@each_layout
def test_deploy_form_does_not_load_into_train_form(tmp_path: Path, layout: str, form: str) -> None:
    saved, model = FORMS[form](layout), live(NETS[layout])
    before = answer(model)
    torch.save(saved.state_dict(), tmp_path / "a.pth")
    with pytest.raises(
        CheckpointError, match=r"holds in deploy form .* cannot be undone"
    ) as caught:
        load_checkpoint(model, tmp_path / "a.pth")
    assert "weight" in str(caught.value)
    assert "deploy=True" in str(caught.value)
    assert torch.equal(before, answer(model))


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (lambda: repvgg(), timm_repvgg),
        (lambda: repvgg(se=True), lambda: timm_repvgg(se=True)),
        (NETS["MobileOne"], timm_mobileone),
    ],
    ids=["RepVGG", "RepVGG with gates", "MobileOne"],
)
@pytest.mark.parametrize("saved_by", ["timm", "us"])
@pytest.mark.parametrize("forms", ["train-train", "train-deploy", "deploy-deploy"])
def test_the_spellings_of_one_network_load_into_each_other(
    tmp_path: Path,
    ours: Callable[[], nn.Module],
    theirs: Callable[[], nn.Module],
    saved_by: str,
    forms: str,
) -> None:
    before, after = (theirs, ours) if saved_by == "timm" else (ours, theirs)
    saved, model = live(before), live(after, seed=7)
    saved_form, form = forms.split("-")
    state: State = saved.state_dict()
    torch.save(state if saved_form == "train" else deploy_state_dict(state), tmp_path / "a.pth")
    if form == "deploy":
        model = refold.reparameterize(model)
    report = load_checkpoint(model, tmp_path / "a.pth")
    assert report.layout.startswith("timm") == (saved_by == "timm")
    assert error(answer(saved), answer(model)) <= EXACT


@pytest.mark.parametrize(
    "name",
    [
        "repvgg_a0",
        *(pytest.param(n, marks=pytest.mark.zoo) for n in ("mobileone_s0", "mobileone_s4")),
    ],
)
def test_whole_networks_of_timm(tmp_path: Path, name: str) -> None:
    import timm
    from timm.utils.model import reparameterize_model

    saved = live(lambda: timm.create_model(name))
    torch.save({"state_dict": saved.state_dict(), "epoch": 1}, tmp_path / "a.pth")
    for model in (reparameterize_model(saved), refold.reparameterize(saved)):
        for parameter in model.parameters():
            nn.init.zeros_(parameter)
        load_checkpoint(model, tmp_path / "a.pth")
        assert error(answer(saved), answer(model)) <= EXACT


def test_a_block_is_named_by_its_place_even_at_the_root(tmp_path: Path) -> None:
    saved = live(lambda: RepVGGBlock(3, 4, 3, 1, 1))
    model = live(lambda: RepVGGBlock(3, 4, 3, 1, 1), seed=7).fuse()
    torch.save(saved.state_dict(), tmp_path / "a.pth")
    assert load_checkpoint(model, tmp_path / "a.pth").folded == 1
    assert error(answer(saved), answer(model)) <= EXACT


def test_wrapped_models_are_folded_into(tmp_path: Path) -> None:
    saved, model = live(repvgg), deployed("RepVGG")
    torch.save(saved.state_dict(), tmp_path / "a.pth")
    wrapped = nn.DataParallel(nn.Sequential(OrderedDict(_orig_mod=model)))
    assert load_checkpoint(wrapped, tmp_path / "a.pth").folded == 4
    assert error(answer(saved), answer(model)) <= EXACT


def test_acnets_own_deploy_form_keeps_the_norms_of_plain_convolutions(tmp_path: Path) -> None:
    saved = live(NETS["ACNet"])
    state, folded = saved.state_dict(), deploy_state_dict(saved.state_dict())
    theirs = {key: tensor for key, tensor in state.items() if key.startswith("conv1.")}
    theirs |= {key: tensor for key, tensor in folded.items() if not key.startswith("conv1.")}
    safetensors.torch.save_file(theirs, tmp_path / "a.safetensors")
    for model in (deployed("ACNet"), refolded("ACNet")):
        assert load_checkpoint(model, tmp_path / "a.safetensors").folded == 1
        assert error(answer(saved), answer(model)) <= EXACT


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_folding_rounds_once(dtype: torch.dtype) -> None:
    state = {
        k: v.to(dtype) if v.is_floating_point() else v for k, v in live(repvgg).state_dict().items()
    }
    exact = deploy_state_dict({key: tensor.double() for key, tensor in state.items()})
    for key, tensor in deploy_state_dict(state).items():
        assert tensor.dtype is dtype
        assert torch.equal(tensor, exact[key].to(dtype)), key


def test_the_eps_of_the_norms_can_be_told(tmp_path: Path) -> None:
    saved, model = live(repvgg), deployed("RepVGG")
    for part in saved.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.eps = 1e-2
    torch.save(saved.state_dict(), tmp_path / "a.pth")
    load_checkpoint(model, tmp_path / "a.pth", eps=1e-2)
    assert error(answer(saved), answer(model)) <= EXACT
    model.load_state_dict(deploy_state_dict(saved.state_dict(), eps=1e-2))
    assert error(answer(saved), answer(model)) <= EXACT
    load_checkpoint(model, tmp_path / "a.pth")
    assert error(answer(saved), answer(model)) > 1e-6


def test_what_a_layout_calls_its_layer_is_known_everywhere(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def found(name: str) -> list[str]:
        return list(common_names([f"stage1.0.{name}.bias"]))

    assert found("rbr_reparam") == found("reparam_conv_1") == ["stage1.0.reparam_conv.bias"]
    assert found("new_reparam") == ["stage1.0.new_reparam.bias"]
    new = Family("New", ("new.weight",), "new", "new_reparam", nn.Identity)
    monkeypatch.setattr("refold.checkpoint.families.FAMILIES", [*FAMILIES, new])
    assert found("new_reparam") == found("rbr_reparam") == ["stage1.0.reparam_conv.bias"]


def test_random_numbers_are_left_alone() -> None:
    state = live(repvgg).state_dict()
    torch.manual_seed(5)
    deploy_state_dict(state)
    found = torch.rand(3)
    torch.manual_seed(5)
    assert torch.equal(found, torch.rand(3))


class _Unit(nn.Module):
    """A module that says of itself that its norm follows its convolution."""

    deploy_name = "conv"

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 4, 3, bias=False), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.bn(self.conv(x))


class _Before(_Unit):
    """One that keeps its norm before its convolution, and says nothing."""

    deploy_name = None

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.bn = nn.Conv2d(3, 3, 1, bias=False), nn.BatchNorm2d(3)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(self.bn(x))


def test_a_plain_pair_folds_only_where_the_order_is_known(tmp_path: Path) -> None:
    saved, model = live(_Unit), refold.reparameterize(live(_Unit, seed=7))
    torch.save(saved.state_dict(), tmp_path / "unit.pth")
    assert load_checkpoint(model, tmp_path / "unit.pth").folded == 1
    assert error(answer(saved), answer(model)) <= EXACT
    before, model = live(_Before), refold.reparameterize(live(_Before, seed=7))
    assert set(model.state_dict()) == {"conv.weight", "conv.bias"}
    torch.save(before.state_dict(), tmp_path / "before.pth")
    with pytest.raises(CheckpointError, match=r"1 missing: conv\.bias; .*unexpected: bn\.weight"):
        load_checkpoint(model, tmp_path / "before.pth")
    with pytest.raises(CheckpointError, match="no known layout"):
        deploy_state_dict(before.state_dict())

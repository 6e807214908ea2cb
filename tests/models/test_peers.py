"""The same networks elsewhere: loaded with their weights, ours give their outputs."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
import torchvision
from timm.models import byobnet
from torch import Tensor, nn

import refold
from models.nets import alive, error, image
from refold.checkpoint import load_in_order
from refold.models.registry import _MODELS
from zoo.live import enliven

pytestmark = pytest.mark.slow

TOLERANCE = 1e-9
# What timm has of ours, and by how much narrower: structure, not size, is what could differ.
TIMM = {
    "repvgg_a0": 1, "repvgg_a1": 8, "repvgg_a2": 4, "repvgg_b0": 8, "repvgg_b1": 8,
    "repvgg_b1g4": 8, "repvgg_b2": 5, "repvgg_b2g4": 5, "repvgg_b3": 8, "repvgg_b3g4": 8,
    "repvgg_d2se": 5, **{f"mobileone_s{size}": 1 for size in range(5)},
}  # fmt: skip


def test_all_that_timm_has_are_compared() -> None:
    ours = refold.list_models("repvgg_*") + refold.list_models("mobileone_*")
    assert set(TIMM) == set(ours) & set(timm.list_models())


def pair(name: str) -> tuple[nn.Module, dict[str, Any]]:
    """Return timm's network, and the options with which ours is as narrow."""
    by = TIMM[name]
    if by == 1:
        return timm.create_model(name), {}
    width = [factor / by for factor in _MODELS[name].options["width"]]
    config = byobnet.model_cfgs[name]
    config = replace(config, width_factor=1 / by, stem_chs=min(64, round(64 * width[0])) * by)
    return byobnet.ByobNet(config), {"width": width}


# Grouped, and gated with several branches: the other sizes repeat these.
KINDS = {"repvgg_b1g4", "mobileone_s4"}


@pytest.mark.parametrize(
    "name", [name if name in KINDS else pytest.param(name, marks=pytest.mark.zoo) for name in TIMM]
)
def test_timms_weights_give_timms_output(name: str, tmp_path: Path) -> None:
    torch.manual_seed(0)
    theirs, options = pair(name)
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    enliven(theirs.double().eval(), (x,))
    torch.save(theirs.state_dict(), tmp_path / "timm.pth")
    with torch.no_grad():
        wanted = theirs(x)
        for deploy in (False, True):
            ours = refold.create_model(name, deploy=deploy, **options).double().eval()
            report = refold.load_checkpoint(ours, tmp_path / "timm.pth")
            assert report.layout.startswith("timm")
            assert (report.folded > 0) == deploy
            assert error(wanted, ours(x)) <= TOLERANCE


@pytest.mark.parametrize("name", ["resnet18", "resnet50"])
def test_resnet_is_torchvisions(name: str) -> None:
    """Our plain form with torchvision's weights; only the shortcut is listed elsewhere."""
    torch.manual_seed(0)
    theirs = torchvision.models.get_model(name).double().eval()
    ours = refold.create_model(f"dbb_{name}", form="plain").double().eval()
    x = image(ours, 1)
    enliven(theirs, (x,))
    ours.load_state_dict({ours_of(key): value for key, value in theirs.state_dict().items()})
    with torch.no_grad():
        assert error(theirs(x), ours(x)) <= TOLERANCE


def ours_of(key: str) -> str:
    """Translate torchvision's name of a ResNet's weight."""
    names = key.split(".")
    if names[0] in ("conv1", "bn1"):
        names = ["stage0", *names]
    names[0] = names[0].replace("layer", "stage").replace("fc", "linear")
    if "downsample" in names:
        return ".".join([*names[:2], "shortcut", ("conv", "bn")[int(names[3])], names[4]])
    if names[-2][:-1] in ("conv", "bn"):
        names[-2:] = [f"conv{names[-2][-1]}", names[-2][:-1], names[-1]]
    return ".".join(names)


def test_mobilenetv1_is_timms_with_an_unbounded_relu() -> None:
    theirs = timm.create_model("mobilenetv1_100", act_layer=nn.ReLU).double().eval()
    ours = refold.create_model("mobilenetv1").double().eval()
    x = image(ours, 1)
    enliven(theirs, (x,))
    load_in_order(ours, theirs.state_dict())
    with torch.no_grad():
        assert error(theirs(x), ours(x)) <= TOLERANCE


def test_the_convolutions_of_vgg16_are_torchvisions() -> None:
    theirs = torchvision.models.vgg16_bn().features.double().eval()
    ours = refold.create_model("acnet_vgg16", form="plain", features_only=True).double().eval()
    x = image(ours, 1)
    enliven(theirs, (x,))
    state: dict[str, Tensor] = theirs.state_dict()
    for index, layer in enumerate(theirs):
        if isinstance(layer, nn.Conv2d):
            assert layer.bias is not None
            state.pop(f"{index}.bias")
            nn.init.zeros_(layer.bias)  # ours have none before a norm
    load_in_order(ours, state)
    with torch.no_grad():
        assert error(theirs(x), ours(x)[-1]) <= TOLERANCE


def test_a_plain_network_expands_into_the_branched_form() -> None:
    """The parts of `dbb_mobilenetv1` are those that `expand` puts into `mobilenetv1`."""
    plain, x = alive("mobilenetv1")
    wide = refold.expand(plain, "dbb", where=["conv1.*", "*.depthwise.*"])
    branched, _ = alive("dbb_mobilenetv1")
    count = sum(parameter.numel() for parameter in branched.parameters())
    assert sum(parameter.numel() for parameter in wide.parameters()) == count
    with torch.no_grad():
        assert error(plain(x), wide(x)) <= TOLERANCE

"""Networks of timm and torchvision under our names: found, folded, and missed politely."""

from __future__ import annotations

import sys
from typing import Any

import pytest
import torch

import refold
from helpers.nightly import some
from models.nets import error
from refold.errors import InputError, MissingDependencyError
from refold.models import zoo
from refold.models.registry import _MODELS
from zoo.live import enliven, is_norm

pytestmark = pytest.mark.slow

NAMES = [
    name
    for name, entry in _MODELS.items()
    if entry.factory in (refold.models.timm_model, refold.models.googlenet)
]
SMALLEST = {"xception": 71, "inception_v3": 75, "inception_resnet_v2": 75}


def test_the_articles_networks_are_there() -> None:
    assert {
        "googlenet", "inception_v3", "inception_resnet_v2", "xception", "mobilenetv2", "resnet18",
        "resnet34", "resnet50", "resnet101", "resnet152", "resnext101_32x4d", "resnext101_64x4d",
        "resnetv2_50", "resnetv2_101", "resnetv2_152",
    } == set(NAMES)  # fmt: skip


@pytest.mark.parametrize("name", some(NAMES, keep=3))
def test_classes_and_channels_are_those_asked_for(name: str) -> None:
    side = SMALLEST.get(name, 64)
    with torch.device("meta"):
        model: Any = refold.create_model(name, num_classes=7, in_chans=1).eval()
        assert model(torch.empty(2, 1, side, side)).shape == (2, 7)
        assert model.default_cfg["input_size"][1:] in {(224, 224), (299, 299)}


@pytest.mark.parametrize(
    "name",
    some(["googlenet", "mobilenetv2", "resnet18", "resnetv2_50"], keep=["resnet18", "resnetv2_50"]),
)
def test_their_plain_form_is_what_folding_gives(name: str) -> None:
    torch.manual_seed(0)
    model = refold.create_model(name, num_classes=7).double().eval()
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    enliven(model, (x,))
    folded = refold.reparameterize(model, x)
    with torch.no_grad():
        assert error(model(x), folded(x)) <= 1e-9
    with torch.device("meta"):
        plain = refold.create_model(name, num_classes=7, deploy=True)
    assert list(plain.state_dict()) == list(folded.state_dict())
    # Full pre-activation: the norm before each unit's ReLU reads a sum.
    assert sum(map(is_norm, plain.modules())) == (17 if name == "resnetv2_50" else 0)


@pytest.mark.parametrize("name", some(["googlenet", "mobilenetv2"], keep=1))
def test_they_train(name: str) -> None:
    torch.manual_seed(0)
    model = refold.create_model(name, num_classes=7)
    logits = model(torch.randn(2, 3, 64, 64))
    logits.square().sum().backward()
    assert logits.shape == (2, 7)
    assert not [key for key, p in model.named_parameters() if p.grad is None]


def test_features_are_the_zoos_own() -> None:
    with torch.device("meta"):
        model: Any = refold.create_model("resnet18", features_only=True, out_indices=(1, 3))
        maps = model(torch.empty(1, 3, 64, 64))
        bare = refold.create_model("googlenet", num_classes=0).eval()
        assert bare(torch.empty(1, 3, 64, 64)).shape == (1, 1024)
    assert [tuple(part.shape[1:]) for part in maps] == [(64, 16, 16), (256, 4, 4)]
    assert model.feature_info.channels() == [64, 256]


def test_auxiliary_classifiers_are_torchvisions() -> None:
    with torch.device("meta"):
        model = refold.create_model("googlenet", aux_logits=True)
        outputs = model(torch.empty(2, 3, 224, 224))
    assert [part.shape for part in outputs] == [(2, 1000)] * 3


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("resnet18", {"depth": 3}, "timm's resnet18 does not take these options"),
        ("googlenet", {"depth": 3}, "its own options are aux_logits"),
        ("googlenet", {"aux_logits": True, "num_classes": 0}, "needs classes"),
        ("googlenet", {"features_only": True}, "no feature maps"),
    ],
)
def test_a_mistake_is_one_sentence(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught, torch.device("meta"):
        refold.create_model(name, **options)
    assert said in str(caught.value)


@pytest.mark.parametrize(
    ("name", "module"), [("resnet18", "timm"), ("googlenet", "torchvision.models")]
)
def test_a_missing_library_says_what_to_install(
    name: str, module: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(MissingDependencyError, match=r"install refold\[models\]"):
        refold.create_model(name)
    assert name in refold.list_models()


def test_nothing_is_imported_before_it_is_asked_for() -> None:
    assert not {"timm", "torchvision", "GoogLeNet"} & set(vars(zoo))

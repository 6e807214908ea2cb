"""Names, options, classifiers and feature maps: what timm's users expect of `create_model`."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import pytest
import timm
import torch
from torch import nn

import refold
from helpers.nightly import some
from models.nets import FAMILIES, alive, build, error, image
from refold.errors import InputError
from refold.models import Backbone, PSPNet, register_model
from refold.models.registry import _MODELS

pytestmark = pytest.mark.slow

NAMES = refold.list_models()


@pytest.fixture
def entered() -> Iterator[None]:
    before = dict(_MODELS)
    yield
    _MODELS.clear()
    _MODELS.update(before)


def test_names_match_a_shell_pattern() -> None:
    assert refold.list_models("mobileone_*") == [f"mobileone_s{size}" for size in range(5)]
    assert refold.list_models("nothing*") == []
    assert sorted(NAMES) == NAMES


@pytest.mark.parametrize(
    ("name", "options", "said"),
    [
        ("repvgg_a9", {}, "did you mean repvgg_a"),
        ("zzz", {}, "list_models() has the names"),
        ("repvgg_a0", {"depth": 3}, "has no option depth; its own options are depths, groups, se"),
        ("repvgg_a0", {"num_classes": -1}, "num_classes must be at least 0"),
        ("repvgg_a0", {"in_chans": 0}, "in_chans at least 1"),
        ("repvgg_a0", {"out_indices": (1,)}, "give features_only=True"),
        ("repvgg_a0", {"features_only": True, "out_indices": (5,)}, "out_indices"),
        ("repvgg_a0", {"features_only": True, "out_indices": (1, 1)}, "different"),
        ("repvgg_a0", {"features_only": True, "out_indices": 6}, "out_indices"),
        ("repvgg_plus_l2pse", {"depths": (1, 1, 3, 1)}, "two halves"),
        ("mobilenetv1", {"form": "plane"}, "plain, acb, dbb"),
    ],
)
def test_a_mistake_is_one_sentence(name: str, options: dict[str, Any], said: str) -> None:
    with pytest.raises(InputError) as caught, torch.device("meta"):
        refold.create_model(name, **options)
    assert said in str(caught.value)


def test_a_name_is_taken_once(entered: None) -> None:
    register_model("my_net", width=4)(nn.Linear)
    register_model("my_net", width=4)(nn.Linear)  # a module may be imported twice
    with pytest.raises(InputError, match="my_net"):
        register_model("my_net", width=5)(nn.Linear)
    with pytest.raises(InputError, match="repvgg_a0"):
        register_model("repvgg_a0")(nn.Linear)


def test_a_network_without_a_form_of_its_own_is_folded(entered: None) -> None:
    def net(num_classes: int = 1000, in_chans: int = 3) -> nn.Module:
        return nn.Sequential(nn.Conv2d(in_chans, num_classes, 3), nn.BatchNorm2d(num_classes))

    register_model("my_net")(net)
    assert list(refold.create_model("my_net", num_classes=4).state_dict())[:1] == ["0.weight"]
    plain = refold.create_model("my_net", num_classes=4, deploy=True)
    assert list(plain.state_dict()) == ["0.weight", "0.bias"]
    assert plain.training
    with torch.device("meta"):
        assert list(refold.create_model("my_net", deploy=True).state_dict()) == list(
            plain.state_dict()
        )
    with pytest.raises(InputError, match="no feature maps"):
        refold.create_model("my_net", features_only=True)


def test_a_factory_may_make_its_own_feature_maps(entered: None) -> None:
    def net(num_classes: int, in_chans: int, features_only: bool, **more: Any) -> nn.Module:
        return nn.Identity() if features_only and more == {"out_indices": 3} else nn.ReLU()

    register_model("my_net")(net)
    made = refold.create_model("my_net", features_only=True, out_indices=3)
    assert isinstance(made, nn.Identity)
    assert isinstance(refold.create_model("my_net"), nn.ReLU)


def test_every_family_is_tried() -> None:
    zoo = {refold.models.timm_model, refold.models.googlenet}
    ours = {entry.factory for entry in _MODELS.values()} - zoo
    tried = {_MODELS[name].factory for name in FAMILIES}
    assert ours - tried == {PSPNet}  # see test_repmlp_heads


@pytest.mark.parametrize("name", some(FAMILIES, keep=5))
def test_every_network_answers_as_timms_do(name: str) -> None:
    with torch.device("meta"):
        model = refold.create_model(name, in_chans=1)
        assert isinstance(model, Backbone)
        x = torch.empty(2, *model.default_cfg["input_size"])
        assert x.shape[1] == 1
        model.eval()
        assert model(x).shape == (2, 1000)
        assert model.get_classifier() is model.get_submodule(model.default_cfg["classifier"])
        features = model.forward_features(x)
        assert features.shape[:2] == (2, model.num_features)
        hidden = model.forward_head(features, pre_logits=True)
        model.reset_classifier(7)
        assert model.get_classifier()(hidden).shape == model(x).shape == (2, 7)
        assert model.num_classes == 7
        model.reset_classifier(0)
        assert model(x).shape == hidden.shape
        bare = refold.create_model(name, in_chans=1, num_classes=0).eval()
        assert bare(x).shape == hidden.shape


@pytest.mark.parametrize("name", some(FAMILIES, keep=5))
@pytest.mark.parametrize("deploy", [False, True])
def test_feature_maps_are_what_their_info_says(name: str, deploy: bool) -> None:
    with torch.device("meta"):
        model = refold.create_model(name, deploy=deploy, features_only=True)
        assert isinstance(model, Backbone)
        x = torch.empty(2, *model.default_cfg["input_size"])
        maps = model(x)
    info = model.feature_info
    assert len(maps) == len(info.chosen) == len(info)
    assert [part.shape[1] for part in maps] == info.channels()
    # AlexNet and Cifar-quick pool without padding, and lose a pixel or two at each pool.
    for part, reduction in zip(maps, info.reduction(), strict=True):
        assert abs(x.shape[-1] / reduction - part.shape[-1]) < 2
    leftover = {key.split(".")[0] for key in model.state_dict()}
    assert leftover == {path.split(".")[0] for path in model.body} & leftover


@pytest.mark.parametrize(
    ("chosen", "wanted"), [((1, -1), (1, 4)), (2, (3, 4)), (None, range(5)), ((0,), (0,))]
)
def test_chosen_maps_are_those_of_the_whole_network(chosen: Any, wanted: Sequence[int]) -> None:
    whole, x = alive("acnet_resnet18")
    part = build("acnet_resnet18", features_only=True, out_indices=chosen).eval()
    part.load_state_dict({key: whole.state_dict()[key] for key in part.state_dict()})
    paths = [whole.feature_info.features[index].module for index in wanted]
    assert part.feature_info.module_name() == paths
    seen: dict[str, torch.Tensor] = {}

    def keep(path: str) -> Any:
        return lambda module, args, output: seen.__setitem__(path, output)

    for path in paths:
        whole.get_submodule(path).register_forward_hook(keep(path))
    with torch.no_grad():
        whole(x)
        found, folded = part(x), refold.reparameterize(part, x)(x)
    assert all(torch.equal(seen[path], one) for path, one in zip(paths, found, strict=True))
    assert max(map(error, found, folded)) <= 1e-9
    stages = {key.split(".")[0] for key in part.state_dict()}
    assert stages == {path.split(".")[0] for path in part.body}


@pytest.mark.parametrize(
    ("name", "timms"),
    [
        ("repvgg_a0", "repvgg_a0"), ("repvgg_b1g4", "repvgg_b1g4"),
        ("mobileone_s0", "mobileone_s0"), ("mobileone_s4", "mobileone_s4"),
        ("acnet_resnet18", "resnet18"), ("dbb_resnet50", "resnet50"),
        ("mobilenetv1", "mobilenetv1_100"),
        ("resnext50_32x4d", "resnext50_32x4d"),
    ],
)  # fmt: skip
def test_the_maps_are_timms(name: str, timms: str) -> None:
    with torch.device("meta"):
        ours = refold.create_model(name, features_only=True)
        theirs = timm.create_model(timms, features_only=True)
    assert isinstance(ours, Backbone)
    info: Any = theirs.feature_info
    assert ours.feature_info.channels() == info.channels()
    assert ours.feature_info.reduction() == info.reduction()


def test_a_fresh_network_takes_any_image() -> None:
    model = build("repvgg_a0", in_chans=5)
    assert model(image(model)[:, :, :40, :48]).shape == (2, 10)

"""A sample of other people's networks: folded wholly, equal, and still what they were to users.

`benchmarks/fold_zoo.py` does the same for the whole table.
"""

from __future__ import annotations

import copy
from functools import cache
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import refold
from helpers.nightly import rare
from zoo.calls import run_counting
from zoo.leftovers import count_norms, foldable
from zoo.live import enliven
from zoo.nets import Net, find
from zoo.peers import fold_with_peer, relative_error

pytestmark = pytest.mark.slow

TOLERANCE = 1e-9
SAMPLE = (
    "timm:repghostnet_050",  # timm itself leaves its branches
    *rare("timm:mobileone_s1"),
    "timm:regnety_002",  # norms with an activation inside
    *rare("timm:repvit_m0_9"),
    "timm:levit_128s",  # linear layers with norms
    *rare("timm:densenet121"),  # norms that must stay
    "torchvision:resnet18",
    "torchvision:shufflenet_v2_x1_0",
    *rare("ultralytics:yolov9t"),
)
TIMM = ("timm:resnet18", "timm:mobileone_s1", *rare("timm:efficientnet_lite0"))


def net_of(label: str) -> Net:
    [net] = find(label)
    return net


@cache
def original(label: str) -> nn.Module:
    net = net_of(label)
    return enliven(net.build().double(), net.example())


@cache
def folded(label: str) -> nn.Module:
    return refold.reparameterize(original(label), net_of(label).example())


def answer(model: nn.Module, label: str) -> Any:
    with torch.no_grad():
        return model(*net_of(label).example())


def stored(model: nn.Module) -> dict[str, Tensor]:
    named = [*model.named_parameters(), *model.named_buffers()]
    return {name: tensor for name, tensor in named if tensor.numel()}


@pytest.mark.parametrize("label", SAMPLE)
def test_no_norm_is_left_and_the_answer_is_the_same(label: str) -> None:
    expected, before = run_counting(original(label), net_of(label).example())
    found, after = run_counting(folded(label), net_of(label).example())
    assert relative_error(expected, found) < TOLERANCE
    assert not foldable(folded(label))
    assert count_norms(folded(label)) < count_norms(original(label))
    assert after <= before


@pytest.mark.parametrize("label", SAMPLE[:4])
def test_no_more_layers_than_the_peer_leaves(label: str) -> None:
    example = net_of(label).example()
    peer, _ = fold_with_peer(original(label), net_of(label).source)
    assert run_counting(folded(label), example)[1] <= run_counting(peer, example)[1]


def test_the_check_of_norms_can_fail() -> None:
    assert len(foldable(original("torchvision:resnet18"))) == 20


def test_the_check_of_answers_can_fail() -> None:
    changed = copy.deepcopy(folded("torchvision:resnet18"))
    with torch.no_grad():
        next(changed.parameters())[0] *= 1.001
    expected = answer(original("torchvision:resnet18"), "torchvision:resnet18")
    assert relative_error(expected, answer(changed, "torchvision:resnet18")) > TOLERANCE


@pytest.mark.parametrize("label", TIMM)
def test_timm_interfaces_remain(label: str) -> None:
    before, after = original(label), folded(label)
    assert isinstance(after, type(before))
    [image] = net_of(label).example()
    with torch.no_grad():
        features = after.forward_features(image)
        assert relative_error(before.forward_features(image), features) < TOLERANCE
        maps = after.forward_intermediates(image, intermediates_only=True)
        wanted = before.forward_intermediates(image, intermediates_only=True)
        assert relative_error(wanted, maps) < TOLERANCE
        assert relative_error(before.forward_head(features), after.forward_head(features)) == 0.0


@pytest.mark.parametrize("label", TIMM)
def test_timm_classifier_can_be_reset(label: str) -> None:
    changed = copy.deepcopy(folded(label))
    changed.reset_classifier(7)
    assert answer(changed.double(), label).shape == (2, 7)
    changed.reset_classifier(0)
    assert answer(changed, label).ndim == 2


@pytest.mark.parametrize(
    "label", ["torchvision:shufflenet_v2_x1_0", "timm:resnet18", "timm:levit_128s"]
)
def test_containers_keep_length_and_indexing(label: str) -> None:
    after = dict(folded(label).named_modules())
    containers = (nn.Sequential, nn.ModuleList, nn.ModuleDict)
    kept = 0
    for path, module in original(label).named_modules():
        if isinstance(module, containers) and path in after:
            assert isinstance(after[path], type(module)), path
            assert len(after[path]) == len(module), path
            assert list(after[path]._modules) == list(module._modules), path
            kept += 1
    assert kept > 3


@pytest.mark.zoo
def test_ultralytics_layers_keep_their_place_in_the_graph() -> None:
    before, after = original("ultralytics:yolov9t"), folded("ultralytics:yolov9t")
    assert len(after.model) == len(before.model)
    for old, new in zip(before.model, after.model, strict=True):
        assert (new.f, new.i, new.type) == (old.f, old.i, old.type)
    assert after.save == before.save
    assert after.names == before.names


@pytest.mark.zoo
def test_a_detector_that_takes_a_list_is_folded_inside() -> None:
    label = "torchvision:fcos_resnet50_fpn"
    detector: Any = original(label).detector
    [batch] = net_of(label).example()
    images = [image.sigmoid() for image in batch]
    after = refold.reparameterize(detector, (images,))
    assert count_norms(detector) == 53
    assert count_norms(after) == 0
    with torch.no_grad():
        assert relative_error(detector(images), after(images)) < TOLERANCE


@pytest.mark.parametrize("label", ["timm:repghostnet_050", "torchvision:shufflenet_v2_x1_0"])
def test_the_result_trains(label: str) -> None:
    model = copy.deepcopy(folded(label)).train()
    model(*net_of(label).example()).square().mean().backward()
    grads = {name: parameter.grad for name, parameter in model.named_parameters()}
    assert not [name for name, grad in grads.items() if grad is None or not grad.isfinite().all()]
    assert any(grad.abs().max() > 0 for grad in grads.values() if grad is not None)


@pytest.mark.parametrize("label", ["timm:repghostnet_050", "torchvision:shufflenet_v2_x1_0"])
def test_the_result_copies_and_saves(label: str) -> None:
    twin = copy.deepcopy(folded(label))
    for tensor in twin.state_dict().values():
        tensor.zero_()
    twin.load_state_dict(folded(label).state_dict(), strict=True)
    assert relative_error(answer(folded(label), label), answer(twin, label)) == 0.0


@pytest.mark.parametrize("label", ["timm:repghostnet_050", "torchvision:resnet18"])
def test_the_result_exports(label: str) -> None:
    program = torch.export.export(folded(label), net_of(label).example())
    found = program.module()(*net_of(label).example())
    assert relative_error(answer(folded(label), label), found) < 1e-12


def test_dtype_layout_and_frozen_parameters_are_kept() -> None:
    model = copy.deepcopy(original("timm:mobileone_s1")).to(
        dtype=torch.bfloat16, memory_format=torch.channels_last
    )
    model.stages[0].requires_grad_(False)
    after = refold.reparameterize(model, net_of("timm:mobileone_s1").example()[0].bfloat16())
    weights = {name: p for name, p in after.named_parameters() if p.ndim == 4 and p.shape[1] > 1}
    assert {p.dtype for p in after.parameters()} == {torch.bfloat16}
    assert not foldable(after)
    assert all(p.is_contiguous(memory_format=torch.channels_last) for p in weights.values())
    assert not any(p.requires_grad for p in after.stages[0].parameters())
    assert all(p.requires_grad for p in after.stages[1].parameters())


@pytest.mark.parametrize(
    "label",
    ["timm:repghostnet_050", pytest.param("ultralytics:yolov9t", marks=pytest.mark.zoo)],
)
def test_the_callers_model_is_not_touched(label: str) -> None:
    model = copy.deepcopy(original(label))
    tensors = {name: tensor.clone() for name, tensor in stored(model).items()}
    keys = {path: list(module.__dict__) for path, module in model.named_modules()}
    kinds = {path: type(module) for path, module in model.named_modules()}
    after = refold.reparameterize(model, net_of(label).example())
    assert {path: list(module.__dict__) for path, module in model.named_modules()} == keys
    assert {path: type(module) for path, module in model.named_modules()} == kinds
    assert stored(model).keys() == tensors.keys()
    assert all(torch.equal(tensor, tensors[name]) for name, tensor in stored(model).items())
    mine = {tensor.untyped_storage().data_ptr() for tensor in stored(model).values()}
    theirs = {tensor.untyped_storage().data_ptr() for tensor in stored(after).values()}
    assert mine.isdisjoint(theirs)

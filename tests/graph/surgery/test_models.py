"""Random edits on real networks: the model that is written back must agree exactly."""

from __future__ import annotations

import copy
import operator
import random
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import fx, nn

from refold.graph.copies.owned import own_tensors
from refold.graph.copies.skeleton import skeleton
from refold.graph.surgery.editor import Editor
from refold.graph.trace.capture import capture_all

pytestmark = pytest.mark.slow

timm = pytest.importorskip("timm")


class Add(nn.Module):
    def forward(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        return a + b


class Same(nn.Module):
    def forward(self, a: torch.Tensor) -> torch.Tensor:
        return a * 1


def edit_randomly(edit: Editor, rng: random.Random, share: float) -> int:
    """Replace sums by modules, bypass Identities and put value-keeping nodes behind layers."""
    count = 0
    for node in list(edit.graph.nodes):
        if rng.random() > share:
            continue
        count += 1
        if node.op == "call_function" and node.target is operator.add and is_sum(node):
            new = edit.insert_module(Add(), list(node.args), before=node, name="total")
            edit.replace(node, new)
        elif isinstance(layer := layer_of(edit, node), nn.Identity):
            edit.bypass(node, node.args[0])
        elif isinstance(layer, nn.Conv2d | nn.BatchNorm2d | nn.Linear):
            if rng.random() < 0.5:
                new = edit.insert_module(Same(), [node], before=node.next, name="same")
            else:
                new = edit.insert_function(torch.mul, (node, 1.0), before=node.next)
            edit.replace(node, new)
        else:
            count -= 1
    return count


def is_sum(node: fx.Node) -> bool:
    return all(isinstance(arg, fx.Node) for arg in node.args)


def layer_of(edit: Editor, node: fx.Node) -> nn.Module | None:
    if node.op != "call_module" or edit.capture.calls[node.target] != 1:
        return None
    return edit.capture.module.get_submodule(node.target)


def tensors(value: Any) -> list[torch.Tensor]:
    if isinstance(value, torch.Tensor):
        return [value]
    items = value.values() if isinstance(value, dict) else value
    return [tensor for item in items for tensor in tensors(item)]


def edited(model: nn.Module, seed: int, share: float) -> tuple[nn.Module, int]:
    rng, target, count = random.Random(seed), skeleton(model), 0
    for found in capture_all(model).captures:
        edit = Editor(found)
        count += edit_randomly(edit, rng, share)
        target = edit.commit(target)
    own_tensors(target, model)
    return target, count


def timm_model(name: str) -> Callable[[], nn.Module]:
    return lambda: timm.create_model(name, pretrained=False)


def yolo() -> nn.Module:
    tasks = pytest.importorskip("ultralytics.nn.tasks")
    return tasks.DetectionModel("yolov8n.yaml", verbose=False)


MODELS: dict[str, Callable[[], nn.Module]] = {
    **{n: timm_model(n) for n in ("resnet18", "efficientnet_b0", "repghostnet_050", "fastvit_t8")},
    **{n: timm_model(n) for n in ("tf_efficientnet_b0", "convnext_atto", "mobilevit_xxs")},
    "yolov8n": yolo,
}


# A sum, and gates beside modules used in several ways: the others repeat them at length.
FEW = {("resnet18", 0.1), ("repghostnet_050", 1.0)}


@pytest.mark.parametrize(
    ("name", "share"),
    [
        pytest.param(name, share, marks=() if (name, share) in FEW else pytest.mark.zoo)
        for share in (0.1, 1.0)
        for name in MODELS
    ],
)
@torch.no_grad()
def test_random_edits_keep_the_function(name: str, share: float) -> None:
    torch.manual_seed(0)
    model = MODELS[name]().eval()
    x = torch.randn(1, 3, 64, 64)
    expected = tensors(model(x))
    result, count = edited(model, 7, share)
    assert count > 0
    assert all(map(torch.equal, tensors(result(x)), expected))
    assert type(result) is type(model) or type(result).__mro__[1] is type(model)
    assert all(map(torch.equal, tensors(copy.deepcopy(result)(x)), expected))
    if hasattr(model, "forward_features"):
        features = tensors(model.forward_features(x))
        assert all(map(torch.equal, tensors(result.forward_features(x)), features))


def test_no_edit_keeps_every_class() -> None:
    model = timm.create_model("repghostnet_050").eval()
    result, count = edited(model, 0, 0.0)
    assert count == 0
    assert [type(m) for m in result.modules()] == [type(m) for m in model.modules()]
    assert set(result.state_dict()) == set(model.state_dict())

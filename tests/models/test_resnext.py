"""ResNeXt's three forms are one function, and the grouped one is torchvision's."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torchvision
from torch import Tensor, nn

import refold
from models.nets import error
from refold.errors import InputError
from zoo.live import enliven, is_norm

pytestmark = pytest.mark.slow

TOLERANCE = 1e-9
PATHS = 4
SMALL: dict[str, Any] = {
    "depths": (1, 2, 1, 1), "cardinality": PATHS, "base": 8, "num_classes": 10
}  # fmt: skip


def alive(name: str, **options: Any) -> tuple[Any, Tensor]:
    torch.manual_seed(0)
    model = refold.create_model(name, **{**SMALL, **options}).double().eval()
    x = torch.randn(1, 3, 48, 48, dtype=torch.float64)
    enliven(model, (x,))
    return model, x


def test_the_grouped_form_is_torchvisions() -> None:
    theirs: Any = torchvision.models.resnet.ResNet(
        torchvision.models.resnet.Bottleneck, [1, 2, 1, 1], 10, groups=PATHS, width_per_group=4
    ).double().eval()  # fmt: skip
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    enliven(theirs, (x,))
    ours = refold.create_model("resnext50_32x4d", **{**SMALL, "base": 64}).double().eval()
    ours.load_state_dict(theirs.state_dict())
    with torch.no_grad():
        assert error(theirs(x), ours(x)) <= TOLERANCE
    with torch.device("meta"):
        whole = torchvision.models.resnext50_32x4d()
        refold.create_model("resnext50_32x4d").load_state_dict(whole.state_dict())


def split(state: dict[str, Tensor], form: str, path_norm: bool) -> dict[str, Tensor]:
    """Return a grouped network's tensors as another form names them.

    Channels of conv1, conv2 and their norms belong to one path each; conv3 reads them. The norm of
    a path has the sum's statistics, and a share of its mean and shift.
    """
    found: dict[str, Tensor] = {}
    for key, tensor in state.items():
        block, _, layer = key.rpartition(".")[0].rpartition(".")
        role = key.rpartition(".")[2]
        if not block.startswith("layer") or "downsample" in key:
            found[key] = tensor
        elif layer in ("conv1", "conv2", "bn1", "bn2"):
            parts = [tensor] * PATHS if tensor.ndim == 0 else tensor.chunk(PATHS)
            for place, part in enumerate(parts):
                found[f"{block}.paths.{place}.{layer}.{role}"] = part
        elif layer == "conv3" and form == "paths":
            for place, part in enumerate(tensor.chunk(PATHS, 1)):
                found[f"{block}.paths.{place}.conv3.weight"] = part
        elif layer == "bn3" and path_norm:
            shared = role in ("running_mean", "bias")
            for place in range(PATHS):
                found[f"{block}.paths.{place}.bn3.{role}"] = tensor / PATHS if shared else tensor
        else:
            found[key] = tensor
    return found


FORMS = [("concat", False), ("paths", False), ("paths", True)]


@pytest.mark.parametrize(("form", "path_norm"), FORMS)
def test_the_forms_are_one_function(form: str, path_norm: bool) -> None:
    """The map between them is the article's; the grouped form's tensors are the oracle."""
    grouped, x = alive("resnext50_32x4d")
    options = {"path_norm": True} if path_norm else {}
    other = refold.create_model(f"resnext50_32x4d_{form}", **SMALL, **options).double().eval()
    other.load_state_dict(split(grouped.state_dict(), form, path_norm))
    with torch.no_grad():
        assert error(grouped(x), other(x)) <= TOLERANCE
    if not path_norm:  # in training too: the same norm reads the same sum
        batch = torch.cat([x, -x])
        assert error(grouped.train()(batch).detach(), other.train()(batch).detach()) <= TOLERANCE


@pytest.mark.parametrize(("form", "path_norm"), [*FORMS, ("", False)])
def test_every_form_folds_exactly_and_trains(form: str, path_norm: bool) -> None:
    name = f"resnext50_32x4d_{form}".rstrip("_")
    model, x = alive(name, **({"path_norm": True} if path_norm else {}))
    folded = refold.reparameterize(model, x)
    assert not any(map(is_norm, folded.modules()))
    assert layers(folded) == layers(refold.create_model("resnext50_32x4d", **SMALL))
    with torch.no_grad():
        assert error(model(x), folded(x)) <= TOLERANCE
    model.train()(torch.cat([x, -x])).square().sum().backward()
    assert not [key for key, p in model.named_parameters() if p.grad is None]


def layers(model: nn.Module) -> list[tuple[Any, ...]]:
    """Return what each convolution is, in an order of its own."""
    return sorted(
        (part.in_channels, part.out_channels, part.kernel_size, part.stride, part.groups)
        for part in model.modules()
        if isinstance(part, nn.Conv2d)
    )


@pytest.mark.zoo  # its small form is folded above
def test_32_paths_become_torchvisions_network() -> None:
    """At full size: its layers, and its parameters once its own norms are folded."""
    torch.manual_seed(0)
    model = refold.create_model("resnext50_32x4d_paths").double().eval()
    x = torch.randn(1, 3, 64, 64, dtype=torch.float64)
    enliven(model, (x,))
    folded = refold.reparameterize(model, x)
    with torch.device("meta"):
        theirs = torchvision.models.resnext50_32x4d()
    assert layers(folded) == layers(theirs)
    biases = sum(part.out_channels for part in theirs.modules() if isinstance(part, nn.Conv2d))
    own = sum(p.numel() for key, p in theirs.named_parameters() if p.ndim > 1 or key == "fc.bias")
    assert sum(p.numel() for p in folded.parameters()) == own + biases
    with torch.no_grad():
        assert error(model(x), folded(x)) <= TOLERANCE


def test_the_forms_have_the_layers_that_they_are_named_for() -> None:
    counts = {}
    for form in ("", "_concat", "_paths"):
        with torch.device("meta"):
            model: Any = refold.create_model(f"resnext50_32x4d{form}")
        block = model.layer2[1]
        convs = [part for part in block.modules() if isinstance(part, nn.Conv2d)]
        counts[form] = (len(convs), {part.groups for part in convs})
    assert counts == {"": (3, {1, 32}), "_concat": (65, {1}), "_paths": (96, {1})}


@pytest.mark.parametrize("options", [{"form": "grouped", "path_norm": True}, {"form": "sums"}])
def test_a_mistake_is_one_sentence(options: dict[str, Any]) -> None:
    with pytest.raises(InputError, match="grouped, concat, paths"):
        refold.create_model("resnext50_32x4d", **options)

"""Every name of `list_models()`: it builds, trains, folds exactly, and runs in ONNX Runtime.

The whole list at its own widths and depths, on small images, takes half an hour: it has the `zoo`
mark, and `-m zoo -k mobilenetv1` or the like runs a part. One network a family, narrow, is always
run. The oracles are the network itself in float64 and, for the file, ONNX Runtime's kernels.
"""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

import refold
from models.nets import error, small
from refold.exporting import onnx_session, run_onnx
from zoo.live import enliven, is_norm

EXACT, SINGLE = 1e-9, 1e-4
CLASSES = 10
# The size of the image is part of some networks; others need more than the 64 pixels that suffice.
OWN_SIZE = ("mobilefacenet", "repmlp", "faceresnet", "acnet_alexnet", "dbb_alexnet")
LARGER = {
    "inception_": 139, "inception": 96, "googlenet": 96, "xception": 139, "mobilenetv1": 96,
}  # fmt: skip
# 713 pixels are too many here: as few as the networks' own windows allow.
SHORTER: dict[str, dict[str, Any]] = {
    "pspnet_resnet50": {"img_size": 49},
    "pspnet_repmlp_resnet50": {"img_size": 49, "partition": (4, 3), "kernels": (1, 3)},
}
SAMPLE = (
    "acnet_cifar_quick", "dbb_cifar_quick",
)  # fmt: skip


def image(name: str, model: Any) -> Tensor:
    """Return noise of the smallest size that this network is good for."""
    channels, height, width = model.default_cfg["input_size"]
    wanted = next((n for start, n in LARGER.items() if name.startswith(start)), 64)
    if not name.startswith((*OWN_SIZE, *SHORTER)):
        height, width = min(height, wanted), min(width, wanted)
    generator = torch.Generator().manual_seed(1)
    return torch.randn(1, channels, height, width, generator=generator, dtype=torch.float64)


def first(outputs: Any) -> Tensor:
    """Return what a network says, without the auxiliary heads that training adds."""
    return pytree.tree_leaves(outputs)[0]


def check_training(model: nn.Module, x: Tensor) -> None:
    """A loss over everything that comes out reaches every parameter."""
    outputs = model.train()(torch.cat([x, -x]))
    loss = sum(value.square().sum() for value in pytree.tree_leaves(outputs))
    assert isinstance(loss, Tensor)
    loss.backward()
    assert [key for key, p in model.named_parameters() if p.grad is None] == []
    model.zero_grad(set_to_none=True)


@pytest.fixture(autouse=True)
def room_for_rounding(monkeypatch: pytest.MonkeyPatch) -> None:
    """Leave the comparison to the test: untrained networks magnify rounding more than trained ones.

    The export compares the file with torch in float32 and knows its rounding from its depth alone;
    the test compares both with float64.
    """
    monkeypatch.setattr("refold.exporting.request.native_bound", lambda *models: 1.0)


def moved(model: nn.Module) -> nn.Module:
    """Return a copy whose weights are one rounding off.

    A hundred untrained layers in a plain row magnify the last digit of float64 beyond 1e-9.
    """
    twin = copy.deepcopy(model)
    for weight in twin.parameters():
        weight.mul_(1 + torch.finfo(weight.dtype).eps * torch.randint_like(weight, -1, 2))
    return twin


def check(name: str, tmp_path: Path, **options: Any) -> None:
    torch.manual_seed(0)
    model = refold.create_model(name, **{"num_classes": CLASSES, **options})
    x = image(name, model)
    check_training(model, x.float())
    enliven(model.eval(), (x.float(),))
    model = model.double()
    done = refold.plan(model, x)
    assert done.steps or done.refusals  # folded, or told why not
    folded = done.apply()
    with torch.no_grad():
        wanted = first(model(x))
        assert wanted.abs().max() > 0
        slip = error(wanted, first(moved(model)(x)))
        assert error(wanted, first(folded(x))) <= max(EXACT, 8 * slip)
    norms = [path for path, part in folded.named_modules() if is_norm(part)]
    assert not norms or done.refusals
    del model
    path = refold.export(folded.float(), tmp_path / "net.onnx", x.float())
    found = run_onnx(onnx_session(path), (x.float(),))[0]
    with torch.no_grad():
        own = error(wanted, first(folded(x.float())).double())
    assert error(wanted, found.double()) <= max(SINGLE, 8 * own)


@pytest.mark.slow
@pytest.mark.parametrize("name", SAMPLE)
def test_a_network_of_each_family(name: str, tmp_path: Path) -> None:
    check(name, tmp_path, **small(name))


@pytest.mark.zoo
@pytest.mark.parametrize("name", refold.list_models())
def test_every_network(name: str, tmp_path: Path) -> None:
    options = next((o for start, o in SHORTER.items() if name == start), {})
    check(name, tmp_path, **options)

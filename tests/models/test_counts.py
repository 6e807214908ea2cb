"""Parameters and multiply-adds, against the published tables and against closed forms."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import timm
import torch
import torchvision
from torch import nn

import refold
from helpers.nightly import some
from models.nets import FAMILIES
from refold.workload import workload_of

pytestmark = pytest.mark.slow


# Millions of parameters in deploy and train form, measured on the authors' code (RepVGG) and on
# timm's networks (MobileOne), to as many digits as they were written down with.
PUBLISHED = {
    "repvgg_a0": (8.31, 9.11), "repvgg_a1": (12.79, 14.09), "repvgg_a2": (25.50, 28.21),
    "repvgg_b0": (14.34, 15.82), "repvgg_b1": (51.83, 57.42), "repvgg_b1g2": (41.36, 45.78),
    "repvgg_b1g4": (36.13, 39.97), "repvgg_b2": (80.32, 89.02), "repvgg_b2g2": (63.96, 70.85),
    "repvgg_b2g4": (55.78, 61.76), "repvgg_b3": (110.96, 123.09), "repvgg_b3g2": (87.40, 96.91),
    "repvgg_b3g4": (75.63, 83.83), "repvgg_d2se": (120.39, 133.33),
    "mobileone_s0": (2.079, 5.293), "mobileone_s1": (4.765, 4.825), "mobileone_s2": (7.808, 7.885),
    "mobileone_s3": (10.078, 10.171), "mobileone_s4": (14.838, 14.951),
}  # fmt: skip
# Billions of multiply-adds at 224 pixels, deploy and train.
WORK = {"repvgg_a0": (1.36, 1.51), "repvgg_b1g2": (8.81, 9.79), "repvgg_d2se": (32.83, 36.48)}


def on_meta(name: str, **options: Any) -> nn.Module:
    with torch.device("meta"):
        return refold.create_model(name, **options)


@cache
def parameters(name: str, deploy: bool) -> int:
    return sum(parameter.numel() for parameter in on_meta(name, deploy=deploy).parameters())


def test_every_published_network_is_counted() -> None:
    ours = refold.list_models("repvgg_[!1-9]*") + refold.list_models("mobileone_*")
    assert set(ours) == {*PUBLISHED, "repvgg_plus_l2pse"}


@pytest.mark.parametrize("name", some(PUBLISHED, keep=6))
def test_parameters_are_the_published_ones(name: str) -> None:
    digits = 3 if name.startswith("mobileone") else 2
    found = (parameters(name, deploy) for deploy in (True, False))
    assert tuple(round(count / 1e6, digits) for count in found) == pytest.approx(
        PUBLISHED[name], abs=0.6 * 10**-digits
    )


@pytest.mark.parametrize("name", some(WORK, keep=1))
def test_multiply_adds_are_the_published_ones(name: str) -> None:
    image = torch.empty(1, 3, 224, 224, device="meta")
    found = [
        workload_of(on_meta(name, deploy=deploy).eval(), image).macs for deploy in (True, False)
    ]
    assert [round((macs or 0) / 1e9, 2) for macs in found] == pytest.approx(WORK[name], abs=0.006)


def test_repvggplus_is_d2_with_other_gates_and_three_heads() -> None:
    """From RepVGG-D2se by arithmetic: gates of a quarter, not of a sixteenth; three heads."""
    widths = [64, *[160] * 8, *[320] * 14, *[640] * 24, 2560]
    gates = sum(gate(c, c // 4) - gate(c, c // 16) for c in widths)
    heads = sum(9 * c * c + 2 * c + (c + 1) * 1000 for c in (160, 320, 640))
    for deploy, more in ((True, gates), (False, gates + heads)):
        d2se = parameters("repvgg_d2se", deploy)
        assert parameters("repvgg_plus_l2pse", deploy) == d2se + more


def gate(channels: int, hidden: int) -> int:
    return 2 * channels * hidden + channels + hidden


class Conv(NamedTuple):
    """A convolution of a plain network."""

    inputs: int
    outputs: int
    kernel: int
    groups: int = 1

    @property
    def weights(self) -> int:
        return self.inputs // self.groups * self.outputs * self.kernel**2


def of_modules(model: nn.Module) -> list[Conv]:
    convs = [part for part in model.modules() if isinstance(part, nn.Conv2d)]
    return [Conv(c.in_channels, c.out_channels, c.kernel_size[0], c.groups) for c in convs]


def plain(conv: Conv) -> int:
    return conv.weights + conv.outputs


def normed(conv: Conv) -> int:
    return conv.weights + 2 * conv.outputs


def acb(conv: Conv) -> int:
    """K x K, K x 1 and 1 x K, a norm each."""
    flat = conv.weights // conv.kernel
    return conv.weights + 2 * flat + 6 * conv.outputs


def dbb(conv: Conv) -> int:
    """Origin; 1x1; 1x1 then K x K; 1x1 then average: a norm after each layer."""
    c, o, k, g = conv
    if g == c == o:  # no 1x1, a bare average, and twice the channels inside
        return normed(conv) + 2 * o + (2 * c + 4 * c + 2 * o * k**2 + 2 * o)
    point = c // g * o
    inner = c // g * c + 2 * c
    return normed(conv) + (point + 2 * o) + (inner + normed(conv)) + (point + 4 * o)


FORMS: dict[str, Callable[[Conv], int]] = {"acnet": acb, "dbb": dbb}
BACKBONES: dict[str, tuple[Callable[[], list[Conv]], int]] = {
    "resnet18": (lambda: of_modules(torchvision.models.resnet18()), 513 * 1000),
    "resnet50": (lambda: of_modules(torchvision.models.resnet50()), 2049 * 1000),
    "mobilenetv1": (lambda: of_modules(timm.create_model("mobilenetv1_100")), 1025 * 1000),
    "vgg16": (
        lambda: of_modules(torchvision.models.vgg16().features),
        513 * 512 + 513 * 1000,
    ),
    "alexnet": (
        lambda: [
            Conv(3, 64, 11), Conv(64, 192, 5), Conv(192, 384, 3), Conv(384, 384, 3),
            Conv(384, 256, 3),
        ],
        (256 * 36 + 1) * 4096 + 4097 * 4096 + 4097 * 1000,
    ),
    "cifar_quick": (
        lambda: [Conv(3, 32, 5), Conv(32, 32, 5), Conv(32, 64, 5)],
        (64 * 9 + 1) * 64 + 65 * 1000,
    ),
}  # fmt: skip


@pytest.mark.parametrize("backbone", some(BACKBONES, keep=["resnet18", "vgg16", "cifar_quick"]))
@pytest.mark.parametrize("form", FORMS)
def test_branched_backbones_count_by_a_closed_form(backbone: str, form: str) -> None:
    listed, head = BACKBONES[backbone]
    with torch.device("meta"):
        convs = listed()
    name = f"{form}_{backbone}"
    assert parameters(name, True) == sum(map(plain, convs)) + head
    branched = [conv for conv in convs if 1 < conv.kernel < 7]
    assert branched
    single = [conv for conv in convs if not 1 < conv.kernel < 7]
    wanted = sum(map(FORMS[form], branched)) + sum(map(normed, single)) + head
    assert parameters(name, False) == wanted


def test_every_form_is_counted() -> None:
    ours = refold.list_models("acnet_*") + refold.list_models("dbb_*")
    assert set(ours) == {f"{form}_{backbone}" for form in FORMS for backbone in BACKBONES}


@pytest.mark.parametrize("name", ["mobilenetv1", "cifar_quick"])
def test_the_plain_form_folds_into_the_same(name: str) -> None:
    assert parameters(name, True) == parameters(f"dbb_{name}", True)


def documented() -> list[tuple[str, str, str]]:
    text = (Path(__file__).parents[2] / "docs" / "models.md").read_text()
    return re.findall(r"^\| `(\w+)` \| ([\d.]+) → ([\d.]+) \|", text, re.MULTILINE)


def test_the_documentation_counts_the_same() -> None:
    """Every network stands there; some are counted here, the others by hand."""
    rows = documented()
    assert sorted(row[0] for row in rows) == refold.list_models()
    counted = {*sorted({*FAMILIES} - {*PUBLISHED})[::4]}  # the published are compared above
    assert {name for name, *_ in rows} > counted
    for name, *wanted in rows:
        if name in counted:
            found = [f"{parameters(name, form) / 1e6:.2f}" for form in (False, True)]
            assert found == wanted, name


@pytest.mark.zoo
def test_the_documentation_counts_every_network() -> None:
    """A thousand convolutions take a while even without values."""
    rows = documented()
    counts = [tuple(f"{parameters(n, form) / 1e6:.2f}" for form in (False, True)) for n, *_ in rows]
    assert counts == [(train, deploy) for _, train, deploy in rows]

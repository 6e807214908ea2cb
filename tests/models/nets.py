"""Every network of ours at a size that a test can afford, with norms that are alive."""

from __future__ import annotations

from fnmatch import fnmatchcase
from typing import Any

import torch
from torch import Tensor, nn

import refold
from refold.models import Backbone
from refold.models.registry import _MODELS
from refold.models.rmobilenet import Row
from refold.models.rmrep import pair_stages
from zoo.live import enliven

NARROW = (0.25, 0.25, 0.25, 0.5)


def is_written(name: str) -> bool:
    """Say whether a network is written in both forms; the registry folds the others."""
    return "deploy" in _MODELS[name].accepted


def structures() -> list[str]:
    """Return a name of each structure that is written in both forms.

    Those that differ only in width, in the image's size, or in how many layers RMRep's stages have,
    are one when narrow and short.
    """
    found: dict[str, str] = {}
    for name in refold.list_models():
        if name.startswith("pspnet"):  # labels pixels: no backbone with a head
            continue
        entry = _MODELS[name]
        free = ("width", "resolution", "stages")
        rest = {key: value for key, value in entry.options.items() if key not in free}
        if is_written(name):
            found.setdefault(f"{entry.factory} {rest}", name)
    return list(found.values())


FAMILIES = (
    "acnet_alexnet", "acnet_vgg16", "dbb_cifar_quick", "dbb_mobilenetv1", "dbb_resnet18",
    "faceresnet", "mobileone_s4", "repmlp_cifar10", "repmlp_resnet50", "repmlpnet_t224",
    "repvgg_a0", "repvgg_plus_l2pse", "mobilefacenet", "shufflenetv1_g3",
    "inceptionv1", "resnext50_32x4d", "cifar_resnet20",
    "rmnet20", "rmnext_26x3_32", "rmobilenet_cifar", "rmrep_21", "resnet_21",
)  # fmt: skip


PAIRS: dict[str, Any] = {"stages": pair_stages(1), "width": 0.125}
QUARTER, SHORT = {"width": 0.25}, {"width": NARROW, "depths": (2, 2, 4, 1)}
SHORT_ROWS = (Row(2, 32, 2, 2), Row(4, 64, 1, 2), Row(3, 64, 2, 1))
SMALL: tuple[tuple[str, dict[str, Any]], ...] = (
    ("*alexnet", {"hidden": 16}),
    ("*cifar10*", {"widths": (4, 8, 8), "kernels": (1, 3)}),
    ("*faceresnet*", {
        "width": 0.125, "embedding": 16, "partition": 3, "kernels": (1, 3), "img_size": 96,
    }),
    ("repmlp_resnet50*", {
        "width": 0.25, "img_size": 64, "partition": 4, "kernels": (1, 3), "groups": 2,
    }),
    ("repmlpnet*", {
        "widths": (4, 8, 8, 8), "sets": (1, 4, 2, 8), "depths": (1, 1, 2, 1),
        "img_size": 64, "partitions": (8, 8, 2, 2), "kernels": (1,),
    }),
    # With a classifier the engine folds the embedding into it; test_modules does that.
    ("mobilefacenet*", {**QUARTER, "image_size": (32, 32), "num_classes": 0}),
    ("shufflenetv1*", {"width": 0.5, "depths": (2, 2, 1)}),
    ("inception*", {"width": 0.125}),
    ("*mobilenetv1*", QUARTER), ("*_vgg*", QUARTER), ("acnet_resnet*", QUARTER),
    ("dbb_resnet*", QUARTER),
    ("repvgg_18", QUARTER), ("repvgg_34", QUARTER), ("repvgg_[1-9]*", PAIRS),
    ("rmrepse", {"stages": pair_stages(1), "width": 0.25}),
    ("rmrep_*", PAIRS), ("resnet_*", PAIRS),
    ("rmnext*", {"depths": (2, 2, 1, 1), "width": 8, "expand": 3, "group": 4}),
    ("rmnet*", {"depths": (2, 2, 1), "width": 4}),
    ("rmobilenet*", {"width": 0.25, "last": 32, "rows": SHORT_ROWS}),
    ("repvgg_d2se", SHORT), ("repvgg_plus*", SHORT),  # 47 blocks; at depth against timm's
    ("repvgg*", {"width": NARROW}), ("mobileone*", {"width": NARROW}),
)  # fmt: skip


def small(name: str) -> dict[str, Any]:
    """Return options that make a network narrow, and a very deep one shorter."""
    return next((options for pattern, options in SMALL if fnmatchcase(name, pattern)), {})


def build(name: str, **options: Any) -> Backbone:
    torch.manual_seed(0)
    model = refold.create_model(name, **{"num_classes": 10, **small(name), **options})
    assert isinstance(model, Backbone)
    return model.double()


def image(model: nn.Module, batch: int = 2) -> Tensor:
    """Return noise: 64 pixels suffice where the head does not count them."""
    assert isinstance(model, Backbone)
    channels, height, width = model.default_cfg["input_size"]
    if height == 224 and "stem.maxpool3" not in model.body:
        height = width = 64
    generator = torch.Generator().manual_seed(1)
    return torch.randn(batch, channels, height, width, generator=generator, dtype=torch.float64)


def alive(name: str, **options: Any) -> tuple[Backbone, Tensor]:
    """Return a network in eval mode, with random statistics and scales of both signs."""
    model = build(name, **options)
    x = image(model, 1)
    enliven(model.eval(), (x,))
    return model, x


def error(wanted: Tensor, found: Tensor) -> float:
    assert wanted.shape == found.shape
    return float((wanted - found).abs().max() / wanted.abs().max())

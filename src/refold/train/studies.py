"""The articles' comparisons as data: what is varied, on the same images, by the same recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from refold.errors import InputError

Changes = Mapping[str, Any]


@dataclass(frozen=True)
class Study:
    """A comparison.

    Args:
        title: what it asks.
        source: where it was published.
        shared: changes to the recipe that all variants have.
        variants: further changes, by the variant's name.
    """

    title: str
    source: str
    shared: Changes
    variants: Mapping[str, Changes] = field(default_factory=dict[str, Changes])


_SMALL_VGG: Changes = {
    "model": "cifar_vgg11", "options": {"depths": [1, 1, 1, 2, 2], "width": 0.125},
    "augment.size": 32, "epochs": 10, "optimizer.lr": 0.05,
}  # fmt: skip
_BLOCKS = {"ACB": "acb", "RepVGG": "repvgg", "DBB": "dbb", "MobileOne": "mobileone"}


def _pairs(kind: str, layers: int, **options: Any) -> Changes:
    return {
        "model": f"{kind}_{layers}", "options": {"large_stem": False, "width": 0.25, **options}
    }  # fmt: skip


def _depths() -> dict[str, Changes]:
    kinds = {"RepVGG": "repvgg", "RMRep": "rmrep", "ResNet": "resnet"}
    return {
        f"{title}-{layers}": _pairs(kind, layers)
        for layers in (21, 37, 69, 133)
        for title, kind in kinds.items()
    }


def _residual(blocks: int, **options: Any) -> Changes:
    base = {"depths": [blocks] * 3, "widths": [8, 16, 32]}
    return {"model": "preact_resnet110", "options": {**base, **options}}


def _shortcut(kind: str, **options: Any) -> Changes:
    return _residual(6, order="original", shortcut=kind, **options)


def _activation(order: str) -> Changes:
    return _residual(9, order=order)


def _mixer(name: str) -> Changes:
    options = {"mixer": name, "widths": [8, 16, 32], "img_size": 32}
    return {"model": "repmlp_cifar10", "options": options, "augment.size": 32}


STUDIES: dict[str, Study] = {
    "branches": Study(
        "Which branches train the same plain network best?",
        "ACNet, arXiv:1908.03930; RepVGG, arXiv:2101.03697; DBB, arXiv:2103.13425; MobileOne, "
        "arXiv:2206.04040",
        _SMALL_VGG,
        {"plain": {}, **{title: {"block": name} for title, name in _BLOCKS.items()}},
    ),
    "depth": Study(
        "What becomes of plain networks when they are very deep?",
        "RMNet, arXiv:2111.00687, tables 3 and 4",
        {"epochs": 6, "channels_last": True},
        _depths(),
    ),
    "ratio": Study(
        "How many channels should be reserved?",
        "RMNet, arXiv:2111.00687, section 3.3",
        {"epochs": 6},
        {f"reserve {ratio}": _pairs("rmrep", 37, ratio=ratio) for ratio in (0.0, 0.25, 0.5, 0.75)},
    ),
    "shortcuts": Study(
        "What may stand on a shortcut?",
        "He et al. 2016, arXiv:1603.05027, table 1",
        {"epochs": 6},
        {
            "identity": _shortcut("identity"),
            "0.5 on the shortcut": _shortcut("constant", scales=[0.5, 1.0]),
            "0.5 on both": _shortcut("constant", scales=[0.5, 0.5]),
            "exclusive gate, bias 0": _shortcut("exclusive_gating", gate_bias=0.0),
            "exclusive gate, bias -6": _shortcut("exclusive_gating", gate_bias=-6.0),
            "shortcut gate, bias 0": _shortcut("shortcut_gating", gate_bias=0.0),
            "shortcut gate, bias -6": _shortcut("shortcut_gating", gate_bias=-6.0),
            "1x1 convolution": _shortcut("conv"),
            "dropout": _shortcut("dropout"),
        },
    ),
    "activations": Study(
        "Where should norms and activations stand?",
        "He et al. 2016, arXiv:1603.05027, table 2",
        {"epochs": 6},
        {
            "original": _activation("original"),
            "norm after addition": _activation("bn_after_add"),
            "ReLU before addition": _activation("relu_before_add"),
            "ReLU-only pre-activation": _activation("relu_only"),
            "full pre-activation": _activation("full"),
        },
    ),
    "repmlp": Study(
        "Which parts of RepMLP matter?",
        "RepMLP, arXiv:2105.01883, section 4.1",
        {"epochs": 6},
        {
            "RepMLP": _mixer("repmlp"),
            "no Local": _mixer("no_local"),
            "no Global": _mixer("no_global"),
            "FC3 is a 9x9 convolution": _mixer("conv9_fc3"),
            "RepMLP is a 9x9 convolution": _mixer("conv9"),
            "Wide ConvNet": {
                "model": "wide_convnet_cifar10",
                "options": {"widths": [16, 32, 64], "img_size": 32},
                "augment.size": 32,
            },
        },
    ),
}
"""The comparisons that train, by name."""

MANIFOLD = "manifold"
"""The one that does not: see `refold.train.manifold`."""


def study_of(name: str) -> Study:
    """Return a comparison by its name.

    Raises:
        InputError: when there is none.
    """
    if name not in STUDIES:
        known = ", ".join(sorted([*STUDIES, MANIFOLD]))
        raise InputError(f"there is no study {name!r}: there are {known}")
    return STUDIES[name]

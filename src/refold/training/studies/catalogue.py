"""The articles' comparisons as data: what is varied, on the same images, by the same recipe."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from refold.errors import InputError
from refold.pruning import Importance
from refold.training.studies.shapes import Shape, pruned, relative_scale

Changes = Mapping[str, Any]


@dataclass(frozen=True)
class Variant:
    """One way to train.

    Args:
        changes: to the recipe.
        of: the variant whose trained network it starts from; None to start from scratch.
        shape: what that network is made into first.
    """

    changes: Changes
    of: str | None = None
    shape: Shape | None = None


@dataclass(frozen=True)
class Study:
    """A comparison.

    Args:
        title: what it asks.
        source: where it was published.
        shared: changes to the recipe that all variants have.
        variants: by name.
        by_depth: whether the variants are named KIND-LAYERS: the plot has a line for each kind, and
            the correlation of the gradients is measured.
    """

    title: str
    source: str
    shared: Changes
    variants: Mapping[str, Variant]
    by_depth: bool = False


def _each(variants: Mapping[str, Changes]) -> dict[str, Variant]:
    return {name: Variant(changes) for name, changes in variants.items()}


_SMALL_VGG: Changes = {
    "model": "cifar_vgg11", "options": {"depths": [1, 1, 1, 2, 2], "width": 0.125},
    "augment.size": 32, "epochs": 8, "optimizer.lr": 0.05,
}  # fmt: skip
_BLOCKS: dict[str, Changes] = {
    "plain": {},
    "ACB": {"block": "acb"},
    "RepVGG": {"block": "repvgg"},
    "DBB": {"block": "dbb"},
    "MobileOne": {"block": "mobileone", "block_options": {"num_conv_branches": 4}},
}


# At the recipe's rate of 0.1 no network of 133 layers learns much in so few epochs.
_DEEP: Changes = {
    "epochs": 4, "optimizer.lr": 0.02, "channels_last": True, "deploy.allow_growth": True
}  # fmt: skip


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


_RESERVED = (0.0, 0.25, 0.5, 0.75)


def _mobile(model: str) -> Changes:
    return {"model": model, "options": {"width": 0.25}, "augment.size": 64}


def _merged(model: str) -> Changes:
    return {**_mobile(model), "deploy.remove_residuals": True, "deploy.allow_growth": True}


_TUNED: Changes = {"epochs": 2, "optimizer.lr": 0.03}


def _prunings() -> dict[str, Variant]:
    """Return both trainings, and both ways to prune each to the same multiply-adds."""
    plain = {"model": "cifar_resnet20", "options": {"depths": [2, 2, 2], "widths": [16, 32, 64]}}
    found: dict[str, Variant] = {}
    trainings: list[tuple[str, Importance, Changes]] = [
        ("slimmed", relative_scale, {"slimming": {"l1": 7e-3, "gamma": 0.5}}),
        ("plain", "l1", {}),
    ]
    for name, importance, slimming in trainings:
        found[name] = Variant({**plain, **slimming})
        for kept, removed in (("residuals kept", False), ("residuals removed", True)):
            shape = pruned(0.4, importance, remove_residuals=removed)
            found[f"{name}, pruned, {kept}"] = Variant(_TUNED, name, shape)
    return found


STUDIES: dict[str, Study] = {
    "branches": Study(
        "Which branches train the same plain network best?",
        "ACNet, arXiv:1908.03930; RepVGG, arXiv:2101.03697; DBB, arXiv:2103.13425; MobileOne, "
        "arXiv:2206.04040",
        _SMALL_VGG,
        _each(_BLOCKS),
    ),
    "depth": Study(
        "What becomes of plain networks when they are very deep?",
        "RMNet, arXiv:2111.00687",
        _DEEP,
        _each(_depths()),
        by_depth=True,
    ),
    "ratio": Study(
        "How many channels should be reserved?",
        "RMNet, arXiv:2111.00687",
        _DEEP,
        _each({f"reserve {share}": _pairs("rmrep", 37, ratio=share) for share in _RESERVED}),
    ),
    "mobile": Study(
        "Is a network that trains with residuals and merges into MobileNetV1 better than V1?",
        "RMNet, arXiv:2111.00687",
        {"epochs": 10},
        _each(
            {
                "MobileNetV1": _mobile("mobilenetv1"),
                "special V2": _mobile("rmobilenet"),
                "special V2, merged": _merged("rmobilenet"),
            }
        ),
    ),
    "pruning": Study(
        "Do networks without residuals prune better, at 40 % of the multiply-adds?",
        "RMNet, arXiv:2111.00687",
        {"epochs": 4},
        _prunings(),
    ),
    "shortcuts": Study(
        "What may stand on a shortcut?",
        "He et al. 2016, arXiv:1603.05027, table 1",
        {"epochs": 4},
        _each(
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
            }
        ),
    ),
    "activations": Study(
        "Where should norms and activations stand?",
        "He et al. 2016, arXiv:1603.05027, table 2",
        {"epochs": 6},
        _each(
            {
                "original": _activation("original"),
                "norm after addition": _activation("bn_after_add"),
                "ReLU before addition": _activation("relu_before_add"),
                "ReLU-only pre-activation": _activation("relu_only"),
                "full pre-activation": _activation("full"),
            }
        ),
    ),
    "repmlp": Study(
        "Which parts of RepMLP matter?",
        "RepMLP, arXiv:2105.01883, section 4.1",
        {"epochs": 4},
        _each(
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
            }
        ),
    ),
}
"""The comparisons that train, by name."""

MANIFOLD = "manifold"
"""The one that does not: see `refold.training.studies.manifold`."""


def study_of(name: str) -> Study:
    """Return a comparison by its name.

    Raises:
        InputError: when there is none.
    """
    if name not in STUDIES:
        known = ", ".join(sorted([*STUDIES, MANIFOLD]))
        raise InputError(f"there is no study {name!r}; the studies are {known}")
    return STUDIES[name]

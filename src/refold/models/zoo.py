"""Networks that timm and torchvision maintain, under the names of their articles.

They are not rewritten here: `create_model` imports the library when it is needed, and folds what
it returns if `deploy` is set.
"""

from __future__ import annotations

from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

from torch import nn

from refold.errors import InputError, MissingDependencyError
from refold.models.registry import register_model

_GOOGLENET_SIZE = (224, 224)


@contextmanager
def _importing(library: str, wanted: str) -> Generator[None]:
    """Say what to install where an optional library is missing.

    Raises:
        MissingDependencyError: instead of the import's own error.
    """
    try:
        yield
    except ImportError as error:
        raise MissingDependencyError(
            f"{wanted} is {library}'s, which cannot be imported ({error}); install refold[models]"
        ) from error


def timm_model(
    num_classes: int = 1000,
    in_chans: int = 3,
    features_only: bool = False,
    *,
    source: str,
    **config: Any,
) -> nn.Module:
    """Build a network of timm, without weights.

    Args:
        num_classes: outputs of the classifier; 0 for none.
        in_chans: channels of the image.
        features_only: return feature maps.
        source: timm's name of it.
        config: what timm's own function takes.

    Raises:
        InputError: when timm does not take these options.
        MissingDependencyError: when timm is not installed.

    Examples:
        >>> timm_model(10, source="mobilenetv2_100").num_classes
        10
    """
    with _importing("timm", source):
        import timm
    options: dict[str, Any] = {**config, "in_chans": in_chans}
    options |= {"features_only": True} if features_only else {"num_classes": num_classes}
    try:
        return timm.create_model(source, pretrained=False, **options)
    except TypeError as error:
        raise InputError(f"timm's {source} does not take these options: {error}") from error


def googlenet(num_classes: int = 1000, in_chans: int = 3, *, aux_logits: bool = False) -> nn.Module:
    """Build torchvision's GoogLeNet, without weights.

    Args:
        num_classes: outputs of the classifier; 0 for none.
        in_chans: channels of the image.
        aux_logits: whether it has the auxiliary classifiers; in training it then returns theirs.

    Raises:
        InputError: when auxiliary classifiers are to have no classes.
        MissingDependencyError: when torchvision is not installed.

    Examples:
        >>> googlenet(10, 1).conv1.conv.in_channels
        1
    """
    if aux_logits and not num_classes:
        raise InputError("googlenet: aux_logits needs classes; give num_classes or leave it out")
    with _importing("torchvision", "googlenet"):
        from torchvision.models import GoogLeNet
    # torchvision's own initialisation takes seconds and is of no use before weights are loaded.
    model: Any = GoogLeNet(num_classes or 1, aux_logits=aux_logits, init_weights=False)
    if not num_classes:
        model.fc = nn.Identity()
    if in_chans != 3:
        old = model.conv1.conv
        size, step, ring = old.kernel_size, old.stride, old.padding
        model.conv1.conv = nn.Conv2d(in_chans, old.out_channels, size, step, ring, bias=False)
    model.default_cfg = {
        "input_size": (in_chans, *_GOOGLENET_SIZE), "num_classes": num_classes, "classifier": "fc",
    }  # fmt: skip
    return cast(nn.Module, model)


register_model("googlenet")(googlenet)

TIMM = {
    "inception_v3": "inception_v3", "inception_resnet_v2": "inception_resnet_v2",
    "xception": "legacy_xception", "mobilenetv2": "mobilenetv2_100",
    **{name: name for name in (
        "resnet18", "resnet34", "resnet50", "resnet101", "resnet152",
        "resnext101_32x4d", "resnext101_64x4d", "resnetv2_50", "resnetv2_101", "resnetv2_152",
    )},
}  # fmt: skip
"""Our name of a network, and timm's."""

for _name, _source in TIMM.items():
    register_model(_name, source=_source)(timm_model)

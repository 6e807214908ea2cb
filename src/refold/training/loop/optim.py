"""Optimizers over parameters that are grouped by whether they decay, as the articles do."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, cast

import torch
from torch import nn
from torch.nn.modules.batchnorm import _NormBase as BatchLike

from refold.blocks import RepVGGBlock
from refold.errors import InputError

if TYPE_CHECKING:
    from refold.training.recipes.recipe import Decay, Optimizer

_NORMS = (BatchLike, nn.GroupNorm, nn.LayerNorm, nn.RMSNorm)


def decays(model: nn.Module, decay: Decay) -> dict[str, bool]:
    """Return whether each parameter decays, by name.

    Args:
        model: whose parameters they are.
        decay: what is left alone.

    Examples:
        >>> from refold.training.recipes.recipe import Decay
        >>> decays(nn.Sequential(nn.Conv2d(1, 1, 3), nn.BatchNorm2d(1)), Decay())
        {'0.weight': True, '0.bias': False, '1.weight': False, '1.bias': False}
    """
    found: dict[str, bool] = {}
    together = _kernels_that_decay_together(model) if decay.custom_l2 else set[int]()
    identities = {id(block.rbr_identity) for block in open_repvggs(model)}
    for path, module in model.named_modules():
        for name, parameter in module.named_parameters(recurse=False):
            does = _decays(module, name, decay)
            if isinstance(module, _NORMS) and decay.norms == "identity":
                does = name == "weight" and id(module) in identities
            found[f"{path}.{name}".lstrip(".")] = does and id(parameter) not in together
    return found


def _decays(module: nn.Module, name: str, decay: Decay) -> bool:
    if isinstance(module, _NORMS):
        return bool(decay.norms)
    if name == "bias":
        return decay.biases
    groups = getattr(module, "groups", 1)
    if name == "weight" and groups > 1 and groups == getattr(module, "in_channels", 0):
        return decay.depthwise
    return True


def _kernels_that_decay_together(model: nn.Module) -> set[int]:
    blocks = open_repvggs(model)
    return {id(part.conv.weight) for b in blocks for part in (b.rbr_dense, b.rbr_1x1)}


def open_repvggs(model: nn.Module) -> list[Any]:
    """Return the RepVGG blocks that have their branches."""
    return [m for m in model.modules() if isinstance(m, RepVGGBlock) and not m.deploy]


def make_optimizer(model: nn.Module, wanted: Optimizer, decay: Decay) -> torch.optim.Optimizer:
    """Return the optimizer of a recipe; parameters that do not decay have a group of their own.

    Raises:
        InputError: when neither torch nor timm has such an optimizer, or it has no such option.
    """
    apart = decays(model, decay)
    groups: list[dict[str, Any]] = []
    for does in (True, False):
        mine = [p for name, p in model.named_parameters() if apart[name] is does]
        mine = [p for p in mine if p.requires_grad]
        if mine:
            groups.append({"params": mine, "weight_decay": decay.value if does else 0.0})
    if not groups:
        raise InputError("the model has no parameter to train")
    if wanted.name == "sgd":
        nesterov = wanted.nesterov and wanted.momentum > 0
        return torch.optim.SGD(groups, wanted.lr, wanted.momentum, nesterov=nesterov)
    import timm.optim as zoo

    try:
        return cast(Any, zoo).create_optimizer_v2(
            groups, opt=wanted.name, lr=wanted.lr, **wanted.options
        )
    except (AssertionError, TypeError, ValueError) as error:
        raise InputError(f"optimizer {wanted.name!r} with {wanted.options}: {error}") from error

"""Optimizers over parameters that are grouped by whether they decay, as the articles do."""

from __future__ import annotations

from collections.abc import Mapping
from fnmatch import fnmatchcase
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


def _factors(model: nn.Module, patterns: Mapping[str, float]) -> dict[str, float]:
    """Return the factor of every parameter's learning rate, by name."""
    factors = dict.fromkeys((name for name, _ in model.named_parameters()), 1.0)
    for pattern, factor in patterns.items():
        mine = [name for name in factors if _names(name, pattern)]
        if not mine:
            some = ", ".join(dict.fromkeys(_parts(name)[0] for name in factors))
            raise InputError(
                f"optimizer.factors: {pattern!r} matches no part of the network, whose parts are "
                f"{some}; 'NAME*' also matches what lies below"
            )
        factors.update(dict.fromkeys(mine, factor))
    return factors


def _names(name: str, pattern: str) -> bool:
    """Say whether a pattern matches a parameter or a part that holds it.

    >>> _names("network.layer1.0.weight", "layer1"), _names("network.fc.weight", "layer*")
    (True, False)
    """
    parts = _parts(name)
    return any(fnmatchcase(".".join(parts[:n]), pattern) for n in range(1, len(parts) + 1))


def _parts(name: str) -> list[str]:
    return name.removeprefix("network.").split(".")  # as the learner calls the network


def make_optimizer(model: nn.Module, wanted: Optimizer, decay: Decay) -> torch.optim.Optimizer:
    """Return the optimizer of a recipe; parameters that do not decay have a group of their own.

    A group's `factor` is what its learning rate is multiplied by.

    Raises:
        InputError: when neither torch nor timm has such an optimizer, it has no such option, or
            a pattern of `factors` matches nothing.
    """
    apart, factor = decays(model, decay), _factors(model, wanted.factors)
    kinds: dict[tuple[bool, float], list[nn.Parameter]] = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            kinds.setdefault((apart[name], factor[name]), []).append(parameter)
    groups: list[dict[str, Any]] = [
        {"params": kinds[kind], "weight_decay": decay.value if kind[0] else 0.0, "factor": kind[1]}
        for kind in sorted(kinds, key=lambda kind: (not kind[0], kind[1]))
    ]
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

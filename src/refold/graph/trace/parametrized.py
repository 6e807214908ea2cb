"""Layers whose weight other modules or hooks compute at every call: given the weight itself.

`weight_norm`, `spectral_norm`, the masks of `torch.nn.utils.prune` and every
`torch.nn.utils.parametrize` are functions of what a layer keeps, in eval mode constants.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize
from torch.nn.utils.prune import BasePruningMethod
from torch.nn.utils.spectral_norm import (
    SpectralNorm,
    SpectralNormLoadStateDictPreHook,
    SpectralNormStateDictHook,
)
from torch.nn.utils.weight_norm import WeightNorm

from refold.engine.outside import outside
from refold.graph.copies.modules import all_modules
from refold.graph.copies.skeleton import skeleton
from refold.graph.trace.state import StateChangeError, untouched


@dataclass(frozen=True)
class Computed:
    """A weight that was computed at every call and is stored now.

    Args:
        path: the layer.
        name: the weight's name in it.
        how: what computed it.
        parameters_before: numbers that it was computed from.
        parameters_after: numbers of the weight.
    """

    path: str
    name: str
    how: str
    parameters_before: int
    parameters_after: int


def with_computed_weights(model: nn.Module) -> tuple[nn.Module, list[Computed]]:
    """Return a structural copy of a model whose layers hold the weights that they compute.

    What changes when it is computed twice, or fails, or writes to what it keeps, stays as it is.
    Where there is nothing of the kind, the model itself is returned.

    Examples:
        >>> layer = nn.utils.parametrizations.weight_norm(nn.Linear(2, 3)).eval()
        >>> made, [found] = with_computed_weights(nn.Sequential(layer))
        >>> made[0], found.how, found.parameters_before, found.parameters_after
        (Linear(in_features=2, out_features=3, bias=True), 'WeightNorm', 9, 6)
    """
    if not any(_is_computed(module) for module in all_modules(model)):
        return model, []
    copy, found = skeleton(model), list[Computed]()
    for path, module in list(copy.named_modules()):
        if _is_computed(module) and not any(part.training for part in module.modules()):
            found.extend(_parametrized(path, module))
            found.extend(_hooked(path, module))
    return (copy, found) if found else (model, [])


def _is_computed(module: nn.Module) -> bool:
    hooks = module._forward_pre_hooks
    if hooks and any(map(_is_norm_hook, hooks.values())):
        return True
    return "parametrizations" in module._modules and parametrize.is_parametrized(module)


def _is_norm_hook(hook: Any) -> bool:
    return isinstance(hook, WeightNorm | SpectralNorm | BasePruningMethod)


def _weight_name(hook: Any) -> str:
    return hook._tensor_name if isinstance(hook, BasePruningMethod) else hook.name


def _parametrized(path: str, module: nn.Module) -> Iterator[Computed]:
    """Store what torch.nn.utils.parametrize computes."""
    if not parametrize.is_parametrized(module):
        return
    tables = cast("dict[str, nn.Module]", cast(nn.Module, module.parametrizations)._modules)
    values = {name: _value(module, name) for name in tables}
    if any(value is None for value in values.values()):
        return
    del module._modules["parametrizations"]
    module.__class__ = type(module).__bases__[0]
    _drop_state_hooks(module)
    for name, table in tables.items():
        value, originals = cast(Tensor, values[name]), list(table.parameters())
        _store(module, name, value, originals)
        how = ", ".join(type(step).__name__.lstrip("_") for step in table.children())
        yield Computed(path, name, how, _count(table), value.numel())


def _value(module: nn.Module, name: str) -> Tensor | None:
    """Return a computed weight, None where it is not the same every time."""
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        try:
            with untouched(module):
                first, second = (getattr(module, name).clone() for _ in range(2))
        except StateChangeError:
            return None
        except Exception:  # any parametrization may fail in its own way
            return None
    return first if torch.equal(first, second) else None


def _store(module: nn.Module, name: str, value: Tensor, originals: list[nn.Parameter]) -> None:
    if originals:
        trains = any(original.requires_grad for original in originals)
        others = dict(module._parameters)
        module._parameters.clear()  # a plain layer has its weight before its bias
        module.register_parameter(name, nn.Parameter(outside(value), requires_grad=trains))
        module._parameters.update(others)
    else:
        module.register_buffer(name, value)


def _hooked(path: str, module: nn.Module) -> Iterator[Computed]:
    """Store what the older hooks of torch.nn.utils compute."""
    for key, hook in list(module._forward_pre_hooks.items()):
        if not _is_norm_hook(hook):
            continue
        name = _weight_name(hook)
        with torch.no_grad():
            if isinstance(hook, WeightNorm):
                value = cast(Tensor, hook.compute_weight(module)).clone()
            elif isinstance(hook, SpectralNorm):
                value = hook.compute_weight(module, do_power_iteration=False).clone()
            else:
                value = cast(BasePruningMethod, hook).apply_mask(module).clone()
        gone = [name + end for end in ("_g", "_v", "_orig", "_u", "_mask")]
        originals = [p for end in gone if (p := module._parameters.pop(end, None)) is not None]
        if not isinstance(hook, WeightNorm):
            for end in gone:
                module._buffers.pop(end, None)
        module.__dict__.pop(name, None)
        del module._forward_pre_hooks[key]
        module._forward_pre_hooks_with_kwargs.pop(key, None)
        _drop_state_hooks(module)
        _store(module, name, value, originals)
        count = sum(original.numel() for original in originals)
        yield Computed(path, name, type(hook).__name__, count, value.numel())


def _drop_state_hooks(module: nn.Module) -> None:
    """Remove what reads and writes the state_dict of a weight that is computed no more."""
    tables: tuple[dict[int, Any], ...] = (
        module._state_dict_hooks,
        module._load_state_dict_pre_hooks,
    )
    for table in tables:
        for key, hook in list(table.items()):
            hook = getattr(hook, "hook", hook)
            is_of_norm = getattr(hook, "__module__", "") == parametrizations.__name__
            if is_of_norm or isinstance(hook, _SPECTRAL):
                del table[key]


_SPECTRAL = (SpectralNormStateDictHook, SpectralNormLoadStateDictPreHook)


def _count(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())

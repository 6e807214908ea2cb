"""The network inside wrappers that run it elsewhere, compiled or averaged."""

from __future__ import annotations

from typing import Any, cast

from torch import nn

from refold.errors import InputError

_WRAPPERS = frozenset(
    {"DataParallel", "DistributedDataParallel", "AveragedModel", "FullyShardedDataParallel"}
)


def unwrap(module: nn.Module) -> nn.Module:
    """Return the network inside parallel, compiled and averaged wrappers.

    Looks through DataParallel, DistributedDataParallel, `torch.compile`, `AveragedModel` and any
    wrapper whose only child is `module` and that holds no parameter of its own (timm's ModelEma).

    Raises:
        InputError: when it is no network, but its weights or its class, say.

    Examples:
        >>> unwrap(nn.DataParallel(nn.Sequential(nn.ReLU())))
        Sequential(
          (0): ReLU()
        )
    """
    if not isinstance(cast(Any, module), nn.Module):
        is_class = isinstance(module, type)
        name = module.__name__ if is_class else type(module).__name__
        raise InputError(f"expected a torch.nn.Module, got {'the class ' * is_class}{name}")
    while (inner := _inner(module)) is not None:
        module = inner
    return module


def _inner(module: nn.Module) -> nn.Module | None:
    children = dict(module.named_children())
    if set(children) == {"_orig_mod"}:
        return children["_orig_mod"]
    holds_nothing = not any(True for _ in module.parameters(recurse=False))
    if set(children) == {"module"} and holds_nothing and not _is_container(module):
        return children["module"] if _passes_through(module) else None
    return None


def _is_container(module: nn.Module) -> bool:
    return isinstance(module, nn.Sequential | nn.ModuleList | nn.ModuleDict)


def _passes_through(module: nn.Module) -> bool:
    """Wrappers are known by name, or hold a network without a forward of their own.

    A network that merely calls its one child `module` is not a wrapper: its forward may do more.
    """
    if type(module).forward is nn.Module.forward:
        return "forward" not in module.__dict__
    return any(
        kind.__name__ in _WRAPPERS or kind.__name__.startswith("ModelEma")
        for kind in type(module).__mro__
    )

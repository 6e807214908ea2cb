"""Modules that only run their children in turn, called without what a call of torch costs.

A folded `Sequential(conv, norm)` keeps its name, and an `nn.Identity` that of the norm: seven calls
of Python more than the bare convolution, 2 microseconds a layer. A shortcut leaves one.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any, cast

import torch
from torch import fx, nn
from torch.nn.modules import module as torchs

from refold.graph.trace.code.names import functions_of, names_in

_CALL, _CALL_IMPL = nn.Module.__call__, nn.Module._call_impl  # pyright: ignore[reportPrivateUsage]
_IDENTITY = nn.Identity
_TRACES = torch._C._get_tracing_state
_NAMES = ("forward_pre", "forward", "backward_pre", "backward")
_G0, _G1, _G2, _G3 = (
    cast("dict[int, Any]", getattr(torchs, f"_global_{name}_hooks")) for name in _NAMES
)


def in_turn(count: int) -> Callable[..., Any]:
    """Return a `__call__` that runs the children of a module in turn, as its forward does.

    Where anybody listens (hooks, tracers, a replaced forward, a compiled call), where there are
    more or fewer children by now, and with other arguments, torch's own is called.

    Args:
        count: of the children.
    """

    def call(self: nn.Module, *args: Any, **kwargs: Any) -> Any:
        own = self.__dict__  # asked once: between two layers nothing of it is in a cache
        parts: dict[str, Any] = own["_modules"]
        if (
            len(args) != 1
            or kwargs
            or len(parts) != count
            or own["_forward_hooks"]
            or own["_forward_pre_hooks"]
            or own["_backward_hooks"]
            or own["_backward_pre_hooks"]
            or "forward" in own
            or self._compiled_call_impl is not None
            or (_G0 or _G1 or _G2 or _G3)
            or nn.Module.__call__ is not _CALL
            or nn.Module._call_impl is not _CALL_IMPL
            or _TRACES()
        ):
            return nn.Module.__call__(self, *args, **kwargs)
        (value,) = args
        for part in parts.values():
            if (
                type(part) is not _IDENTITY
                or (its := part.__dict__)["_forward_hooks"]
                or its["_forward_pre_hooks"]
                or its["_backward_hooks"]
                or its["_backward_pre_hooks"]
                or "forward" in its
            ):
                value = part(value)
        return value

    return call


def shortcut(module: nn.Module, graph: fx.Graph | None, before: set[int]) -> int:
    """Return how many children a module runs in turn and does nothing else; 0 for other modules.

    Args:
        module: of a folded model.
        graph: what its forward computes, where that was generated.
        before: the ids of what the model held before the fold.
    """
    kind, parts = type(module), module._modules
    is_called = kind.__call__ is not _CALL or kind._call_impl is not _CALL_IMPL
    if is_called or "forward" in module.__dict__:
        return 0
    if kind.forward is nn.Sequential.forward:
        bypassed = (type(part) is _IDENTITY and id(part) not in before for part in parts.values())
        return len(parts) if any(bypassed) else 0
    nodes = [*graph.nodes] if graph is not None else []
    if [node.op for node in nodes] != ["placeholder", "call_module", "output"]:
        return 0
    value, layer, output = nodes
    is_only = [*parts] == [layer.target] and layer.args == (value,) and not layer.kwargs
    return int(is_only and output.args[0] is layer)


@functools.lru_cache(maxsize=1024)
def asks_for_classes(kind: type[nn.Module]) -> bool:
    """Say whether a forward may tell the class of a module from one derived from it.

    Examples:
        >>> asks_for_classes(nn.Sequential)
        False
    """
    names = {name for function in functions_of(kind) for name in names_in(function.__code__)}
    return not names.isdisjoint({"type", "__class__"})

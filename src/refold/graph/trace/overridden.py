"""Does a layer compute what its class says?

`isinstance(layer, nn.Conv2d)` says what a layer is called, not what it does: its forward may be
replaced on the instance, in a subclass, or in torch's class itself. Every room that knows a layer
by its class asks here.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator
from pathlib import Path
from types import FunctionType
from typing import Any, cast

import torch
from torch import nn

from refold.graph.copies.modules import is_generated
from refold.graph.copies.watching import WatchedRead

_HOMES = ("torch.nn.", "torch.ao.nn.", "refold.")
_OWN_CODE = (f"{Path(torch.__file__).parent}/", f"{Path(__file__).parents[2]}/", "<refold ")
_CALLING = ("forward", "__call__", "_call_impl", "__getattr__", "__getattribute__")
_HARMLESS = frozenset(
    {
        "__init__",
        "__repr__",
        "__setstate__",
        "__setattr__",
        "extra_repr",
        "reset_parameters",
        "reset_running_stats",
        "_load_from_state_dict",
        "_save_to_state_dict",
    }
)


def layer_class(module: nn.Module) -> type:
    """Return the class of torch.nn (or of refold) whose computation `module` surely does.

    A subclass that changes nothing of the computation counts as its base. `object` stands for none:
    nothing is known of it.

    Examples:
        >>> layer_class(nn.ReLU())
        <class 'torch.nn.modules.activation.ReLU'>
        >>> layer = nn.ReLU()
        >>> layer.forward = torch.neg
        >>> layer_class(layer)
        <class 'object'>
    """
    kind, reason = _told(module)
    return kind if reason is None else object


def disguise(module: nn.Module) -> str | None:
    """Return how a layer differs from the class of torch.nn that it claims to be, or None.

    Examples:
        >>> methods = {"__module__": "mine", "forward": torch.neg}
        >>> disguise(type("Mine", (nn.ReLU,), methods)())
        'its class Mine replaces the forward of ReLU'
    """
    return _told(module)[1]


def call_disguise(module: nn.Module) -> str | None:
    """Return why calling `module` does more than to run its hooks and forward, or None.

    Examples:
        >>> call_disguise(type("Mine", (nn.ReLU,), {"__call__": lambda self, x: x})())
        'its class Mine replaces __call__, which may do more than run forward'
    """
    kind = type(module)
    if "_call_impl" in module.__dict__:
        return "its _call_impl is replaced on the instance"
    for name, torchs in (("__call__", _CALL), ("_call_impl", _CALL_IMPL)):
        found = kind.__dict__.get(name) or getattr(kind, name)
        if found is not torchs and not _is_own(found):
            return f"its class {kind.__name__} replaces {name}, which may do more than run forward"
    return None


def access_disguise(module: nn.Module) -> str | None:
    """Return why code that reads a tensor of `module` may get another one than is stored, or None.

    Examples:
        >>> access_disguise(nn.Linear(1, 1)) is None
        True
    """
    kind = type(module)
    if not module._parameters and not module._buffers:
        return None  # a wrapper that hands reads on holds nothing
    for name, torchs in (("__getattr__", _GETATTR), ("__getattribute__", object.__getattribute__)):
        found = getattr(kind, name)
        if found is not torchs and not _is_own(found):
            return (
                f"its class {kind.__name__} replaces {name}, so that it may not read what it holds"
            )
    return None


_GETATTR = nn.Module.__getattr__
_CALL, _CALL_IMPL = nn.Module.__call__, nn.Module._call_impl  # pyright: ignore[reportPrivateUsage]


def _told(module: nn.Module) -> tuple[type, str | None]:
    kind: Any = type(module)
    own = getattr(kind, "forward", None)  # a ScriptModule has one on instances only
    found, used, reason = _class_of(kind, own, getattr(kind, "_conv_forward", None))
    if found is object or (reason is None and used.isdisjoint(module.__dict__)):
        return found, reason
    name = next((name for name in module.__dict__ if name in used), "")
    return found, reason or f"its {name} is replaced on the instance"


@functools.lru_cache(maxsize=4096)
def _class_of(kind: type, *key: object) -> tuple[type, frozenset[str], str | None]:
    """Return the layer class of a type, the names its computation uses, and what differs.

    The key holds the methods that a program may replace in the class later.
    """
    above: list[type] = []
    for base in kind.__mro__:
        known = base is not nn.Module and not is_generated(base)
        if known and f"{base.__module__}.".startswith(_HOMES):
            used = frozenset(_used(base))
            return base, used, _changed(base, above, used) or _patched(base, used)
        above.append(base)
    return object, frozenset(), None


def _used(layer: type) -> Iterator[str]:
    yield from _CALLING
    for base in layer.__mro__:
        if base in (nn.Module, object):
            continue
        for name, value in base.__dict__.items():
            if name not in _HARMLESS and not name.startswith("__") and _computes(value):
                yield name


def _changed(layer: type, above: list[type], used: frozenset[str]) -> str | None:
    for kind in above:
        for name, value in kind.__dict__.items():
            if name in used and name not in _HARMLESS:
                return f"its class {kind.__name__} replaces the {name} of {layer.__name__}"
            if _computes(value) and not isinstance(value, _PLAIN) and not name.startswith("__"):
                return f"its class {kind.__name__} computes its {name} anew at every read"
    return None


def _patched(layer: type, used: frozenset[str]) -> str | None:
    for name in used:
        value = getattr(layer, name, None)
        is_function = isinstance(value, FunctionType)
        if not _is_own(value) if is_function else name == "forward":
            return f"the {name} of {layer.__name__} itself was replaced"
    return None


_PLAIN = (FunctionType, staticmethod, classmethod, type)


def _computes(value: object) -> bool:
    return hasattr(type(value), "__get__") and not isinstance(value, WatchedRead)


def _is_own(function: Any) -> bool:
    code = getattr(function, "__code__", None)
    return code is None or cast(str, code.co_filename).startswith(_OWN_CODE)

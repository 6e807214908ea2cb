"""Let traced code see its values as tensors: `isinstance(x, torch.Tensor)` is true while tracing.

Plain fx answers False, so code such as `x if isinstance(x, Tensor) else x[0]` takes the wrong
branch without a word. The proxies must not lie by `__class__` (torch's C++ would take them for
tensors and crash), so the name `isinstance` is shadowed in the globals of the model's own code.
"""

from __future__ import annotations

import builtins
from collections.abc import Generator
from contextlib import contextmanager
from typing import Any, cast

import torch
from torch import fx, nn

from refold.graph.calls import gives_tensor
from refold.graph.trace.proxies.proxy import RefoldProxy


@contextmanager
def tensors_are_tensors(root: nn.Module) -> Generator[None]:
    """Shadow `isinstance` in the modules that define the classes of `root` and its children."""
    changed: list[dict[str, Any]] = []
    for kind in {base for module in root.modules() for base in type(module).__mro__}:
        forward = kind.__dict__.get("forward")
        scope = cast("dict[str, Any]", getattr(forward, "__globals__", {}))
        home = str(scope.get("__name__", "torch"))
        if "isinstance" not in scope and not home.startswith(("torch.", "refold.", "builtins")):
            scope["isinstance"] = traced_isinstance
            changed.append(scope)
    try:
        yield
    finally:
        for scope in changed:
            scope.pop("isinstance", None)


def traced_isinstance(value: object, kinds: Any) -> bool:
    """Answer as the built-in does, and as for a tensor when `value` stands for one."""
    if type(value) is RefoldProxy and _is_tensor(value.node):
        return _accepts_tensor(kinds)
    return builtins.isinstance(value, kinds)


def _accepts_tensor(kinds: Any) -> bool:
    if builtins.isinstance(kinds, tuple):
        return any(_accepts_tensor(kind) for kind in cast("tuple[Any, ...]", kinds))
    if builtins.isinstance(kinds, type):
        return issubclass(torch.Tensor, kinds) or issubclass(kinds, fx.Proxy)
    return any(_accepts_tensor(kind) for kind in getattr(kinds, "__args__", ()))  # X | Y


def _is_tensor(node: fx.Node) -> bool:
    """Tell tensors from sizes, dtypes and other plain values read off a tensor."""
    while node.op == "call_function" and getattr(node.target, "__name__", "") == "getitem":
        if not builtins.isinstance(node.args[0], fx.Node):
            return True
        node = node.args[0]
    return gives_tensor(node)

"""Find a module by its path, often: `nn.Module.get_submodule` takes ten times as long."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from torch import nn

_BASE = "_refold_base"


def submodule(root: nn.Module, path: str) -> nn.Module:
    """Return the module that stands at `path` below `root`; the empty path is the root itself.

    Raises:
        AttributeError: when there is none.

    Examples:
        >>> submodule(nn.Sequential(nn.Sequential(nn.ReLU())), "0.0")
        ReLU()
    """
    module = root
    for name in _steps(path):
        children = module._modules  # a scripted module's table has no `get`
        found = children[name] if name in children else None  # noqa: SIM401
        module = _read(module, name, path) if found is None else found
    return module


@lru_cache(maxsize=1 << 16)
def _steps(path: str) -> tuple[str, ...]:
    return tuple(path.split(".")) if path else ()


def _read(module: nn.Module, name: str, path: str) -> nn.Module:
    found = None if name in module._modules else getattr(module, name)
    if not isinstance(found, nn.Module):
        raise AttributeError(f"{name} of {path} is not a module")
    return found


def all_modules(root: nn.Module) -> list[nn.Module]:
    """Return what `root.modules()` yields; its generators take as long as the depth for each.

    Examples:
        >>> net = nn.Sequential(nn.Sequential(nn.ReLU()), nn.Tanh())
        >>> all_modules(net) == list(net.modules())
        True
    """
    found: list[nn.Module] = []
    seen, pending = set[int](), [root]
    while pending:
        module = pending.pop()
        if id(module) in seen:
            continue
        seen.add(id(module))
        found.append(module)
        if module._modules:
            children = list(module._modules.values())
            pending.extend(child for child in reversed(children) if child is not None)
    return found


def attribute(module: nn.Module, path: str) -> Any:
    """Return the attribute at a dotted path below `module`.

    Examples:
        >>> attribute(nn.Sequential(nn.Linear(2, 3)), "0.out_features")
        3
    """
    value: Any = module
    for part in path.split("."):
        tables: Any = (value._parameters, value._buffers) if isinstance(value, nn.Module) else ()
        held = next((table[part] for table in tables if part in table), None)
        value = getattr(value, part) if held is None else held  # a class may change what is read
    return value


def is_generated(kind: type[nn.Module]) -> bool:
    """Say whether `regenerate` made a class.

    Examples:
        >>> is_generated(nn.ReLU)
        False
    """
    return _BASE in kind.__dict__

"""Find a module by its path, often: `nn.Module.get_submodule` takes ten times as long."""

from __future__ import annotations

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
    for name in path.split(".") if path else ():
        children = module._modules
        found = children[name] if name in children else getattr(module, name)
        if not isinstance(found, nn.Module):
            raise AttributeError(f"{name} of {path} is not a module")
        module = found
    return module


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

"""Find a module by its path, often: `nn.Module.get_submodule` takes ten times as long."""

from __future__ import annotations

from collections.abc import Iterator
from functools import lru_cache
from itertools import accumulate
from typing import Any

from torch import Tensor, nn

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


@lru_cache(maxsize=1 << 16)
def paths_around(path: str) -> tuple[str, ...]:
    """Return the paths of a module and of those that it stands in, outermost first.

    Examples:
        >>> paths_around("stages.0.norm")
        ('stages', 'stages.0', 'stages.0.norm')
    """
    return tuple(accumulate(_steps(path), "{}.{}".format))


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


def modules_by_path(root: nn.Module, *, every_name: bool = False) -> list[tuple[str, nn.Module]]:
    """Return what `root.named_modules()` yields, as quickly as `all_modules`.

    Args:
        root: any module.
        every_name: list a module under each of its names, not under its first alone.

    Examples:
        >>> net = nn.Sequential(nn.Sequential(nn.ReLU()), nn.Tanh())
        >>> modules_by_path(net) == list(net.named_modules())
        True
    """
    found: list[tuple[str, nn.Module]] = []
    seen, pending = set[int](), [("", root)]
    while pending:
        path, module = pending.pop()
        if not every_name:
            if id(module) in seen:
                continue
            seen.add(id(module))
        found.append((path, module))
        if module._modules:
            prefix = f"{path}." if path else ""
            children = [(prefix + n, m) for n, m in module._modules.items() if m is not None]
            pending.extend(reversed(children))
    return found


def names_of_modules(root: nn.Module) -> dict[str, list[str]]:
    """Return all paths of every module, by each of them.

    Examples:
        >>> act = nn.ReLU()
        >>> names_of_modules(nn.Sequential(act, act))["1"]
        ['0', '1']
    """
    found: dict[int, list[str]] = {}
    for path, module in modules_by_path(root, every_name=True):
        found.setdefault(id(module), []).append(path)
    return {path: paths for paths in found.values() for path in paths}


def stored_tensors(root: nn.Module) -> Iterator[tuple[str, Tensor]]:
    """Yield the parameters and buffers of a module and all below it, each under its first name.

    Examples:
        >>> [name for name, _ in stored_tensors(nn.Sequential(nn.Linear(1, 1)))]
        ['0.weight', '0.bias']
    """
    seen = set[int]()
    for path, module in modules_by_path(root):
        for table in (module._parameters, module._buffers):
            for name, tensor in table.items():
                if tensor is not None and id(tensor) not in seen:
                    seen.add(id(tensor))
                    yield f"{path}.{name}" if path else name, tensor


def attribute(module: nn.Module, path: str) -> Any:
    """Return the attribute at a dotted path below `module`.

    Examples:
        >>> attribute(nn.Sequential(nn.Linear(2, 3)), "0.out_features")
        3
    """
    value: Any = module
    for part in _steps(path):
        held = _held(value, part) if isinstance(value, nn.Module) else None
        value = getattr(value, part) if held is None else held
    return value


def _held(module: nn.Module, name: str) -> Any:
    """Return what a module has in a table: its class may change what is read."""
    for table in (module._modules, module._parameters, module._buffers):
        if name in table:
            return table[name]
    return None


def is_generated(kind: type[nn.Module]) -> bool:
    """Say whether `regenerate` made a class.

    Examples:
        >>> is_generated(nn.ReLU)
        False
    """
    return _BASE in kind.__dict__

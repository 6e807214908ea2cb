"""Which parts of a model a run of it never touches: auxiliary heads, branches for training."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn

from refold.graph.copies.held import held_tensors


def unrun(root: nn.Module, ran: set[int], reads: set[int]) -> list[str]:
    """Return the paths of the largest modules with tensors that nothing called or read.

    Args:
        root: the model that ran.
        ran: ids of the modules that were called.
        reads: ids of the tensors that calls were given.

    Examples:
        >>> net = nn.Sequential(nn.Linear(1, 1), nn.Linear(1, 1))
        >>> unrun(net, {id(net), id(net[0])}, set())
        ['1']
    """
    return [path for path, module in _largest("", root, ran, reads) if _holds(module)]


def _largest(
    path: str, module: nn.Module, ran: set[int], reads: set[int]
) -> Iterator[tuple[str, nn.Module]]:
    if not any(id(part) in ran or _is_read(part, reads) for part in module.modules()):
        yield path, module
        return
    for name, child in module.named_children():
        yield from _largest(f"{path}.{name}" if path else name, child, ran, reads)


def _is_read(module: nn.Module, reads: set[int]) -> bool:
    return any(id(tensor) in reads for _, tensor in held_tensors(module))


def _holds(module: nn.Module) -> bool:
    return any(True for part in module.modules() for _ in held_tensors(part))


def drop(root: nn.Module, paths: list[str]) -> None:
    """Take modules out of a model: None stands where they were, an Identity inside a container.

    Examples:
        >>> net = nn.Sequential(nn.ReLU(), nn.Linear(1, 1))
        >>> drop(net, ["1"])
        >>> net
        Sequential(
          (0): ReLU()
          (1): Identity()
        )
    """
    for path in paths:
        above, _, name = path.rpartition(".")
        parent = root.get_submodule(above)
        is_item = isinstance(parent, nn.Sequential | nn.ModuleList | nn.ModuleDict)
        parent._modules[name] = nn.Identity() if is_item else None

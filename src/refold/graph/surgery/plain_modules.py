"""What takes the place of a changed module whose class must not stay."""

from __future__ import annotations

import functools
from collections import OrderedDict
from typing import Any, cast

from torch import fx, nn

from refold.graph.copies.modules import submodule
from refold.graph.surgery.generated import check_baked, method_from_graph, regenerate
from refold.graph.trace.code.names import methods_of, names_in

_CONTAINERS = (nn.Sequential, nn.ModuleList, nn.ModuleDict)


def is_layer_subclass(kind: type[nn.Module]) -> bool:
    """Say whether a class derives from a torch.nn layer (not from a container).

    Examples:
        >>> is_layer_subclass(nn.BatchNorm2d), is_layer_subclass(nn.Sequential)
        (True, False)
    """
    if issubclass(kind, _CONTAINERS):
        return False
    homes = (base.__module__ for base in kind.__mro__ if base is not nn.Module)
    return any(home.startswith("torch.nn.modules") for home in homes)


def plain_module(module: nn.Module, graph: fx.Graph) -> nn.Module:
    """Return the simplest module that computes `graph` with the children of `module`."""
    body = [n for n in graph.nodes if n.target is not check_baked and n.op != "output"]
    inputs = [node for node in body if node.op == "placeholder"]
    calls = [node for node in body if node.op != "placeholder"]
    result = next(node for node in graph.nodes if node.op == "output").args[0]
    if inputs and _is_chain(inputs[0], calls, result):
        children = [(cast(str, n.target), submodule(module, cast(str, n.target))) for n in calls]
        if len(children) == 1:
            return children[0][1]
        if not children:
            return nn.Identity()
        named = [(name.replace(".", "_"), child) for name, child in children]
        return nn.Sequential(OrderedDict(named))
    plain = nn.Module()
    for table in ("_modules", "_parameters", "_buffers"):
        plain.__dict__[table].update(module.__dict__[table])
    regenerate(plain, {"forward": method_from_graph(graph)})
    return plain


def chain_slots(module: nn.Module, graph: fx.Graph, new: set[str]) -> dict[str, nn.Module] | None:
    """Return children with which a Sequential's own forward computes `graph`, or None.

    The indices stay: new layers take the places of removed ones, other free places pass through.

    Args:
        module: a Sequential that holds the old children and the new ones.
        graph: what it has to compute.
        new: the names of the children that a pass inserted.
    """
    calls = [node for node in graph.nodes if node.op not in ("placeholder", "output")]
    [place], [output] = (graph.find_nodes(op=op) for op in ("placeholder", "output"))
    if not _is_chain(place, calls, output.args[0]):
        return None
    names = [name for name in module._modules if name not in new]
    children = {name: cast(nn.Module, nn.Identity().train(module.training)) for name in names}
    position = -1
    live = {cast(str, node.target) for node in calls}
    for node in calls:
        target = cast(str, node.target)
        free = names.index(target) if target in names else position + 1
        taken = target in new and free < len(names) and names[free] in live
        if free <= position or free >= len(names) or taken:
            return None
        position = free
        children[names[free]] = submodule(module, target)
    return children


def _is_chain(value: fx.Node, calls: list[fx.Node], result: Any) -> bool:
    for node in calls:
        if node.op != "call_module" or node.args != (value,) or node.kwargs:
            return False
        value = node
    return result is value


@functools.lru_cache(maxsize=1024)
def mentioned_names(kind: type[nn.Module]) -> frozenset[str]:
    """Return the attribute names that methods of a class other than forward and __init__ read."""
    names: set[str] = set()
    for base in kind.__mro__:
        if base.__module__.startswith("torch.nn"):
            continue
        for name, value in base.__dict__.items():
            code = getattr(value, "__code__", None)
            if code is not None and name not in ("forward", "__init__"):
                names.update(names_in(code))
    return frozenset(names)


@functools.lru_cache(maxsize=1024)
def names_of_overrides(kind: type[nn.Module]) -> frozenset[str]:
    """Return the names that a class's own forms of torch's methods read: `train` of frozen norms.

    Examples:
        >>> names_of_overrides(nn.Sequential)
        frozenset()
    """
    own = {name: codes for name, codes in methods_of(kind).items() if name in _EVERYWHERE}
    return frozenset(word for codes in own.values() for f in codes for word in names_in(f.__code__))


_EVERYWHERE = frozenset({"train", "eval", "requires_grad_", "_apply", "to", "zero_grad"})

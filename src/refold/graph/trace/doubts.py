"""May code that no run has followed call a child otherwise than a capture of its own assumes?"""

from __future__ import annotations

import ast
import inspect

from torch import fx, nn

from refold.graph.trace.arguments import is_default
from refold.graph.trace.code.reads import takes_apart, uses_in_forward
from refold.graph.trace.leaves import untraceable_reason


def doubt(parent: nn.Module, name: str, child: nn.Module, called: set[str]) -> str | None:
    """Return why unseen code may call `parent.name` otherwise than a capture assumes, or None.

    Args:
        parent: a module that could not be traced.
        name: the name of its child.
        child: the child.
        called: the children that the failed trace saw being called.

    Examples:
        >>> doubt(nn.ModuleList([nn.Sequential()]), "0", nn.Sequential(), set()) is None
        True
    """
    known = uses_in_forward(type(parent))
    if known is None:  # a trace that failed has not seen what comes after it
        return _one_by_one(parent) if isinstance(child, nn.Sequential) else _given(_optional(child))
    uses = [use for use in known if use.name == name]
    if any(takes_apart(use, child) for use in uses):
        return _one_by_one(parent)
    is_item = isinstance(parent, nn.ModuleList | nn.ModuleDict | nn.Sequential)
    is_called = is_item or name in called or any(use.call for use in uses)
    if isinstance(child, nn.Sequential) and not is_called:
        return _one_by_one(parent)
    calls = [use.call for use in uses if use.call is not None]
    is_plain = bool(calls) and not any(_gives_more(call, child) for call in calls)
    if is_plain or isinstance(parent, nn.Sequential):
        return None
    return _given(_optional(child))


def doubt_of_calls(graph: fx.Graph, path: str, module: nn.Module) -> str | None:
    """Return why the calls of a leaf in a graph are none that its own capture stands for, or None.

    Examples:
        >>> class Scale(nn.Module):
        ...     def forward(self, x, by=1.0):
        ...         return x * by
        >>> graph = fx.Graph()
        >>> call = graph.call_module("scale", (graph.placeholder("x"),), {"by": 2.0})
        >>> doubt_of_calls(graph, "scale", Scale())
        'its optional argument by may be given'
    """
    optional = _optional(module)
    if not optional:
        return None
    signature = inspect.signature(module.forward)
    for node in graph.nodes:
        if node.op != "call_module" or node.target != path:
            continue
        try:
            bound = signature.bind(*node.args, **node.kwargs).arguments
        except TypeError:  # a call that fails, as it should
            continue
        for name in optional:
            default = signature.parameters[name].default
            if name in bound and not is_default(bound[name], default):
                return _given([name])
    return None


def _one_by_one(parent: nn.Module) -> str:
    """Say whose code may run the parts of a child by themselves, and where that code is."""
    kind = type(parent)
    try:
        path, (_, line) = inspect.getsourcefile(kind.forward), inspect.getsourcelines(kind.forward)
    except (OSError, TypeError):
        place = ""
    else:
        place = f" ({path.rpartition('/')[2]}:{line})" if path else ""
    code = f"the code of {kind.__name__}{place}, which could not be followed,"
    return f"{code} may run its parts one by one"


def _given(names: list[str]) -> str | None:
    if not names:
        return None
    several = len(names) > 1
    return f"its optional argument{'s' if several else ''} {' and '.join(names)} may be given"


def _optional(module: nn.Module) -> list[str]:
    """Return the arguments of a module's forward that have a default."""
    if untraceable_reason(module) is not None:
        return []
    parameters = inspect.signature(module.forward).parameters.values()
    return [p.name for p in parameters if p.default is not p.empty]


def _gives_more(call: ast.Call, child: nn.Module) -> bool:
    """Say whether a call may give an argument that has a default."""
    parameters = inspect.signature(child.forward).parameters.values()
    required = [p.name for p in parameters if p.default is p.empty]
    if any(isinstance(value, ast.Starred) for value in call.args):
        return True
    named = [keyword.arg for keyword in call.keywords]
    return len(call.args) + len(named) > len(required) or any(n not in required for n in named)

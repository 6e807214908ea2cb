"""Is a Sequential below an untraceable module called as a whole, or child by child?

A Sequential is a module and a list. Folding across its children is only right for the module, so it
needs evidence: the trace saw the call before it failed, or the source of its parent only calls it.
"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Iterator

from torch import nn


def runs_whole(parent: nn.Module, name: str, called: set[str]) -> bool:
    """Say whether the Sequential `parent.name` is surely called as one module.

    Args:
        parent: a module that could not be traced.
        name: the name of its child.
        called: the children that the failed trace saw being called.

    Examples:
        >>> runs_whole(nn.ModuleList([nn.Sequential()]), "0", set())
        True
    """
    if isinstance(parent, nn.ModuleList | nn.ModuleDict | nn.Sequential) or name in called:
        return True
    uses = [use for kind in type(parent).__mro__ for use in _uses(kind) if use[0] == name]
    return bool(uses) and all(is_call for _, is_call in uses)


@functools.lru_cache(maxsize=256)
def _uses(kind: type) -> tuple[tuple[str, bool], ...]:
    """Return every read of `self.<name>` in the methods of a class, and whether it is a call."""
    if kind.__module__.startswith(("torch.", "builtins")):
        return ()
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError, SyntaxError):  # no source: no evidence
        return ()
    return tuple(_uses_in(tree))


def _uses_in(tree: ast.Module) -> Iterator[tuple[str, bool]]:
    methods = [node for node in ast.walk(tree) if isinstance(node, ast.FunctionDef)]
    for method in methods:
        if method.name == "__init__" or not method.args.args:
            continue
        this = method.args.args[0].arg
        called = {id(node.func) for node in ast.walk(method) if isinstance(node, ast.Call)}
        for node in ast.walk(method):
            if isinstance(node, ast.Attribute) and ast.unparse(node.value) == this:
                yield node.attr, id(node) in called

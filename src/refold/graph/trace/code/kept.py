"""What functions do with something that an earlier call has kept: do they read it?"""

from __future__ import annotations

import ast
import functools
from dataclasses import dataclass
from types import FunctionType
from typing import Any, TypeGuard, cast

from refold.graph.trace.code.names import functions_of, names_in
from refold.graph.trace.code.source import parsed

_MUTATORS = frozenset(
    {"append", "extend", "insert", "clear", "add", "update", "appendleft", "setdefault", "discard"}
)
_BY_ANY_NAME = frozenset({"getattr", "vars", "__dict__", "globals", "locals"})


@dataclass(frozen=True)
class Uses:
    """What functions do with something that they keep.

    Args:
        reads: whether code may read what an earlier call has kept.
        names: whether code names it at all.
    """

    reads: bool
    names: bool


@functools.lru_cache(maxsize=4096)
def uses_of(function: FunctionType, name: str, *, is_global: bool) -> Uses:
    """Say what a function does with what is kept under a name.

    Args:
        function: any.
        name: of an attribute, or of a global.
        is_global: whether it is a global.

    Examples:
        >>> def count(net, x): net.calls += 1; return x
        >>> def branch(net, x): return x if net.calls > 3 else -x
        >>> [uses_of(f, "calls", is_global=False).reads for f in (count, branch)]
        [False, True]
    """
    code, names = function.__code__, names_in(function.__code__)
    local = (*code.co_varnames, *code.co_cellvars, *code.co_freevars)  # a default may hold things
    is_said = name in names or name in local
    if not is_said and (is_global or _BY_ANY_NAME.isdisjoint(names)):
        return Uses(reads=False, names=False)
    tree = parsed(function)
    if not tree.body:  # no source: it may do anything
        return Uses(reads=True, names=True)
    if not is_global and _by_any_name(tree, name):
        return Uses(reads=True, names=True)
    places = [node for node in ast.walk(tree) if _names(node, name, is_global)]
    parents = {id(low): high for high in ast.walk(tree) for low in ast.iter_child_nodes(high)}
    start = None if is_global else _first_assignment(tree, name)
    reads = any(
        not _only_writes(place, parents) and (start is None or place.lineno <= start)
        for place in places
    )
    return Uses(reads=reads, names=bool(places))


def _names(node: ast.AST, name: str, is_global: bool) -> TypeGuard[ast.Name | ast.Attribute]:
    if is_global and isinstance(node, ast.Name):
        return node.id == name
    return isinstance(node, ast.Attribute) and node.attr == name


def _by_any_name(tree: ast.Module, name: str) -> bool:
    """Say whether code may read an attribute by a name that it makes up, or by its table."""
    for node in ast.walk(tree):
        match node:
            case ast.Call(func=ast.Name(id="getattr"), args=[_, ast.Constant(value=str(key)), *_]):
                if key == name:
                    return True
            case ast.Call(func=ast.Name(id="getattr" | "vars" | "locals" | "globals")):
                return True
            case ast.Attribute(attr="__dict__"):
                return True
            case _:
                continue
    return False


def _first_assignment(tree: ast.Module, name: str) -> int | None:
    """Return the line that assigns an attribute in every call of a function, if one does."""
    [function, *_] = tree.body
    for line in getattr(function, "body", ()):
        targets = cast("list[Any]", line.targets) if isinstance(line, ast.Assign) else []
        if any(isinstance(t, ast.Attribute) and t.attr == name for t in targets):
            return line.lineno
    return None


def _only_writes(node: ast.AST, parents: dict[int, ast.AST]) -> bool:
    """Say whether code at a place only changes what is kept there: `+= 1`, `[k] = v`, `append`."""
    if isinstance(getattr(node, "ctx", None), ast.Store | ast.Del):
        return True
    above = parents[id(node)]
    while isinstance(above, ast.Subscript) and above.value is node:
        if isinstance(above.ctx, ast.Store | ast.Del):
            return True
        node, above = above, parents[id(above)]
    call = parents[id(above)] if isinstance(above, ast.Attribute) else None
    if not isinstance(above, ast.Attribute) or not isinstance(call, ast.Call):
        return False
    is_said = above.attr in _MUTATORS and call.func is above
    return is_said and isinstance(parents[id(call)], ast.Expr)


def is_read_by(kind: type, name: str, *, is_global: bool = False) -> bool:
    """Say whether code of a class may read what an earlier call has kept under a name.

    Examples:
        >>> import torch
        >>> is_read_by(torch.nn.ReLU, "calls")
        False
    """
    return any(uses_of(f, name, is_global=is_global).reads for f in functions_of(kind))


def names_it(kind: type, name: str) -> bool:
    """Say whether code of a class names a global.

    Examples:
        >>> import torch
        >>> names_it(torch.nn.ReLU, "STORE")
        False
    """
    return any(uses_of(f, name, is_global=True).names for f in functions_of(kind))

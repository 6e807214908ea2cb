"""What the code of a class reads of its module: which attributes, and what it does with them."""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections import deque
from collections.abc import Container, Iterator
from dataclasses import dataclass
from types import FunctionType
from typing import Any

from torch import nn

from refold.graph.trace.code.names import functions_of
from refold.graph.trace.code.source import parsed, parts_named


@dataclass(frozen=True)
class Use:
    """One read of `self.<name>` in a class.

    Args:
        name: the attribute.
        method: the method that reads it.
        call: the call of the attribute, if it is one.
        member: what is read off the attribute, if anything is.
    """

    name: str
    method: str
    call: ast.Call | None
    member: str | None


def may_run(root: nn.Module, path: str) -> bool:
    """Say whether code that no run has followed may call what stands at a path by that name.

    Examples:
        >>> net = nn.Sequential(nn.Sequential(nn.ReLU()))
        >>> may_run(net, "0.0")
        True
    """
    parent: nn.Module | None = root
    for name in path.split("."):
        if parent is None or not _reads(parent, name):
            return False
        parent = parent._modules.get(name)
    return True


def reached(parent: nn.Module, name: str, child: nn.Module) -> list[str]:
    """Return the parts of `parent.name` that its unseen code may run by themselves.

    Examples:
        >>> reached(nn.Sequential(nn.ReLU()), "0", nn.ReLU())
        []
    """
    uses = [use for use in uses_in_forward(type(parent)) or () if use.name == name]
    if any(takes_apart(use, child) and use.member not in child._modules for use in uses):
        return [path for path, _ in child.named_modules() if path]
    return [use.member for use in uses if use.member is not None and takes_apart(use, child)]


def reaches_into(module: nn.Module, name: str, inside: Container[str]) -> bool:
    """Say whether code of a module may use some of these parts of a child by themselves.

    Args:
        module: the module.
        name: of the child.
        inside: the names of the parts, and of what lies between.

    Examples:
        >>> reaches_into(nn.Sequential(nn.Sequential(nn.ReLU())), "0", {"0"})
        False
    """
    uses, child = uses_in_forward(type(module)), module._modules[name]
    if uses is None or child is None or any(use.name in BY_ANY_NAME for use in uses):
        return True
    others = [use for use in uses if use.name == name and use.call is None]
    if any(takes_apart(use, child) for use in others):
        return True
    named = (part for code in functions_of(type(module)) for part in parts_named(code))
    return bool(others) and any(part in inside for part in named)


def runs_apart(module: nn.Module, names: set[str], followed: set[str]) -> bool:
    """Say whether code of a module may run some of its children outside the methods followed.

    Args:
        module: the module.
        names: of the children.
        followed: the methods whose calls of them are known.

    Examples:
        >>> runs_apart(nn.Sequential(nn.ReLU()), {"0"}, {"forward"})
        False
    """
    uses = uses_in_forward(type(module))
    if uses is None:
        return True
    wanted = names | BY_ANY_NAME
    return any(use.name in wanted and use.method not in followed for use in uses)


def attributes_read(kind: type, method: str, names: frozenset[str]) -> tuple[tuple[str, bool], ...]:
    """Return which of these children a method reads, and whether it does more than call them.

    Examples:
        >>> attributes_read(nn.Linear, "forward", frozenset({"weight"}))
        (('weight', False),)
    """
    found = (use for use in uses_of(getattr(kind, method)) if use.name in names)
    return tuple((use.name, use.member is not None) for use in found)


@functools.lru_cache(maxsize=1024)
def uses_of(function: Any) -> tuple[Use, ...]:
    """Return the reads of attributes of its module in a method."""
    return tuple(_uses_in(parsed(function)))


def _reads(parent: nn.Module, name: str) -> bool:
    if isinstance(parent, nn.ModuleList | nn.ModuleDict | nn.Sequential):
        return True
    known = uses_in_forward(type(parent))
    return known is None or any(use.name == name or use.name in BY_ANY_NAME for use in known)


_GETATTR = "getattr"


BY_ANY_NAME = frozenset(
    {_GETATTR, "_modules", "children", "get_submodule", "modules", "named_children"}
    | {"named_modules"}
)


def takes_apart(use: Use, child: nn.Module) -> bool:
    """Say whether code may run a part of a child by itself."""
    if use.call is not None:
        return False
    if use.member is None:
        return isinstance(child, nn.Sequential)  # indexed, looped over or handed on
    if use.member in child._modules:
        return True
    return "children" in use.member or "modules" in use.member


@functools.lru_cache(maxsize=256)
def uses_in_forward(kind: type) -> tuple[Use, ...] | None:
    """Return the reads of attributes in a class's forward and the methods it uses, if known."""
    found = [_uses(base) for base in kind.__mro__]
    if any(part is None for part in found):
        return None
    uses = [use for part in found for use in part or ()]
    reached, pending = set[str](), ["forward"]
    while pending:
        method = pending.pop()
        if method not in reached:
            reached.add(method)
            pending.extend(use.name for use in uses if use.method == method)
    return tuple(use for use in uses if use.method in reached)


@functools.lru_cache(maxsize=4096)
def attributes_of_self(function: FunctionType) -> frozenset[tuple[str, bool]]:
    """Return what a method reads of its module, and whether it does more than call that.

    Examples:
        >>> def run(self, x): return self.conv(x) * self.conv.weight.sum() + self.rest[0](x)
        >>> sorted(attributes_of_self(run))
        [('conv', False), ('conv', True), ('rest', True)]
    """
    tree, [this, *_] = parsed(function), [*function.__code__.co_varnames, ""]
    if not tree.body:  # no source: it may do anything
        return frozenset((name, True) for name in (*function.__code__.co_names, _GETATTR))
    found = {(use.name, use.call is None) for use in _uses_in(tree)}
    alone = (node for node, above in _with_parents(tree) if not isinstance(above, ast.Attribute))
    is_handed_on = any(isinstance(node, ast.Name) and node.id == this for node in alone)
    if is_handed_on or "super" in function.__code__.co_names:
        found.add((_GETATTR, True))  # `net = self`
    return frozenset(found)


@functools.lru_cache(maxsize=256)
def _uses(kind: type) -> tuple[Use, ...] | None:
    """Return every read of `self.<name>` in the methods of a class, None without its source."""
    if kind is object or kind.__module__.startswith("torch."):
        return ()
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError, SyntaxError):
        return None
    return tuple(_uses_in(tree))


def _uses_in(tree: ast.Module) -> Iterator[Use]:
    nodes = ast.walk(tree)
    methods = [n for n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    for method in methods:
        if method.name == "__init__" or not method.args.args:
            continue
        this = method.args.args[0].arg
        for node, above in _with_parents(method):
            if isinstance(node, ast.Call) and _hands_on(node, this):
                yield Use(_GETATTR, method.name, None, None)
            elif (name := _name_read(node, this)) is not None:
                call = above if isinstance(above, ast.Call) and above.func is node else None
                member = above.attr if isinstance(above, ast.Attribute) else None
                yield Use(name, method.name, call, member)


def _name_read(node: ast.AST, this: str) -> str | None:
    """Return the attribute that code reads of its module, if it does: `self.x`, or by a text."""
    match node:
        case ast.Attribute(value=ast.Name(id=name), attr=attribute) if name == this:
            return attribute
        case ast.Call(func=ast.Name(id="getattr"), args=[ast.Name(id=name), text, *_]) if (
            name == this and isinstance(text, ast.Constant)
        ):
            return str(text.value)
        case _:
            return None


def _with_parents(tree: ast.AST) -> Iterator[tuple[ast.AST, ast.AST]]:
    """Yield what a tree holds, each part with the one that it stands in."""
    pending = deque([tree])
    while pending:
        above = pending.popleft()
        for node in ast.iter_child_nodes(above):
            yield node, above
            pending.append(node)


def _hands_on(call: ast.Call, this: str) -> bool:
    """Say whether a call is given the module itself: `getattr(self, name)`, a helper."""
    given = any(isinstance(value, ast.Name) and value.id == this for value in call.args)
    if not given or _name_read(call, this) is not None:
        return False
    return ast.unparse(call.func) not in _ASKS_ONLY


_ASKS_ONLY = frozenset({"hasattr", "id", "isinstance", "super", "type"})

"""Read code that no run has followed: does it call a child as a capture of its own assumes?"""

from __future__ import annotations

import ast
import functools
import inspect
import textwrap
from collections.abc import Iterator
from dataclasses import dataclass
from types import CodeType, FunctionType
from typing import Any

from torch import fx, nn

from refold.graph.trace.leaves import untraceable_reason


@dataclass(frozen=True)
class _Use:
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
    known = _uses_in_forward(type(parent))
    if known is None:  # a trace that failed has not seen what comes after it
        return _one_by_one(parent) if isinstance(child, nn.Sequential) else _given(_optional(child))
    uses = [use for use in known if use.name == name]
    if any(_reaches_in(use, child) for use in uses):
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
    uses = [use for use in _uses_in_forward(type(parent)) or () if use.name == name]
    if any(_reaches_in(use, child) and use.member not in child._modules for use in uses):
        return [path for path, _ in child.named_modules() if path]
    return [use.member for use in uses if use.member is not None and _reaches_in(use, child)]


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
    uses = _uses_in_forward(type(module))
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
    found = (use for use in _uses_of(getattr(kind, method)) if use.name in names)
    return tuple((use.name, use.member is not None) for use in found)


@functools.lru_cache(maxsize=1024)
def _uses_of(function: Any) -> tuple[_Use, ...]:
    return tuple(_uses_in(parsed(function)))


def _reads(parent: nn.Module, name: str) -> bool:
    if isinstance(parent, nn.ModuleList | nn.ModuleDict | nn.Sequential):
        return True
    known = _uses_in_forward(type(parent))
    return known is None or any(use.name == name or use.name in BY_ANY_NAME for use in known)


_GETATTR = "getattr"
BY_ANY_NAME = frozenset(
    {_GETATTR, "_modules", "children", "get_submodule", "modules", "named_children"}
    | {"named_modules"}
)


def is_default(value: Any, default: Any) -> bool:
    """Say whether an argument surely is its default.

    Examples:
        >>> is_default(1, 1), is_default(1, True), is_default([], [])
        (True, False, False)
    """
    plain = (bool, int, float, str, type(None))
    return type(value) is type(default) and isinstance(value, plain) and value == default


def mentions(function: Any, name: str) -> bool:
    """Say whether a function uses an argument of its own, as far as its code tells.

    Examples:
        >>> def forward(x, scale): return x
        >>> mentions(forward, "x"), mentions(len, "obj")
        (True, True)
    """
    source = _source(function)
    return source is None or source.count(name) > 1


def keywords_read(function: Any, name: str) -> list[str]:
    """Return the keywords that a function reads out of its `**name`, as far as its code tells.

    Examples:
        >>> def forward(x, **options):
        ...     return -x if options.get("flip") or "back" in options else x
        >>> keywords_read(forward, "options")
        ['flip', 'back']
    """
    keys: list[Any] = []
    for node in ast.walk(parsed(function)):
        match node:
            case ast.Call(func=ast.Attribute(value=ast.Name(id=table)), args=[key, *_]):
                pass
            case ast.Subscript(value=ast.Name(id=table), slice=key):
                pass
            case ast.Compare(left=key, comparators=[ast.Name(id=table)]):
                pass
            case _:
                continue
        if table == name and isinstance(key, ast.Constant) and isinstance(key.value, str):
            keys.append(key.value)
    return list(dict.fromkeys(keys))


def parsed(function: Any) -> ast.Module:
    """Return the syntax tree of a function, an empty one where there is none to be read.

    Examples:
        >>> parsed(len).body
        []
    """
    try:
        return ast.parse(textwrap.dedent(_source(function) or ""))
    except SyntaxError:  # a lambda in the middle of a line
        return ast.Module([], [])


def _source(function: Any) -> str | None:
    plain = inspect.unwrap(getattr(function, "__func__", function))
    if not isinstance(plain, CodeType) and not hasattr(plain, "__code__"):
        return None
    try:
        return inspect.getsource(plain)
    except (OSError, TypeError):
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


def _reaches_in(use: _Use, child: nn.Module) -> bool:
    """Say whether code may run a part of a child by itself."""
    if use.call is not None:
        return False
    if use.member is None:
        return isinstance(child, nn.Sequential)  # indexed, looped over or handed on
    if use.member in child._modules:
        return True
    return "children" in use.member or "modules" in use.member


def _gives_more(call: ast.Call, child: nn.Module) -> bool:
    """Say whether a call may give an argument that has a default."""
    parameters = inspect.signature(child.forward).parameters.values()
    required = [p.name for p in parameters if p.default is p.empty]
    if any(isinstance(value, ast.Starred) for value in call.args):
        return True
    named = [keyword.arg for keyword in call.keywords]
    return len(call.args) + len(named) > len(required) or any(n not in required for n in named)


@functools.lru_cache(maxsize=256)
def _uses_in_forward(kind: type) -> tuple[_Use, ...] | None:
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
    owners = {id(node.value) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
    names = (node for node in ast.walk(tree) if isinstance(node, ast.Name) and node.id == this)
    if "super" in function.__code__.co_names or any(id(name) not in owners for name in names):
        found.add((_GETATTR, True))  # `net = self`
    return frozenset(found)


@functools.lru_cache(maxsize=256)
def _uses(kind: type) -> tuple[_Use, ...] | None:
    """Return every read of `self.<name>` in the methods of a class, None without its source."""
    if kind is object or kind.__module__.startswith("torch."):
        return ()
    try:
        tree = ast.parse(textwrap.dedent(inspect.getsource(kind)))
    except (OSError, TypeError, SyntaxError):
        return None
    return tuple(_uses_in(tree))


def _uses_in(tree: ast.Module) -> Iterator[_Use]:
    nodes = ast.walk(tree)
    methods = [n for n in nodes if isinstance(n, ast.FunctionDef | ast.AsyncFunctionDef)]
    for method in methods:
        if method.name == "__init__" or not method.args.args:
            continue
        this = method.args.args[0].arg
        parents = {id(low): high for high in ast.walk(method) for low in ast.iter_child_nodes(high)}
        for node in ast.walk(method):
            if isinstance(node, ast.Call) and _hands_on(node, this):
                yield _Use(_GETATTR, method.name, None, None)
            if not isinstance(node, ast.Attribute) or not isinstance(node.value, ast.Name):
                continue
            if node.value.id == this:
                above = parents[id(node)]
                call = above if isinstance(above, ast.Call) and above.func is node else None
                member = above.attr if isinstance(above, ast.Attribute) else None
                yield _Use(node.attr, method.name, call, member)


def _hands_on(call: ast.Call, this: str) -> bool:
    """Say whether a call is given the module itself: `getattr(self, name)`, a helper."""
    given = any(isinstance(value, ast.Name) and value.id == this for value in call.args)
    return given and ast.unparse(call.func) != "super"

"""The functions that a forward runs, as far as names tell, and what they do with what is kept."""

from __future__ import annotations

import ast
import dis
import functools
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import chain
from types import CodeType, FunctionType, ModuleType
from typing import Any, TypeGuard, cast

from refold.graph.trace.doubts import parsed

_FOREIGN = frozenset({"torch", "torchvision", "numpy", "refold"}) | sys.stdlib_module_names
_MUTATORS = frozenset(
    {"append", "extend", "insert", "clear", "add", "update", "appendleft", "setdefault", "discard"}
)
_BY_ANY_NAME = frozenset({"getattr", "vars", "__dict__", "globals", "locals"})
_FOR_PEOPLE = frozenset(
    {"_assert", "critical", "debug", "error", "info", "print", "warn", "warning"}
)
_MOST = 300


def is_foreign(value: Any) -> bool:
    """Say whether a function or a class is one of Python's, torch's or NumPy's own.

    Examples:
        >>> import torch
        >>> is_foreign(torch.nn.ReLU), is_foreign(is_foreign)
        (True, True)
    """
    home = getattr(value, "__module__", None)
    return home is None or str(home).partition(".")[0] in _FOREIGN


@functools.lru_cache(maxsize=1024)
def functions_of(kind: type) -> tuple[FunctionType, ...]:
    """Return the functions that a class's forward may run: its methods, helpers that they name.

    Examples:
        >>> import torch
        >>> functions_of(torch.nn.ReLU)
        ()
    """
    methods = methods_of(kind)
    found: dict[FunctionType, None] = {}
    pending = list(methods.get("forward", ()))
    while pending and len(found) < _MOST:
        function = pending.pop()
        if function in found:
            continue
        found[function] = None
        for name in names_in(function.__code__):
            pending.extend(methods.get(name, ()))
        for _, _, value in named_in(function):
            if isinstance(value, FunctionType) and not is_foreign(value):
                pending.append(value)
            elif not isinstance(value, type | ModuleType) and not is_foreign(type(value)):
                held = methods_of(type(value))  # of an object of the user's own
                pending.extend(f for n in names_in(function.__code__) for f in held.get(n, ()))
    return tuple(found)


def methods_of(kind: type) -> dict[str, list[FunctionType]]:
    """Return the functions of a class that are not torch's or Python's, by name, nearest first.

    Examples:
        >>> import torch
        >>> methods_of(torch.nn.ReLU)
        {}
    """
    found: dict[str, list[FunctionType]] = {}
    for base in kind.__mro__:
        for name, value in () if is_foreign(base) else vars(base).items():
            plain = getattr(value, "fget", None) or getattr(value, "__func__", value)
            if isinstance(plain, FunctionType):
                found.setdefault(name, []).append(plain)
    return found


def named_in(function: FunctionType) -> Iterator[tuple[str, dict[str, Any], Any]]:
    """Yield what the names in a function stand for: the name, its table of globals, the value.

    The tables are that of the function's own file and those of the files it names (`utils.STORE`).
    """
    names = names_in(function.__code__)
    tables = [function.__globals__]
    for name in names:
        value = function.__globals__.get(name)
        if isinstance(value, ModuleType) and value.__name__.partition(".")[0] not in _FOREIGN:
            tables.append(vars(value))
    for table in tables:
        for name in names:
            if name in table:
                yield name, table, table[name]


@functools.lru_cache(maxsize=4096)
def names_in(code: CodeType) -> tuple[str, ...]:
    """Return the names of globals and attributes in code, in that of functions within it too."""
    inner = (names_in(part) for part in code.co_consts if isinstance(part, CodeType))
    return tuple(dict.fromkeys(chain(code.co_names, *inner)))


@functools.lru_cache(maxsize=4096)
def identities_in(code: CodeType) -> tuple[tuple[int, Any], ...]:
    """Return what code asks about with `is`, constants and names, each with its line.

    Examples:
        >>> identities_in((lambda n: n is None).__code__)[0][1:]
        ('n',)
    """
    inner = (identities_in(part) for part in code.co_consts if isinstance(part, CodeType))
    found = list(chain.from_iterable(inner))
    if dis.opmap["IS_OP"] not in code.co_code[::2]:
        return tuple(found)
    steps, line = list(dis.get_instructions(code)), code.co_firstlineno
    for first, second, step in zip(steps, steps[1:], steps[2:], strict=False):
        line = first.starts_line or line
        if step.opname == "IS_OP":
            found += [(line, one.argval) for one in (first, second) if "LOAD" in one.opname]
    return tuple(found)


@functools.lru_cache(maxsize=4096)
def tells_people(code: CodeType, line: int) -> bool:
    """Say whether a line of code belongs to an assertion, a warning or the like, and no more.

    Args:
        code: what runs.
        line: of its file.

    Examples:
        >>> def look(n):
        ...     assert n > 0, f"{n} is too few"
        ...     return f"{n}"
        >>> first = look.__code__.co_firstlineno
        >>> tells_people(look.__code__, first + 1), tells_people(look.__code__, first + 2)
        (True, False)
    """
    at = line - code.co_firstlineno + 1
    found = [
        node
        for node in ast.walk(parsed(code))
        if isinstance(node, ast.stmt) and node.lineno <= at <= (node.end_lineno or 0)
    ]
    match max(found, key=lambda node: node.lineno, default=None):
        case ast.Assert() | ast.Raise():
            return True
        case ast.Expr(value=ast.Call(func=ast.Name(id=name) | ast.Attribute(attr=name))):
            return name in _FOR_PEOPLE
        case _:
            return False


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

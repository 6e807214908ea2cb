"""The source of a function: its syntax tree, and what it does with its arguments."""

from __future__ import annotations

import ast
import functools
import inspect
import linecache
import textwrap
from collections.abc import Callable, Iterable
from types import CodeType
from typing import Any

_FOR_PEOPLE = frozenset(
    {"_assert", "critical", "debug", "error", "info", "print", "warn", "warning"}
)


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


def handed_on(function: Any, name: str) -> list[str]:
    """Return what a function calls with all of its `**name`, as its code writes it.

    Examples:
        >>> def forward(self, x, **options):
        ...     return self.step(x, **options)
        >>> handed_on(forward, "options")
        ['self.step']
    """
    calls = (node for node in ast.walk(parsed(function)) if isinstance(node, ast.Call))
    found = [
        ast.unparse(call.func)
        for call in calls
        for word in call.keywords
        if word.arg is None and isinstance(word.value, ast.Name) and word.value.id == name
    ]
    return list(dict.fromkeys(found))


def parsed(function: Any) -> ast.Module:
    """Return the syntax tree of a function without its annotations, which do nothing.

    It is an empty one where there is none to be read.

    Examples:
        >>> parsed(len).body
        []
    """
    plain = inspect.unwrap(getattr(function, "__func__", function))
    code = getattr(plain, "__code__", plain)
    return _parsed(code) if isinstance(code, CodeType) else ast.Module([], [])


@functools.lru_cache(maxsize=1024)
def _parsed(code: CodeType) -> ast.Module:
    try:
        tree = ast.parse(textwrap.dedent(_source(code) or ""))
    except SyntaxError:  # a lambda in the middle of a line
        return ast.Module([], [])
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            node.returns = None
        elif isinstance(node, ast.arg):
            node.annotation = None
        elif isinstance(node, ast.AnnAssign):
            node.annotation = ast.Constant(None)
    return tree


def _source(function: Any) -> str | None:
    plain = inspect.unwrap(getattr(function, "__func__", function))
    code = getattr(plain, "__code__", plain)
    if not isinstance(code, CodeType):
        return None
    linecache.checkcache(code.co_filename)
    lines = linecache.getlines(code.co_filename)[code.co_firstlineno - 1 :]
    try:  # `inspect.getsource` first looks where each module of the process comes from
        return "".join(inspect.getblock(lines)) if lines else inspect.getsource(plain)
    except (OSError, TypeError):
        return None


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


@functools.lru_cache(maxsize=4096)
def names_that_decide(function: Callable[..., Any], uses: frozenset[str]) -> frozenset[str]:
    """Return the attributes, and texts that may name one, that decide whether code uses others.

    Args:
        function: a method.
        uses: the names of the others.

    Examples:
        >>> def forward(self, x):
        ...     x = self.act(x) if self.flag or getattr(self, "late", 0) else x
        ...     return x * 2 if self.doubles else x
        >>> sorted(names_that_decide(forward, frozenset({"act"})))
        ['flag', 'late']
    """
    found = set[str]()
    for choice in ast.walk(parsed(function)):
        if isinstance(choice, ast.If | ast.IfExp | ast.While):
            inside = [*ast.walk(choice)]
            if any(map(_is_way_out, inside)) or not uses.isdisjoint(_names_read(inside)):
                found |= _names_read(ast.walk(choice.test))
    return frozenset(found)


PartsDecided = tuple[frozenset[str], frozenset[str]]


@functools.lru_cache(maxsize=4096)
def parts_decided(
    function: Callable[..., Any],
) -> tuple[tuple[frozenset[str], frozenset[str]], ...]:
    """Return what code reads off others than its own module in a branch, and what decides that.

    Each comes as the names of those parts (`norm`, or `1` of `self.pair[0][1]`), with the
    attributes, and texts that may name one, in the test.

    Examples:
        >>> def forward(self, x):
        ...     y = self.block(x)
        ...     return self.block.norm(y) if self.again else y
        >>> parts_decided(forward)
        ((frozenset({'norm'}), frozenset({'again'})),)
    """
    found, this, every = list[PartsDecided](), _own_name(function), parts_named(function)
    for choice in ast.walk(parsed(function)) if every else ():
        if isinstance(choice, ast.If | ast.IfExp | ast.While):
            inside = [*ast.walk(choice)]
            parts = every if any(map(_is_way_out, inside)) else frozenset(_parts_read(inside, this))
            if parts:
                found.append((parts, frozenset(_names_read(ast.walk(choice.test)))))
    return tuple(found)


@functools.lru_cache(maxsize=4096)
def parts_named(function: Callable[..., Any]) -> frozenset[str]:
    """Return what code reads off others than its own module, by name.

    Examples:
        >>> def forward(self, x): return self.block.norm(self.pair[0][1](x))
        >>> sorted(parts_named(forward))
        ['1', 'norm']
    """
    return frozenset(_parts_read(ast.walk(parsed(function)), _own_name(function)))


def _own_name(function: Callable[..., Any]) -> str:
    code = getattr(function, "__code__", None)
    return code.co_varnames[0] if isinstance(code, CodeType) and code.co_argcount else ""


def _parts_read(parts: Iterable[ast.AST], this: str) -> set[str]:
    found = set[str]()
    for part in parts:
        match part:
            case ast.Attribute(value=ast.Name(id=name)) if name == this:
                pass
            case ast.Attribute(attr=name):
                found.add(name)
            case ast.Subscript(value=ast.Subscript(), slice=ast.Constant(value=key)):
                found.add(str(key))
            case _:
                pass
    return found


def _is_way_out(part: ast.AST) -> bool:
    return isinstance(part, ast.Return | ast.Break | ast.Continue)


def _names_read(parts: Iterable[ast.AST]) -> set[str]:
    found = set[str]()
    for part in parts:
        if isinstance(part, ast.Attribute):
            found.add(part.attr)
        elif isinstance(part, ast.Constant) and isinstance(part.value, str):
            found.add(part.value)
    return found


@functools.lru_cache(maxsize=4096)
def branches_on(function: Callable[..., Any], name: str) -> bool:
    """Say whether a function decides by an argument of its own what it runs.

    Examples:
        >>> branches_on(max, "key")
        False
    """
    choices = [n for n in ast.walk(parsed(function)) if isinstance(n, ast.If | ast.IfExp)]
    tests = [part for choice in choices for part in ast.walk(choice.test)]
    return any(isinstance(part, ast.Name) and part.id == name for part in tests)

"""What code asks about a size without anyone noticing: told by its source alone."""

from __future__ import annotations

import ast
import dis
import functools
import re
from collections.abc import Callable, Iterator
from itertools import chain, pairwise
from types import CodeType
from typing import Any, TypeGuard, cast

from refold.graph.trace.code.names import names_in
from refold.graph.trace.code.source import parsed
from refold.graph.trace.code.values import code_of, constants_of, helpers_of, values_of

_UNSEEN = frozenset(
    {"bin", "bytearray", "bytes", "chr", "count", "data_ptr", "Decimal", "deque", "dumps", "hex"}
    | {"index", "islice", "nbytes", "np", "numel", "numpy", "oct", "pack", "storage"}
    | {"untyped_storage", "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__"}
)
_TEXTS = frozenset({"repr", "str"})  # of a whole shape: a size that is written is seen
_NO_SIZES = ("device", "dtype")  # `str(x.device)` is a common key of caches
_UNSEEN_TEXT = re.compile(r"%[-+ #0-9.]*[diouxXeEfFgG]")


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


def reads_unseen(function: Callable[..., Any]) -> bool:
    """Say whether code may make a plain number of a size without anyone noticing.

    What is written in C takes a number as it is: `bytes(n)`, `np.prod(x.shape)`, `"%d" % n`,
    `len(range(n))`; and so does a float that stands first: `0.5 * n`, `7.5 > n`.

    Examples:
        >>> def ask(x): return len(bytes(x.shape[-1])) == 9
        >>> reads_unseen(ask), reads_unseen(lambda x: x.relu())
        (True, False)
    """
    functions = [one for one in (function, *helpers_of(function)) if code_of(one) is not None]
    return any(_reads_unseen(cast(CodeType, code_of(one))) for one in functions) or any(
        map(_puts_floats_first, functions)
    )


@functools.lru_cache(maxsize=4096)
def _reads_unseen(code: CodeType) -> bool:
    names, texts = names_in(code), (str(value) for value in constants_of(code))
    if not _UNSEEN.isdisjoint(names) or any(map(_UNSEEN_TEXT.search, texts)):
        return True
    if "range" not in names and _TEXTS.isdisjoint(names):
        return False
    tree = parsed(code)
    loops = [n.iter for n in ast.walk(tree) if isinstance(n, ast.For | ast.comprehension)]
    steps = {id(loop.func) for loop in loops if isinstance(loop, ast.Call) and _is_range(loop)}
    harmless = steps | {id(n.func) for n in ast.walk(tree) if _writes_no_size(n)}
    others = (n for n in ast.walk(tree) if isinstance(n, ast.Name) and id(n) not in harmless)
    return not tree.body or any(name.id in {"range", *_TEXTS} for name in others)


def _is_range(loop: ast.Call) -> bool:
    return isinstance(loop.func, ast.Name) and loop.func.id == "range"


def _writes_no_size(call: ast.AST) -> TypeGuard[ast.Call]:
    match call:
        case ast.Call(func=ast.Name(id="str" | "repr"), args=[argument]):
            return ast.unparse(argument).endswith(_NO_SIZES)
        case _:
            return False


def asks_identity(function: Callable[..., Any]) -> str | None:
    """Return the line that asks whether something `is` a whole number, or None.

    No size is the very object that a number in code is while it is recorded.

    Examples:
        >>> asks_identity(max) is None
        True
    """
    code = code_of(function)
    for line, operand in () if code is None else identities_in(code):
        value = values_of(function).get(operand) if isinstance(operand, str) else operand
        if type(value) is int:
            return _place(cast(CodeType, code), line)
    return None


def _place(code: CodeType, line: int) -> str:
    return f"{code.co_filename.rpartition('/')[2]}:{line}"


def list_look_up(function: Callable[..., Any]) -> str | None:
    """Return the line, as `file.py:12`, that takes out of a list what stands at a size, or None.

    Examples:
        >>> list_look_up(max) is None
        True
    """
    code, sizes, tree = code_of(function), *_sizes_named(function, _is_list)
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and _is_size(node.slice, sizes):
            held = values_of(function).get(_name(node.value))
            if code is not None and (
                _is_list(held) or isinstance(node.value, ast.List | ast.Tuple)
            ):
                return _place(code, code.co_firstlineno + node.lineno - 1)
    return None


def _is_list(value: Any) -> bool:
    """Say whether a value is a list; names of arguments are among the constants of code."""
    return isinstance(value, list | tuple) and not all(isinstance(item, str) for item in value)


def _puts_floats_first(function: Callable[..., Any]) -> bool:
    sizes, tree = _sizes_named(function, _is_float)
    found = [left for node in ast.walk(tree) for left in _in_front_of_sizes(node, sizes)]
    values = values_of(function) if found else {}
    return any(
        _is_float(left.value if isinstance(left, ast.Constant) else values.get(_name(left)))
        for left in found
    )


def _is_float(value: Any) -> bool:
    return isinstance(value, float)


def _in_front_of_sizes(node: ast.AST, sizes: frozenset[str]) -> Iterator[ast.expr]:
    match node:
        case ast.BinOp(left=left, right=right):
            row = [left, right]
        case ast.Compare(left=left, comparators=others):
            row = [left, *others]
        case _:
            return
    for first, second in pairwise(row):
        if _is_size(second, sizes):
            yield first


def _name(node: ast.AST) -> str:
    name = node.id if isinstance(node, ast.Name) else getattr(node, "attr", "")
    return str(name)


def _sizes_named(
    function: Callable[..., Any], wanted: Callable[[Any], bool]
) -> tuple[frozenset[str], ast.Module]:
    """Return the variables of a function that are sizes, and its code: none without such values.

    To read the source of a function takes long.
    """
    code = code_of(function)
    if code is None or _SIZES.isdisjoint(names_in(code)):
        return frozenset(), ast.Module([], [])
    if not any(map(wanted, chain(constants_of(code), values_of(function).values()))):
        return frozenset(), ast.Module([], [])
    return _size_names(code)


_SIZES = frozenset({"shape", "size"})


@functools.lru_cache(maxsize=4096)
def _size_names(code: CodeType) -> tuple[frozenset[str], ast.Module]:
    tree, sizes = parsed(code), frozenset[str]()
    for node in ast.walk(tree):
        match node:
            case ast.Assign(targets=[target], value=value):
                pass
            case ast.NamedExpr(target=target, value=value):
                pass
            case _:
                continue
        are_sizes = _is_shape(value) or _is_size(value, sizes)
        sizes |= {n.id for n in ast.walk(target) if are_sizes and isinstance(n, ast.Name)}
    return sizes, tree


def _is_shape(node: ast.AST) -> bool:
    match node:
        case ast.Attribute(attr="shape"):
            return True
        case ast.Call(func=ast.Attribute(attr="size")):
            return True
        case ast.Subscript(value=value):
            return _is_shape(value)
        case _:
            return False


def _is_size(node: ast.AST, sizes: frozenset[str]) -> bool:
    match node:
        case ast.Name(id=name):
            return name in sizes
        case ast.BinOp(left=left, right=right):
            return _is_size(left, sizes) or _is_size(right, sizes)
        case ast.UnaryOp(operand=part):
            return _is_size(part, sizes)
        case ast.Subscript() | ast.Call(func=ast.Attribute(attr="size")):
            return _is_shape(node)
        case _:
            return False


def catches(function: Callable[..., Any]) -> bool:
    """Say whether a function catches errors: a call of torch may fail at other sizes only.

    Examples:
        >>> catches(max)
        False
    """
    code = code_of(function)
    if code is None or not code.co_exceptiontable:  # a `with` has such a table as well
        return False
    return any(isinstance(node, ast.Try) for node in ast.walk(parsed(function)))

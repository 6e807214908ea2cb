"""What else an argument or a size may be: other shapes, and values that code names or compares."""

from __future__ import annotations

import ast
import enum
import functools
import inspect
import math
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, cycle, islice, pairwise
from types import CodeType, FunctionType, MethodType, ModuleType
from typing import Any, TypeGuard, cast

import torch
from torch import Tensor, nn

from refold.graph.copies.held import is_filled
from refold.graph.trace.code import identities_in, names_in
from refold.graph.trace.doubts import parsed
from refold.graph.trace.examples import drawn
from refold.graph.trace.recorder.notebook import DEVICE_MARK

_MOST = 8
_WIDEST = 2048
_DEPTH, _MOST_HELPERS = 3, 64
_LADDER = (4, 8, 17, 33, 100, 512, 2048)  # where a size became a number: below and above any bound
_MOST_KNOWN = 8  # sizes that the code names
_MOST_POSITIONS = 2048**2  # of a map
_NEAR = 33  # of the other sides, where all of a step of the ladder would be too many positions
_UNSEEN = frozenset(
    {"bin", "bytearray", "bytes", "chr", "count", "data_ptr", "Decimal", "deque", "dumps", "hex"}
    | {"index", "islice", "nbytes", "np", "numel", "numpy", "oct", "pack", "storage"}
    | {"untyped_storage", "__eq__", "__ne__", "__lt__", "__le__", "__gt__", "__ge__"}
)
_TEXTS = frozenset({"repr", "str"})  # of a whole shape: a size that is written is seen
_NO_SIZES = ("device", "dtype")  # `str(x.device)` is a common key of caches
_UNSEEN_TEXT = re.compile(r"%[-+ #0-9.]*[diouxXeEfFgG]")
_FOREIGN = ("torch", "torchvision", "numpy")


def other_values(value: Any, functions: Iterable[Callable[..., Any]]) -> list[Any]:
    """Return other values that an argument may have, as far as its kind and the code tell.

    Args:
        value: the one that was given.
        functions: the code that it is given to.

    Examples:
        >>> other_values(True, []), other_values(2, [])
        ([False], [3])
    """
    if isinstance(value, bool):
        return [not value]
    if isinstance(value, enum.Enum):
        return [other for other in type(value) if other is not value]
    if not isinstance(value, int | float | str | None):
        return []
    found = [constant for function in functions for constant in _compared(function)]
    texts = [constant for constant in dict.fromkeys(found) if isinstance(constant, str)][:_MOST]
    if isinstance(value, str):
        return [*(text for text in texts if text != value), f"not {value}"]
    if value is None:
        return [*texts, texts, dict.fromkeys(texts, True)] if texts else []
    numbers = [n for n in found if isinstance(n, int | float) and not isinstance(n, bool)]
    kind = type(value)
    others = [value + 1, *(kind(n + step) for n in numbers for step in (-1, 0, 1))]
    return [other for other in dict.fromkeys(others) if other != value][:_MOST]


def compared_sizes(function: Callable[..., Any]) -> list[int]:
    """Return the numbers that the sides of a map may be compared with: by a function, its helpers.

    Those that stand in a comparison come first, then those that names of the code stand for.

    Examples:
        >>> compared_sizes(max)
        []
    """
    code = [function, *helpers_of(function)]
    found = [
        *chain.from_iterable(map(_compared, code)),
        *chain.from_iterable(map(values_named, code)),
    ]
    found = [side for n in found for side in _near(n)]
    plain = (str(constant) for constant in found if isinstance(constant, int | str))
    sizes = [int(digits) for text in plain for digits in re.findall(r"\d{1,4}", text)]
    return [size for size in dict.fromkeys(sizes) if 1 < size < _WIDEST]


def _near(value: Any) -> Iterable[Any]:
    """Return the whole numbers beside a fraction, and anything else as it is."""
    if not isinstance(value, float) or not math.isfinite(value):
        return (value,)
    return dict.fromkeys((math.floor(value), math.ceil(value)))


Change = Callable[[Tensor], list[int]]


def many_shapes(
    shapes: Iterable[tuple[int, ...]], functions: Iterable[Callable[..., Any]]
) -> Iterator[Change]:
    """Yield shapes below and above any bound, and of the sizes that code names or a product makes.

    All sides are alike, or one alone where all are too many: what code makes of plain numbers
    takes memory, and a volume of 2048 a side has none.

    Args:
        shapes: of the inputs, (N, C, ...).
        functions: the code that they are given to.

    Examples:
        >>> import torch
        >>> [change(torch.empty(2, 3, 9)) for change in many_shapes([(2, 3, 9)], [])][:2]
        [[1, 3, 4], [1, 3, 8]]
    """
    rank = max((len(shape) - 2 for shape in shapes), default=0)
    known = dict.fromkeys(size for function in functions for size in compared_sizes(function))
    named = [(side, False) for side in list(known)[:_MOST_KNOWN]]
    for side, one in [*((side, True) for side in _LADDER), *dict.fromkeys(named)]:
        if side**rank <= _MOST_POSITIONS:
            yield partial(_of_sides, sides=(side,), one=one)
        else:
            rows = ((side if at == axis else _NEAR for at in range(rank)) for axis in range(rank))
            yield from (partial(_of_sides, sides=tuple(row), one=one) for row in rows)
    for sides in _products(known, shapes, max(rank, 1))[:_MOST_KNOWN]:
        for one in (False, True):  # of one image, where the numbers of all are counted
            yield partial(_of_sides, sides=sides, one=one)


def _of_sides(value: Tensor, *, sides: tuple[int, ...], one: bool) -> list[int]:
    found = islice(cycle(sides), value.ndim - 2) if value.ndim > 2 else ()
    return [1 if one else value.shape[0], *value.shape[1:2], *found]


def _products(
    known: Iterable[int], shapes: Iterable[tuple[int, ...]], rank: int
) -> list[tuple[int, ...]]:
    """Return the sides of maps whose positions, or numbers, are as many as code names.

    They are as near to each other as can be.
    """
    within = {1, *(n for s in shapes for n in (s[0], math.prod(s[1:2]), math.prod(s[:2])))}
    found: dict[tuple[int, ...], None] = {}
    for size in known:
        for count in (size // length for length in sorted(within) if size % length == 0):
            side = round(count ** (1 / rank))
            if side > 1 and side**rank == count:
                found[side,] = None
            elif rank == 2:
                low = next((n for n in range(side, 1, -1) if count % n == 0), count)
                pair = (low, count // low)
                found.update(dict.fromkeys([pair, pair[::-1]] if low < count else []))
    return list(found)


def reads_unseen(function: Callable[..., Any]) -> bool:
    """Say whether code may make a plain number of a size without anyone noticing.

    What is written in C takes a number as it is: `bytes(n)`, `np.prod(x.shape)`, `"%d" % n`,
    `len(range(n))`; and so does a float that stands first: `0.5 * n`, `7.5 > n`.

    Examples:
        >>> def ask(x): return len(bytes(x.shape[-1])) == 9
        >>> reads_unseen(ask), reads_unseen(lambda x: x.relu())
        (True, False)
    """
    functions = [one for one in (function, *helpers_of(function)) if _code(one) is not None]
    return any(_reads_unseen(cast(CodeType, _code(one))) for one in functions) or any(
        map(_puts_floats_first, functions)
    )


@functools.lru_cache(maxsize=4096)
def _reads_unseen(code: CodeType) -> bool:
    names, texts = names_in(code), (str(value) for value in _constants(code))
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
    code = _code(function)
    for line, operand in () if code is None else identities_in(code):
        value = _values(function).get(operand) if isinstance(operand, str) else operand
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
    code, sizes, tree = _code(function), *_sizes_named(function, _is_list)
    for node in ast.walk(tree):
        if isinstance(node, ast.Subscript) and _is_size(node.slice, sizes):
            held = _values(function).get(_name(node.value))
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
    values = _values(function) if found else {}
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
    code = _code(function)
    if code is None or _SIZES.isdisjoint(names_in(code)):
        return frozenset(), ast.Module([], [])
    if not any(map(wanted, chain(_constants(code), _values(function).values()))):
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
    code = _code(function)
    if code is None or not code.co_exceptiontable:  # a `with` has such a table as well
        return False
    return any(isinstance(node, ast.Try) for node in ast.walk(parsed(function)))


def branches_on(function: Callable[..., Any], name: str) -> bool:
    """Say whether a function decides by an argument of its own what it runs.

    Examples:
        >>> branches_on(max, "key")
        False
    """
    choices = [n for n in ast.walk(parsed(function)) if isinstance(n, ast.If | ast.IfExp)]
    tests = [part for choice in choices for part in ast.walk(choice.test)]
    return any(isinstance(part, ast.Name) and part.id == name for part in tests)


def _compared(function: Callable[..., Any]) -> list[Any]:
    """Return the constants that a function compares something with, or looks up."""
    found = [part for node in ast.walk(parsed(function)) for part in _sides(node)]
    return [part.value for part in found if isinstance(part, ast.Constant)]


def _sides(node: ast.AST) -> Iterator[ast.AST | None]:
    match node:
        case ast.Compare(left=left, comparators=others):
            for side in (left, *others):
                yield from ast.walk(side)
        case ast.Dict(keys=keys):
            yield from keys
        case ast.MatchValue(value=value):
            yield value
        case _:
            pass


def helpers_of(function: Callable[..., Any]) -> list[Callable[..., Any]]:
    """Return the Python functions that a function names, and those that they name, nearest first.

    Examples:
        >>> def side(x): return x.shape[-1]
        >>> def ask(x): return side(x) == 9
        >>> [one.__name__ for one in helpers_of(lambda x: ask(x))]
        ['ask', 'side']
    """
    found, edge = dict[CodeType, Callable[..., Any]](), [function]
    for _ in range(_DEPTH):
        named = [value for one in edge for held in _values(one).values() for value in _each(held)]
        edge = [
            value
            for value in named
            if (code := _code(value)) is not None and found.setdefault(code, value) is value
        ]
        if len(found) > _MOST_HELPERS:
            break
    return list(found.values())[:_MOST_HELPERS]


def _each(held: Any) -> Iterable[Any]:
    """Return what a short list or table of functions holds; anything else by itself."""
    items = held.values() if isinstance(held, dict) else held
    is_short = isinstance(held, dict | list | tuple) and len(items) <= _MOST_HELPERS
    return cast("Iterable[Any]", items) if is_short else (held,)


def values_named(function: Callable[..., Any]) -> list[Any]:
    """Return the plain values that names in a function stand for, and those that it is made with.

    Examples:
        >>> limits = {9: "small", 12: "large"}
        >>> values_named(lambda x: limits.get(int(x.shape[-1])))[-2:]
        [9, 12]
    """
    code = _code(function)
    held = [] if code is None else [*_constants(code), *_values(function).values()]
    if code is not None and "getattr" in names_in(code):
        held.append(_attributes_of(getattr(function, "__self__", None)))
    return [plain for value in held for plain in _plain(value)]


def _plain(value: Any, depth: int = 2) -> Iterator[Any]:
    if isinstance(value, bool):
        return
    if isinstance(value, int | str | float):
        yield value
    elif isinstance(value, _HOLDERS) and depth:
        for item in list(cast("Any", value))[:_MOST_HELPERS]:
            yield from _plain(item, depth - 1)


_HOLDERS = (tuple, list, set, frozenset, dict, nn.ModuleDict, nn.ParameterDict)  # keys of tables


def _constants(code: CodeType) -> Iterator[Any]:
    for value in code.co_consts:
        if isinstance(value, CodeType):
            yield from _constants(value)
        else:
            yield value


def _values(function: Callable[..., Any]) -> dict[str, Any]:
    """Return what the names in a function's code stand for, as far as that is plain to see."""
    code = _code(function)
    if code is None:
        return {}
    plain = cast(FunctionType, _plain_function(function))
    names = names_in(code)
    found = {name: plain.__globals__[name] for name in names if name in plain.__globals__}
    for name, cell in zip(code.co_freevars, plain.__closure__ or (), strict=False):
        if is_filled(cell):
            found[name] = cell.cell_contents
    owners = [getattr(function, "__self__", None)]
    owners += [value for value in found.values() if isinstance(value, ModuleType)]
    for owner in owners:
        if owner is None or _home(owner) in _FOREIGN:
            continue
        for name in names:
            if name not in found and (value := _attribute(owner, name)) is not None:
                found[name] = value
    return found


def _attribute(owner: Any, name: str) -> Any:
    if name in getattr(owner, "__dict__", ()):
        return owner.__dict__[name]
    if isinstance(owner, nn.Module) and name in owner._modules:
        return owner._modules[name]
    return getattr(type(owner), "__dict__", {}).get(name)


def _attributes_of(owner: Any) -> list[str]:
    """Return the names of what a module holds of its own, for code that makes such a name."""
    if not isinstance(owner, nn.Module):
        return []
    return [*owner._modules, *owner._parameters, *owner._buffers]


def _home(owner: Any) -> str:
    name = owner.__name__ if isinstance(owner, ModuleType) else ""
    return name.partition(".")[0]


def _plain_function(value: Any) -> Any:
    """Return a function without what is around it."""
    plain = value.__func__ if isinstance(value, MethodType) else value
    return inspect.unwrap(plain) if isinstance(plain, FunctionType) else plain


def _code(value: Any) -> CodeType | None:
    """Return the code of a function of somebody's own, None where it is torch's or no function."""
    plain = _plain_function(value)
    if not isinstance(plain, FunctionType):
        return None
    if (plain.__module__ or "").partition(".")[0] in _FOREIGN:  # generated code has no module
        return None
    return plain.__code__


# other tensors


def negated(value: Any) -> Any:
    """Return other numbers for a value; what is no tensor of numbers stays."""
    return -value if isinstance(value, Tensor) and value.is_floating_point() else value


def numbered(value: Any) -> Any:
    """Return a tensor with numbers for one without storage."""
    return drawn(value) if isinstance(value, Tensor) and value.is_meta else value


def shaped(value: Any, change: Change) -> Any:
    """Return a tensor without storage of another shape; anything else stays."""
    if not isinstance(value, Tensor) or value.ndim == 0:
        return value
    made = torch.empty(change(value), dtype=value.dtype, device="meta")
    setattr(made, DEVICE_MARK, value.__dict__.get(DEVICE_MARK, value.device))
    return made


def of_other_batch(value: Tensor) -> list[int]:
    """Return the shape of one image more."""
    return [value.shape[0] + 1, *value.shape[1:]]


def of_other_sides(value: Tensor) -> list[int]:
    """Return the shape of one image more, each two and three times as large."""
    sides = [side * (2 + axis % 2) for axis, side in enumerate(value.shape[2:])]
    return [value.shape[0] + 1, *value.shape[1:2], *sides]


def of_odd_sides(value: Tensor) -> list[int]:
    """Return the shape of images with one row and one column more."""
    return [*value.shape[:2], *(side + 1 for side in value.shape[2:])]


def of_half_sides(value: Tensor) -> list[int]:
    """Return the shape of one image, half as large."""
    return [1, *value.shape[1:2], *(max(1, side // 2) for side in value.shape[2:])]


def without_batch(value: Tensor) -> list[int]:
    """Return the shape without its first axis."""
    return list(value.shape[1:])


def with_batch(value: Tensor) -> list[int]:
    """Return the shape with an axis in front."""
    return [1, *value.shape]


def with_axis(value: Tensor, *, size: int) -> list[int]:
    """Return the shape with an axis of that size behind the first."""
    return [*value.shape[:1], size, *value.shape[1:]]


def with_length(value: Tensor) -> list[int]:
    """Return the shape with one axis more at the end."""
    return [*value.shape, 5]


def with_sides(value: Tensor) -> list[int]:
    """Return the shape with two axes more at the end."""
    return [*value.shape, 5, 7]


def sides_like(first: Tensor | None) -> Any:
    """Return what may be a size of images; None where there are none."""
    return None if first is None else tuple(side + 1 for side in first.shape[2:])


def tensor_like(first: Tensor | None) -> Any:
    """Return what may be another tensor; True where there is none to be like."""
    return True if first is None else torch.empty_like(first, device="meta")


def tensors_like(first: Tensor | None) -> list[Any]:
    """Return what an argument may be that was not given: another tensor, a flag, any mask."""
    if first is None:
        return [True]
    return [tensor_like(first), True, first.new_empty(1, 1, device="meta")]


def ones_like(first: Tensor) -> list[Tensor]:
    """Return what may be a mask or the length of each part of a batch."""
    device = "cpu" if first.is_meta else first.device
    shapes = [first.shape[:1], first.shape]
    return [torch.ones(shape, dtype=first.dtype, device=device) for shape in shapes]

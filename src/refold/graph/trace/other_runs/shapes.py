"""Other shapes of an input: sides that code names, and one below and above any bound."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from itertools import chain, cycle, islice
from typing import Any

import torch
from torch import Tensor

from refold.graph.trace.code.values import compared, helpers_of, values_named
from refold.graph.trace.recorder.notebook import DEVICE_MARK

_WIDEST = 2048
_LADDER = (4, 8, 17, 33, 100, 512, 2048)  # where a size became a number: below and above any bound
_MOST_KNOWN = 8  # sizes that the code names
_MOST_POSITIONS = 2048**2  # of a map
_NEAR = 33  # of the other sides, where all of a step of the ladder would be too many positions


def compared_sizes(function: Callable[..., Any]) -> list[int]:
    """Return the numbers that the sides of a map may be compared with: by a function, its helpers.

    Those that stand in a comparison come first, then those that names of the code stand for.

    Examples:
        >>> compared_sizes(max)
        []
    """
    code = [function, *helpers_of(function)]
    found = [
        *chain.from_iterable(map(compared, code)),
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

"""What else an argument may be: values that code compares it with, tensors, masks and flags."""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor

from refold.graph.trace.code.values import compared
from refold.graph.trace.examples import drawn

_MOST = 8


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
    found = [constant for function in functions for constant in compared(function)]
    texts = [constant for constant in dict.fromkeys(found) if isinstance(constant, str)][:_MOST]
    if isinstance(value, str):
        return [*(text for text in texts if text != value), f"not {value}"]
    if value is None:
        return [*texts, texts, dict.fromkeys(texts, True)] if texts else []
    numbers = [n for n in found if isinstance(n, int | float) and not isinstance(n, bool)]
    kind = type(value)
    others = [value + 1, *(kind(n + step) for n in numbers for step in (-1, 0, 1))]
    return [other for other in dict.fromkeys(others) if other != value][:_MOST]


def negated(value: Any) -> Any:
    """Return other numbers for a value; what is no tensor of numbers stays."""
    return -value if isinstance(value, Tensor) and value.is_floating_point() else value


def numbered(value: Any) -> Any:
    """Return a tensor with numbers for one without storage."""
    return drawn(value) if isinstance(value, Tensor) and value.is_meta else value


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

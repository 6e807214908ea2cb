"""torch's stride, padding and dilation arguments as windows of the algebra."""

from __future__ import annotations

from typing import Any, cast

from refold.algebra.geometry import Axes, Axis
from refold.errors import GeometryError


def tuple_of(value: Any, rank: int) -> tuple[int, ...]:
    """Return torch's `int or tuple` argument as one int per axis.

    Raises:
        GeometryError: when it is not made of plain ints (a size computed from the input).
    """
    items: list[Any] = list(value) if isinstance(value, (tuple, list)) else [value]
    if not all(isinstance(item, int) for item in items):
        raise GeometryError("its stride, padding or kernel is computed from the input")
    numbers = cast("list[int]", items)
    return tuple(numbers * rank if len(numbers) == 1 else numbers)


def conv_axes(kernel: tuple[int, ...], stride: Any, padding: Any, dilation: Any) -> Axes:
    """Return the windows of an ordinary convolution; padding may be "same" or "valid"."""
    rank = len(kernel)
    strides, dilations = tuple_of(stride, rank), tuple_of(dilation, rank)
    if isinstance(padding, str):
        pairs = [_named(padding, k, d) for k, d in zip(kernel, dilations, strict=True)]
    else:
        pairs = [(p, p) for p in tuple_of(padding, rank)]
    rows = zip(kernel, strides, dilations, pairs, strict=True)
    return tuple(Axis(k, s, d, *pair) for k, s, d, pair in rows)


def _named(padding: str, kernel: int, dilation: int) -> tuple[int, int]:
    total = dilation * (kernel - 1) if padding == "same" else 0
    return total // 2, total - total // 2


def transposed_axes(
    kernel: tuple[int, ...], stride: Any, padding: Any, dilation: Any, output_padding: Any
) -> Axes:
    """Return the windows of a transposed convolution: output padding is less crop at the end."""
    rank = len(kernel)
    rows = zip(
        kernel,
        tuple_of(stride, rank),
        tuple_of(dilation, rank),
        tuple_of(padding, rank),
        tuple_of(output_padding, rank),
        strict=True,
    )
    return tuple(Axis(k, s, d, p, p - extra) for k, s, d, p, extra in rows)


def pool_axes(rank: int, kernel: Any, stride: Any, padding: Any) -> Axes:
    """Return the windows of a pool; its stride is its kernel where none is given."""
    sizes = tuple_of(kernel, rank)
    strides = sizes if stride is None or stride == [] or stride == () else tuple_of(stride, rank)
    rows = zip(sizes, strides, tuple_of(padding, rank), strict=True)
    return tuple(Axis(k, s, 1, p, p) for k, s, p in rows)

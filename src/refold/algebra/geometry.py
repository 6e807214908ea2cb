"""Window arithmetic along one axis: integers only, no tensors.

A window slides over an axis: output `i` reads the input positions `stride * i + offset` for each
of the window's offsets. Two windows compute on the same grid exactly when their strides and their
`slack` agree, and that is all that merging branches of different kernel sizes, dilations and
paddings needs to know.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import gcd

from refold.errors import GeometryError

Size = int | Sequence[int]
"""torch's `int or tuple`: one number for every axis, or one per axis."""


def sizes(value: Size, rank: int, name: str, least: int | None = None) -> tuple[int, ...]:
    """Return a size as one int per axis.

    Args:
        value: what the caller gave.
        rank: number of axes.
        name: of the argument, for the message.
        least: the smallest int allowed; None for any.

    Raises:
        GeometryError: when there are neither one nor `rank` of them, or one is too small.

    Examples:
        >>> sizes(3, 2, "stride"), sizes((1, 2), 2, "stride")
        ((3, 3), (1, 2))
    """
    numbers = (value,) * rank if isinstance(value, int) else tuple(value)
    if len(numbers) != rank or (least is not None and min(numbers) < least):
        wanted = "an int" if rank == 1 else f"an int or {rank} ints"
        bound = "" if least is None else f" of at least {least}"
        raise GeometryError(f"{name} must be {wanted}{bound}, got {value}")
    return numbers


@dataclass(frozen=True)
class Axis:
    """One axis of a sliding window.

    Args:
        kernel: number of taps, at least 1.
        stride: input steps per output.
        dilation: input steps between neighbouring taps.
        lo: positions added before the first input; a negative value crops.
        hi: positions added after the last input; a negative value crops.

    Examples:
        >>> Axis(3, stride=2, lo=1, hi=1).out_size(8)
        4
        >>> Axis(3, dilation=2, lo=2, hi=2).offsets
        (-2, 0, 2)
    """

    kernel: int = 1
    stride: int = 1
    dilation: int = 1
    lo: int = 0
    hi: int = 0

    def __post_init__(self) -> None:
        if min(self.kernel, self.stride, self.dilation) < 1:
            raise GeometryError(f"kernel, stride and dilation must be at least 1, got {self}")

    @property
    def span(self) -> int:
        """Input positions that one output covers."""
        return self.dilation * (self.kernel - 1) + 1

    @property
    def offsets(self) -> tuple[int, ...]:
        """Input position of each tap, relative to `stride * output`."""
        return tuple(self.dilation * tap - self.lo for tap in range(self.kernel))

    @property
    def slack(self) -> int:
        """What the output size depends on besides the stride: padding minus span."""
        return self.lo + self.hi - self.span

    @property
    def pads(self) -> bool:
        """Whether a window reads beyond the input's border."""
        return self.lo > 0 or self.hi > 0

    @property
    def is_point(self) -> bool:
        """Whether output `i` reads exactly input `i`."""
        return self.kernel == 1 and self.stride == 1 and self.lo == 0 and self.hi == 0

    def out_size(self, size: int) -> int:
        """Return the output size for an input of `size` positions."""
        return (size + self.slack) // self.stride + 1

    def transposed_size(self, size: int) -> int:
        """Return the output size when the window scatters instead of gathers."""
        return (size - 1) * self.stride + self.span - self.lo - self.hi


Axes = tuple[Axis, ...]


def union(axes: list[Axis]) -> Axis:
    """Return the smallest window that holds the taps of all `axes`.

    Works for gathering and for scattering (transposed) windows alike.

    Raises:
        GeometryError: when strides differ, or the windows give outputs of different sizes.

    Examples:
        >>> union([Axis(3, lo=1, hi=1), Axis(1)])
        Axis(kernel=3, stride=1, dilation=1, lo=1, hi=1)
        >>> union([Axis(3, dilation=2, lo=2, hi=2), Axis(5, lo=2, hi=2)]).kernel
        5
    """
    first = axes[0]
    if len({axis.stride for axis in axes}) > 1:
        raise GeometryError(f"strides differ: {sorted({axis.stride for axis in axes})}")
    if len({axis.slack for axis in axes}) > 1:
        raise GeometryError(
            "the branches' outputs do not have the same size for every input: "
            + " and ".join(_describe(axis) for axis in dict.fromkeys(axes))
        )
    offsets = sorted({offset for axis in axes for offset in axis.offsets})
    step = gcd(*(offset - offsets[0] for offset in offsets)) or 1
    kernel = (offsets[-1] - offsets[0]) // step + 1
    lo = -offsets[0]
    hi = first.slack + step * (kernel - 1) + 1 - lo
    return Axis(kernel, first.stride, step, lo, hi)


def placement(part: Axis, whole: Axis) -> slice:
    """Return where the taps of `part` lie among the taps of `whole`, a `union` that holds it."""
    start = (whole.lo - part.lo) // whole.dilation
    step = part.dilation // whole.dilation if part.kernel > 1 else 1
    return slice(start, start + step * (part.kernel - 1) + 1, step)


def compose(first: Axis, second: Axis) -> Axis:
    """Return the window of `second` after `first`, as one window over the first one's input.

    Exact when the second window does not pad, or the first reads single positions only (the caller
    checks). Sizes agree because nested floor divisions by positive integers are one floor division.

    Examples:
        >>> compose(Axis(3, stride=2, lo=1, hi=1), Axis(3))
        Axis(kernel=7, stride=2, dilation=1, lo=1, hi=1)
    """
    stride = first.stride * second.stride
    offsets = sorted(
        {first.stride * outer + inner for outer in second.offsets for inner in first.offsets}
    )
    step = gcd(*(offset - offsets[0] for offset in offsets)) or 1
    kernel = (offsets[-1] - offsets[0]) // step + 1
    slack = first.slack + first.stride * (1 + second.slack)
    lo = -offsets[0]
    return Axis(kernel, stride, step, lo, slack + step * (kernel - 1) + 1 - lo)


def _describe(axis: Axis) -> str:
    padding = str(axis.lo) if axis.lo == axis.hi else f"({axis.lo}, {axis.hi})"
    dilation = f" dilation {axis.dilation}" if axis.dilation > 1 else ""
    return f"kernel {axis.kernel}{dilation} padding {padding}"

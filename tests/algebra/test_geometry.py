"""Window arithmetic against its own definition: which positions each output reads."""

from __future__ import annotations

import pytest
from hypothesis import assume, given
from hypothesis import strategies as st

from refold.algebra.geometry import Axis, compose, placement, union
from refold.errors import GeometryError

SIZE = 30  # large enough for every window drawn below


@st.composite
def axes(draw: st.DrawFn, slack: int | None = None, stride: int | None = None) -> Axis:
    kernel, dilation = draw(st.integers(1, 5)), draw(st.integers(1, 3))
    lo = draw(st.integers(-3, 6))
    span = dilation * (kernel - 1) + 1
    hi = draw(st.integers(-3, 6)) if slack is None else slack + span - lo
    return Axis(kernel, stride or draw(st.integers(1, 3)), dilation, lo, hi)


def reads(axis: Axis, size: int) -> list[list[int]]:
    """Return the positions each output reads, in the input's own numbering."""
    return [
        [axis.stride * i + offset for offset in axis.offsets] for i in range(axis.out_size(size))
    ]


@given(axes())
def test_the_output_size_is_the_number_of_windows_that_fit(axis: Axis) -> None:
    padded = SIZE + axis.lo + axis.hi
    starts = [s for s in range(0, padded, axis.stride) if s + axis.span <= padded]
    assert axis.out_size(SIZE) == len(starts)
    assert axis.slack == axis.lo + axis.hi - axis.span


@given(axes(), st.integers(1, 10))
def test_scattering_mirrors_gathering(axis: Axis, size: int) -> None:
    """Scattering a grid gives a size that gathering takes back to that grid."""
    plain = Axis(axis.kernel, axis.stride, axis.dilation, max(axis.lo, 0), max(axis.hi, 0))
    grown = plain.transposed_size(size)
    assume(grown > 0)
    assert plain.out_size(grown) == size


@given(st.data(), st.integers(-6, 6), st.integers(1, 3), st.integers(1, 4))
def test_union_holds_every_tap(data: st.DataObject, slack: int, stride: int, count: int) -> None:
    parts = [data.draw(axes(slack, stride)) for _ in range(count)]
    whole = union(parts)
    assert whole.stride == stride
    assert {axis.out_size(SIZE) for axis in [*parts, whole]} == {whole.out_size(SIZE)}
    for part in parts:
        assert whole.offsets[placement(part, whole)] == part.offsets
    assert whole.lo == max(part.lo for part in parts)
    assert whole.hi == max(part.hi for part in parts)


@given(axes(), axes())
def test_compose_reads_what_the_two_read(first: Axis, second: Axis) -> None:
    inner = first.out_size(SIZE)
    whole = compose(first, second)
    assume(inner >= 1 and second.out_size(inner) >= 1)
    assert whole.out_size(SIZE) == second.out_size(inner)
    for window, middle in zip(reads(whole, SIZE), reads(second, inner), strict=True):
        read = {first.stride * m + offset for m in middle for offset in first.offsets}
        assert read <= set(window)
        assert (min(read), max(read)) == (min(window), max(window))


@given(axes(), axes(), axes())
def test_compose_is_associative(a: Axis, b: Axis, c: Axis) -> None:
    left, right = compose(compose(a, b), c), compose(a, compose(b, c))
    assert (left.lo, left.hi, left.span, left.stride) == (
        right.lo,
        right.hi,
        right.span,
        right.stride,
    )


@given(axes(slack=-1, stride=1))
def test_a_point_joins_every_window_on_its_grid(axis: Axis) -> None:
    assert union([axis, Axis()]) == union([Axis(), axis])
    assert Axis().is_point
    assert not Axis(1, 2).is_point


def test_what_does_not_fit_raises() -> None:
    with pytest.raises(GeometryError, match=r"strides differ: \[1, 2\]"):
        union([Axis(3, 1, 1, 1, 1), Axis(3, 2, 1, 1, 1)])
    with pytest.raises(
        GeometryError, match=r"kernel 3 padding 1 and kernel 3 dilation 2 padding \(1, 2\)"
    ):
        union([Axis(3, 1, 1, 1, 1), Axis(3, 1, 2, 1, 2)])
    with pytest.raises(GeometryError, match="at least 1"):
        Axis(0)

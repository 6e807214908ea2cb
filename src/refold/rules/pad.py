"""Explicit padding and cropping beside convolutions and pools."""

from __future__ import annotations

from dataclasses import replace

from refold.algebra.geometry import Axes
from refold.algebra.operator import AvgPool, Conv, Identity, Operator, Pad, Sequence
from refold.rules.rule import Outcome, refuse, rule


@rule("series", exact="always", source="nothing is added")
def drop_empty_pad(op: Operator) -> Outcome:
    """A pad of nothing is nothing; two zero pads in a row are one."""
    match op:
        case Sequence((Pad() as pad, other)) if not any(map(any, pad.amounts)):
            return other
        case Sequence((other, Pad() as pad)) if not any(map(any, pad.amounts)):
            return other
        case Sequence((Pad() as a, Pad() as b)) if _is_plain(a) and _is_plain(b):
            return _merge_pads(a, b)
        case _:
            return None


@rule(
    "series",
    exact="both fill with zeros, or the window itself does not pad",
    source="padding adds up",
)
def fold_pad_into_window(op: Operator) -> Outcome:
    """A pad before a convolution or an average pool is part of its window."""
    match op:
        case Sequence((Pad() as pad, (Conv() | AvgPool()) as window)):
            return _absorb(pad, window)
        case _:
            return None


@rule(
    "series", exact="the pad only crops", source="outputs that are not computed need not be cropped"
)
def fold_crop_into_window(op: Operator) -> Outcome:
    """A crop after a convolution or an average pool is part of its window."""
    match op:
        case Sequence(((Conv() | AvgPool()) as window, Pad() as crop)) if not crop.grows:
            return _crop(window, crop)
        case _:
            return None


def _merge_pads(first: Pad, second: Pad) -> Outcome:
    pairs = list(zip(first.amounts, second.amounts, strict=True))
    if any(a < 0 < b for one, two in pairs for a, b in zip(one, two, strict=True)):
        return refuse("what was cropped is filled with zeros again")
    if first.grows and second.grows and first.value != second.value:
        return refuse(f"a ring of {first.value} lies inside a ring of {second.value}")
    amounts = tuple((a[0] + b[0], a[1] + b[1]) for a, b in pairs)
    value = first.value if first.grows else second.value
    return Pad(amounts, value=value) if any(map(any, amounts)) else Identity()


def _is_plain(pad: Pad) -> bool:
    """Whether the pad fills with a constant or only crops."""
    return pad.mode == "zeros" or not pad.grows


def _absorb(pad: Pad, window: Conv | AvgPool) -> Outcome:
    if isinstance(window, Conv) and window.transposed:
        return refuse("a pad before a transposed convolution adds outputs")
    if pad.value and pad.grows:
        return refuse(f"the ring is filled with {pad.value}, not with zeros")
    mode = window.mode if isinstance(window, Conv) else "zeros"
    own = any(axis.pads for axis in window.axes)
    if pad.grows and own and pad.mode != mode:
        return refuse(f"{pad.mode} padding meets {mode} padding")
    if pad.mode != "zeros" and (own or isinstance(window, AvgPool)) and pad.grows:
        return refuse(f"{pad.mode} padding does not add up with the window's own")
    if own and mode != "zeros" and not pad.grows:
        return refuse(f"{mode} padding of a cropped map is not that padding of the map")
    if own and any(p < 0 < w for p, w in _sides(pad, window.axes)):
        return refuse("what was cropped is filled with zeros again")
    axes = tuple(
        replace(axis, lo=axis.lo + lo, hi=axis.hi + hi)
        for axis, (lo, hi) in zip(window.axes, pad.amounts, strict=True)
    )
    if isinstance(window, AvgPool):
        return replace(window, axes=axes)
    return replace(window, axes=axes, mode=pad.mode if pad.grows else mode)


def _sides(pad: Pad, axes: Axes) -> list[tuple[int, int]]:
    pairs = zip(pad.amounts, axes, strict=True)
    return [side for (lo, hi), axis in pairs for side in ((lo, axis.lo), (hi, axis.hi))]


def _crop(window: Conv | AvgPool, crop: Pad) -> Outcome:
    scatter = isinstance(window, Conv) and window.transposed
    own = any(axis.pads for axis in window.axes)
    if own and not scatter and isinstance(window, Conv) and window.mode != "zeros":
        return refuse(f"cropping a {window.mode}-padded map changes what its border repeats")
    axes = tuple(
        replace(axis, lo=axis.lo - lo, hi=axis.hi - hi)
        if scatter
        else replace(axis, lo=axis.lo + axis.stride * lo, hi=axis.hi + axis.stride * hi)
        for axis, (lo, hi) in zip(window.axes, crop.amounts, strict=True)
    )
    return replace(window, axes=axes)

"""Values made anew, of a size that is told; zeros with which a running sum begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from torch import fx

from refold.graph.calls import name_of
from refold.graph.lift.context import Context, Shape
from refold.graph.lift.kinds import same_kind
from refold.graph.lift.piece import Piece

FROM_VALUE = frozenset({"new_empty", "new_zeros", "new_ones", "new_full"})
LIKE_VALUE = frozenset({"empty_like", "zeros_like", "ones_like"})
OF_SIZES = frozenset({"empty", "zeros", "ones"})
_ZEROS = frozenset({"zeros", "new_zeros"})


def without_zeros(context: Context, terms: Sequence[fx.Node]) -> list[int]:
    """Return which terms of a sum are left once zeros of the others' shape and type are gone."""
    left = [at for at, term in enumerate(terms) if name_of(term) not in _ZEROS]
    if len(left) in (0, len(terms)):
        return list(range(len(terms)))
    zeros = [term for at, term in enumerate(terms) if at not in left]
    first = terms[left[0]]
    fits = all(_is_like(context, term, first) for term in zeros)
    return left if fits else list(range(len(terms)))


def _is_like(context: Context, zeros: fx.Node, value: fx.Node) -> bool:
    """Say whether zeros have the shape and the type of a value, or are spread over it."""
    shape, sizes, likes = context.shape(value), sizes_of(zeros), kinds_of(zeros)
    if shape is None or not likes or not all(same_kind(context, like, value) for like in likes):
        return False
    if sizes is not None and all(size == 1 for size in sizes):
        return len(sizes) <= len(shape)
    return context.shape(zeros) == shape and has_shape_of(context, zeros, value)


def has_shape_of(context: Context, new: fx.Node, value: fx.Node, *, but: int | None = None) -> bool:
    """Say whether a new value has the shape of another, but for one axis, for every input.

    A number that stands for a size is none of a map's: that may be one elsewhere, and be spread.
    """
    shape, own, evidence = context.shape(value), context.shape(new), context.capture.evidence
    if shape is None or own is None or len(shape) != len(own):
        return False
    if evidence is None or not evidence.elsewise:
        return False
    channels = _channel_axis(context, value, shape)
    but = channels if but is None else but
    sizes: tuple[Any, ...] = sizes_of(new) or ()
    if any(isinstance(n, int) and at not in (but, channels) for at, n in enumerate(sizes)):
        return False
    if any(a != b for at, (a, b) in enumerate(zip(own, shape, strict=True)) if at != but):
        return False
    return all(run.are_alike(new, value, but=but) for run in evidence.elsewise)


def _channel_axis(context: Context, value: fx.Node, shape: Shape) -> int:
    piece = context.lift(value)
    rank = piece.rank_out if isinstance(piece, Piece) else None
    return 1 if rank is None else max(len(shape) - 1 - rank, 0)


def sizes_of(new: fx.Node) -> tuple[Any, ...] | None:
    """Return the sizes that a value is made of; None where it has those of another value."""
    name = name_of(new)
    if name in LIKE_VALUE:
        return None
    given = new.args[1:] if name in FROM_VALUE else new.args
    if name != "new_full" and len(given) != 1:
        return given
    first = new.kwargs.get("size") if not given else given[0]
    if isinstance(first, int):
        return (first,)
    return tuple(cast("Any", first)) if isinstance(first, (tuple, list)) else None


def kinds_of(new: fx.Node) -> list[fx.Node]:
    """Return the values that tell a new one its type, and its device; none where that is unsure."""
    asked = {key: new.kwargs.get(key) for key in ("dtype", "device")}
    told = [_asked(value, key) for key, value in asked.items() if value is not None]
    known = [value for value in told if value is not None]
    if len(known) < len(told):
        return []
    if name_of(new) in OF_SIZES:
        return known if asked["dtype"] is not None else []
    source = new.args[0]
    return [*known, source] if isinstance(source, fx.Node) else []


def _asked(given: Any, key: str) -> fx.Node | None:
    """Return the value whose type or device is given."""
    if isinstance(given, fx.Node) and given.target is getattr and given.args[1] == key:
        value = given.args[0]
        return value if isinstance(value, fx.Node) else None
    return None

"""Zeros that a forward makes anew, of a size that it was told: where a running sum begins."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from torch import fx

from refold.graph.calls import is_kind_question, name_of
from refold.graph.lift.context import Context
from refold.graph.lift.kinds import same_kind

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
    """Say whether zeros have the shape and the type of a value."""
    shape, told = context.shape(value), _told_by(zeros)
    same = shape is not None and context.shape(zeros) == shape
    return same and told is not None and same_kind(context, told, value)


def _told_by(zeros: fx.Node) -> fx.Node | None:
    """Return the value that tells the type of zeros."""
    if zeros.op == "call_method":
        given = zeros.kwargs.get("dtype")
        return _asked(given) if given is not None else zeros.all_input_nodes[0]
    return _asked(zeros.kwargs.get("dtype"))


def _asked(kind: Any) -> fx.Node | None:
    is_told = isinstance(kind, fx.Node) and is_kind_question(kind)
    return kind.all_input_nodes[0] if is_told else None

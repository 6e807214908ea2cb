"""Sums of values that are laid out alike: the sum comes first, and is laid out once.

`a(x).flatten(2).transpose(1, 2) + b(x).flatten(2).transpose(1, 2)` is a sum of rows whose branches
start from a map. The sum of the maps is one convolution, and its layout one instead of two. It is
so for every size where both maps surely have one shape and both layouts are told alike.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any, cast

import torch
from torch import fx

from refold.algebra.operator import Conv, chain
from refold.errors import RefusedError
from refold.graph.calls import Call, canonical, is_question, name_of, place_of, words
from refold.graph.fold.fold_pass import FoldPass
from refold.graph.fold.leftovers import RESHAPES, TURNS, turned
from refold.graph.fold.record import Fold
from refold.graph.lift.lifter import Lifter
from refold.graph.lift.piece import Piece
from refold.graph.lift.same_shape import surely_alike
from refold.graph.surgery.edits import alive

_SUMS = {"add": operator.add, "sub": operator.sub}


@dataclass(frozen=True, eq=False)
class _LaidOut:
    """A value and the changes of layout behind it, the first one first."""

    source: fx.Node
    steps: list[fx.Node]


def add_before_layouts(fold: FoldPass) -> None:
    """Take sums of values that are laid out alike ahead of the layout."""
    for node in list(fold.lifter.capture.graph.nodes):
        call = canonical(node) if alive(node) and node.op.startswith("call_") else None
        if call is None or call.name not in _SUMS or isinstance(call["alpha"], fx.Node):
            continue
        terms = call["input"], call["other"]
        if not all(isinstance(term, fx.Node) and _is_layout(fold.lifter, term) for term in terms):
            continue
        try:
            found = _alike(fold.lifter, node, *terms)
        except RefusedError as error:
            fold.keep(node, f"its terms are laid out before they are added: {error}")
            continue
        if found is not None:
            steps = [step for term in found for step in term.steps]
            fold.attempt([*steps, node], partial(_add, fold, node, call, found))


def _add(fold: FoldPass, node: fx.Node, call: Call, terms: tuple[_LaidOut, _LaidOut]) -> bool:
    editor, (one, other) = fold.editor, terms
    calls = [*one.steps, *other.steps, node]
    last = max(terms, key=lambda term: term.source)
    stays = all(_is_free(fold, step, node) for step in last.steps)
    at = last.steps[0] if stays else node
    options = {} if call["alpha"] == 1 else {"alpha": call["alpha"]}
    function = getattr(torch, call.name) if options else _SUMS[call.name]
    total = editor.insert_function(function, (one.source, other.source), options, before=at)
    total.meta.update(dtype=node.meta.get("dtype"), even=True)
    fold.lifter.shapes[total] = fold.lifter.shapes[one.source]
    if stays:
        editor.reread(last.steps[0], last.source, total)
        made = last.steps
    else:
        made = list(_laid_out_anew(fold, total, (last, *terms), node))
    where = fold.path(node)
    editor.replace(node, made[-1])
    editor.discard([call for call in calls if call not in made])
    editor.sweep()
    fold.touch(calls, [total, *made])
    fold.edited()
    detail = " ".join(name_of(step) for step in last.steps)
    fold.folds.append(Fold(where, "lay out a sum once", detail, 0, 0))
    return True


def _is_free(fold: FoldPass, step: fx.Node, node: fx.Node) -> bool:
    """Say whether a change of layout may read the sum: it belongs there, and asks for no size."""
    home = fold.editor.edits.home
    return home[step] is home[node] and len(step.all_input_nodes) == 1


def _laid_out_anew(
    fold: FoldPass, value: fx.Node, terms: tuple[_LaidOut, ...], before: fx.Node
) -> Iterator[fx.Node]:
    """Yield the calls that lay another value out as the first term; it is asked for its own size.

    All terms are laid out alike: the size of any of them is the size of the new value.
    """
    instead = dict[fx.Node, fx.Node]()
    for step, *others in zip(*(term.steps for term in terms), strict=True):
        call, *beside = map(canonical, (step, *others))
        assert call is not None
        instead.update((found["input"], value) for found in (call, *beside) if found is not None)
        given = [v for key, v in call.arguments.items() if key != "input" and v is not None]
        args = [_asked_anew(fold, argument, instead, before) for argument in given]
        value = fold.editor.insert_function(
            getattr(torch, call.name), (value, *args), before=before
        )
        value.meta["dtype"] = before.meta.get("dtype")
        fold.lifter.shapes[value] = fold.lifter.shapes[step]
        yield value


def _asked_anew(fold: FoldPass, size: Any, instead: dict[fx.Node, fx.Node], before: fx.Node) -> Any:
    """Return a size, or several, that other values are asked for."""

    def again(inner: Any) -> Any:
        return _asked_anew(fold, inner, instead, before)

    if isinstance(size, (tuple, list)):
        return tuple(map(again, size))
    if not isinstance(size, fx.Node) or words(size) is size:
        return size
    insert = partial(fold.editor.insert_function, before=before)
    given, target = cast("list[Any]", list(size.args)), cast("Any", size.target)
    if not is_question(size):
        args = list(map(again, given))
        return size if args == given else insert(target, tuple(args))
    value = instead.get(given[0])
    if value is None or (target != "size" and given[1:] != ["shape"]):
        return size
    shape = insert(getattr, (value, "shape"))
    is_axis = target == "size" and len(given) > 1
    return insert(operator.getitem, (shape, given[1])) if is_axis else shape


def _alike(
    lifter: Lifter, node: fx.Node, one: fx.Node, other: fx.Node
) -> tuple[_LaidOut, _LaidOut] | None:
    """Return the terms of a sum from where on they are laid out alike; None for other values.

    Raises:
        RefusedError: when convolutions make both, which cannot be added before.
    """
    if one is other or lifter.shape(one) != lifter.shape(other) or node in lifter.tainted:
        return None
    terms, found = (_LaidOut(one, []), _LaidOut(other, [])), list[tuple[_LaidOut, _LaidOut]]()
    while all(_is_layout(lifter, term.source) for term in terms):
        terms = _before(terms[0]), _before(terms[1])
        found.append(terms)
        if any(_is_read_more(term) for term in terms):
            break
    others = sorted(user for value in (one, other) for user in value.users if user is not node)
    alike = next((terms for terms in reversed(found) if _are_alike(lifter, *terms)), None)
    if (alike is None or others) and all(_is_conv(lifter, term.source) for term in terms):
        if not others:
            raise RefusedError("in ways that differ, or may for another input")
        name = place_of(next(v for v in (one, other) if others[0] in v.users))
        raise RefusedError(f"the value of {name} is also read by {place_of(others[0])}")
    return None if others else alike


def _is_read_more(term: _LaidOut) -> bool:
    return any(not is_question(user) for user in term.source.users if user is not term.steps[0])


def _before(term: _LaidOut) -> _LaidOut:
    call = canonical(term.source)
    assert call is not None
    return _LaidOut(call["input"], [term.source, *term.steps])


def _are_alike(lifter: Lifter, one: _LaidOut, other: _LaidOut) -> bool:
    """Say whether two values have one shape and what follows lays them out alike, at any size."""
    shape, sources = lifter.shape(one.source), (one.source, other.source)
    if shape is None or shape != lifter.shape(other.source):
        return False
    if not any(_is_conv(lifter, source) for source in sources):
        return False
    alike = dict[fx.Node, int]()  # values of one shape, by how many calls lay them out
    for count, pair in enumerate(zip(one.steps, other.steps, strict=True)):
        alike.update((call["input"], count) for call in map(canonical, pair) if call is not None)
        spelled = [_spelled(lifter, step, alike) for step in pair]
        if spelled[0] is None or spelled[0] != spelled[1]:
            return False
    return surely_alike(lifter, sources)


def _is_layout(lifter: Lifter, node: fx.Node) -> bool:
    call = canonical(node)
    if call is None or call.name not in TURNS | RESHAPES:
        return False
    source = call["input"]
    return isinstance(source, fx.Node) and source not in lifter.tainted and lifter.may_go(node)


def _spelled(lifter: Lifter, node: fx.Node, alike: dict[fx.Node, int]) -> tuple[object, ...] | None:
    """Return what a change of layout does, in words that are equal where it does the same.

    Args:
        lifter: knows the shapes.
        node: the change of layout.
        alike: values by what they may be called: those of one name have one shape.
    """
    call = canonical(node)
    shape = lifter.shape(call["input"]) if call is not None else None
    if call is None or shape is None:
        return None
    if call.name in TURNS:
        return ("turn", *turned(node, list(range(len(shape)))))
    given = {key: value for key, value in call.arguments.items() if key != "input"}
    if call.name == "flatten" and all(isinstance(end, int) for end in given.values()):
        return ("flatten", *(end % len(shape) for end in given.values()))
    return (call.name, *(words(value, alike) for value in given.values()))


def _is_conv(lifter: Lifter, node: fx.Node) -> bool:
    """Say whether a value is made by affine calls, a convolution or linear layer among them."""
    for _ in range(_MOST):
        piece = lifter.lift(node)
        if not isinstance(piece, Piece):
            return False
        if any(isinstance(part, Conv) for op in piece.ops for part in chain(op)):
            return True
        node = piece.sources[0]
    return False


_MOST = 16

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
from typing import Any

import torch
from torch import fx

from refold.algebra.operator import Conv, chain
from refold.graph.calls import canonical, name_of, words
from refold.graph.fold.fold_pass import FoldPass
from refold.graph.fold.leftovers import is_axis, turned
from refold.graph.fold.record import Fold
from refold.graph.lift.lifter import Lifter
from refold.graph.lift.piece import Piece
from refold.graph.lift.same_shape import surely_alike
from refold.graph.surgery.edits import alive

_TURNS = frozenset({"transpose", "permute"})
_RESHAPES = frozenset({"flatten", "reshape", "unflatten", "unsqueeze", "squeeze"})
_SUMS = {"add": operator.add, "sub": operator.sub}
_FUNCTIONS = {
    "flatten": torch.flatten,
    "reshape": torch.reshape,
    "unflatten": torch.unflatten,
    "unsqueeze": torch.unsqueeze,
    "squeeze": torch.squeeze,
    "transpose": torch.transpose,
    "permute": torch.permute,
}


@dataclass(frozen=True, eq=False)
class _LaidOut:
    """A value and the changes of layout behind it, the first one first."""

    source: fx.Node
    steps: list[fx.Node]


def add_before_layouts(fold: FoldPass) -> None:
    """Take sums of values that are laid out alike ahead of the layout."""
    for node in list(fold.lifter.capture.graph.nodes):
        call = canonical(node) if alive(node) and node.op.startswith("call_") else None
        if call is None or call.name not in _SUMS or call["alpha"] != 1:
            continue
        terms = call["input"], call["other"]
        if not all(isinstance(term, fx.Node) and _is_layout(fold.lifter, term) for term in terms):
            continue
        found = _alike(fold.lifter, node, *terms)
        if found is not None:
            steps = [step for term in found for step in term.steps]
            fold.attempt([*steps, node], partial(_add, fold, node, call.name, found))


def _add(fold: FoldPass, node: fx.Node, name: str, terms: tuple[_LaidOut, _LaidOut]) -> bool:
    editor, (one, other) = fold.editor, terms
    calls = [*one.steps, *other.steps, node]
    last = max(terms, key=lambda term: term.source)
    stays = all(_is_free(fold, step, node) for step in last.steps)
    at = last.steps[0] if stays else node
    total = editor.insert_function(_SUMS[name], (one.source, other.source), before=at)
    total.meta.update(dtype=node.meta.get("dtype"), even=True)
    fold.lifter.shapes[total] = fold.lifter.shapes[one.source]
    if stays:
        editor.reread(last.steps[0], last.source, total)
        made = last.steps
    else:
        made = list(_laid_out_anew(fold, total, last.steps, node))
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
    fold: FoldPass, value: fx.Node, steps: list[fx.Node], before: fx.Node
) -> Iterator[fx.Node]:
    """Yield the calls that lay another value out; sizes of what was laid out are its own."""
    editor, shapes = fold.editor, fold.lifter.shapes
    for step in steps:
        call = canonical(step)
        assert call is not None
        source = call["input"]

        def own(size: Any, axis: int, source: fx.Node = source, value: fx.Node = value) -> Any:
            if not is_axis(size, axis, source, shapes[source]):
                return size
            sizes = editor.insert_function(getattr, (value, "shape"), before=before)
            return editor.insert_function(operator.getitem, (sizes, axis), before=before)

        args = [v for key, v in call.arguments.items() if key != "input" and v is not None]
        if call.name == "reshape":
            args = [tuple(own(size, axis) for axis, size in enumerate(call["shape"]))]
        value = editor.insert_function(_FUNCTIONS[call.name], (value, *args), before=before)
        value.meta["dtype"] = before.meta.get("dtype")
        shapes[value] = shapes[step]
        yield value


def _alike(
    lifter: Lifter, node: fx.Node, one: fx.Node, other: fx.Node
) -> tuple[_LaidOut, _LaidOut] | None:
    """Return the terms of a sum from where on they are laid out alike, None where they are not."""
    if one is other or lifter.shape(one) != lifter.shape(other) or node in lifter.tainted:
        return None
    terms = _LaidOut(one, []), _LaidOut(other, [])
    ends = [set(value.users) for value in (one, other)]
    if ends != [{node}, {node}]:
        return None
    while all(_is_layout(lifter, term.source) for term in terms):
        laid = [canonical(term.source) for term in terms]
        inputs = [call["input"] for call in laid if call is not None]
        calls = [_spelled(lifter, term.source, inputs) for term in terms]
        if calls[0] is None or calls[0] != calls[1]:
            break
        following = [_before(term) for term in terms]
        terms = following[0], following[1]
        if any(len(term.source.users) > 1 for term in terms):
            break
    sources = terms[0].source, terms[1].source
    if not terms[0].steps or not any(_is_conv(lifter, source) for source in sources):
        return None
    shape = lifter.shape(sources[0])
    known = shape is not None and shape == lifter.shape(sources[1])
    return terms if known and surely_alike(lifter, sources) else None


def _before(term: _LaidOut) -> _LaidOut:
    call = canonical(term.source)
    assert call is not None
    return _LaidOut(call["input"], [term.source, *term.steps])


def _is_layout(lifter: Lifter, node: fx.Node) -> bool:
    call = canonical(node)
    if call is None or call.name not in _TURNS | _RESHAPES:
        return False
    capture, source = lifter.capture, call["input"]
    if not isinstance(source, fx.Node) or source in lifter.tainted or node in lifter.tainted:
        return False
    return node not in capture.stays and node not in capture.elsewhere


def _spelled(lifter: Lifter, node: fx.Node, alike: list[fx.Node]) -> tuple[object, ...] | None:
    """Return what a change of layout does, in words that are equal where it does the same.

    Args:
        lifter: knows the shapes.
        node: the change of layout.
        alike: values that have the shape of what it reads, this one among them.
    """
    call = canonical(node)
    shape = lifter.shape(call["input"]) if call is not None else None
    if call is None or shape is None:
        return None
    if call.name in _TURNS:
        return ("turn", *turned(node, list(range(len(shape)))))
    if call.name == "flatten":
        ends = call["start_dim"], call["end_dim"]
        if not all(isinstance(end, int) for end in ends):
            return None
        return ("flatten", *(end % len(shape) for end in ends))
    sizes = call.arguments.get("shape")
    if call.name != "reshape":
        return (
            call.name,
            *(words(value) for key, value in call.arguments.items() if key != "input"),
        )
    if not isinstance(sizes, (tuple, list)):
        return None
    axes = [
        [is_axis(size, axis, value, shape) for value in alike] for axis, size in enumerate(sizes)
    ]
    pairs = zip(sizes, axes, strict=True)
    return ("reshape", *(("axis", i) if any(a) else words(n) for i, (n, a) in enumerate(pairs)))


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

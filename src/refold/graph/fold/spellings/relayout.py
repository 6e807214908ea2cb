"""One value that is written twice is made one: in two layouts, or by two equal views.

RepMLP's authors cut a map into partitions of six axes, read that value as rows for a linear layer
and again as maps for convolutions, and lay both results out with six axes before they add them. To
the search for regions these are two sources, and a sum of no maps. Here the rows are read off the
maps, and the sum is taken before the layout. Both are exact for every input: a reshape of
a reshape is a reshape, and a sum does not depend on the layout.

`f(x.transpose(1, 2)) + g(x.transpose(1, 2))` reads one value as well, by two equal views.
"""

from __future__ import annotations

import operator
from functools import partial
from math import prod
from typing import Any

import torch
from torch import fx

from refold.graph.calls import Kind, canonical, kind_of, reads_shape_only
from refold.graph.fold.leftovers import equal_calls
from refold.graph.lift.context import Shape
from refold.graph.lift.lifter import Lifter
from refold.graph.lift.piece import Piece
from refold.graph.surgery.editor import Editor
from refold.graph.surgery.edits import alive

_FREE = Kind.RANDOM | Kind.BROADCASTS | Kind.LIKENS


def unify_layouts(lifter: Lifter, editor: Editor) -> None:
    """Read rows off maps, and add maps before their batch axis is split into several.

    Only where shapes are known; nothing that changes in place is touched.
    """
    cut = [node for node in editor.graph.nodes if len(lifter.shape(node) or ()) > 4]
    for node in cut:
        if alive(node) and len(node.users) > 1:
            _read_rows_off_maps(lifter, editor, node)
    for node in cut:
        if alive(node):
            _add_first(lifter, editor, node)


def _read_rows_off_maps(lifter: Lifter, editor: Editor, value: fx.Node) -> None:
    laid = [node for node in value.users if _reads(lifter, node) is value]
    maps = next((node for node in laid if _is_map(lifter.shape(node))), None)
    if maps is None:
        return
    shape = lifter.shapes[maps]
    row = (shape[0], prod(shape[1:]))
    rows = [n for n in laid if n is not maps and _without_ones(lifter.shapes[n]) == row]
    sizes = _sizes(maps)
    first = min([maps, *rows])
    if not rows or not all(_sees(size, first) for size in sizes):
        return
    if first is not maps:
        before = editor.insert_function(torch.reshape, (value, sizes), before=first)
        lifter.shapes[before] = shape
        editor.replace(maps, before)
        maps = before
    for node in rows:
        editor.reread(node, value, maps)


def _add_first(lifter: Lifter, editor: Editor, node: fx.Node) -> None:
    """Take a sum of two values of five or more axes as one of the maps that they were."""
    call = canonical(node)
    if call is None or call.name != "add" or call["alpha"] != 1 or node in lifter.tainted:
        return
    terms = [call["input"], call["other"]]
    sources = [_reads(lifter, term) for term in terms]
    shapes = [lifter.shape(term) for term in terms]
    if None in sources or len(set(shapes)) != 1:
        return
    if any(set(term.users) != {node} for term in terms) or terms[0] is terms[1]:
        return
    first, second = (source for source in sources if source is not None)
    shape = next((s for s in map(lifter.shape, (first, second)) if _is_map(s)), None)
    if shape is None:
        return
    rows = (shape[0], prod(shape[1:]))
    if any(
        _without_ones(lifter.shapes[s]) not in (_without_ones(shape), rows) for s in (first, second)
    ):
        return
    values = [_as_map(lifter, editor, source, shape, node) for source in (first, second)]
    total = editor.insert_function(operator.add, tuple(values), before=node)
    laid = editor.insert_function(torch.reshape, (total, _sizes(terms[0])), before=node)
    lifter.shapes[total], lifter.shapes[laid] = shape, lifter.shapes[terms[0]]
    editor.replace(node, laid)
    editor.discard([node, *terms])


def _as_map(
    lifter: Lifter, editor: Editor, source: fx.Node, shape: Shape, before: fx.Node
) -> fx.Node:
    if lifter.shapes[source] == shape:
        return source
    made = editor.insert_function(torch.reshape, (source, (-1, *shape[1:])), before=before)
    lifter.shapes[made] = shape
    return made


def _reads(lifter: Lifter, node: Any) -> fx.Node | None:
    """Return what a reshape to given sizes reads, where it may be read otherwise."""
    call = canonical(node) if isinstance(node, fx.Node) else None
    if call is None or call.name != "reshape" or node in lifter.tainted or "dim" in call.arguments:
        return None
    source = call["input"]
    known = isinstance(source, fx.Node) and source in lifter.shapes and node in lifter.shapes
    return source if known and source not in lifter.tainted else None


def _sizes(node: fx.Node) -> tuple[Any, ...]:
    call = canonical(node)
    sizes = () if call is None else call["shape"]
    return tuple(sizes) if isinstance(sizes, (tuple, list)) else (sizes,)


def _sees(size: Any, node: fx.Node) -> bool:
    return not isinstance(size, fx.Node) or size < node


def _is_map(shape: Shape | None) -> bool:
    return shape is not None and len(shape) == 4 and prod(shape[2:]) > 1


def _without_ones(shape: Shape) -> Shape:
    """Return a shape without the axes of one position at its end."""
    while len(shape) > 2 and shape[-1] == 1:
        shape = shape[:-1]
    return shape


# equal views


def unify_reads(lifter: Lifter, editor: Editor) -> None:
    """Let the readers of equal views read the first of them, where a join takes in all of these."""
    for value in list(editor.graph.nodes):
        if len(value.users) < 2 or value.op == "output" or value in lifter.tainted:
            continue
        for first, *others in equal_calls(value, partial(_is_view, lifter)):
            end = _join_after(lifter, first)
            for other in others:
                if end is not None and _join_after(lifter, other) is end:
                    editor.replace(other, first)


def _is_view(lifter: Lifter, node: fx.Node) -> bool:
    kind = kind_of(node)
    return Kind.VIEW in kind and not kind & _FREE and lifter.may_go(node)


def _join_after(lifter: Lifter, node: fx.Node) -> fx.Node | None:
    """Return the sum or concat that affine calls carry a value to, each read by the next alone."""
    while True:
        readers = [user for user in node.users if not reads_shape_only(user, node)]
        piece = lifter.lift(readers[0]) if len(readers) == 1 else None
        if not isinstance(piece, Piece):
            return None
        node = readers[0]
        if piece.join != "none":
            return node

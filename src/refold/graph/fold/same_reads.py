"""One value, written twice: two equal views of one value are one where their readers are joined.

`f(x.transpose(1, 2)) + g(x.transpose(1, 2))` reads one value; to the search for regions it is two.
"""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from refold.graph.calls import Kind, kind_of, reads_shape_only
from refold.graph.lift.lifter import Lifter
from refold.graph.lift.piece import Piece
from refold.graph.surgery.editor import Editor

_FREE = Kind.RANDOM | Kind.BROADCASTS | Kind.LIKENS


def unify_reads(lifter: Lifter, editor: Editor) -> None:
    """Let the readers of equal views read the first of them, where a join takes in all of these."""
    for value in list(editor.graph.nodes):
        if len(value.users) < 2 or value.op == "output" or value in lifter.tainted:
            continue
        for first, *others in _equal_views(lifter, value):
            end = _join_after(lifter, first)
            for other in others:
                if end is not None and _join_after(lifter, other) is end:
                    editor.replace(other, first)


def _equal_views(lifter: Lifter, value: fx.Node) -> Iterator[list[fx.Node]]:
    """Yield the views of a value that are made by the same call, in graph order."""
    found: dict[tuple[object, ...], list[fx.Node]] = {}
    for node in value.users:
        kind = kind_of(node)
        if Kind.VIEW in kind and not kind & _FREE and _may_go(lifter, node):
            key = (node.op, str(node.target), repr(node.args), repr(node.kwargs))
            found.setdefault(key, []).append(node)
    yield from (sorted(nodes) for nodes in found.values() if len(nodes) > 1)


def _may_go(lifter: Lifter, node: fx.Node) -> bool:
    capture = lifter.capture
    return not (node in lifter.tainted or node in capture.elsewhere or node in capture.stays)


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

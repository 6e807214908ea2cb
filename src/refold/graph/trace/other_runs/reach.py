"""Which parts of a graph another path of a frame's code may run apart from each other."""

from __future__ import annotations

from torch import fx

from refold.graph.trace.code.reads import reached, runs_apart
from refold.graph.trace.frames import Frame, ancestors, is_inside, nodes_in
from refold.graph.trace.other_runs.variants import Item, Snapshot


def reaches(first: Snapshot, frame: Frame, places: list[fx.Node]) -> bool:
    """Say whether another path of a frame's code may run only some parts of a step.

    It may where the step joins parts of the frame; or where it lies within one call, of a method
    or of a child, and the code also names the parts of that call themselves.

    Args:
        first: the recorded graph.
        frame: whose code it is.
        places: the nodes that the step has joined.
    """
    if not places or _touches(first, frame, places):
        return bool(places)
    parts, followed = {_part(first, frame, node) for node in places}, set[str]()
    call = parts.pop()
    while isinstance(call, Frame) and call.module is frame.module:
        followed.add(call.method)
        parts = {_part(first, call, node) for node in places}
        call = parts.pop()
        if parts:
            names = {_child(frame, part) for part in (call, *parts)}
            return runs_apart(frame.module, names, followed)
    name = _child(frame, call)
    child = frame.module._modules.get(name)
    return child is not None and bool(reached(frame.module, name, child))


def _touches(first: Snapshot, frame: Frame, places: list[fx.Node]) -> bool:
    """Say whether a step joins parts of one frame, not only within one of its calls."""
    given = set(nodes_in((frame.args, frame.kwargs)))
    if frame.parent is not None and any(node in given for node in _inner(first, places)):
        return True
    parts = {_part(first, frame, node) for node in places}
    parts.discard(None)
    outside = any(not is_inside(first.home[node], frame) for node in places)
    return bool(parts) and (outside or len(parts) > 1)


def _inner(first: Snapshot, places: list[fx.Node]) -> list[fx.Node]:
    """Return the parts of a step that others of it read: what it ends in keeps its value."""
    chosen = set(places)
    return [node for node in places if not chosen.isdisjoint(first.readers[node])]


def _part(first: Snapshot, frame: Frame, node: fx.Node) -> Item | None:
    """Return the node or the call of a frame that a node belongs to, None outside it."""
    below: Item = node
    for current in ancestors(first.home[node]):
        if current is frame:
            return below
        below = current
    return None


def _child(frame: Frame, part: Item | None) -> str:
    """Return the name of the child of a frame's module that a part of the frame calls or reads."""
    path = part.path if isinstance(part, Frame) else str(part.target) if part is not None else ""
    prefix = f"{frame.path}." if frame.path else ""
    return path.removeprefix(prefix).partition(".")[0]

"""Which parts of a graph another path of a frame's code may run apart from each other."""

from __future__ import annotations

from collections.abc import Iterator
from functools import cached_property

from torch import fx

from refold.graph.trace.code.reads import reaches_into, runs_apart
from refold.graph.trace.frames import Frame, ancestors, nodes_in
from refold.graph.trace.other_runs.variants import Item, Snapshot


class Reach:
    """What other paths of the code of frames mean for one step.

    Args:
        first: the recorded graph.
        places: the nodes that the step has joined.
    """

    def __init__(self, first: Snapshot, places: list[fx.Node]) -> None:
        self._first, self._places = first, places

    def meets(self, frame: Frame) -> bool:
        """Say whether another path of a frame's code may matter to the step at all.

        Code reaches into what it calls in more ways than its source tells (`run(self, x)`, a
        decorator, an object that holds the module): only another run says that it does not.
        """
        return frame in self._around or self._is_given(frame)

    def has(self, frame: Frame) -> bool:
        """Say whether the source of a frame has a path that may run only some parts of the step.

        It may where the step joins parts of the frame; or where it lies within one call, of a
        method or of a child, and the code also names the parts of that call themselves.
        """
        if self._is_given(frame):
            return True
        if frame not in self._around:
            return False
        parts = self._parts(frame)
        if len(parts) > 1:
            return True
        [call], followed = parts, set[str]()
        while isinstance(call, Frame) and call.module is frame.module:
            followed.add(call.method)
            call, *others = self._parts(call)
            if others:
                names = {_child(frame, part) for part in (call, *others)}
                return runs_apart(frame.module, names, followed)
        name = _child(frame, call)
        is_child = frame.module._modules.get(name) is not None
        return is_child and reaches_into(frame.module, name, {*self._inside(frame, name)})

    def _inside(self, frame: Frame, name: str) -> Iterator[str]:
        """Yield the names that lead from a child of a frame's module to the parts of the step."""
        prefix = f"{frame.path}.{name}." if frame.path else f"{name}."
        for node in self._places:
            is_kept = node.op in ("call_module", "get_attr")
            path = str(node.target) if is_kept else self._first.home[node].path
            if path.startswith(prefix):
                yield from path.removeprefix(prefix).split(".")

    def _is_given(self, frame: Frame) -> bool:
        """Say whether a frame is given a part of the step that other parts of it read."""
        if frame.parent is None or not self._inner:
            return False
        return not self._inner.isdisjoint(nodes_in((frame.args, frame.kwargs)))

    @cached_property
    def _inner(self) -> set[fx.Node]:
        """The parts of the step that others of it read: what it ends in keeps its value."""
        chosen, readers = set(self._places), self._first.readers
        return {node for node in chosen if not chosen.isdisjoint(readers[node])}

    @cached_property
    def _around(self) -> set[Frame]:
        """The frames that hold some of the step: most of a deep network hold nothing of it."""
        return {frame for home in self._homes for frame in ancestors(home)}

    @cached_property
    def _homes(self) -> set[Frame]:
        return {self._first.home[node] for node in self._places}

    def _parts(self, frame: Frame) -> set[Item | None]:
        """Return the parts of a frame that the step joins; None stands for all outside it."""
        return {_part(self._first, frame, node) for node in self._places}


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

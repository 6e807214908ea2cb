"""Decide for every frame whether its own code still computes the edited graph."""

from __future__ import annotations

from collections import Counter
from typing import Any, Literal

from torch import fx

from refold.errors import RefusedError
from refold.graph.frames import Frame, ancestors, leaves, map_tree, nodes_in, walk
from refold.graph.surgery_body import FrameBody
from refold.graph.surgery_edits import Edits, UnwritableError, alive
from refold.graph.surgery_plain import is_layer_subclass

Status = Literal["clean", "dirty", "inline"]


class Plan:
    """The status of every frame, children before parents, and the bodies to generate.

    clean: class and forward stay. dirty: a generated forward replaces its own. inline: it cannot be
    regenerated on its own, so its nodes move into its parent's generated forward.
    """

    def __init__(self, edits: Edits) -> None:
        self.edits = edits
        self.status: dict[Frame, Status] = {}
        self.bodies: dict[Frame, fx.Graph] = {}
        self.owned: dict[Frame, list[fx.Node]] = {}
        for node, frame in edits.home.items():
            self.owned.setdefault(frame, []).append(node)
        self.order = list(edits.capture.graph.nodes)
        self.root = edits.capture.root
        counts = Counter((f.path, f.method) for f in walk(self.root))
        self.repeated = {f for f in walk(self.root) if counts[f.path, f.method] > 1}
        for frame in reversed(list(walk(self.root))):
            self._decide(frame)

    def _decide(self, frame: Frame) -> None:
        self.status[frame] = "clean"
        if self._is_clean(frame):
            return
        self.status[frame] = "dirty"
        if frame is self.root:
            try:
                self.bodies[frame] = FrameBody(self, frame).build()
            except RefusedError as error:
                raise UnwritableError(str(error), self._changed(frame)) from error
        elif frame in self.repeated or self._is_gone(frame) or not self.is_closed(frame):
            self.status[frame] = "inline"
        else:
            try:
                self.bodies[frame] = FrameBody(self, frame).build()
            except RefusedError:
                self.status[frame] = "inline"

    # what the code of a frame delivers

    def delivered(self, value: fx.Node, frame: Frame) -> fx.Node | None:
        """Return what the unchanged code of `frame` holds where it held `value`."""
        home = self.edits.home[value]
        if home is frame:
            if value in self.edits.identities:
                return self.delivered(self.edits.before[value][2][0], frame)
            return value
        if self.edits.inside(value, frame):
            child = next(f for f in ancestors(home) if f.parent is frame)
            return self.slot(child, value)
        return self.edits.argument(frame, value)

    def slot(self, frame: Frame, leaf: fx.Node) -> fx.Node | None:
        """Return what a frame returns today where it returned `leaf`; None when that is dead."""
        if self.status[frame] == "clean":
            return self.delivered(leaf, frame)
        inputs = self.edits.inputs(frame)
        if not self.edits.inside(leaf, frame):
            return self.edits.argument(frame, leaf)
        for value in reversed(self.edits.chain(leaf)):
            if alive(value) and (value in inputs or self.edits.inside(value, frame)):
                return value
        return None

    def slots(self, frame: Frame) -> set[fx.Node | None]:
        """Return everything that a frame returns today."""
        return {self.slot(frame, leaf) for leaf in nodes_in(frame.output)}

    # clean

    def _is_clean(self, frame: Frame) -> bool:
        if any(self._spoils(child) for child in frame.children):
            return False
        if not all(self._node_unchanged(node, frame) for node in self.owned.get(frame, [])):
            return False
        return all(self._call_unchanged(child, frame) for child in frame.children)

    def _spoils(self, child: Frame) -> bool:
        if self.status[child] == "inline":
            return True
        own_method = child.method != "forward" and self.status[child] == "dirty"
        return own_method and is_layer_subclass(type(child.module))

    def _node_unchanged(self, node: fx.Node, frame: Frame) -> bool:
        if node in self.edits.inserted:
            return not alive(node)
        if not alive(node):
            return node in self.edits.identities
        op, target, args, kwargs = self.edits.before[node]
        if (op, target) != (node.op, node.target):
            return False
        expected = leaves(map_tree(lambda v: self._expect(v, frame), (args, kwargs)))
        current = leaves((node.args, dict(node.kwargs)))
        return len(expected) == len(current) and all(map(_same, expected, current))

    def _expect(self, leaf: Any, frame: Frame) -> Any:
        return self.delivered(leaf, frame) if isinstance(leaf, fx.Node) else leaf

    def _call_unchanged(self, child: Frame, frame: Frame) -> bool:
        passed = nodes_in((child.args, child.kwargs))
        return all(
            self.delivered(leaf, frame) is self.edits.argument(child, leaf) for leaf in passed
        )

    def _changed(self, frame: Frame) -> set[fx.Node]:
        """Return the nodes because of which a frame's own code no longer does."""
        found: set[fx.Node] = set()
        for node in self.owned.get(frame, []):
            if not self._node_unchanged(node, frame):
                found.update((node, *self._read_anew(node, frame)))
        for child in frame.children:
            if self._spoils(child):
                found |= self._changed(child)
            for leaf in nodes_in((child.args, child.kwargs)):
                if self.delivered(leaf, frame) is not self.edits.argument(child, leaf):
                    found.update((leaf, self.edits.argument(child, leaf)))
        return found

    def _read_anew(self, node: fx.Node, frame: Frame) -> set[fx.Node]:
        """Return the values that a node no longer reads, or did not read."""
        if node in self.edits.inserted or not alive(node):
            return set()
        now = set(node.all_input_nodes)
        held = {self.delivered(leaf, frame): leaf for leaf in nodes_in(self.edits.before[node][2:])}
        gone = {leaf for value, leaf in held.items() if value not in now}
        return gone | {value for value in now if value not in held}

    # closed

    def _is_gone(self, frame: Frame) -> bool:
        """Say whether nothing of a frame is left, not even handing its input on."""
        return not self.has_nodes(frame) and None in self.slots(frame)

    def has_nodes(self, frame: Frame) -> bool:
        """Say whether anything inside a frame is still computed."""
        return any(alive(node) for below in walk(frame) for node in self.owned.get(below, []))

    def is_closed(self, frame: Frame) -> bool:
        """Say whether a frame reads only its arguments and is read only through its output."""
        inputs, slots = self.edits.inputs(frame), self.slots(frame)
        for below in walk(frame):
            for node in self.owned.get(below, []):
                if alive(node) and not self._stays_within(node, frame, inputs, slots):
                    return False
        return True

    def _stays_within(
        self, node: fx.Node, frame: Frame, inputs: set[fx.Node], slots: set[fx.Node | None]
    ) -> bool:
        inside = self.edits.inside
        reads = all(inside(arg, frame) or arg in inputs for arg in node.all_input_nodes)
        return reads and (node in slots or all(inside(user, frame) for user in node.users))


def _same(expected: Any, current: Any) -> bool:
    if expected is current:
        return True
    if isinstance(expected, fx.Node) or isinstance(current, fx.Node):
        return False
    try:
        return bool(expected == current)
    except (RuntimeError, ValueError, TypeError):
        return False

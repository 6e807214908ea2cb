"""The record of what an `Editor` changed in a flat graph."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import fx, nn

from refold.errors import RefusedError
from refold.graph.trace.capture import Capture
from refold.graph.trace.frames import Frame, frame_of, is_inside, nodes_in


class UnwritableError(RefusedError):
    """An edited graph cannot become code again; `nodes` are the edits that would have to."""

    def __init__(self, message: str, nodes: set[fx.Node]) -> None:
        super().__init__(message)
        self.nodes = nodes


@dataclass(eq=False)
class Edits:
    """What the graph was, and where every original value is read from now.

    Args:
        capture: the capture under edit.
        before: op, target, args and kwargs of every original node.
        home: the frame that owns each node, original or inserted.
        swapped: replaced or bypassed node -> the node that its readers read instead.
        identities: bypassed layers that an nn.Identity at the same path stands for.
        idle: those among them that are identities wherever they are called.
        modules: new content by path relative to the root.
        inserted: nodes that a pass added.
    """

    capture: Capture
    before: dict[fx.Node, tuple[str, Any, tuple[Any, ...], dict[str, Any]]]
    home: dict[fx.Node, Frame]
    swapped: dict[fx.Node, fx.Node] = field(default_factory=dict[fx.Node, fx.Node])
    identities: set[fx.Node] = field(default_factory=set[fx.Node])
    idle: set[fx.Node] = field(default_factory=set[fx.Node])
    modules: dict[str, nn.Module] = field(default_factory=dict[str, nn.Module])
    inserted: set[fx.Node] = field(default_factory=set[fx.Node])

    @classmethod
    def of(cls, capture: Capture) -> Edits:
        """Return the empty record for a fresh capture."""
        nodes = list(capture.graph.nodes)
        before = {n: (n.op, n.target, n.args, dict(n.kwargs)) for n in nodes}
        return cls(capture, before, {node: frame_of(node) for node in nodes})

    def lost_layers(self) -> dict[str, fx.Node]:
        """Return the calls of layers of which nothing is left at their path, by path."""
        calls = (node for node, was in self.before.items() if was[0] == "call_module")
        gone = {str(self.before[node][1]): node for node in calls if not alive(node)}
        kept = {str(node.target) for node in self.capture.graph.nodes if node.op == "call_module"}
        return {path: node for path, node in gone.items() if path not in kept}

    def is_same_call(self, node: fx.Node) -> bool:
        """Say whether a call that was recorded is the same call of the same values today."""
        op, target, args, kwargs = self.before[node]
        is_same = (op, target, args, kwargs) == (node.op, node.target, node.args, dict(node.kwargs))
        return is_same and node not in self.swapped and target not in self.modules

    def now(self, node: fx.Node) -> fx.Node:
        """Return what readers of an original node read today."""
        while node in self.swapped:
            node = self.swapped[node]
        return node

    def chain(self, node: fx.Node) -> list[fx.Node]:
        """Return the node and, in order, everything that took its place."""
        found = [node]
        while found[-1] in self.swapped:
            found.append(self.swapped[found[-1]])
        return found

    def inside(self, node: fx.Node, frame: Frame) -> bool:
        """Say whether a node belongs to a frame or to a frame below it."""
        return is_inside(self.home[node], frame)

    def argument(self, frame: Frame, leaf: fx.Node) -> fx.Node:
        """Return the value that a frame receives today where it received `leaf`."""
        outside = [node for node in self.chain(leaf) if not self.inside(node, frame)]
        return outside[-1] if outside else leaf

    def inputs(self, frame: Frame) -> set[fx.Node]:
        """Return the values that a frame receives today."""
        leaves = nodes_in((frame.args, frame.kwargs))
        return {self.argument(frame, leaf) for leaf in leaves}


def alive(node: fx.Node) -> bool:
    """Say whether a node is still in its graph."""
    return not node._erased  # pyright: ignore[reportPrivateUsage]

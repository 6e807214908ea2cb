"""Lift: what a node of the flat graph is in the algebra.

Calls are recognised by what they compute, never by the model they stand in. A node that looks
affine but must stay (a norm in training mode, a tied weight, a module with hooks) gives a
sentence, which ends up in the plan.
"""

from __future__ import annotations

from typing import cast

from torch import fx

from refold.algebra.operator import Affine, Conv
from refold.errors import GeometryError
from refold.graph.calls import canonical
from refold.graph.copies.modules import submodule
from refold.graph.lift.activations import activation
from refold.graph.lift.arithmetic import ARITHMETIC
from refold.graph.lift.constants import Constants
from refold.graph.lift.context import Context, Handler, Known
from refold.graph.lift.functional import LAYERS
from refold.graph.lift.indexing import SLICES
from refold.graph.lift.interval import UNKNOWN
from refold.graph.lift.joins.stacks import STACKS
from refold.graph.lift.modules import lift_module
from refold.graph.lift.piece import Lifted, Piece, nothing
from refold.graph.lift.pools import WINDOWS
from refold.graph.lift.reshapes import LAYOUT, layout_call
from refold.graph.trace.aliases import tainted
from refold.graph.trace.capture import Capture, Shapes
from refold.graph.trace.effects import mutated

_HANDLERS: dict[str, Handler] = {**ARITHMETIC, **SLICES, **LAYERS, **LAYOUT, **WINDOWS, **STACKS}


class Lifter(Context):
    """Lifts the nodes of one capture, each once for as long as it and its module stay the same."""

    @classmethod
    def of(cls, capture: Capture, shapes: Shapes | None = None) -> Lifter:
        """Return a lifter of a capture; `shapes`, where given, are all that is to be known."""
        reasons = tainted(capture.graph)
        known = dict(capture.shapes if shapes is None else shapes)
        return cls(capture, Constants(capture, reasons), known, reasons)

    def lift(self, node: fx.Node) -> Lifted:
        """Return the node's piece, the reason why it has none, or None for anything not affine."""
        known = self.lifted.get(node)
        if known is None or not known.holds(node):
            known = self.lifted[node] = Known.of(self.capture.module, node, self._lift_safely(node))
        return known.lifted

    def held(self, node: fx.Node) -> str | None:
        """Return what holds a call where it is: writes, other runs, code that stays; or None."""
        tables = (self.tainted, self.capture.elsewhere, self.capture.stays)
        return next((table[node] for table in tables if node in table), None)

    def may_go(self, node: fx.Node) -> bool:
        """Say whether nothing holds a call where it is."""
        return self.held(node) is None

    def _lift_safely(self, node: fx.Node) -> Lifted:
        try:
            lifted = self._lift(node)
        except GeometryError as error:
            return str(error)
        if isinstance(lifted, Piece) and node in self.capture.stays:
            return self.capture.stays[node]
        if isinstance(lifted, Piece) and node in self.tainted and not _is_fresh(node, lifted):
            return self.tainted[node]
        return lifted

    def _lift(self, node: fx.Node) -> Lifted:
        if node.op not in ("call_module", "call_function", "call_method"):
            return None
        if self.constants.value(node) is not None:
            return None
        if node.op == "call_module":
            return self._lift_module(node)
        if getattr(node.target, "__name__", "") == "stochastic_depth":
            return nothing(cast(fx.Node, node.args[0])) if not _flag(node, "training", 3) else None
        call = canonical(node)
        if call is None:
            return None
        handler = _HANDLERS.get(call.name)
        return handler(self, node, call) if handler else self._unchanged(node)

    def _unchanged(self, node: fx.Node) -> Piece | None:
        """Return the piece of a function that gives every number back as it is."""
        found = activation(self, node)
        return nothing(found.source) if found is not None and found.keeps == UNKNOWN else None

    def _lift_module(self, node: fx.Node) -> Lifted:
        path = str(node.target)
        if not node.args or not isinstance(node.args[0], fx.Node):
            return None
        module = submodule(self.capture.module, path)
        call = layout_call(module, node.args[0])
        if call is not None:
            return self.capture.pinned.get(path) or _HANDLERS[call.name](self, node, call)
        lifted = lift_module(module, node.args[0], self.shape(node.args[0]))
        if lifted is None:
            changes = any(map(self.capture.changing, module.parameters()))
            lifted = None if changes else self._unchanged(node)
            return lifted or self.capture.pinned.get(path)
        if not isinstance(lifted, Piece):
            return self.capture.pinned.get(path, lifted)
        for buffer in module._buffers.values():
            if buffer is not None and (changing := self.capture.changing(buffer)):
                return changing
        if not any(parameter is not None for parameter in module._parameters.values()):
            return self.capture.pinned.get(path, lifted)
        return self.holds(path, self._times_called(path)) or lifted

    def holds(self, path: str, times: int) -> str | None:
        """Return why the parameters of a module that is called so often must stay, or None."""
        if path in self.capture.pinned:
            return self.capture.pinned[path]
        if times > 1:
            return f"the module is called {times} times"
        module = submodule(self.capture.module, path)
        for name, parameter in module._parameters.items():
            shared = None if parameter is None else self.constants.shared(f"{path}.{name}")
            if shared:
                return shared
        return None

    def _times_called(self, path: str) -> int:
        """Return how often a module is called on what depends on the input."""
        times = self.capture.calls.get(path, 1)
        if times < 2:
            return times
        return times - sum(
            node.op == "call_module" and node.target == path and self.tensor(node) is not None
            for node in self.capture.graph.nodes
        )


def _is_fresh(node: fx.Node, piece: Piece) -> bool:
    """Return whether a node makes a value of its own, so that what made it may become one layer.

    Those who change or read that value later do so as before.
    """
    return not mutated(node) and all(isinstance(op, (Affine, Conv)) for op in piece.ops)


def _flag(node: fx.Node, name: str, position: int) -> bool:
    return bool(node.kwargs.get(name, node.args[position] if len(node.args) > position else True))

"""What the handlers of a call may ask about the graph around it."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, fx, nn

from refold.graph.calls import Call, is_question
from refold.graph.copies.modules import submodule
from refold.graph.lift.constants import Constants
from refold.graph.lift.piece import Lifted, Piece
from refold.graph.trace.capture import Capture

Shape = tuple[int, ...]


class Known:
    """What a node was lifted to, for as long as it and its module stay the same.

    Args:
        node: the node.
        modules: the table that holds the module which it calls, and the name in it.
        lifted: its piece, or why it has none.
    """

    __slots__ = ("args", "kwargs", "lifted", "module", "modules", "name", "through")

    def __init__(
        self, node: fx.Node, modules: dict[str, nn.Module | None], name: str, lifted: Lifted
    ) -> None:
        self.args, self.kwargs, self.lifted = node.args, node.kwargs, lifted
        self.modules, self.name, self.module = modules, name, modules.get(name)
        read = lifted.through if isinstance(lifted, Piece) else ()
        self.through = tuple((inner, inner.args) for inner in read)

    @classmethod
    def of(cls, root: nn.Module, node: fx.Node, lifted: Lifted) -> Known:
        """Note what a node of a graph over `root` was lifted to."""
        if node.op != "call_module":
            return cls(node, _NO_MODULES, "", lifted)
        above, _, name = str(node.target).rpartition(".")
        return cls(node, submodule(root, above)._modules, name, lifted)

    def holds(self, node: fx.Node) -> bool:
        """Say whether the node is still what it was: an edit gives it other arguments."""
        if node.args is not self.args or node.kwargs is not self.kwargs:
            return False
        if self.modules.get(self.name) is not self.module:
            return False
        # Asked all the time, mostly of nodes that read through nothing: `all` would take longer.
        return not self.through or all(inner.args is args for inner, args in self.through)


_NO_MODULES: dict[str, nn.Module | None] = {}


class Context(ABC):
    """The facts of one capture: shapes, parameter-only values and what in-place work makes unsafe.

    Args:
        capture: the flat graph with its modules.
        constants: values that depend on parameters alone.
        shapes: tensor shapes of node values, where example inputs gave them.
        tainted: values that in-place operations make unsafe, with the reason.
    """

    def __init__(
        self,
        capture: Capture,
        constants: Constants,
        shapes: dict[fx.Node, Shape],
        tainted: dict[fx.Node, str],
    ) -> None:
        self.capture = capture
        self.constants = constants
        self.shapes = shapes
        self.tainted = tainted
        self.lifted: dict[fx.Node, Known] = {}

    @abstractmethod
    def lift(self, node: fx.Node) -> Lifted:
        """Return the node's piece, the reason why it has none, or None for anything not affine."""

    def taint(self, node: fx.Node, reason: str) -> None:
        """Note that a value is changed in place while others read it."""
        self.tainted[node] = reason
        self.lifted.pop(node, None)

    def shape(self, value: Any) -> tuple[int, ...] | None:
        """Return the shape of a node's value, None where no example inputs told it."""
        return self.shapes.get(value) if isinstance(value, fx.Node) else None

    def depends(self, value: Any) -> bool:
        """Return whether a value is made from the numbers in the inputs, not their size."""
        if not isinstance(value, fx.Node) or self.constants.value(value) is not None:
            return False
        return not self._is_size(value)

    def _is_size(self, node: fx.Node) -> bool:
        if is_question(node):
            return True
        if node in self.shapes or node.op not in ("call_method", "call_function"):
            return False
        inputs = node.all_input_nodes
        return bool(inputs) and all(self._is_size(source) for source in inputs)

    def tensor(self, value: Any) -> Tensor | None:
        """Return a parameter-only tensor, or None when it depends on inputs."""
        found = self.constants.value(value) if isinstance(value, fx.Node) else None
        return found if isinstance(found, Tensor) else None

    def indices(self, entry: Any) -> Any:
        """Return an entry of an index, a constant tensor of positions as a list."""
        tensor = self.tensor(entry)
        positions = tensor is not None and tensor.ndim == 1 and tensor.dtype == torch.int64
        return tensor.tolist() if tensor is not None and positions else entry

    def number(self, value: Any) -> float | int | None:
        """Return a plain number."""
        if isinstance(value, fx.Node):
            value = self.constants.value(value)
        return value if isinstance(value, (int, float)) and not isinstance(value, bool) else None

    def weights(self, *values: Any) -> list[Tensor | None] | str | None:
        """Return weights, a refusal when one is tied, None when one is computed from inputs."""
        found: list[Tensor | None] = []
        for value in values:
            tensor = None if value is None else self.tensor(value)
            if value is not None and tensor is None:
                return None
            found.append(tensor)
            for path in self.constants.sources(value) if isinstance(value, fx.Node) else ():
                if shared := self.constants.shared(path):
                    return shared
        return found


Handler = Callable[[Context, fx.Node, Call], Lifted]

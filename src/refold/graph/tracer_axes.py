"""How many axes a traced value has, where the graph tells: `f(*x.shape)` has as many arguments."""

from __future__ import annotations

from torch import fx, nn

from refold.graph.genuine import layer_class
from refold.graph.paths import submodule

_NORMED: dict[type, int] = {
    nn.BatchNorm2d: 4,
    nn.BatchNorm3d: 5,
}
_KEEPING = ("torch.nn.modules.activation", "torch.nn.modules.dropout")


def parts_of_shape(node: fx.Node, root: nn.Module) -> int | None:
    """Return how many sizes `x.shape` or `x.size()` has, None for other values and where unknown.

    Examples:
        >>> net = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU())
        >>> graph = fx.symbolic_trace(net).graph
        >>> with graph.inserting_before():
        ...     size = graph.call_method("size", (list(graph.nodes)[2],))
        >>> parts_of_shape(size, net)
        4
    """
    if node.op == "call_method" and node.target == "size" and len(node.args) == 1:
        return _axes_of(node.args[0], root)
    if node.op == "call_function" and node.target is getattr and node.args[1] == "shape":
        return _axes_of(node.args[0], root)
    return None


def _axes_of(value: object, root: nn.Module) -> int | None:
    """Return the axes of a value that a norm made, followed through layers that keep them."""
    while isinstance(value, fx.Node) and value.op == "call_module":
        module = submodule(root, str(value.target))
        kind = layer_class(module)
        if kind in _NORMED:
            return _NORMED[kind]
        if kind.__module__ not in _KEEPING and kind is not nn.Identity:
            return None
        value = value.args[0] if value.args else None
    return None

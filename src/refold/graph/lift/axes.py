"""Which nodes that are not affine are known to leave the axes of a value as they are."""

from __future__ import annotations

from torch import fx, nn

from refold.graph.calls import Kind, kind_of, name_of
from refold.graph.copies.modules import submodule
from refold.graph.lift.context import Context
from refold.graph.lift.piece import Piece
from refold.graph.trace.overridden import layer_class

_POOLS = ("max_pool1d", "max_pool2d", "max_pool3d")
_SHAPE_KEEPING = tuple(
    f"torch.nn.modules.{name}" for name in ("activation", "batchnorm", "dropout", "normalization")
)


def same_layout(lifter: Context, node: fx.Node) -> fx.Node | None:
    """Return the value that `node` maps element by element or pools: its axes mean the same."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node):
        return None
    piece = lifter.lift(node)
    if isinstance(piece, Piece):
        return source if piece.by_rank is None and piece.rank_out is None else None
    if node.op == "call_module":
        module = submodule(lifter.capture.module, str(node.target))
        home = layer_class(module).__module__
        pools = home.endswith("pooling")
        shapes = lifter.shapes.get(source), lifter.shapes.get(node)
        same = shapes[0] is not None and shapes[0] == shapes[1]
        return (
            source
            if home.startswith("torch.nn") and (pools or same or _is_activation(home))
            else None
        )
    return source if name_of(node) in _POOLS or Kind.ELEMENTWISE in kind_of(node) else None


def keeps_shape(context: Context, node: fx.Node) -> fx.Node | None:
    """Return the value whose shape a node that is not affine surely gives its own."""
    source = node.args[0] if node.args else None
    if not isinstance(source, fx.Node):
        return None
    if node.op == "call_module":
        module = submodule(context.capture.module, str(node.target))
        home = layer_class(module).__module__
        others = isinstance(module, (nn.GLU, nn.MultiheadAttention))
        return source if home in _SHAPE_KEEPING and not others else None
    return source if Kind.ELEMENTWISE in kind_of(node) else None


def _is_activation(home: str) -> bool:
    return home == "torch.nn.modules.activation"

"""Calls that ask for the size, type or device of a value and read none of its numbers."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

_SHAPE_METHODS = {"size", "dim", "ndimension", "numel", "get_device", "is_floating_point", "stride"}
_SHAPE_READERS = {"reshape_as", "view_as", "expand_as", "type_as"}
_SHAPE_ATTRIBUTES = {"shape", "dtype", "device", "ndim", "is_cuda", "layout"}


def reads_shape_only(node: fx.Node, value: fx.Node) -> bool:
    """Return whether `node` reads the size, type or device of `value` and none of its numbers."""
    if node.op == "call_method":
        if node.target in _SHAPE_METHODS:
            return True
        return node.target in _SHAPE_READERS and node.args[:1] != (value,)
    if node.op == "call_function" and node.target is getattr:
        return len(node.args) > 1 and node.args[1] in _SHAPE_ATTRIBUTES
    return False


def shape_readers(node: fx.Node) -> Iterator[fx.Node]:
    """Return what reads only the size, type or device of a node's value."""
    return (user for user in node.users if reads_shape_only(user, node))

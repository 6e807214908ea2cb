"""Which stored tensors the calls of a graph change in place."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any, cast

from torch import Tensor, fx

from refold.graph.copies.held import storage_key
from refold.graph.copies.modules import attribute
from refold.graph.trace.effects import may_alias, mutated
from refold.graph.trace.frames import ancestors, frame_of


def stored_writes(nodes: Iterable[fx.Node]) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Yield each call that changes a stored tensor or a view of one, with the node that reads it.

    Examples:
        >>> import torch
        >>> from torch import nn
        >>> class Net(nn.Module):
        ...     def __init__(self):
        ...         super().__init__()
        ...         self.g = nn.Parameter(torch.ones(2))
        ...     def forward(self, x):
        ...         return self.g[0].add_(x)
        >>> [(w.name, s.target) for w, s in stored_writes(fx.symbolic_trace(Net()).graph.nodes)]
        [('add_', 'g')]
    """
    for node in nodes:
        pending, seen = mutated(node), set[fx.Node]()
        while pending:
            value = pending.pop()
            if value.op == "get_attr":
                yield node, value
            elif value not in seen:
                seen.add(value)
                pending.extend(may_alias(value))


def is_stored_value(node: fx.Node, tensor: Tensor | None) -> bool:
    """Say whether a value is a stored tensor itself, changed in place or not (`self.n += 1`)."""
    while node.op != "get_attr":
        changed = mutated(node)
        if len(changed) != 1:
            return False
        node = changed[0]
    return stored_value(node) is tensor


def stored_value(node: fx.Node) -> Any:
    """Return what a `get_attr` node of a capture reads."""
    if "stored" in node.meta:
        return node.meta["stored"]
    return attribute(ancestors(frame_of(node))[-1].module, cast(str, node.target))


def same_storage(graph: fx.Graph) -> Iterator[tuple[fx.Node, fx.Node]]:
    """Yield pairs of reads of stored tensors that share memory: ties, views, two frames' reads."""
    first: dict[int, fx.Node] = {}
    for node in graph.nodes:
        if node.op == "get_attr" and "frame" in node.meta:
            value = stored_value(node)
            if isinstance(value, Tensor):
                known = first.setdefault(storage_key(value), node)
                if known is not node:
                    yield known, node

"""Parts that another run calls, or reads, more often than the recorded one."""

from __future__ import annotations

from collections.abc import Collection, Iterable

from torch import fx, nn

from refold.graph.copies.modules import submodule
from refold.graph.trace.recorder.recorder import holds_tensors


def touched(root: nn.Module, nodes: Iterable[fx.Node]) -> set[str]:
    """Return the paths of the parts with weights that calls run, or whose tensors they read.

    Args:
        root: the module that was recorded.
        nodes: the calls.

    Examples:
        >>> net = nn.Sequential(nn.Linear(2, 2), nn.ReLU())
        >>> touched(net, fx.symbolic_trace(net).graph.nodes)
        {'0'}
    """
    found = set[str]()
    for node in nodes:
        path = str(node.target)
        if node.op == "get_attr" and (owner := path.rpartition(".")[0]):
            found.add(owner)
        if node.op == "call_module" and holds_tensors(submodule(root, path)):
            found.add(path)
    return found


def takes_apart(parts: Iterable[str], places: Collection[str]) -> bool:
    """Say whether calls at these places join what one of the parts holds with what it does not.

    Examples:
        >>> takes_apart({"norm"}, ["conv", "norm"]), takes_apart({"block"}, ["block.norm"])
        (True, False)
    """
    for part in parts:
        inside = sum(f"{place}.".startswith(f"{part}.") for place in places)
        if 0 < inside < len(places):
            return True
    return False

"""Parts that another run calls, or reads, more often than the recorded one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Container, Iterable

from torch import fx, nn

from refold.graph.copies.modules import paths_around, submodule
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


def taken_apart(parts: Container[str], places: Collection[str]) -> list[str]:
    """Return the parts of which calls at these places join what they hold with what they do not.

    Examples:
        >>> taken_apart({"norm"}, ["conv", "norm"]), taken_apart({"block"}, ["block.norm"])
        (['norm'], [])
    """
    inside = Counter(part for place in places for part in paths_around(place) if part in parts)
    return [part for part, count in inside.items() if count < len(places)]

"""Reshapes of reshapes: the last one alone says what comes out, and it may be what went in."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import fx

from refold.graph import Capture, Fold, place_of
from refold.onnx_files.translation.network import Network

_LAYOUTS = (torch.reshape, torch.flatten, torch.squeeze, torch.unsqueeze)


def join_reshapes(network: Network, capture: Capture) -> list[Fold]:
    """Let a reshape read what the reshapes before it read; return what went."""
    found = list[Fold]()
    for call in list(capture.graph.nodes):
        if call.target is not torch.reshape or 0 in call.args[1]:
            continue
        gone = list(_before(network, call))
        source = gone[-1].args[0] if gone else call.args[0]
        assert isinstance(source, fx.Node)
        is_same = _is_same(network, call, source)
        if not gone and not is_same:
            continue
        call.replace_input_with(call.args[0], source)
        where = " + ".join(place_of(node) for node in (*reversed(gone), call))
        if is_same:
            call.replace_all_uses_with(source)
            gone.insert(0, call)
        for node in gone:
            network.erase(node)
        found.append(Fold(where, "drop what is undone", "reshape", 0, 0))
    return found


def _before(network: Network, call: fx.Node) -> Iterator[fx.Node]:
    """Yield the reshapes that a reshape alone reads, the last first."""
    node = call.args[0]
    while isinstance(node, fx.Node) and node.target in _LAYOUTS and len(node.users) == 1:
        if network.name_of(node) in network.outputs:
            return
        yield node
        node = node.args[0]


def _is_same(network: Network, call: fx.Node, source: fx.Node) -> bool:
    """Say whether a reshape gives back the shape of a value, whatever the free sizes."""
    name = network.name_of(call)
    if name in network.outputs:
        return False
    before, after = (network.sizes.fixed(network.name_of(node)) for node in (source, call))
    free = before is None or before.count(None) > 1 or 0 in before
    return not free and before == after

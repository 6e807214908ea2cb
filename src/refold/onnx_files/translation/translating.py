"""Build a network from a file: every node by its builder, whatever has none as an opaque call."""

from __future__ import annotations

import operator
from typing import Any

from torch import fx

from refold.errors import InputError
from refold.graph import Capture
from refold.onnx_files.constants import Constants
from refold.onnx_files.reading import DEFAULT, OnnxFile, attributes, title
from refold.onnx_files.sizes import Sizes
from refold.onnx_files.translation.functions import FUNCTIONS
from refold.onnx_files.translation.layers import LAYERS, biased_product, starts_linear
from refold.onnx_files.translation.network import Network, Origin, UnreadError, opaque, placeholders

_BUILDERS = {**LAYERS, **FUNCTIONS}
_SEVERAL = ("Split", "Dropout", "BatchNormalization")


def translate(file: OnnxFile, sizes: Sizes, constants: Constants) -> tuple[Network, Capture]:
    """Return a file's main graph, as it was read and as the fold passes edit it.

    Raises:
        InputError: when the file does not hold the numbers that it should.
    """
    network = Network(file, sizes, constants)
    placeholders(network)
    for node in file.nodes:
        if not _is_constant(network, node):
            _add(network, node)
    _sweep(network)
    return network, network.capture()


def _sweep(network: Network) -> None:
    """Drop what computed sizes for reshapes that know them: it would count as a reader."""
    for call in reversed(list(network.graph.nodes)):
        origin: Origin | None = call.meta.get("origin")
        if call.users or origin is None or call.op == "placeholder":
            continue
        made = {name for node in origin.nodes for name in node.output} | {origin.output}
        if made.intersection(network.readers) and not made.intersection(network.outputs):
            network.erase(call)


def _is_constant(network: Network, node: Any) -> bool:
    """Say whether no input decides what a node makes, and its numbers are known."""
    names = [name for name in node.output if name]
    return bool(names) and all(network.constants.value(name) is not None for name in names)


def _add(network: Network, node: Any) -> None:
    if starts_linear(network, node):
        return
    before = len(network.frame.nodes)
    reason: str | None = None
    try:
        value = _built(network, node)
    except UnreadError as error:
        value, reason = None, str(error)
    if value is None:
        for leftover in reversed(network.frame.nodes[before:]):
            network.erase(leftover)
        value = opaque(network, node)
    if reason is not None:
        network.unread[value] = reason
    nodes = network.merged.get(id(node), [node])
    names = [name for name in node.output if name]
    one = len(names) == 1 and node.output[0] == names[0]
    one = one or node.op_type == "Dropout"
    network.place(value, nodes, names[0] if one and names else None)
    if not one:
        for at, name in enumerate(node.output):
            if name:
                _part(network, value, at, name, node)


def _part(network: Network, value: fx.Node, at: int, name: str, node: Any) -> None:
    part = network.function(operator.getitem, (value, at))
    part.meta["origin"] = Origin((), (), name)
    part.meta["place"] = title(node)
    network.name(part, name)


def _built(network: Network, node: Any) -> fx.Node | None:
    """Return the call that a node is in torch's words, None where it is opaque."""
    if id(node) in network.merged:
        return biased_product(network, *network.merged[id(node)])
    builder = _BUILDERS.get(node.op_type) if node.domain in DEFAULT else None
    if builder is None or not any(map(network.is_value, node.input)):
        return None
    several = sum(bool(name) for name in node.output) > 1
    if several and node.op_type not in _SEVERAL:
        return None
    try:
        return builder(network, node, attributes(node))
    except (InputError, UnreadError):
        raise
    except Exception:  # a node that is not as its operator says: nothing is known of it
        return None

"""Write a chain where the old one stood: new layers in the places of old ones, which host them."""

from __future__ import annotations

from itertools import groupby
from operator import itemgetter

from torch import fx, nn

from refold.algebra.operator import Affine, Concat, Operator, Sum, chain, leaves
from refold.algebra.shapes import Shape, multiply_adds, shape_after
from refold.graph.calls import place_of
from refold.graph.copies.modules import submodule
from refold.graph.fold.asked_sizes import Asked, Sizes, size_of, starting
from refold.graph.fold.region import computes_nothing, node_of, nodes_of, source_of
from refold.graph.fold.result import Emitted, Result
from refold.graph.layers import Cropped
from refold.graph.lift.lifter import Lifter
from refold.graph.surgery.editor import Editor
from refold.graph.surgery.edits import alive

Hosts = list[tuple[Operator, fx.Node]]
"""The leaves of a new chain in order, each with the node whose place it takes or keeps."""


def find_hosts(lifter: Lifter, result: Result) -> Hosts | None:
    """Return the node each leaf goes to, in order; None when either expression is not a chain."""
    if not all(_is_plain(expression) for expression in (result.region.op, result.op)):
        return None
    if not _are_places(lifter, result):
        return None
    order = {node: i for i, node in enumerate(result.region.nodes)}
    at, hosts = -1, Hosts()
    for leaf in leaves(result.op):
        if result.is_new(leaf):
            made_of = nodes_of(leaf) - result.region.shared
            later = sorted((n for n in made_of if order[n] > at), key=order.__getitem__)
            node = next((n for n in later if _can_host(lifter, leaf, n)), None)
        else:
            node = node_of(leaf)
        goes_on = bool(hosts) and hosts[-1][1] is node and not result.is_new(leaf)
        if node is None or (order[node] <= at and not goes_on):
            return None
        at = order[node]
        hosts.append((leaf, node))
    return hosts


def _are_places(lifter: Lifter, result: Result) -> bool:
    """Say whether every layer that changes or goes has its place to itself."""
    kept = {result.region.origin(leaf) for leaf in leaves(result.op)}
    calls = lifter.capture.calls
    layers = (node for node in result.owners - kept if node.op == "call_module")
    return all(calls.get(str(node.target), 1) == 1 for node in layers)


def _is_plain(op: Operator) -> bool:
    return not any(isinstance(part, (Sum, Concat)) for part in chain(op))


def _can_host(lifter: Lifter, leaf: Operator, node: fx.Node) -> bool:
    if node.op != "call_module":
        return False
    module = submodule(lifter.capture.module, str(node.target))
    names = ("in_channels", "in_features")
    weighs = isinstance(module, Cropped) or any(hasattr(module, name) for name in names)
    return isinstance(leaf, Affine) or weighs


def check_chain(result: Result, hosts: Hosts, asked: Asked) -> None:
    """Refuse when somebody asks for a size that would change.

    Raises:
        RefusedError: naming the value.
    """
    if not asked.readers:
        return
    sizes: dict[Operator, Sizes] = {}
    size_of(result.op, sizes)
    [start] = result.region.inputs
    leaf_at = {node: leaf for leaf, node in hosts}
    left = starting(start)
    for node in result.region.nodes:
        if node in leaf_at:
            left = sizes[leaf_at[node]]
        if node in asked.readers and not asked.is_answered(node, left):
            does = "change" if node in leaf_at else "remove"
            raise asked.refusal(node, does)


def write_chain(
    lifter: Lifter, editor: Editor, result: Result, hosts: Hosts, modules: dict[Operator, nn.Module]
) -> Emitted:
    """Put the new layers into their hosts' places and bypass the other parts."""
    emitted = Emitted(place_of(result.region.root))
    for leaf, node in reversed(hosts):
        if result.is_new(leaf):
            editor.replace_module(node, modules[leaf])
            emitted.where = str(node.target)
    gone = result.owners - {node for _, node in hosts}
    gone |= {node for node in result.region.nodes if computes_nothing(lifter, node)}
    for node in result.region.nodes:
        if node in gone and alive(node):
            editor.bypass(node, source_of(lifter, node))
    for node, leaves_of in groupby(hosts, key=itemgetter(1)):
        shape = lifter.shapes.get(source_of(lifter, node))
        for leaf, _ in leaves_of:
            shape = _tell_shape(lifter, result, leaf, node, shape, emitted)
    return emitted


def _tell_shape(
    lifter: Lifter,
    result: Result,
    leaf: Operator,
    node: fx.Node,
    before: Shape | None,
    emitted: Emitted,
) -> Shape | None:
    after = shape_after(leaf, before)
    if after is not None:  # of kept layers too: what they read may have other channels now
        lifter.shapes[node] = after
    if result.is_new(leaf):
        emitted.macs.append(multiply_adds(leaf, before, after))
    return after

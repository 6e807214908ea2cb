"""Layouts in more nodes than they need: reshapes of reshapes, and slices that make up a split.

The last of several reshapes alone says what comes out, and it may be what went in.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator
from typing import Any, NamedTuple, cast

import torch
from torch import fx

from refold.graph import Capture, Fold, place_of
from refold.onnx_files.translation.network import Network, Origin

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
        if (origin := call.meta.get("origin")) is not None:
            origin.anew = True  # a 0 in its node means a size of what it read
        where = " + ".join(place_of(node) for node in (*reversed(gone), call))
        if is_same:
            call.replace_all_uses_with(source)
            gone.insert(0, call)
        for node in gone:
            network.erase(node)
        found.append(Fold(where, "drop what is undone", "reshape", 0, 0))
    return found


def join_slices(network: Network, capture: Capture) -> list[Fold]:
    """Let slices of a slice, along other axes, cut what that one cuts; return what went."""
    found = list[Fold]()
    cut_whole = [parts.calls[0].all_input_nodes[0] for parts in splits(network, capture)]
    for inner in list(capture.graph.nodes):
        if not _is_cut(inner) or inner in cut_whole or network.name_of(inner) in network.outputs:
            continue
        readers, source = list(inner.users), cast("fx.Node", inner.args[0])
        joined = [_both(inner, call) for call in readers]
        if not joined or None in joined or not network.name_of(source):
            continue
        for call, entries in zip(readers, joined, strict=True):
            call.args = (source, entries)
            origin: Origin = call.meta["origin"]
            origin.slots, origin.anew = ((0, network.name_of(source)),), True
        network.erase(inner)
        where = " + ".join(place_of(call) for call in (inner, *readers))
        found.append(Fold(where, "nodes into one", "slices", 0, 0))
    return found


def _is_cut(call: fx.Node) -> bool:
    """Say whether a call is a node of the file that slices a value."""
    entries = call.args[1] if call.target is operator.getitem else None
    is_cut = isinstance(entries, tuple) and any(entry != slice(None) for entry in entries)
    return is_cut and bool(call.meta["origin"].nodes)


def _both(inner: fx.Node, call: fx.Node) -> tuple[slice, ...] | None:
    """Return the entries of two slices as those of one, None where both cut one axis."""
    if not _is_cut(call):
        return None
    whole = slice(None)
    pairs = zip(*(cast("tuple[slice, ...]", c.args[1]) for c in (inner, call)), strict=True)
    entries = [(one if other == whole else other, whole in (one, other)) for one, other in pairs]
    return tuple(entry for entry, _ in entries) if all(plain for _, plain in entries) else None


class Parts(NamedTuple):
    """Slices of one value that lie side by side and leave nothing out.

    Args:
        calls: the slices in order.
        axis: along which they lie.
        sizes: of each.
    """

    calls: tuple[fx.Node, ...]
    axis: int
    sizes: tuple[int, ...]


def splits(network: Network, capture: Capture) -> Iterator[Parts]:
    """Yield the slices that could be one split."""
    for value in capture.graph.nodes:
        cuts: dict[int, list[fx.Node]] = {}
        for call in value.users:
            axis = _axis_of(call, value)
            if axis is not None:
                cuts.setdefault(axis, []).append(call)
        for axis, calls in cuts.items():
            if (parts := _parts(network, calls, axis)) is not None:
                yield parts


def _axis_of(call: fx.Node, value: fx.Node) -> int | None:
    """Return the one axis along which a call cuts a value, without steps."""
    if call.target is not operator.getitem or call.args[0] is not value:
        return None
    entries: Any = call.args[1]
    if not isinstance(entries, tuple) or not all(isinstance(e, slice) for e in entries):
        return None
    cut = [at for at, entry in enumerate(entries) if entry != slice(None)]
    return cut[0] if len(cut) == 1 and entries[cut[0]].step is None else None


def _parts(network: Network, calls: list[fx.Node], axis: int) -> Parts | None:
    ordered = sorted(calls, key=lambda call: _cut(call, axis).start or 0)
    ends = [0, *(_cut(call, axis).stop for call in ordered)]
    starts = [*(_cut(call, axis).start or 0 for call in ordered), None]
    if len(ordered) == 1 or starts != ends:
        return None
    shapes = [network.sizes.fixed(network.name_of(call)) for call in ordered]
    sizes = [shape[axis] for shape in shapes if shape is not None]
    known = tuple(size for size in sizes if size)
    return Parts(tuple(ordered), axis, known) if len(known) == len(ordered) else None


def _cut(call: fx.Node, axis: int) -> slice:
    return cast("tuple[slice, ...]", call.args[1])[axis]


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

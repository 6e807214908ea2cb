"""Slices of one layer's channels that a sum takes in again: a smaller layer.

`a, b = conv(x).chunk(2, 1); y = a + b` is a convolution whose weight is the sum of two.
"""

from __future__ import annotations

from functools import partial

from torch import fx

from refold.algebra.cost import work
from refold.algebra.operator import Conv, Select, leaves
from refold.graph.calls import place_of, readers
from refold.graph.fold.fold_pass import FoldPass
from refold.graph.fold.norms.takers import is_layer
from refold.graph.fold.region import Region, Regions, node_of


def add_slices(fold: FoldPass) -> bool:
    """Add slices of layers in the layers themselves; return whether any were."""
    for region in fold.look():
        layers = frozenset(value for value in region.inputs if _is_sliced(fold, region, value))
        if layers and fold.attempt([*layers, *region.nodes], partial(_add, fold, region, layers)):
            fold.editor.sweep()
            return True
    return False


def _is_sliced(fold: FoldPass, region: Region, value: fx.Node) -> bool:
    """Say whether a value is a layer's, of which nothing but a sum of this region reads slices."""
    slices = [leaf for leaf in leaves(region.op) if isinstance(leaf, Select)]
    inside, lifter = set(region.nodes), fold.lifter
    if len(slices) < 2 or not region.joins or not is_layer(lifter, value):
        return False
    others = (reader for reader in readers(value) if reader not in inside)
    reason, name = lifter.tainted.get(value), place_of(value)
    if (times := lifter.capture.calls.get(str(value.target), 1)) > 1:
        reason = f"{name} is called {times} times"
    elif read := ", ".join(map(place_of, others)):
        reason = f"the value of {name} is also read by {read}"
    if reason is not None:
        fold.keep(region.root, reason)
    return reason is None


def _add(fold: FoldPass, region: Region, layers: frozenset[fx.Node]) -> bool:
    """Write a region anew where every layer goes, and the new ones together do less."""
    whole = Regions(fold.lifter, layers).region(region.root)
    if whole is None or not layers.issuperset(whole.shared):
        return False
    shadow, replay = fold.decisions.stand_in(whole.op)
    rewrite = fold.decisions.rewrite(shadow)
    old = {node_of(leaf): leaf for leaf in whole.leaves if isinstance(leaf, Conv)}
    new = leaves(rewrite.op)
    if any(replay.real(leaf) in whole.leaves for leaf in new) or len(new) > len(old):
        return False
    if work(rewrite.op) > sum(map(work, old.values())):
        return False
    return fold.write(whole, rewrite, replay)

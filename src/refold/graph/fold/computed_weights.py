"""Weights that are computed from weights at every call: computed once, and stored in a layer.

Weight standardisation, assembled kernels and their like: nothing in them depends on the input.
"""

from __future__ import annotations

from dataclasses import replace
from functools import partial

from torch import fx

from refold.algebra.operator import Conv, Operator, chain, sequence
from refold.graph.calls import canonical
from refold.graph.fold.fold_pass import FoldPass
from refold.graph.fold.record import COMPUTED
from refold.graph.fold.region import Region, Regions
from refold.graph.lift.lifter import Lifter
from refold.graph.surgery.edits import alive


def store_weights(fold: FoldPass) -> None:
    """Give every call whose weight is computed from weights alone a layer that holds it."""
    computed = [node for node in fold.lifter.capture.graph.nodes if is_computed(fold.lifter, node)]
    for node in computed:
        if not alive(node):
            continue
        region = Regions(fold.lifter, chains=True).region(node)
        if region is not None:
            fold.attempt(region.nodes, partial(_store, fold, region))


def is_computed(lifter: Lifter, node: fx.Node) -> bool:
    """Say whether a call is a layer whose weight is computed, from parameters alone."""
    if node.op != "call_function":
        return False
    call = canonical(node)
    weight = None if call is None else call.arguments.get("weight")
    if not isinstance(weight, fx.Node) or weight.op in ("get_attr", "placeholder"):
        return False
    return lifter.tensor(weight) is not None


def _store(fold: FoldPass, region: Region) -> bool:
    def own(leaf: Operator) -> Operator:
        origin = region.origin(leaf)
        stored = origin is not None and is_computed(fold.lifter, origin) and isinstance(leaf, Conv)
        return replace(leaf) if stored else leaf

    return fold.put(region, sequence(*map(own, chain(region.op))), COMPUTED)

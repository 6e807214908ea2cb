"""Weights that several calls read, where one layer can stand for all of these calls.

An adapter with a magnitude scales the layer it adapts by a norm of that layer's own weight: the
weight is read by the layer and by its scale. Folded one by one, each would need a weight of its
own; folded together, there is one new weight in place of the old.
"""

from __future__ import annotations

from functools import partial

from torch import fx

from refold.algebra.operator import leaves
from refold.graph.calls import reads_shape_only
from refold.graph.fold.fold_pass import FoldPass
from refold.graph.fold.region import Region, Regions
from refold.graph.lift.piece import Piece


def merge_readers(fold: FoldPass) -> bool:
    """Fold the calls that read one stored tensor into one layer; return whether any were."""
    shared, done = _shared(fold), False
    if not shared:
        return False
    constants = fold.lifter.constants
    _join(fold, shared, shared)
    regions = _regions(fold, shared)
    for region in regions:
        nodes = set(region.nodes)
        inside = {path for path, readers in shared.items() if readers <= nodes}
        partly = {path for path, readers in shared.items() if readers & nodes} - inside
        _join(fold, shared, inside)
        if inside and not partly:
            done |= fold.attempt(region.nodes, partial(_merge, fold, region))
    constants.join(())
    _forget(fold, shared)
    return done


_Shared = dict[str, frozenset[fx.Node]]


def _shared(fold: FoldPass) -> _Shared:
    """Return the tensors that several calls read, all of which would be affine without that."""
    lifter = fold.lifter
    several = {p: found for p, found in lifter.constants.consumers().items() if len(found) > 1}
    if not several:
        return {}
    _join(fold, several, several)
    found = {
        path: readers
        for path, readers in several.items()
        if all(isinstance(lifter.lift(reader), Piece) for reader in readers)
    }
    _join(fold, several, ())
    return found


def _join(fold: FoldPass, shared: _Shared, paths: _Shared | set[str] | tuple[()]) -> None:
    fold.lifter.constants.join(paths)
    _forget(fold, shared)


def _forget(fold: FoldPass, shared: _Shared) -> None:
    for readers in shared.values():
        for reader in readers:
            fold.lifter.lifted.pop(reader, None)
    fold.edited()


def _regions(fold: FoldPass, shared: _Shared) -> list[Region]:
    """Return the regions that hold calls of one tensor, whoever else reads what these give."""
    readers = frozenset[fx.Node]().union(*shared.values())
    pushed = frozenset(node for node in readers if len(node.users) > 1)
    found = Regions(fold.lifter, pushed).largest()
    return [region for region in found if region.root not in pushed]


def _merge(fold: FoldPass, region: Region) -> bool:
    """Write a region anew where nothing of it is left."""
    inside = set(region.nodes)
    for node in region.shared:
        if any(user not in inside and not reads_shape_only(user, node) for user in node.users):
            return False
    shadow, replay = fold.decisions.stand_in(region.op)
    rewrite = fold.decisions.rewrite(shadow)
    kept = {replay.real(leaf) for leaf in leaves(rewrite.op)}
    if not kept.isdisjoint(region.leaves):
        return False
    done = fold.write(region, rewrite, replay)
    fold.editor.sweep()
    return done

"""The survey after folding: every candidate that is still there, and why."""

from __future__ import annotations

from collections.abc import Iterator

from torch import fx

from refold.algebra.operator import Affine, Operator, leaves
from refold.graph.calls import canonical, place_of
from refold.graph.copies.modules import submodule
from refold.graph.fold.fold_pass import FoldPass
from refold.graph.fold.leftovers import unread
from refold.graph.fold.record import Kept
from refold.graph.fold.region import Region, Regions, node_of
from refold.graph.fold.setbacks import cause
from refold.graph.fold.standstill import standstill
from refold.graph.surgery.edits import alive


def survey(fold: FoldPass) -> list[Kept]:
    """Return what was not folded: refusals, layers that must stay, norms without a partner."""
    regions = fold.regions
    kept: dict[str, Kept] = {}
    for node in fold.lifter.capture.graph.nodes:
        piece = regions.piece(node)
        if isinstance(piece, str) and node not in fold.refused:
            _keep(kept, Kept(fold.path(node), piece))
    for node in unread(fold.lifter):
        if node.op == "call_module":
            _keep(kept, Kept(fold.path(node), _UNREAD))
    for node, refused in fold.refused.items():
        if alive(node):
            _keep(kept, refused)
    for region in fold.largest:
        try:
            _survey_region(fold, regions, region, kept)
        except Exception as error:  # as where it was tried: no reason to fold nothing
            _keep(kept, Kept(fold.path(region.root), cause(error)))
    for node, reason in regions.reasons.items():
        _keep(kept, Kept(fold.path(node), reason))
    return list(kept.values())


def _survey_region(fold: FoldPass, regions: Regions, region: Region, kept: dict[str, Kept]) -> None:
    spoken: set[Operator] = set()
    if len(leaves(region.op)) > 1:
        decisions = fold.decisions_on(region)
        shadow, replay = decisions.stand_in(region.op)
        for refusal in decisions.rewrite(shadow).refusals:
            about = [replay.real(leaf) for leaf in refusal.operators]
            nodes = _nodes(about, region)
            if nodes:
                spoken.update(about)
                where = " + ".join(dict.fromkeys(place_of(node) for node in nodes))
                _keep(kept, Kept(fold.lifter.capture.full(where), refusal.reason, refusal.costlier))
    if region.joins:
        for node in _gates(regions, region):
            _keep(kept, Kept(fold.path(node), _GATED))
    for leaf in leaves(region.op):
        node = node_of(leaf)
        if isinstance(leaf, Affine) and leaf not in spoken and _is_norm(fold, node):
            if node in fold.refused:
                continue
            for item in standstill(fold, region, leaf):
                _keep(kept, item)


_UNREAD = "nobody reads what it gives; drop_unused=True leaves it out"
_GATED = "its branch is multiplied by a factor that is computed from the input"


def _gates(regions: Regions, region: Region) -> Iterator[fx.Node]:
    """Yield the products by which a branch of a sum fails to be affine as the others are."""
    starts = set(region.inputs)
    for node in region.inputs:
        call = canonical(node)
        if call is None or call.name not in ("mul", "div"):
            continue
        for factor in (call["input"], call["other"]):
            branch = regions.region(factor) if isinstance(factor, fx.Node) else None
            if branch is not None and starts.issuperset(branch.inputs) and branch.leaves:
                yield node
                break


def _nodes(about: list[Operator], region: Region) -> list[fx.Node]:
    found = [region.origin(leaf) for leaf in about]
    return [node for node in found if node is not None]


def _is_norm(fold: FoldPass, node: fx.Node) -> bool:
    if node.op == "call_module":
        module = submodule(fold.lifter.capture.module, str(node.target))
        return hasattr(module, "running_var")
    return "norm" in str(node.target)


def _keep(kept: dict[str, Kept], item: Kept) -> None:
    kept.setdefault(item.where, item)

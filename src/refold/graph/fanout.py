"""A norm that several layers read: folded into all of them, or into none."""

from __future__ import annotations

from dataclasses import dataclass

from torch import fx

from refold.algebra.operator import Affine, Operator, leaves
from refold.graph.fold import FoldPass, provenance
from refold.graph.piece import Piece
from refold.graph.region import Region, Regions
from refold.rules.engine import Rewrite, simplify
from refold.rules.replay import Replay


@dataclass(frozen=True, eq=False)
class _Push:
    region: Region
    rewrite: Rewrite
    replay: Replay


def push_into_readers(fold: FoldPass) -> bool:
    """Fold each scale and shift that several values read into all its readers; say whether any was.

    It is done only where every reader takes its copy in, so that nothing is computed twice.
    """
    plain = Regions(fold.lifter)
    for node in list(fold.lifter.capture.graph.nodes):
        piece = plain.piece(node)
        if not isinstance(piece, Piece) or len(piece.ops) != 1 or len(node.users) < 2:
            continue
        if isinstance(piece.ops[0], Affine) and node not in fold.lifter.tainted:
            pushes = _pushes(fold, plain, node)
            if pushes and _write(fold, node, pushes):
                return True
    return False


def _pushes(fold: FoldPass, plain: Regions, node: fx.Node) -> list[_Push]:
    """Return the readers' regions with the norm taken in; none when one of them cannot."""
    pushed = Regions(fold.lifter, frozenset({node}))
    pushes: list[_Push] = []
    covered: set[fx.Node] = set()
    for root in pushed.roots():
        region = pushed.region(root)
        if root is node or region is None or node not in region.nodes:
            continue
        replay = Replay()
        rewrite = simplify(replay.stand_in(region.op), allow_growth=fold.allow_growth)
        alone = plain.region(root)
        if alone is None or len(leaves(rewrite.op)) > len(leaves(alone.op)):
            return []
        covered.update(region.nodes)
        pushes.append(_Push(region, rewrite, replay))
    return pushes if set(node.users) <= covered else []


def _write(fold: FoldPass, node: fx.Node, pushes: list[_Push]) -> bool:
    """Write all regions; each first gets its own copy of the norm's place in the graph."""
    reals: list[Operator] = [push.replay.run(push.rewrite) for push in pushes]
    for push, real in zip(pushes, reals, strict=True):
        origin = provenance(push.region, push.rewrite, push.replay)
        if not fold.write(push.region, push.rewrite, real, origin):
            return False
    fold.editor.sweep()
    return True

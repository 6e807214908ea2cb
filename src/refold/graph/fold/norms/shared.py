"""Fold a norm that several layers read into all of them, or into none.

Between the norm and the layers may lie changes of layout and pools, themselves read several times:
the norm is carried through them to every layer at the end (a norm before the q, k and v of an
attention with pooled keys, for one).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

from torch import fx

from refold.algebra.operator import (
    Affine,
    AvgPool,
    Concat,
    Flatten,
    Input,
    Operator,
    Patches,
    Resample,
    Select,
    Sum,
    chain,
    leaves,
)
from refold.engine.ledger import Rewrite
from refold.engine.replay import Replay
from refold.errors import RefusedError
from refold.graph.calls import place_of, reads_shape_only
from refold.graph.fold.fold_pass import LAID_OUT, FoldPass
from refold.graph.fold.region import Region, Regions, computes_nothing, node_of
from refold.graph.fold.standstill import way_of
from refold.graph.lift.piece import Piece
from refold.rules import RULES, Rule
from refold.rules.commute import pass_affine_forward


@dataclass(frozen=True, eq=False)
class _Push:
    region: Region
    rewrite: Rewrite
    replay: Replay


def push_into_readers(fold: FoldPass) -> bool:
    """Fold norms that several layers read into all of these layers; return whether any was.

    It is done only where every reader takes its copy in, so that nothing is computed twice. What
    stays of the path to the readers stays one value for all of them.
    """
    readers: _Readers | None = None
    for region in fold.largest:
        path = _path_from_scale(fold, region)
        if path is None or len(set(region.root.users)) < 2:
            continue
        readers = readers or _Readers(fold.regions)
        if fold.attempt(path, partial(_push, fold, readers, path)):
            fold.editor.sweep()
            return True
    return False


def _push(fold: FoldPass, readers: _Readers, path: list[fx.Node]) -> bool:
    try:
        pushes = _plan(fold, readers, frozenset(path))
    except RefusedError as error:
        scale = next(node for node in path if not computes_nothing(fold.lifter, node))
        fold.keep(scale, f"not all of its readers take it in: {error}")
        return False
    return bool(pushes) and fold.write_all([(p.region, p.rewrite, p.replay) for p in pushes])


def _path_from_scale(fold: FoldPass, region: Region) -> list[fx.Node] | None:
    """Return the nodes from a region's last scale to its value, if all of them let it pass.

    A product with ones before it goes with it.
    """
    parts = chain(region.op)
    last = max((i for i, part in enumerate(parts) if isinstance(part, Affine)), default=None)
    if last is None or not all(_is_transparent(part) for part in parts[last + 1 :]):
        return None
    start = region.nodes.index(node_of(parts[last]))
    while start and computes_nothing(fold.lifter, region.nodes[start - 1]):
        start -= 1
    return list(region.nodes[start:])


def _is_transparent(op: Operator) -> bool:
    return isinstance(op, (Resample, AvgPool, Patches, Select, Flatten))


class _Readers:
    """Which affine nodes are made from a value, and where all nodes stand."""

    def __init__(self, regions: Regions) -> None:
        self.order = {node: at for at, node in enumerate(regions.lifter.capture.graph.nodes)}
        self.direct: dict[fx.Node, list[fx.Node]] = {}
        for node in self.order:
            piece = regions.piece(node)
            for source in piece.sources if isinstance(piece, Piece) else ():
                self.direct.setdefault(source, []).append(node)

    def after(self, values: frozenset[fx.Node]) -> list[fx.Node]:
        """Return the nodes whose regions may hold one of these values, in graph order."""
        pending, seen = list(values), set(values)
        while pending:
            more = [node for node in self.direct.get(pending.pop(), ()) if node not in seen]
            pending.extend(more)
            seen.update(more)
        return sorted(seen, key=self.order.__getitem__)


def _plan(fold: FoldPass, readers: _Readers, pushed: frozenset[fx.Node]) -> list[_Push]:
    """Return the readers' regions with the norm taken in.

    Raises:
        RefusedError: when one of them cannot take it.
    """
    while True:
        regions = Regions(fold.lifter, pushed)
        pushes: list[_Push] = []
        covered: set[fx.Node] = set(pushed)
        grown: set[fx.Node] = set()
        for region in regions.largest(readers.after(pushed)):
            if region.root in pushed or not region.shared:
                continue
            if not pushed.isdisjoint(region.inputs):  # it would still be needed as it is
                raise RefusedError(place_of(region.root))
            push = _take_in(fold, region)
            covered.update(region.nodes)
            if push is not None:
                pushes.append(push)
            elif _hands_on(region):
                grown.update(region.nodes)
            else:
                raise RefusedError(_why_not(fold, region))
        _check_covered(fold, pushed, covered)
        if not grown:
            return pushes if _agree(pushes) else []
        pushed = frozenset({*pushed, *(n for n in grown if _depends(n, pushed))})


def _take_in(fold: FoldPass, region: Region) -> _Push | None:
    """Return the region's rewrite when nothing is left of the scale that was pushed into it."""
    shadow, replay = fold.decisions.stand_in(region.op)
    rewrite = fold.decisions.rewrite(shadow, _rules(region))
    old = _own(region)
    kept = region.leaves.difference(old)
    new = [leaf for leaf in leaves(rewrite.op) if replay.real(leaf) not in kept]
    scales = [leaf for leaf in leaves(rewrite.op) if isinstance(leaf, Affine)]
    fits = len(new) <= len(old) and not any(replay.real(leaf) in kept for leaf in scales)
    return _Push(region, rewrite, replay) if fits and old else None


def _why_not(fold: FoldPass, region: Region) -> str:
    """Return which reader does not take the scale in, and what stands in the way where known."""
    scales = (leaf for leaf in leaves(region.op) if isinstance(leaf, Affine))
    pushed = (scale for scale in scales if node_of(scale) in region.shared)
    ways = (way_of(fold, region, scale, pass_affine_forward) for scale in pushed)
    why = next((way.met[1] for way in ways if way.met is not None), None)
    if why is None:
        shadow, _ = fold.decisions.stand_in(region.op)
        refusals = fold.decisions.rewrite(shadow, _rules(region)).refusals
        why = refusals[0].reason if refusals else None
    return place_of(region.root) + (f", since {why}" if why else "")


def _rules(region: Region) -> tuple[Rule, ...]:
    """Return what a reader may do for itself: windows that several read are laid out for all."""
    windows = (leaf for leaf in region.leaves if isinstance(leaf, Patches))
    return LAID_OUT if any(node_of(leaf) in region.shared for leaf in windows) else RULES


def _own(region: Region) -> list[Operator]:
    return [leaf for leaf in leaves(region.op) if node_of(leaf) not in region.shared]


def _hands_on(region: Region) -> bool:
    """Say whether a reader only lets the value pass, on to readers of its own."""
    return not region.joins and all(_is_transparent(part) for part in _own(region))


def _agree(pushes: list[_Push]) -> bool:
    """Say whether all readers want what stays of the path to be made of the same."""
    wanted: dict[fx.Node, _Steps] = {}
    for push in pushes:
        read = list(_steps_before(push, push.rewrite.op))
        nodes = [node for node, _ in read]
        if len(set(nodes)) < len(nodes):
            return False
        if any(wanted.setdefault(node, steps) != steps for node, steps in read):
            return False
        if any(step not in push.region.shared for _, steps in read for step in steps):
            return False
    return True


def _steps_before(push: _Push, op: Operator) -> Iterator[tuple[fx.Node, _Steps]]:
    """Yield each node of the path that stays, with the nodes it is now made through."""
    steps: _Steps = ()
    for part in chain(op):
        if isinstance(part, (Sum, Concat)):
            for branch in part.parts:
                yield from _steps_before(push, branch)
            steps = (None,)
        elif not isinstance(part, Input):
            node = push.region.origin(push.replay.real(part))
            if steps[-1:] == (node,) and node is not None:
                continue  # a call that does several things
            if node in push.region.shared:
                yield node, steps
            steps = (*steps, node)


_Steps = tuple[fx.Node | None, ...]
"""Nodes one after the other; None is something new."""


def _depends(node: fx.Node, pushed: frozenset[fx.Node]) -> bool:
    """Return whether a value is made from one of these."""
    pending, seen = [node], set[fx.Node]()
    while pending:
        current = pending.pop()
        if current in pushed:
            return True
        if current not in seen:
            seen.add(current)
            pending.extend(current.all_input_nodes)
    return False


def _check_covered(fold: FoldPass, pushed: frozenset[fx.Node], covered: set[fx.Node]) -> None:
    """Refuse a norm that something reads which is in no region."""
    for node in sorted(pushed):
        for user in node.users:
            if user not in covered and not reads_shape_only(user, node):
                why = fold.lifter.lift(user)
                held = f", since {why}" if isinstance(why, str) else ""
                raise RefusedError(place_of(user) + held)

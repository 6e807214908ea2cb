"""Scales in front of a ReLU, norms in front of a max pool: into every layer behind it, or none.

`x = sum(blocks) / 3` before a leaky ReLU and a convolution, as vocoders have it behind each of
their stages; convolution, ReLU, norm, max pool, linear layer.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from functools import partial

from torch import fx

from refold.algebra.operator import Affine, Conv, Flatten, Operator, Resample
from refold.errors import RefusedError
from refold.graph.calls import reads_shape_only
from refold.graph.fold.fold_pass import FoldPass
from refold.graph.fold.norms.behind_pools import Step, rises, step_of
from refold.graph.fold.norms.gains import is_view, path_to, taken_in
from refold.graph.fold.norms.takers import Taker, conv_of, is_layer, note
from refold.graph.fold.region import Regions
from refold.graph.lift.lifter import Lifter
from refold.graph.lift.piece import Piece
from refold.graph.trace.effects import may_alias, mutated

RULE = "norm through pool or function into readers"


@dataclass(eq=False)
class _Reached:
    """What reads a scaled value.

    Args:
        layers: each with the value that it, or the changes of layout before it, read.
        steps: the calls that the scale passes.
        views: the changes of layout behind these.
    """

    layers: dict[fx.Node, fx.Node] = field(default_factory=dict[fx.Node, fx.Node])
    steps: list[Step] = field(default_factory=list[Step])
    views: list[fx.Node] = field(default_factory=list[fx.Node])


def push_through_pools(fold: FoldPass) -> bool:
    """Give layers the norms before their pools and functions; return whether any took one in."""
    lifter = fold.lifter
    for node in list(lifter.capture.graph.nodes):
        piece = lifter.lift(node)
        if not isinstance(piece, Piece) or len(piece.sources) != 1 or piece.through:
            continue
        op = piece.ops[0]
        if not isinstance(op, Affine) or piece.by_rank or not rises(op):
            continue
        found = _reached(lifter, node)
        if found is None or not _lets_pass(lifter, piece, op, found):
            continue
        made = _made(fold, node, piece, op, found)
        parts = [node, *(step.node for step in found.steps), *found.views, *found.layers]
        if made and fold.attempt(parts, partial(_push, fold, node, piece, op, found, made)):
            return True
    return False


def _reached(lifter: Lifter, node: fx.Node) -> _Reached | None:
    """Return what reads a value through pools and functions, None where anything else does."""
    found, ends = _Reached(), {node: node}
    if not lifter.may_go(node):
        return None
    for value in (pending := [node]):
        for user in value.users:
            if reads_shape_only(user, value):
                continue
            if is_layer(lifter, user) and list(user.all_input_nodes) == [value]:
                found.layers[user] = ends[value]
                continue
            step = step_of(lifter, user) if ends[value] is value and lifter.may_go(user) else None
            if step is not None and step.source is value and step.repeats == 1:
                found.steps.append(step)
                ends[user] = user
            elif is_view(lifter, user) and lifter.may_go(user):
                found.views.append(user)
                ends[user] = ends[value]
            else:
                return None
            pending.append(user)
    return found if found.steps and found.layers else None


def _lets_pass(lifter: Lifter, piece: Piece, op: Affine, found: _Reached) -> bool:
    """Say whether the calls behind a norm give the same of what it reads, scaled and shifted."""
    if op.shift is not None and any(step.bends for step in found.steps):
        return False
    if not any(mutated(step.node) for step in found.steps):
        return True
    [source] = piece.sources  # changed in place now, where a value of its own was
    is_fresh = source.op not in ("placeholder", "get_attr") and not may_alias(source)
    return is_fresh and len(source.users) == 1


def _made(
    fold: FoldPass, node: fx.Node, piece: Piece, op: Affine, found: _Reached
) -> dict[fx.Node, Taker]:
    """Return what the layers become; nothing where one of them cannot take the norm in."""
    shape, regions = fold.lifter.shape(node), Regions(fold.lifter, frozenset(found.views))
    made = dict[fx.Node, Taker]()
    for layer, value in found.layers.items():
        try:
            path = path_to(regions, value, layer)
            if shape is None or _rank(path[0]) != len(shape) - 2:
                return {}
            if piece.rank_in not in (None, len(shape) - 2):
                return {}
            made[layer] = taken_in(fold, layer, op, path)
        except RefusedError:
            return {}
    return made


def _rank(op: Operator) -> int | None:
    """Return the spatial axes of what an operator reads."""
    if isinstance(op, Conv):
        return len(op.axes)
    if isinstance(op, Flatten):
        return len(op.size)
    return op.source_rank if isinstance(op, Resample) else None


def _push(
    fold: FoldPass,
    node: fx.Node,
    piece: Piece,
    op: Affine,
    found: _Reached,
    made: dict[fx.Node, Taker],
) -> bool:
    before = [conv_of(fold.lifter, layer) for layer in made]
    fold.editor.bypass(node, piece.sources[0])
    for layer, new in made.items():
        fold.editor.replace_module(layer, new.module)
    for step in found.steps:
        step.node.meta["rescaled"] = True
    after = (new.op for new in made.values())
    note(fold, RULE, [node, *made], [op, *before], after, at=[node], detail=list(made))
    return True

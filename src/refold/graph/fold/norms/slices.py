"""Norms of slices of a layer's output: into the layer, where no other slice has their channels.

The q, k and v of one projection, each with a norm of its own or none, are the usual case.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import fx

from refold.algebra.operator import Affine, Conv, Identity, Operator, Select
from refold.graph.calls import readers, reads_shape_only
from refold.graph.fold.fold_pass import FoldPass, is_handed_out
from refold.graph.fold.norms.takers import conv_of, holds, is_layer, note, taker
from refold.graph.lift.lifter import Lifter
from refold.graph.lift.piece import Piece

RULE = "norms of slices into layer"


@dataclass(frozen=True, eq=False)
class _Part:
    """A slice of a layer's channels, or the last copy of one, and the norm that alone reads it."""

    node: fx.Node
    op: Select
    norm: fx.Node | None = None
    scaled: Affine | None = None


def pull_from_slices(fold: FoldPass) -> bool:
    """Give layers the norms of their slices; return whether any took one in."""
    lifter, done = fold.lifter, False
    for layer in list(lifter.capture.graph.nodes):
        if not is_layer(lifter, layer) or len(layer.users) < 1:
            continue
        if holds(lifter, layer) is not None:
            continue
        parts = _parts(lifter, layer)
        taken = [part for part in parts if part.norm is not None and _is_alone(part, parts)]
        taken = list(_with_memory_of_their_own(fold, taken))
        if taken:
            nodes = [layer, *(n for part in taken for n in (part.node, part.norm) if n is not None)]
            done |= fold.attempt(nodes, partial(_pull, fold, layer, taken))
    return done


def _parts(lifter: Lifter, layer: fx.Node) -> list[_Part]:
    """Return the slices of a layer's channels; none where something else reads it."""
    rank, parts = len(conv_of(lifter, layer).axes), list[_Part]()
    whole = _last_copy(lifter, layer, rank)
    for slice_ in readers(whole):
        op = _at_rank(lifter, slice_, whole, rank)
        if not isinstance(op, Select) or slice_ in lifter.tainted:
            return []
        node = _last_copy(lifter, slice_, rank)
        norm = _reader(node)
        scaled = None if norm is None else _at_rank(lifter, norm, node, rank)
        if isinstance(scaled, Affine) and norm not in lifter.tainted:
            parts.append(_Part(node, op, norm, scaled))
        else:
            parts.append(_Part(node, op))
    return [] if layer in lifter.tainted else parts


def _last_copy(lifter: Lifter, node: fx.Node, rank: int) -> fx.Node:
    """Follow a value through copies and calls that leave it as it is, each its only reader."""
    reader = _reader(node)
    while reader is not None and reader not in lifter.tainted:
        if not isinstance(_at_rank(lifter, reader, node, rank), Identity):
            break
        node, reader = reader, _reader(reader)
    return node


def _reader(node: fx.Node) -> fx.Node | None:
    """Return the only call that reads a value, None where there are several or only its size."""
    user = next(iter(node.users)) if len(node.users) == 1 else None
    return None if user is None or reads_shape_only(user, node) else user


def _at_rank(lifter: Lifter, node: fx.Node, source: fx.Node, rank: int) -> Operator | None:
    """Return what a node does to maps of a rank, None where it reads more, or changes it."""
    piece = lifter.lift(node)
    if not isinstance(piece, Piece) or piece.join != "none" or piece.sources != (source,):
        return None
    if piece.by_rank is not None:
        made = piece.by_rank(rank)
        return made[0] if isinstance(made, tuple) and made[1] in (None, rank) else None
    return piece.ops[0] if piece.rank_in in (None, rank) else None


def _is_alone(part: _Part, parts: list[_Part]) -> bool:
    """Say whether no other slice has channels of this one, which has each of them once."""
    own = set(part.op.index)
    rest = (set(other.op.index) for other in parts if other is not part)
    return len(own) == len(part.op.index) and all(own.isdisjoint(other) for other in rest)


def _with_memory_of_their_own(fold: FoldPass, parts: list[_Part]) -> Iterator[_Part]:
    """Yield the parts after which no two results of the model lie in one tensor."""
    handed = False
    for part in parts:
        if part.norm is None or fold.shares_anew(part.norm, part.node):
            continue
        is_result = is_handed_out(part.norm)
        if not (is_result and handed):
            handed = handed or is_result
            yield part


def _pull(fold: FoldPass, layer: fx.Node, taken: list[_Part]) -> bool:
    conv = conv_of(fold.lifter, layer)
    made = taker(fold, conv, _whole(conv, taken))
    if made is None:
        return False
    norms = {part.norm: part for part in taken if part.norm is not None}
    fold.editor.replace_module(layer, made.module)
    for norm, part in norms.items():
        fold.editor.bypass(norm, part.node)
    before = [conv, *(part.scaled for part in taken if part.scaled is not None)]
    note(fold, RULE, [layer, *norms], before, [made.op], at=[layer])
    return True


def _whole(conv: Conv, taken: list[_Part]) -> Affine:
    """Return scale and shift of every channel of the layer: one and zero where no norm is."""
    count = taken[0].op.channels
    scale = conv.weight.new_ones(count, dtype=torch.float64)
    shift = torch.zeros_like(scale)
    for part in taken:
        assert part.scaled is not None
        places = list(part.op.index)
        if part.scaled.scale is not None:
            scale[places] = part.scaled.scale.to(scale)
        if part.scaled.shift is not None:
            shift[places] = part.scaled.shift.to(shift)
    return Affine(scale, shift)

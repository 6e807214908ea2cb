"""Branches that begin alike: their first convolutions are one, and each goes on from its slice."""

from __future__ import annotations

from dataclasses import dataclass

from refold.algebra.operator import (
    Concat,
    Conv,
    Input,
    Operator,
    Select,
    Sum,
    chain,
    leaves,
    sequence,
)
from refold.rules.channels import slices, stack
from refold.rules.rule import Outcome, rule


@dataclass(frozen=True, eq=False)
class _Branch:
    """A branch in parts: what it reads, which channels of it, its first layer and all others."""

    source: Input | None
    pick: Select | None
    head: Conv
    rest: tuple[Operator, ...]


@rule(
    "siblings",
    exact="always: first convolutions with one window read all channels, or a slice each",
    source="ResNeXt, arXiv:1611.05431, figure 3; Xception, arXiv:1610.02357, figures 2 and 3",
    undone_by="distribute_into_join",
)
def stack_heads(op: Operator) -> Outcome:
    """Convolutions that lead branches on one value are one, and the branches read its slices."""
    if not isinstance(op, (Sum, Concat)) or len({head_of(part) for part in op.parts}) > 1:
        return None
    branches = [branch for part in op.parts if (branch := _split(part)) is not None]
    if len(branches) < len(op.parts):
        return None
    read = [i for branch in branches if branch.pick for i in branch.pick.index]
    first = branches[0].pick
    if first is not None and read != list(range(first.channels)):
        return None
    heads = [branch.head for branch in branches]
    whole = stack(heads, groups=1 if first is None else sum(head.groups for head in heads))
    picks = slices(head.out_channels for head in heads)
    tails = (sequence(pick, *b.rest) for pick, b in zip(picks, branches, strict=True))
    source = [] if branches[0].source is None else [branches[0].source]
    return sequence(*source, whole, type(op)(tuple(tails)))


def head_of(branch: Operator) -> object:
    """Return what the branches have in common whose first convolutions may be one.

    None for a branch that is no more than one layer, or does not begin with such a convolution.
    """
    found = _split(branch)
    if found is None:
        return None
    head, source = found.head, found.source
    own = None if found.pick is None else (found.pick.channels, head.out_channels, head.groups)
    return (None if source is None else source.key), head.axes, head.mode, head.in_channels, own


def _split(op: Operator) -> _Branch | None:
    parts = chain(op)
    source = parts[0] if isinstance(parts[0], Input) else None
    body = parts if source is None else parts[1:]
    pick = body[0] if body and isinstance(body[0], Select) else None
    body = body if pick is None else body[1:]
    if len(body) < 2 or not isinstance(body[0], Conv) or not leaves(sequence(*body[1:])):
        return None
    head = body[0]
    fits = not head.transposed and head.axes and (head.groups == 1 or pick is not None)
    return _Branch(source, pick, head, body[1:]) if fits else None

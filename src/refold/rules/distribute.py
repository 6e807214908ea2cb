"""An operator after a join, given to each branch: the step that lets branches take it in."""

from __future__ import annotations

from dataclasses import replace
from itertools import accumulate, pairwise
from operator import itemgetter

from refold.algebra.operator import (
    Affine,
    AvgPool,
    Concat,
    Conv,
    Flatten,
    Identity,
    Input,
    Operator,
    Pad,
    Refusal,
    Select,
    Sequence,
    Sum,
    add,
    chain,
    linear_part,
    sequence,
)
from refold.algebra.row import Unflatten
from refold.rules.channels import stack_affines
from refold.rules.commute import pass_affine_forward
from refold.rules.rule import Outcome, refuse, rule
from refold.rules.weights import channels_into, regroup


@rule(
    "distribute",
    exact="always: the constant goes to one branch",
    source="A(x + y) + b = (Ax + b) + Ay",
)
def distribute_over_sum(op: Operator) -> Outcome:
    """An operator after a sum acts on each branch, its constant on the first that can take it."""
    match op:
        case Sequence((Sum(parts=branches), after)):
            return _over_sum(branches, after)
        case _:
            return None


@rule("distribute", exact="always", source="W [x; y] = W1 x + W2 y; diag(s, t) [x; y] = [s x; t y]")
def distribute_over_concat(op: Operator) -> Outcome:
    """An operator after a concatenation acts on each branch's channels."""
    match op:
        case Sequence((Concat(parts=branches), (Affine() | Conv() | Select()) as after)):
            return _over_concat(branches, after)
        case _:
            return None


@rule("distribute", exact="always", source="(A + B) C = AC + BC", undone_by="stack_heads")
def distribute_into_join(op: Operator) -> Outcome:
    """An operator before a sum or a concatenation is the first operator of each branch."""
    match op:
        case Sequence(
            ((Conv() | Affine() | AvgPool() | Pad()) as before, (Sum() | Concat()) as join)
        ):
            if any(_has_source(branch) for branch in join.parts):
                return None
            return type(join)(tuple(sequence(before, branch) for branch in join.parts))
        case _:
            return None


@rule(
    "distribute",
    exact="no shift meets zero padding, nor a transposed convolution",
    source="W [x; s y + t] = W diag(1, s) [x; y] + W [0; t]",
    undone_by="distribute_over_concat",
)
def gather_from_concat(op: Operator) -> Outcome:
    """Scales and shifts at the ends of branches are one of the whole that a convolution reads."""
    match op:
        case Sequence((Concat(parts=branches), Conv() as conv)):
            return _gathered(branches, conv)
        case _:
            return None


def _gathered(branches: tuple[Operator, ...], conv: Conv) -> Outcome:
    split = [_split_affine(branch) for branch in branches]
    if not any(end for _, end in split):
        return None
    passes = conv.is_pointwise or not (conv.zero_pads or conv.transposed)
    taken = [end if end is not None and (end.shift is None or passes) else None for _, end in split]
    if not any(taken):
        return refuse(
            "a shift meets the convolution's zero padding: at the border the padded zeros would "
            "have to be shifted too"
        )
    sizes = _sizes(branches, conv)
    if isinstance(sizes, Refusal):
        return sizes
    heads = (
        branch if end is None else head
        for branch, (head, _), end in zip(branches, split, taken, strict=True)
    )
    whole = stack_affines(sizes, [end or Identity() for end in taken])
    return sequence(Concat(tuple(heads)), whole, conv)


def _split_affine(branch: Operator) -> tuple[Operator, Affine | None]:
    """Return a branch without its last scale and shift, and these as they are at its end."""
    parts = list(chain(branch))
    at = max((i for i, part in enumerate(parts) if isinstance(part, Affine)), default=None)
    if at is None:
        return branch, None
    for i in range(at, len(parts) - 1):
        swapped = pass_affine_forward(Sequence((parts[i], parts[i + 1])))
        if not isinstance(swapped, Sequence):
            return branch, None
        parts[i : i + 2] = swapped.parts
    [*head, end] = parts
    return (sequence(*head), end) if isinstance(end, Affine) else (branch, None)


def _has_source(op: Operator) -> bool:
    if isinstance(op, (Sequence, Sum, Concat)):
        return any(_has_source(part) for part in op.parts)
    return isinstance(op, Input)


def channels_of(op: Operator) -> int | None:
    """Return the output channels of a branch, None when nothing in it tells."""
    for part in reversed(chain(op)):
        if isinstance(part, Conv):
            return part.out_channels
        if isinstance(part, Select):
            return len(part.index)
        if isinstance(part, Input):
            return part.channels
        if isinstance(part, Affine) and part.channels is not None:
            return part.channels
        if isinstance(part, (Flatten, Unflatten)):
            return None
        if isinstance(part, Sum):
            return next((n for n in map(channels_of, part.parts) if n is not None), None)
        if isinstance(part, Concat):
            sizes = [channels_of(branch) for branch in part.parts]
            return None if None in sizes else sum(n for n in sizes if n is not None)
    return None


def _over_sum(branches: tuple[Operator, ...], after: Operator) -> Operator:
    rest = linear_part(after)
    taker = next((i for i, b in enumerate(branches) if isinstance(chain(b)[-1], Conv)), 0)
    return add(*(sequence(b, after if i == taker else rest) for i, b in enumerate(branches)))


def _over_concat(branches: tuple[Operator, ...], after: Affine | Conv | Select) -> Outcome:
    sizes = _sizes(branches, after)
    if isinstance(sizes, Refusal):
        return sizes
    ends, total = list(accumulate(sizes, initial=0)), channels_into(after)
    if total is not None and ends[-1] != total:
        return None
    spans = list(pairwise(ends))
    if isinstance(after, Affine):
        cuts = (after.each(itemgetter(slice(*span))) for span in spans)
        return Concat(tuple(map(sequence, branches, cuts)))
    if isinstance(after, Select):
        return _select_spans(branches, spans, after)
    return _over_concat_conv(branches, spans, after)


def _sizes(branches: tuple[Operator, ...], after: Operator) -> list[int] | Refusal:
    """Return the channels of branches that an operator reads side by side."""
    sizes, total = [channels_of(branch) for branch in branches], channels_into(after)
    if sizes.count(None) == 1 and total is not None:
        known = sum(size for size in sizes if size is not None)
        sizes = [total - known if size is None else size for size in sizes]
    found = [size for size in sizes if size is not None]
    if len(found) < len(sizes):
        return refuse("the branches' numbers of channels are unknown; pass example_inputs")
    return found


def _over_concat_conv(
    branches: tuple[Operator, ...], spans: list[tuple[int, int]], conv: Conv
) -> Operator:
    weight = regroup(conv.weight, conv.groups, 1)
    parts: list[Operator] = []
    for i, (branch, (start, end)) in enumerate(zip(branches, spans, strict=True)):
        piece = weight[start:end] if conv.transposed else weight[:, start:end]
        bias = conv.bias if i == 0 else None
        parts.append(sequence(branch, replace(conv, weight=piece, bias=bias, groups=1)))
    return add(*parts)


def _select_spans(
    branches: tuple[Operator, ...], spans: list[tuple[int, int]], select: Select
) -> Outcome:
    """Return the branches chosen from, when the choice takes each in one run."""
    runs: list[tuple[int, list[int]]] = []
    for i in select.index:
        owner = next(b for b, (start, end) in enumerate(spans) if start <= i < end)
        local = i - spans[owner][0]
        if runs and runs[-1][0] == owner:
            runs[-1][1].append(local)
        else:
            runs.append((owner, [local]))
    if len(runs) > len(branches):
        return None
    parts = [
        sequence(branches[o], Select(tuple(index), spans[o][1] - spans[o][0])) for o, index in runs
    ]
    return parts[0] if len(parts) == 1 else Concat(tuple(parts))

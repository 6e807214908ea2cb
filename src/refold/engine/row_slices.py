"""Fold large linear layers on flattened maps a few rows at a time, and round each slice.

The matrix of a RepMLP holds hundreds of millions of numbers, the convolutions beside it a few
thousand. Each slice is scaled, given the taps that act in it and rounded, so only a few rows exist
in float64 beside the old and the new matrix.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from math import prod

import torch
from torch import Tensor

from refold.algebra.operator import (
    Affine,
    Conv,
    Identity,
    Input,
    Operator,
    Sequence,
    Sum,
    chain,
    made_of,
    sequence,
    wide,
)
from refold.algebra.row import Taps, Unflatten, size_after
from refold.engine.ledger import Rewrite
from refold.engine.memory import fresh
from refold.errors import GeometryError
from refold.rules.norm import scale_outputs
from refold.rules.parallel import add_convs, branches_as_convs, summands
from refold.rules.row import Host, host_of, without_source
from refold.rules.weights import per_channel, regroup

_WORTH_IT = 1 << 18  # smaller matrices are folded whole
_PER_SLICE = 1 << 19
_Parts = tuple[Operator, ...]


def fold_rows_in_slices(rewrite: Rewrite, op: Operator) -> Operator | None:
    """Return the real result of a rewrite, its matrix already rounded to the type of its parts.

    Args:
        rewrite: found on stand-ins of `op`.
        op: the real expression.

    Returns:
        None where the matrix is small, or takes in more than norms after it and convolutions.
    """
    found = host_of(chain(rewrite.op))
    if found is None or found.conv.weight.numel() < _WORTH_IT:
        return None
    whole, *tail = chain(op) if isinstance(op, Sequence) and isinstance(op.parts[0], Sum) else (op,)
    branches = [chain(branch) for branch in summands(whole)]
    arms = [(arm, branch) for branch in branches if (arm := _arm(branch)) is not None]
    if len(arms) != 1 or not all(isinstance(branch[0], Input) for branch in branches):
        return None
    arm, own = arms[0]
    same = arm.host.conv.weight.shape == found.conv.weight.shape
    rest = [*arm.host.parts, *tail]
    if not same or [type(p) for p in found.parts] != [type(p) for p in rest]:
        return None
    try:
        beside = _beside([branch for branch in branches if branch is not own], arm.host)
    except GeometryError:
        return None
    stays = (part for part in arm.host.parts if part is not arm.host.conv)
    merged = replace(_merged(arm, beside), made_of=made_of(whole) - made_of(*stays))
    return sequence(arm.host.around(merged), *tail)


@dataclass(frozen=True, eq=False)
class _Arm:
    """The branch with the matrix, and the scale and shift of each of its rows."""

    host: Host
    affine: Affine


def _arm(branch: _Parts) -> _Arm | None:
    host = host_of(tuple(part for part in branch if not isinstance(part, Affine)))
    if host is None or any(isinstance(part, Affine) for part in branch[: host.at + 1]):
        return None
    rows, repeat = host.conv.out_channels, 1
    whole = Conv(host.conv.weight[:, :0], host.conv.bias, host.conv.axes)
    scale = torch.ones(rows, dtype=torch.float64, device=whole.weight.device)
    for part in branch[host.at + 1 :]:
        if isinstance(part, Unflatten):
            repeat *= prod(part.size)
        elif isinstance(part, Affine):
            spread = Affine(*(_each(v, rows, repeat, scale) for v in (part.scale, part.shift)))
            whole = scale_outputs(whole, spread)
            scale = scale if spread.scale is None else scale * spread.scale
    return _Arm(host, Affine(scale, whole.bias))


def _each(vector: Tensor | None, rows: int, repeat: int, like: Tensor) -> Tensor | None:
    """Return one number for each row of the matrix."""
    if vector is None:
        return None
    return per_channel(vector, rows // repeat, like.device).repeat_interleave(repeat)


def _beside(branches: list[_Parts], host: Host) -> Conv | None:
    """Return the other branches as one convolution of the map, None where there are none.

    Raises:
        GeometryError: when they are not one, or would fill the matrix between its groups.
    """
    if not branches:
        return None
    chains = [without_source(branch) or (Identity(),) for branch in branches]
    source = branches[0][0]
    assert isinstance(source, Input)
    conv = add_convs(branches_as_convs(chains, source))
    if conv.groups % host.conv.groups or size_after(conv, host.size) != host.end:
        raise GeometryError("the convolutions do not fit into the matrix as it is laid out")
    weight = regroup(conv.weight, conv.groups, host.conv.groups)
    return replace(conv, weight=weight, groups=host.conv.groups)


def _merged(arm: _Arm, beside: Conv | None) -> Conv:
    old, shift = arm.host.conv, arm.affine.shift
    if beside is not None and beside.bias is not None:
        repeated = wide(beside.bias).repeat_interleave(prod(arm.host.end))
        shift = repeated if shift is None else shift + repeated
    weight = fresh(old.weight.shape, old.weight)
    assert arm.affine.scale is not None
    with torch.no_grad():
        _fill(weight, old.weight, arm.affine.scale, arm.host, beside)
    return replace(old, weight=weight, bias=shift)


def _fill(weight: Tensor, old: Tensor, scale: Tensor, host: Host, beside: Conv | None) -> None:
    """Write the scaled old matrix with the convolutions' taps added, computed in float64."""
    shape = (-1, *((1,) if beside is None else host.end), old.shape[1])
    new, source = weight.view(shape), old.reshape(shape)
    factors = scale.reshape(*new.shape[:-1], 1)
    taps = None if beside is None else Taps(beside)
    room = torch.empty(0, dtype=torch.float64, device=old.device)  # fresh memory is slow
    for at in _slices(new.shape):
        piece = new[at]
        if room.numel() < piece.numel():
            room = room.new_empty(piece.numel())
        total = room[: piece.numel()].view(piece.shape).copy_(source[at]).mul_(factors[at])
        if taps is not None:
            taps.add_to(total.unflatten(-1, (-1, *host.size)), at[0], at[1].start)
        piece.copy_(total)


def _slices(shape: torch.Size) -> Iterator[tuple[slice, slice]]:
    """Yield which channels, and which of their rows along the first axis, to do at a time."""
    channels, rows = shape[:2]
    each = prod(shape[2:])
    few = max(1, _PER_SLICE // (each * rows))
    some = rows if few > 1 else max(1, _PER_SLICE // each)
    for start in range(0, channels, few):
        for first in range(0, rows, some):
            yield slice(start, min(start + few, channels)), slice(first, min(first + some, rows))

"""Fold large kernels a few output channels at a time, and round each slice once it is computed.

A float64 copy of a large kernel costs more time in page faults than in arithmetic, and twice the
memory of the kernel. Most large folds only scale and add dense kernels, so every output channel can
be computed on its own.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from refold.algebra.geometry import Axes
from refold.algebra.operator import (
    Affine,
    Conv,
    Input,
    Operator,
    Sequence,
    chain,
    made_of,
    points,
    sequence,
)
from refold.engine.ledger import Rewrite
from refold.engine.memory import fresh
from refold.rules.norm import merge_affines, scale_outputs, scale_rows
from refold.rules.parallel import add_convs, summands, taps_within

_WORTH_IT = 1 << 18  # smaller weights are folded whole
_PER_SLICE = 1 << 18


def fold_in_slices(rewrite: Rewrite, op: Operator) -> Operator | None:
    """Return the real result of a rewrite, its weight already rounded to the type of its parts.

    Args:
        rewrite: found on stand-ins of `op`.
        op: the real expression.

    Returns:
        None where the rewrite is small, or does more than scale and add dense kernels.
    """
    parts = chain(rewrite.op)
    if len(parts) != 2 or not all(step.rule.by_channel for step in rewrite.steps):
        return None
    source, result = parts
    if not isinstance(source, Input) or not isinstance(result, Conv) or not _is_large(result):
        return None
    branches = summands(op)
    found = [_arm(branch) for branch in branches]
    arms = [arm for arm in found if arm is not None]
    leads = [arm.lead for arm in arms if arm.lead is not None]
    if len(arms) < len(found) or len({lead.weight.dtype for lead in leads}) != 1:
        return None
    shell = add_convs([arm.shell(result) for arm in arms])
    weight = _fill(arms, result, leads[0].weight)
    merged = replace(result, weight=weight, bias=shell.bias, made_of=made_of(op))
    return sequence(chain(branches[0])[0], merged)


def _is_large(conv: Conv) -> bool:
    return conv.groups == 1 and not conv.transposed and conv.weight.numel() >= _WORTH_IT


@dataclass(frozen=True, eq=False)
class _Arm:
    """A branch: a dense convolution, or None for the identity, and the scale and shift after it."""

    lead: Conv | None
    affine: Affine

    def shell(self, result: Conv) -> Conv:
        """Return the branch without its input channels: its bias and its window."""
        if self.lead is None:
            scale = self.affine.scale
            device = None if scale is None else scale.device
            empty = torch.empty(result.out_channels, 0, *(1,) * len(result.axes), device=device)
            return scale_outputs(Conv(empty, None, points(len(result.axes))), self.affine)
        return scale_outputs(replace(self.lead, weight=self.lead.weight[:, :0]), self.affine)

    def add_to(self, total: Tensor, rows: slice, whole: Axes) -> None:
        """Add output channels `rows` of the branch's kernel."""
        axes = points(len(whole)) if self.lead is None else self.lead.axes
        taps = total[taps_within(axes, whole)]
        scale = self.affine.scale
        if self.lead is not None:
            taps += self.rows(rows, None)
        else:
            centre = taps[(..., *(0,) * len(whole))].diagonal(rows.start)
            centre += 1.0 if scale is None else _pick(scale, rows)

    def rows(self, rows: slice, out: Tensor | None) -> Tensor:
        """Return output channels `rows` of the branch's own kernel in float64, in `out` if any."""
        assert self.lead is not None
        weight, scale = self.lead.weight[rows], self.affine.scale
        if scale is None:
            return weight.double() if out is None else out.copy_(weight)
        return scale_rows(weight, _pick(scale, rows), out)


def _arm(branch: Operator) -> _Arm | None:
    source, *rest = chain(branch)
    lead = rest[0] if rest and isinstance(rest[0], Conv) else None
    scales = [op for op in rest if isinstance(op, Affine)]
    dense = lead is None or (lead.groups == 1 and not lead.transposed)
    only = len(scales) + (lead is not None) == len(rest)
    if not isinstance(source, Input) or not dense or not only:
        return None
    merged: Operator = Affine()
    for affine in scales:
        outcome = merge_affines(Sequence((merged, affine)))
        merged = outcome if isinstance(outcome, Affine) else Affine()
    assert isinstance(merged, Affine)
    return _Arm(lead, merged)


def _fill(arms: list[_Arm], result: Conv, like: Tensor) -> Tensor:
    """Return the summed kernel in the type of `like`, computed in float64 slice by slice."""
    weight = fresh(result.weight.shape, like)
    first = next((arm for arm in arms if arm.lead and arm.lead.axes == result.axes), None)
    step = max(1, _PER_SLICE // result.weight[0].numel())
    room = weight.new_empty(step, *weight.shape[1:], dtype=torch.float64)  # fresh memory is slow
    with torch.no_grad():
        for start in range(0, result.out_channels, step):
            rows = slice(start, min(start + step, result.out_channels))
            piece, total = weight[rows], room[: rows.stop - start]
            total = total.zero_() if first is None else first.rows(rows, total)
            for arm in arms:
                if arm is not first:
                    arm.add_to(total, rows, result.axes)
            piece.copy_(total)
    return weight


def _pick(vector: Tensor, rows: slice) -> Tensor:
    return vector if vector.ndim == 0 else vector[rows]

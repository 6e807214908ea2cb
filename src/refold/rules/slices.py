"""Large kernels a slice at a time: a few output channels after another, rounded as they come.

Float64 copies of a whole large kernel cost more time in fresh memory than in arithmetic, and twice
the model in space. Most large folds only scale and add dense kernels, and there each output
channel can be computed by itself.
"""

from __future__ import annotations

from collections.abc import Generator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import replace

import torch
from torch import Tensor

from refold.algebra.operator import (
    Affine,
    Conv,
    Input,
    Operator,
    Sum,
    add,
    chain,
    points,
    sequence,
)
from refold.rules.engine import Rewrite
from refold.rules.norm import scale_outputs
from refold.rules.parallel import add_convs

_WORTH_IT = 1 << 18  # smaller weights are folded whole
_PER_SLICE = 1 << 17
_BY_CHANNEL = {"fold_affine_into_conv", "add_branches", "merge_affines"}


def fold_in_slices(rewrite: Rewrite, op: Operator) -> Operator | None:
    """Return the real result of a rewrite, its weight already rounded to the type of its parts.

    Args:
        rewrite: found on stand-ins of `op`.
        op: the real expression.

    Returns:
        None where the rewrite is small, or does more than scale and add dense kernels.
    """
    parts = chain(rewrite.op)
    if len(parts) != 2 or any(step.rule.name not in _BY_CHANNEL for step in rewrite.steps):
        return None
    source, result = parts
    if not isinstance(source, Input) or not isinstance(result, Conv) or not _is_large(result):
        return None
    whole = add(*op.parts) if isinstance(op, Sum) else op
    arms = [_arm(arm) for arm in (whole.parts if isinstance(whole, Sum) else (whole,))]
    kernels = [arm for arm in arms if arm is not None]
    leads = [lead for lead, _ in kernels if lead is not None]
    if len(kernels) < len(arms) or len({lead.weight.dtype for lead in leads}) != 1:
        return None
    lead = leads[0].weight
    weight = torch.empty(result.weight.shape, dtype=lead.dtype, device=lead.device)
    step = max(1, _PER_SLICE // result.weight[0].numel())
    starts = range(0, result.out_channels, step)

    def fill(start: int) -> Tensor | None:
        rows = slice(start, min(start + step, result.out_channels))
        with torch.no_grad():
            piece = add_convs(
                [_rows(arm, rows, result, lead.device) for arm in kernels], reuse=True
            )
            weight[rows] = piece.weight
        return piece.bias

    with _one_thread_each() as workers:
        biases = [bias for bias in workers.map(fill, starts) if bias is not None]
    return sequence(
        source, replace(result, weight=weight, bias=torch.cat(biases) if biases else None)
    )


@contextmanager
def _one_thread_each() -> Generator[ThreadPoolExecutor]:
    """Share slices out among threads that compute alone: threads in step wait for each other."""
    count = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        with ThreadPoolExecutor(count) as workers:
            yield workers
    finally:
        torch.set_num_threads(count)


def _is_large(conv: Conv) -> bool:
    return conv.groups == 1 and not conv.transposed and conv.weight.numel() >= _WORTH_IT


_Arm = tuple[Conv | None, tuple[Affine, ...]]


def _arm(branch: Operator) -> _Arm | None:
    """Return a branch as its dense convolution, None for the identity, and the scales after it."""
    source, *rest = chain(branch)
    lead = rest[0] if rest and isinstance(rest[0], Conv) else None
    scales = tuple(op for op in rest if isinstance(op, Affine))
    dense = lead is None or (lead.groups == 1 and not lead.transposed)
    only = len(scales) + (lead is not None) == len(rest)
    return (lead, scales) if isinstance(source, Input) and dense and only else None


def _rows(arm: _Arm, rows: slice, result: Conv, device: torch.device) -> Conv:
    """Return output channels `rows` of a branch."""
    lead, scales = arm
    conv = _identity_rows(rows, result, device) if lead is None else _conv_rows(lead, rows)
    for affine in scales:
        conv = scale_outputs(conv, Affine(_pick(affine.scale, rows), _pick(affine.shift, rows)))
    return conv


def _conv_rows(conv: Conv, rows: slice) -> Conv:
    bias = None if conv.bias is None else conv.bias[rows]
    weight = conv.weight[rows]
    return replace(
        conv, weight=weight.clone() if weight.dtype is torch.float64 else weight, bias=bias
    )


def _identity_rows(rows: slice, result: Conv, device: torch.device) -> Conv:
    eye = torch.zeros(
        rows.stop - rows.start, result.in_channels, dtype=torch.float64, device=device
    )
    eye.diagonal(rows.start).fill_(1)
    return Conv(eye.reshape(*eye.shape, *(1,) * len(result.axes)), None, points(len(result.axes)))


def _pick(vector: Tensor | None, rows: slice) -> Tensor | None:
    return vector if vector is None or vector.ndim == 0 else vector[rows]

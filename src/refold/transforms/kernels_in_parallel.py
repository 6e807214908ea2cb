"""Branches on one input: added, laid side by side, and kernels brought to one size."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from refold.algebra.geometry import Axis, Size, sizes
from refold.algebra.operator import Concat, Conv, Sum
from refold.errors import GeometryError, InputError
from refold.rules.channels import concat_branches as concat_rule
from refold.rules.parallel import add_branches as add_rule
from refold.rules.parallel import add_convs
from refold.transforms.operators import Branch, accepted, convolution, tensors


def add_branches(branches: Sequence[Branch], *, groups: int | Sequence[int] = 1) -> Branch:
    """Return convolutions on one input, added, as one (DBB II): W = W1 + W2, b = b1 + b2.

    Args:
        branches: (weight, bias) pairs; a missing bias is 0.
        groups: of all, or one number a branch; the result has their greatest common divisor.

    Shape:
        each weight (O, I/groups, *kernel) -> the same for the common groups.

    Raises:
        GeometryError: when kernels differ (bring them to one size with `multi_scale`).
        RefusedError: when channels differ.
        InputError: when there is no branch.

    Exact when:
        stride, padding and dilation are the same in all branches.

    Examples:
        >>> ones = torch.ones(1, 1, 1, 1)
        >>> weight, bias = add_branches([(ones, None), (ones, torch.ones(1))])
        >>> weight.item(), bias.item()
        (2.0, 1.0)

    Source: DBB, arXiv:2103.13425, Transform II.
    """
    convs = _convolutions(branches, groups)
    merged = convs[0] if len(convs) == 1 else accepted(add_rule(Sum(tuple(convs))), "add_branches")
    return tensors(merged, _dtype(branches))


def concat_branches(branches: Sequence[Branch], *, groups: int | Sequence[int] = 1) -> Branch:
    """Return convolutions on one input, their outputs side by side, as one convolution (DBB IV).

    Args:
        branches: (weight, bias) pairs; a missing bias is 0.
        groups: of all, or one number a branch; the result is dense, since a group's outputs would
            not stay neighbours.

    Shape:
        weights (O1, I/groups, *kernel), (O2, ...), ... -> (O1 + O2 + ..., I, *kernel).

    Raises:
        GeometryError: when kernels differ (bring them to one size with `multi_scale`).
        RefusedError: when the branches read different numbers of channels.
        InputError: when there is no branch.

    Exact when:
        stride, padding and dilation are the same in all branches.

    Examples:
        >>> first, second = torch.ones(2, 3, 1, 1), torch.ones(4, 3, 1, 1)
        >>> concat_branches([(first, None), (second, None)])[0].shape
        torch.Size([6, 3, 1, 1])

    Source: DBB, arXiv:2103.13425, Transform IV.
    """
    convs = _convolutions(branches, groups)
    merged = accepted(concat_rule(Concat(tuple(convs))), "concat_branches")
    return tensors(merged, _dtype(branches))


def multi_scale(weight: Tensor, kernel_size: Size, *, dilation: Size = 1) -> Tensor:
    """Return a kernel with zeros around it, centred in a larger one (DBB VI).

    Args:
        weight: of a convolution with any groups.
        kernel_size: of the larger kernel, whose dilation is 1.
        dilation: of the small kernel: its taps land that far apart.

    Shape:
        weight (O, I/groups, *kernel) -> (O, I/groups, *kernel_size).

    Raises:
        GeometryError: when the kernel does not fit, or cannot stand in the centre.

    Exact when:
        padding grows by half of what the kernel grew, axis by axis.

    Examples:
        >>> multi_scale(torch.ones(1, 1, 1, 3), (3, 3))[0, 0].tolist()
        [[0.0, 0.0, 0.0], [1.0, 1.0, 1.0], [0.0, 0.0, 0.0]]
        >>> multi_scale(torch.ones(1, 1, 2), 5, dilation=4).tolist()
        [[[1.0, 0.0, 0.0, 0.0, 1.0]]]

    Source: DBB, arXiv:2103.13425, Transform VI; dilated: UniRepLKNet, arXiv:2311.15599, section
    3.1.
    """
    ndim = weight.ndim - 2
    steps = sizes(dilation, ndim, "dilation")
    small = [Axis(k, dilation=d) for k, d in zip(weight.shape[2:], steps, strict=True)]
    large = sizes(kernel_size, ndim, "kernel_size")
    margins = [size - axis.span for axis, size in zip(small, large, strict=True)]
    if any(margin < 0 or margin % 2 for margin in margins):
        spans = tuple(axis.span for axis in small)
        raise GeometryError(
            f"a kernel that spans {spans} has no centred place in {large}: the difference must be "
            "even and at least 0"
        )
    inner = Conv(weight, None, tuple(small))
    rings = [margin // 2 for margin in margins]
    shell = weight.new_zeros(*weight.shape[:2], *large)
    outer = Conv(shell, None, tuple(Axis(k, lo=r, hi=r) for k, r in zip(large, rings, strict=True)))
    return add_convs([outer, inner]).weight.to(weight.dtype)


def _convolutions(branches: Sequence[Branch], groups: int | Sequence[int]) -> list[Conv]:
    if not branches:
        raise InputError("at least one branch (weight, bias) is required, got none")
    counts = (groups,) * len(branches) if isinstance(groups, int) else tuple(groups)
    if len(counts) != len(branches):
        raise GeometryError(f"{len(counts)} groups do not fit {len(branches)} branches")
    kernels = {tuple(weight.shape[2:]) for weight, _ in branches}
    if len(kernels) > 1:
        raise GeometryError(
            f"kernels differ: {sorted(kernels)}; bring them to one size with multi_scale"
        )
    return [convolution(w, b, g) for (w, b), g in zip(branches, counts, strict=True)]


def _dtype(branches: Sequence[Branch]) -> torch.dtype:
    return branches[0][0].dtype

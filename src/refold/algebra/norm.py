"""Batch norm in eval as a scale and a shift: the only place where this formula stands."""

from __future__ import annotations

import torch
from torch import Tensor

from refold.algebra.operator import Affine, wide
from refold.errors import RefusedError


def norm_affine(
    mean: Tensor | None,
    var: Tensor | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
) -> Affine:
    """Return the `Affine` of a norm with fixed statistics.

    s = weight / sqrt(var + eps); t = bias - s * mean, in float64.

    Shape:
        every tensor (C,); weight None means 1, bias None means 0.

    Raises:
        RefusedError: without running statistics.

    Examples:
        >>> op = norm_affine(torch.tensor([2.0]), torch.tensor([4.0]), None, None, 0.0)
        >>> op.scale.item(), op.shift.item()
        (0.5, -1.0)

    Source: Ioffe and Szegedy 2015, arXiv:1502.03167, Algorithm 2.
    """
    if mean is None or var is None:
        raise RefusedError("a norm without running statistics is not a fixed affine map")
    scale = torch.rsqrt(wide(var) + eps)  # torch.sqrt would wake a thread pool for a few channels
    scale = scale if weight is None else wide(weight) * scale
    shift = -scale * wide(mean)
    return Affine(scale, shift if bias is None else wide(bias) + shift)

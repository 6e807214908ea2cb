"""One operator after another: a norm, a kernel after a pointwise mix, an average."""

from __future__ import annotations

import torch
from torch import Tensor

from refold.algebra.apply import apply
from refold.algebra.geometry import Axis, Size, sizes
from refold.algebra.norm import norm_affine
from refold.algebra.operator import Affine, AvgPool, Pad, Sequence
from refold.errors import GeometryError, RefusedError
from refold.rules.norm import scale_outputs
from refold.rules.series import merge_convs_in_series
from refold.rules.weights import as_conv, regroup
from refold.transforms.operators import Branch, accepted, biased, convolution, tensors


def conv_bn(
    weight: Tensor,
    bias: Tensor | None,
    mean: Tensor,
    var: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    eps: float = 1e-5,
    groups: int = 1,
    transposed: bool = False,
) -> tuple[Tensor, Tensor]:
    """Return a convolution followed by an eval batch norm as one convolution (DBB I).

    W' = s W and b' = beta + s (b - mean), with s = gamma / sqrt(var + eps).

    Args:
        weight: of a convolution of any rank, or of a linear layer.
        bias: its bias, None for none.
        mean: the norm's running mean.
        var: the norm's running variance.
        gamma: the norm's weight, None for 1.
        beta: the norm's bias, None for 0.
        eps: the norm's own.
        groups: of the convolution; only a transposed one needs it.
        transposed: whether the weight is (I, O/groups, *kernel).

    Shape:
        weight (O, I/groups, *kernel); every vector (O,) -> the same two.

    Raises:
        GeometryError: when the channels do not fit.
        RefusedError: when there are no running statistics.

    Exact when:
        always, in eval mode: stride, padding and dilation stay the convolution's own.

    Examples:
        >>> one = torch.ones(1)
        >>> weight, bias = conv_bn(torch.ones(1, 1, 1, 1), None, one, 3 * one, one, one, eps=1.0)
        >>> weight.item(), bias.item()
        (0.5, 0.5)

    Source: DBB, arXiv:2103.13425, Transform I.
    """
    conv = convolution(weight, bias, groups, transposed=transposed)
    folded = scale_outputs(conv, _norm(mean, var, gamma, beta, eps))
    return biased(folded, weight.dtype)


def pointwise_then_kxk(
    weight1: Tensor,
    bias1: Tensor | None,
    weight2: Tensor,
    bias2: Tensor | None,
    *,
    groups: int = 1,
    padding: Size = 0,
) -> Branch:
    """Return a 1x1 convolution followed by a KxK one as one KxK convolution (DBB III).

    W[o, i] = sum over m of W2[o, m] W1[m, i]; b = b2 + sum over m and taps of W2[o, m] b1[m].

    Args:
        weight1: of the pointwise convolution, stride 1.
        bias1: its bias.
        weight2: of the convolution after it; its stride and dilation stay as they are.
        bias2: its bias.
        groups: of both.
        padding: zeros around the map *between* the two. Padding ahead of the first, and a ring of
            `bias1` between the two (as `bn_and_pad` makes it), count as 0 here and become the
            merged convolution's own padding.

    Shape:
        weight1 (M, I/groups, 1, ...), weight2 (O, M/groups, *kernel) -> (O, I/groups, *kernel).

    Raises:
        RefusedError: when a bias meets zero padding: the border would differ.
        GeometryError: when channels or groups do not fit.

    Exact when:
        `padding` is 0 or `bias1` is None.

    Examples:
        >>> one, kernel = torch.ones(1, 1, 1, 1), torch.ones(1, 1, 3, 3)
        >>> pointwise_then_kxk(one, torch.ones(1), kernel, None)[1].item()
        9.0

    Source: DBB, arXiv:2103.13425, Transform III.
    """
    ndim = weight2.ndim - 2
    if any(size != 1 for size in weight1.shape[2:]) or weight1.ndim != weight2.ndim:
        raise GeometryError(
            f"the first kernel must be 1 on {ndim} axes, got {tuple(weight1.shape[2:])}"
        )
    rings = sizes(padding, ndim, "padding")
    axes = tuple(Axis(k, lo=p, hi=p) for k, p in zip(weight2.shape[2:], rings, strict=True))
    first = convolution(weight1, bias1, groups)
    second = convolution(weight2, bias2, groups, axes=axes)
    merged = merge_convs_in_series(Sequence((first, second)))
    return tensors(accepted(merged, "pointwise_then_kxk"), weight2.dtype)


def avg_pool_to_conv(
    channels: int,
    kernel_size: Size,
    *,
    groups: int = 1,
    ndim: int = 2,
    device: torch.device | str | None = None,
    dtype: torch.dtype | None = None,
) -> Tensor:
    """Return the weight of the convolution that averages every window (DBB V).

    W[i, i] = 1 / (number of taps); stride and padding of the pool become the convolution's.

    Args:
        channels: that enter and leave.
        kernel_size: of the pool.
        groups: of the convolution: `channels` gives the fewest weights, 1 a dense kernel.
        ndim: spatial axes.
        device: of the weight.
        dtype: of the weight; torch's default where None.

    Shape:
        -> (channels, channels/groups, *kernel).

    Raises:
        GeometryError: when `groups` does not divide `channels`.

    Exact when:
        the pool counts its padding zeros (`count_include_pad=True`) and rounds sizes down
        (`ceil_mode=False`).

    Examples:
        >>> avg_pool_to_conv(2, 2)[:, :, 0, 0].tolist()
        [[0.25, 0.0], [0.0, 0.25]]

    Source: DBB, arXiv:2103.13425, Transform V.
    """
    if channels < 1 or groups < 1 or channels % groups:
        raise GeometryError(f"groups {groups} does not divide {channels} channels")
    pool = AvgPool(tuple(Axis(size) for size in sizes(kernel_size, ndim, "kernel_size")))
    conv = as_conv(pool, channels, ndim, torch.device(device or "cpu"))
    return regroup(conv.weight, channels, groups).to(dtype or torch.get_default_dtype())


def bn_and_pad(
    x: Tensor,
    mean: Tensor,
    var: Tensor,
    gamma: Tensor | None = None,
    beta: Tensor | None = None,
    *,
    padding: Size,
    eps: float = 1e-5,
) -> Tensor:
    """Return the eval norm of a map with a ring of what the norm makes of zero.

    It is the padding that a 1x1 convolution followed by a KxK one needs between the two: with it,
    the KxK convolution itself pads nothing, and `pointwise_then_kxk` is exact.

    Args:
        x: the map.
        mean: the norm's running mean.
        var: the norm's running variance.
        gamma: the norm's weight, None for 1.
        beta: the norm's bias, None for 0.
        padding: rings per axis.
        eps: the norm's own.

    Shape:
        x (N, C, *spatial); vectors (C,) -> (N, C, *spatial + 2 padding).

    Raises:
        RefusedError: when there are no running statistics.

    Examples:
        >>> x, one = torch.zeros(1, 1, 1), torch.ones(1)
        >>> bn_and_pad(x, 2 * one, one, padding=1, eps=0.0).tolist()
        [[[-2.0, -2.0, -2.0]]]

    Source: DBB, arXiv:2103.13425, section 3.3.
    """
    ndim = x.ndim - 2
    rings = sizes(padding, ndim, "padding")
    if any(ring < 0 for ring in rings):
        raise GeometryError(f"padding must be at least 0, got {padding}")
    pad = Pad(tuple((ring, ring) for ring in rings))
    return apply(Sequence((pad, _norm(mean, var, gamma, beta, eps))), x, ndim)


def _norm(
    mean: Tensor | None, var: Tensor | None, gamma: Tensor | None, beta: Tensor | None, eps: float
) -> Affine:
    if mean is None or var is None:
        raise RefusedError("the norm has no running statistics; it normalises with the batch")
    return norm_affine(mean, var, gamma, beta, eps)

"""The same convolution in another layout: fewer groups, or a plain matrix over the whole map."""

from __future__ import annotations

import torch
from torch import Tensor

from refold.algebra.geometry import Axis, Size, sizes
from refold.algebra.row import as_matrix
from refold.errors import GeometryError
from refold.rules.weights import regroup
from refold.transforms.operators import convolution


def densify_groups(weight: Tensor, groups: int, target: int = 1) -> Tensor:
    """Return a grouped weight as one of fewer groups, zeros between the old ones.

    Args:
        weight: of a convolution or a transposed convolution.
        groups: its groups.
        target: groups of the result.

    Shape:
        (A, B/groups, *kernel) -> (A, B/target, *kernel).

    Raises:
        GeometryError: when `groups` does not divide the channels, or `target` not `groups`.

    Exact when:
        always.

    Examples:
        >>> densify_groups(torch.ones(2, 1), 2).tolist()
        [[1.0, 0.0], [0.0, 1.0]]

    Source: DBB, arXiv:2103.13425, section 3.2 (groups).
    """
    if groups < 1 or target < 1 or groups % target:
        raise GeometryError(
            f"{groups} groups do not join into {target}: give a divisor of {groups}"
        )
    convolution(weight, None, groups)
    return regroup(weight, groups, target)


def conv_to_dense(
    weight: Tensor,
    bias: Tensor | None,
    input_size: Size,
    *,
    stride: Size = 1,
    padding: Size = 0,
    dilation: Size = 1,
    groups: int = 1,
    grouped: bool = False,
) -> tuple[Tensor, Tensor | None]:
    """Return a convolution on maps of one size as a matrix over flattened maps.

    Column j of the matrix is the convolution's answer to the j-th unit map; each bias stands once
    for every position.

    Args:
        weight: of the convolution.
        bias: its bias.
        input_size: spatial size of the maps.
        stride: of the convolution.
        padding: zeros on either side.
        dilation: of the convolution.
        groups: of the convolution.
        grouped: give the diagonal blocks only, ready as a 1x1 convolution of `groups` groups over
            flattened maps.

    Shape:
        weight (O, I/groups, *kernel) -> matrix (O * positions_out, I * positions_in), with
        `grouped` (O * positions_out, I/groups * positions_in); bias (O * positions_out,).

    Raises:
        GeometryError: when the kernel does not fit the map.

    Exact when:
        always, for maps of that size.

    Examples:
        >>> conv_to_dense(torch.ones(1, 1, 2), torch.ones(1), 3)
        (tensor([[1., 1., 0.],
                [0., 1., 1.]]), tensor([1., 1.]))

    Source: RepMLP, arXiv:2105.01883, section 3.3.
    """
    ndim = weight.ndim - 2
    size = sizes(input_size, ndim, "input_size")
    rows = zip(
        weight.shape[2:],
        sizes(stride, ndim, "stride"),
        sizes(dilation, ndim, "dilation"),
        sizes(padding, ndim, "padding"),
        strict=True,
    )
    axes = tuple(Axis(k, s, d, p, p) for k, s, d, p in rows)
    dense = as_matrix(convolution(weight, bias, groups, axes=axes), size, weight.dtype)
    matrix = dense.weight
    return (matrix if grouped else torch.block_diag(*matrix.chunk(groups))), dense.bias

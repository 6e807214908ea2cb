"""A norm ahead of a layer: its kernel is copied once, or kept where a gradient needs it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from refold.algebra.operator import Affine, Conv, Sequence
from refold.rules.norm import fold_affine_ahead_of_conv

ROWS, COLUMNS = 5, 3


class Kernels(TorchDispatchMode):
    """Counts the float64 results as large as the kernel, whose memory is new."""

    def __init__(self) -> None:
        super().__init__()
        self.made = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        is_new = all(returned.alias_info is None for returned in func._schema.returns)
        is_large = isinstance(result, Tensor) and result.numel() == ROWS * COLUMNS
        self.made += is_new and is_large and result.dtype == torch.float64
        return result


def norm_and_layer(*, transposed: bool, trains: bool = False) -> Sequence:
    shape = (COLUMNS, ROWS) if transposed else (ROWS, COLUMNS)
    weight, scale, shift = torch.randn(shape), torch.rand(COLUMNS), torch.randn(COLUMNS)
    scale, shift = scale.double(), shift.double()
    for tensor in (weight, scale, shift) if trains else ():
        tensor.requires_grad_()
    return Sequence((Affine(scale, shift), Conv(weight, transposed=transposed)))


@pytest.mark.parametrize("transposed", [False, True])
@torch.no_grad()
def test_a_kernel_behind_a_norm_is_copied_once(transposed: bool) -> None:
    op = norm_and_layer(transposed=transposed)
    with Kernels() as kernels:
        folded = fold_affine_ahead_of_conv(op)
    assert isinstance(folded, Conv)
    assert kernels.made == 1
    affine, conv = op.parts
    assert isinstance(affine, Affine)
    assert isinstance(conv, Conv)
    assert affine.scale is not None
    assert affine.shift is not None
    matrix, result = conv.weight.double(), folded.weight
    matrix, result = (matrix.T, result.T) if transposed else (matrix, result)
    torch.testing.assert_close(result, matrix * affine.scale)
    torch.testing.assert_close(folded.bias, matrix @ affine.shift)


@pytest.mark.parametrize("transposed", [False, True])
def test_gradients_go_back_through_the_answer_of_a_scaled_kernel(transposed: bool) -> None:
    op = norm_and_layer(transposed=transposed, trains=True)
    folded = fold_affine_ahead_of_conv(op)
    affine, conv = op.parts
    assert isinstance(folded, Conv)
    assert isinstance(affine, Affine)
    assert isinstance(conv, Conv)
    assert folded.bias is not None
    assert affine.shift is not None
    matrix = conv.weight.T if transposed else conv.weight
    [found] = torch.autograd.grad(folded.bias.sum(), affine.shift)
    torch.testing.assert_close(found, matrix.detach().double().sum(0))

"""What is told without computing it is what computing it gives."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from refold.algebra.arithmetic import plus, scale_in_place, scatter_add, side_by_side, times
from refold.algebra.operator import Resample
from refold.algebra.shapes import shape_after

A, B, N = torch.ones(4, 3, 2), torch.ones(3, 1), torch.ones((), dtype=torch.float64)
KINDS = [
    lambda to: plus(to(A), to(B)),
    lambda to: plus(to(B), to(A), to(A)),
    lambda to: plus(to(A.to(torch.complex64)), to(B.to(torch.complex64))),
    lambda to: times(to(N), to(B.double())),
    lambda to: times(to(B), to(A)),
    lambda to: scale_in_place(to(A), to(B)),
    lambda to: side_by_side([to(A), to(A[:1])]),
    lambda to: scatter_add(5, 1, torch.tensor([0, 4, 4]), to(A)),
]


@pytest.mark.parametrize("compute", KINDS)
def test_the_form_is_that_of_the_numbers(
    compute: Callable[[Callable[..., Tensor]], Tensor],
) -> None:
    told = compute(lambda tensor: tensor.to("meta"))
    ran = compute(lambda tensor: tensor.clone())
    assert told.is_meta
    assert (told.shape, told.dtype) == (ran.shape, ran.dtype)


POOLS: list[Any] = [
    nn.AdaptiveAvgPool2d(1),
    nn.AdaptiveAvgPool2d((None, 3)),
    partial(F.adaptive_avg_pool2d, output_size=(2, 5)),
    partial(torch.mean, dim=(-1, 2), keepdim=True),
    partial(torch.mean, dim=(2, 3)),
    nn.Upsample(scale_factor=2),
]


@pytest.mark.parametrize("pool", POOLS)
def test_a_pool_has_the_shape_that_it_gives(pool: Any) -> None:
    shape = (2, 3, 6, 5)
    told = shape_after(Resample(pool, 2), shape)
    assert told == tuple(pool(torch.zeros(shape)).shape)

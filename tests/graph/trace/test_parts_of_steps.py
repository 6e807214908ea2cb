"""A step that another run would not bear is made without the call that is at fault.

The oracle is the model itself in float64, on inputs that take either path.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from helpers.traps import EXACT, conv, gap, images, live, norms
from refold import plan


class Two(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.c1, self.b1 = conv(), nn.BatchNorm2d(4)
        self.c2, self.b2 = conv(kernel=1), nn.BatchNorm2d(4)


class OtherFactor(Two):
    def forward(self, x: Tensor) -> Tensor:
        y = self.b1(self.c1(x))
        y = y * 2 if x.shape[-1] > 100 else y * 3
        return self.b2(self.c2(x)) + y


class OneBranch(Two):
    def forward(self, x: Tensor) -> Tensor:
        y, z = self.b1(self.c1(x)), self.b2(self.c2(x))
        return y if x.shape[-1] > 100 else y + z


class MoreBehind(Two):
    """The sum could only be one layer in a forward without the branch behind it."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.b1(self.c1(x)) + self.b2(self.c2(x))
        return y.abs() if x.shape[-1] > 100 else y


class Lengths(nn.Module):
    """The mean of the part of each image that is no padding."""

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        if lengths is None:
            return x.mean((2, 3))
        parts = [x[i, :, :, : int(n * x.shape[-1])] for i, n in enumerate(lengths)]
        return torch.stack([part.mean((1, 2)) for part in parts])


class Pooled(Two):
    def __init__(self) -> None:
        super().__init__()
        self.pool = Lengths()

    def forward(self, x: Tensor, lengths: Tensor | None = None) -> Tensor:
        return self.pool(self.b1(self.c1(x)), lengths)


@pytest.mark.parametrize("kind", [OtherFactor, OneBranch, MoreBehind])
def test_the_norms_fold_on_either_side_of_a_branch(kind: type[nn.Module]) -> None:
    model = live(kind())
    for example in (images(1, 3, 6, 5), None):
        folded = plan(model, example).apply()
        assert norms(folded) == 0
        for side in (5, 120):
            assert gap(model, folded, images(2, 3, 4, side)) <= EXACT


def test_an_argument_whose_numbers_decide_is_tried() -> None:
    model = live(Pooled())
    folded = plan(model, images(2, 3, 6, 5)).apply()
    assert not isinstance(getattr(folded, "b1", None), nn.BatchNorm2d)
    for given in ((), (torch.tensor([0.5, 1.0]).double(),)):
        assert gap(model, folded, images(2, 3, 6, 9), *given) <= EXACT

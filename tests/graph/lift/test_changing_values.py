"""Values that change in place are read at their own time, before and after a fold."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

import refold


class Base(nn.Module):
    """Two convolutions and two live norms."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.c1, self.c2 = nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 1)
        self.b1, self.b2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)
        for norm in (self.b1, self.b2):
            nn.init.uniform_(norm.running_var, 0.5, 2.0)
            nn.init.normal_(norm.running_mean)
            nn.init.normal_(norm.weight)
            nn.init.normal_(norm.bias)


class ChangedBetweenBranches(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = x.exp()
        first = self.b1(self.c1(y))
        y.add_(1)
        return first + self.c2(y)


class ChangedAfterBranches(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = x.exp()
        first, second = self.b1(self.c1(y)), self.c2(y)
        y.mul_(2)
        return first + second + y


class ScaledBeforeTheChange(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = x.exp()
        doubled = y * 2
        y.mul_(3)
        return self.c1(doubled) + self.c2(y)


class NormChangedLater(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.b1(self.c1(x))
        before = self.c2(y).relu()
        y.mul_(3)
        return self.b2(y) + before


class ReadThroughTheOldName(Base):
    def forward(self, x: Tensor) -> Tensor:
        y = self.b1(self.c1(x))
        z = torch.relu_(y)
        return self.b2(y) + z


class Opaque(nn.Module):
    """A layer that no trace sees through and that changes what it is given."""

    def forward(self, x: Tensor) -> Tensor:
        if x.sum() > -1e9:
            x.mul_(2)
        return x.clone()


class NormGivenToUnseenCode(Base):
    def __init__(self) -> None:
        super().__init__()
        self.unseen = Opaque()

    def forward(self, x: Tensor) -> Tensor:
        y = self.b1(self.c1(x))
        return self.unseen(y) + y


NETS = (
    ChangedBetweenBranches,
    ChangedAfterBranches,
    ScaledBeforeTheChange,
    NormChangedLater,
    ReadThroughTheOldName,
    NormGivenToUnseenCode,
)


@pytest.mark.parametrize("net", NETS)
def test_the_answer_stays(net: type[Base], generator: torch.Generator) -> None:
    model = net().double().eval()
    x = torch.randn(2, 4, 5, 5, generator=generator).double()
    folded = refold.reparameterize(model, x, allow_growth=True)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("net", [n for n in NETS if n is not ScaledBeforeTheChange])
def test_a_norm_whose_value_changes_later_is_folded_into_what_made_it(net: type[Base]) -> None:
    folded = refold.reparameterize(net().eval(), torch.randn(2, 4, 5, 5))
    assert not isinstance(getattr(folded, "b1", None), nn.BatchNorm2d)


def test_reading_at_one_time_gives_another_answer(generator: torch.Generator) -> None:
    model = ChangedBetweenBranches().double().eval()
    y = torch.randn(2, 4, 5, 5, generator=generator).double().exp()
    naive = model.b1(model.c1(y)) + model.c2(y)
    assert (naive - model(y.log())).abs().max() > 0.01

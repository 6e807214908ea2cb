"""Parts without tensors (drop paths, containers of dropouts) that forward calls more than once.

The oracle is the model itself in float64. Parts that keep something between two calls are the
controls: to follow each call by itself would be wrong.
"""

from __future__ import annotations

from copy import deepcopy

import pytest
import torch
from torch import Tensor, nn

from helpers.traps import EXACT, WRONG, gap, images, live
from refold import plan, reparameterize


class DropPath(nn.Module):
    def forward(self, x: Tensor) -> Tensor:
        if not self.training:
            return x
        return x * (torch.rand(len(x), 1, 1, 1, dtype=x.dtype) > 0.5)


class Signed(nn.Module):
    def forward(self, x: Tensor, turned: bool = False) -> Tensor:
        return -x if turned else x


class Counts(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        return x * self.calls


class Remembers(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.before: Tensor | None = None

    def forward(self, x: Tensor) -> Tensor:
        if self.before is None or self.before.shape != x.shape:
            self.before = x.mean()
        return x - self.before


class Scaled(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((1,), 0.5))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.scale


class Net(nn.Module):
    def __init__(self, part: nn.Module, **given: bool) -> None:
        super().__init__()
        self.part, self.given = part, given
        self.one = nn.Conv2d(4, 4, 3, padding=1, bias=False)
        self.other = nn.Conv2d(4, 4, 1, bias=False)
        self.norm, self.norm2 = nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Tensor:
        first = self.norm(self.part(self.one(x)))
        return (first + self.norm2(self.part(self.other(x), **self.given))).relu()


def sequential() -> nn.Module:
    return nn.Sequential(nn.Identity(), nn.Dropout(0.5))


@pytest.mark.parametrize("kind", [DropPath, sequential])
def test_each_call_of_a_part_without_tensors_is_followed(kind: type[nn.Module]) -> None:
    net = live(Net(kind()))
    folded = reparameterize(net, images(2, 4, 6, 6))
    assert len([part for part in folded.modules() if isinstance(part, nn.Conv2d)]) == 1
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
    for size in ((6, 6), (7, 5), (1, 3)):
        assert gap(net, folded, images(2, 4, *size)) <= EXACT


def test_calls_with_other_arguments_are_other_functions() -> None:
    net, same = live(Net(Signed(), turned=True)), live(Net(Signed()))
    x = images(2, 4, 6, 6)
    folded = reparameterize(net, x)
    assert gap(net, folded, x) <= EXACT
    assert gap(same, folded, x) > WRONG


@pytest.mark.parametrize("kind", [Counts, Remembers, Scaled])
def test_a_part_that_keeps_something_stays_one(kind: type[nn.Module]) -> None:
    net = live(Net(kind()))
    kept = plan(net, images(2, 4, 6, 6)).kept
    assert {"norm", "norm2"} <= {where for entry in kept for where in entry.where.split(" + ")}
    old, new = deepcopy(net), reparameterize(net, images(2, 4, 6, 6))
    for seed in range(3):
        assert gap(old, new, images(2, 4, 6, 6, seed=seed)) <= EXACT


class Mlp(nn.Module):
    """One dropout behind both layers, as in the MLP of most vision transformers."""

    def __init__(self, drop: nn.Module) -> None:
        super().__init__()
        self.one, self.other, self.drop = nn.Linear(4, 8), nn.Linear(8, 4), drop

    def forward(self, x: Tensor) -> Tensor:
        return self.drop(self.other(self.drop(self.one(x).relu())))


@pytest.mark.parametrize("drop", [nn.Dropout(0.1), nn.LeakyReLU(1.0)])
def test_a_layer_that_does_nothing_goes_from_all_its_places(drop: nn.Module) -> None:
    net, x = live(nn.Sequential(Mlp(drop), nn.PReLU(init=1.0))), images(2, 5, 4)
    folded = reparameterize(net, x)
    assert not any(isinstance(part, type(drop)) for part in folded.modules())
    assert gap(net, folded, x) <= EXACT
    folded.train()
    assert gap(net, folded, x) <= EXACT


def test_a_layer_that_does_something_at_one_of_its_places_stays() -> None:
    net, x = live(Mlp(nn.ReLU())), images(2, 5, 4)
    folded = reparameterize(net, x)
    assert isinstance(folded.drop, nn.ReLU)
    assert gap(net, folded, x) <= EXACT


class Factor(nn.Module):
    def forward(self, x: Tensor, by: float = 1.0) -> Tensor:
        x = x * by
        return x if by == 1.0 else x * by


class Twice(nn.Module):
    """One call of its part is two scales, which become one; the other call stays."""

    def __init__(self) -> None:
        super().__init__()
        self.part = Factor()

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        y = x.exp()
        return self.part(y), self.part(y, by=-0.5)


@pytest.mark.parametrize("example", [None, images(1, 4, 8, 8)])
def test_a_part_is_called_on_where_one_call_of_it_is_written_anew(example: Tensor | None) -> None:
    net = live(Twice())
    made = plan(net, example)
    assert len(made.steps) == 1
    folded = made.apply()
    for size in (8, 5):
        assert gap(net, folded, images(2, 4, size, size)) <= EXACT
    x = images(1, 4, 3, 3)
    assert torch.equal(folded.part(x), net.part(x))

"""Numbers that a forward computes of sizes alone: it is recorded, and what they decide is known."""

from __future__ import annotations

import queue
from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from helpers.traps import images, live
from refold import plan
from refold.graph.trace.capture import capture_all

EXACT = 1e-9


def places(x: Tensor, dim: int = -1) -> Tensor:
    return torch.arange(x.shape[dim], device=x.device) + 1


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.other = nn.Conv2d(3, 4, 3, padding=1), nn.Conv2d(3, 4, 1)
        self.norm, self.last = nn.BatchNorm2d(4), nn.BatchNorm2d(4)


class AsksInOrder(Net):
    """The check of packed sequences in Hugging Face's models: never true of its own positions."""

    def forward(self, x: Tensor) -> Tensor:
        at = places(x)[None].expand(x.shape[0], -1)
        packed = (torch.diff(at, prepend=at[:, :1] - 1, dim=-1) != 1).cumsum(-1)
        y = self.last(self.norm(self.conv(x)) + self.other(x))
        return y if (packed[:, -1] == 0).all() else y * 2


class Branches(Net):
    """A norm that only wide inputs pass."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if places(x).sum() > 30:
            y = self.norm(y)
        return self.last(torch.relu(y + self.other(x)))


class Item(Net):
    """A factor made of a size, between a layer and its norm."""

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x) * places(x).max().item()))


class Whole(Net):
    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.norm(self.conv(x) + int(places(x, 2).sum()) * self.other(x)))


class Numel(Net):
    """A choice by how many numbers there are."""

    def forward(self, x: Tensor) -> Tensor:
        if bool(torch.tensor([2.0, 3.0], dtype=x.dtype).mul(x.numel()).max() > 700):
            return self.norm(self.conv(x))
        return self.norm(self.other(x)) + self.conv(x)


@pytest.mark.parametrize("make", [AsksInOrder, Branches, Item, Whole, Numel])
@pytest.mark.parametrize("side", [5, 9])
def test_the_fold_is_the_model_at_every_size(make: Callable[[], nn.Module], side: int) -> None:
    model = live(make())
    done = plan(model, images(2, 3, side, side))
    folded = done.apply()
    for shape in ((2, 3, 5, 5), (1, 3, 9, 7), (3, 3, 4, 12), (1, 3, 6, 3)):
        x = images(*shape)
        for _ in range(2):
            torch.testing.assert_close(folded(x), model(x), rtol=EXACT, atol=1e-12)


def test_the_check_of_positions_costs_no_fold() -> None:
    model = live(AsksInOrder())
    x = images(2, 3, 5, 5)
    [found] = capture_all(model, (x,)).captures
    assert found.path == ""
    folded = plan(model, x).apply()
    assert not [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]


def test_numbers_of_the_input_are_still_not_guessed() -> None:
    class Asks(Net):
        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.conv(x))
            return y if (places(x) * x.sum() > 0).all() else self.last(y)

    model = live(Asks())
    folded = plan(model, images(2, 3, 5, 5)).apply()
    for sign in (1, -1):
        x = sign * images(2, 3, 6, 5).abs()
        torch.testing.assert_close(folded(x), model(x), rtol=EXACT, atol=1e-12)


class Volume(nn.Module):
    """Makes a map of plain numbers, and passes a norm by where one side is long."""

    def __init__(self, axis: int) -> None:
        super().__init__()
        self.conv, self.norm, self.axis = nn.Conv3d(1, 2, 1), nn.BatchNorm3d(2), axis

    def forward(self, x: Tensor) -> Tensor:
        sides = [int(side) for side in x.shape[2:]]
        SIZES.put(torch.zeros(sides).numel())
        y = self.conv(x)
        return y if sides[self.axis] > 300 else self.norm(y)


SIZES: queue.SimpleQueue[int] = queue.SimpleQueue()  # a fold puts lists back as they were


@pytest.mark.parametrize("axis", range(3))
def test_a_long_side_is_tried_in_a_volume_that_fits(axis: int) -> None:
    model = live(Volume(axis))
    folded = plan(model, images(1, 1, 4, 4, 4)).apply()
    assert max(SIZES.get() for _ in range(SIZES.qsize())) <= 2048**2
    long = images(1, 1, *(301 if at == axis else 2 for at in range(3)))
    for x in (images(1, 1, 4, 4, 4), long):
        torch.testing.assert_close(folded(x), model(x), rtol=EXACT, atol=1e-12)


def test_a_convolution_whose_groups_are_a_size_stays_and_the_rest_folds() -> None:
    class Blur(Net):
        """A fixed filter on every channel, as anti-aliased networks write it."""

        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("filt", torch.ones(4, 1, 2, 2) / 4)

        def forward(self, x: Tensor) -> Tensor:
            y = torch.relu(self.norm(self.conv(x)))
            return torch.conv2d(y, self.get_buffer("filt"), groups=y.shape[1])

    model, x = live(Blur()), images(2, 3, 5, 5)
    done = plan(model, x)
    assert done.steps
    torch.testing.assert_close(done.apply()(x), model(x), rtol=EXACT, atol=1e-12)

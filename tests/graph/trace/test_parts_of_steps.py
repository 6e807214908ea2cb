"""A step that another run would not bear is made without the call at fault; nothing else stays.

The oracle is the model itself in float64, on inputs that take either path.
"""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

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


class Packs(nn.Module):
    """What packed sequences are made of is a class that looks at its tensors."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(3, 4, 3, padding=1), nn.BatchNorm1d(4)
        self.recurrent = nn.GRU(4, 5, batch_first=True)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        rows = self.norm(self.conv(x)).transpose(1, 2)
        packed = pack_padded_sequence(rows, lengths, batch_first=True)
        return pad_packed_sequence(self.recurrent(packed)[0], batch_first=True)[0]


def test_packed_sequences_are_followed() -> None:
    model, lengths = live(Packs()), torch.tensor([9, 6])
    folded = plan(model, (images(2, 3, 9), lengths)).apply()
    assert norms(folded) == 0
    for rows in (lengths, torch.tensor([7, 1])):
        assert gap(model, folded, images(2, 3, 9, seed=2), rows) <= EXACT


class Rows(nn.Module):
    """A convolution whose channels come last."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv1d(6, 4, 3), nn.BatchNorm1d(4)

    def forward(self, x: Tensor) -> Tensor:
        if x.shape[-1] != 6:
            raise RuntimeError("6 channels, last")
        return self.norm(self.conv(x.transpose(1, 2)))


def test_an_input_with_its_channels_last_is_made_up() -> None:
    assert norms(plan(live(Rows())).apply()) == 0


def test_a_reason_says_what_the_code_does_where_it_fails_without_storage() -> None:
    class Foreign(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = conv(), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            torch.from_dlpack(x)
            return self.norm(self.conv(x))

    [kept] = plan(live(nn.Sequential(Foreign()))).refusals[-1:]
    assert "no input that it takes could be made up; give example_inputs" in kept.reason


def test_a_function_that_is_mapped_has_a_reason_of_its_own() -> None:
    class Mapped(Two):
        def forward(self, x: Tensor) -> Tensor:
            return torch.vmap(lambda one: one * 2)(self.b1(self.c1(x)))

    [kept] = plan(live(Mapped()), images(2, 3, 6, 5)).refusals[:1]
    assert "transforms a function by torch.func or vmap" in kept.reason


class Columns(Two):
    def forward(self, x: Tensor, columns: np.ndarray) -> Tensor:
        y, z = self.b1(self.c1(x)).relu(), self.b2(self.c2(x))
        return y + z if x.shape[-1] < 100 else z[columns]


class Drops(nn.Module):
    """A fractal network's drop path: numbers that NumPy draws are handed to its parts."""

    def __init__(self) -> None:
        super().__init__()
        self.part = Columns()

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x, np.random.randint(0, 3, size=(int(x.size(0) * 0.5),)))


def test_an_argument_that_cannot_be_hashed_stops_no_fold() -> None:
    model = live(Drops())
    folded = plan(model, images(2, 3, 8, 8)).apply()
    assert not norms(folded)
    assert gap(model, folded, images(1, 3, 7, 9)) <= EXACT


class Draws(Two):
    """Names a function of Python's own library, which asks whether a number `is` 1."""

    def forward(self, x: Tensor) -> Tensor:
        drawn = random.randrange(3) if self.training else np.ones(x.size(0))
        return self.b1(self.c1(x)) * float(drawn.min())


def test_the_code_of_pythons_library_is_none_of_the_models() -> None:
    model = live(Draws())
    assert isinstance(plan(model, images(2, 3, 8, 8)).apply().b1, nn.Identity)

"""Flips, rolls and copies: norms pass them along places, and along channels they choose."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import pytest
import torch
from torch import Tensor, nn

import refold
from helpers.traps import gap, images, live

EXACT = 1e-12
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
CONVS = (nn.Conv1d, nn.Conv2d, nn.Conv3d)
Move = Callable[[Tensor], Tensor]


class Between(nn.Module):
    """A layer, a move, and a layer behind it."""

    def __init__(self, before: nn.Module, move: Move, behind: nn.Module) -> None:
        super().__init__()
        self.before, self.behind, self.move = before, behind, move

    def forward(self, x: Tensor) -> Tensor:
        return self.behind(self.move(self.before(x)))


def folded(model: nn.Module, x: Tensor) -> nn.Module:
    """Fold in float64; the result gives the same on the example and on another size."""
    result = refold.reparameterize(live(model), x)
    larger = torch.randn(*x.shape[:2], *(n + 2 for n in x.shape[2:]), dtype=x.dtype)
    for value in (x, torch.randn_like(x), larger):
        assert gap(model, result, value) < EXACT
    return result


def norms(model: nn.Module) -> int:
    return sum(isinstance(layer, NORMS) for layer in model.modules())


def maps(rank: int) -> Tensor:
    return images(2, 3, *(5, 4, 6)[:rank])


def places(rank: int) -> dict[str, Move]:
    every, twice = tuple(range(2, 2 + rank)), (1, 1, *(2,) * rank)
    return {
        "flip": lambda x: x.flip(-1),
        "flip of all": lambda x: torch.flip(x, every),
        "roll": lambda x: x.roll(2, -1),
        "roll of all": lambda x: torch.roll(x, every, every),
        "repeat": lambda x: x.repeat(twice),
        "tile": lambda x: torch.tile(x, twice),
        "each": lambda x: x.repeat_interleave(3, -1),
    }


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("name", places(1))
def test_norms_pass_a_move_of_places_into_the_layers_beside_it(name: str, rank: int) -> None:
    move, norm, conv = places(rank)[name], NORMS[rank - 1], CONVS[rank - 1]
    for groups in (1, 3):
        before = conv(3, 6, 3, padding=1, groups=groups)
        assert norms(folded(Between(before, move, norm(6)), maps(rank))) == 0
    for stride in (1, 2):
        behind = conv(3, 6, 3, stride=stride)
        assert norms(folded(Between(norm(3), move, behind), maps(rank))) == 0


def test_a_shift_that_meets_a_border_behind_the_move_stays() -> None:
    model = Between(nn.BatchNorm2d(3), lambda x: x.roll(1, 2), nn.Conv2d(3, 4, 3, padding=1))
    assert [kept.where for kept in refold.plan(live(model), maps(2)).kept] == ["before + behind"]
    assert norms(folded(model, maps(2))) == 1


def test_kernels_do_not_pass_what_turns_their_places() -> None:
    """A kernel that is not symmetric is another one behind a flip; a 1x1 is not."""
    for kernel, left in ((3, 2), (1, 1)):
        last = nn.Conv2d(4, 2, kernel)
        result = folded(Between(nn.Conv2d(3, 4, 2), lambda x: x.flip(-1), last), maps(2))
        assert sum(isinstance(layer, nn.Conv2d) for layer in result.modules()) == left


CHANNELS: dict[str, Move] = {"flip": lambda x: x.flip(1), "roll": lambda x: x.roll(-2, 1)}


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("name", CHANNELS)
def test_a_move_of_channels_is_a_choice_of_them(name: str, rank: int) -> None:
    model = Between(CONVS[rank - 1](3, 6, 3), CHANNELS[name], NORMS[rank - 1](6))
    result, x = folded(model, maps(rank)), maps(rank)
    [layer] = [layer for layer in result.modules() if isinstance(layer, CONVS)]
    torch.testing.assert_close(layer(x), result(x))
    assert norms(result) == 0


def twice(x: Tensor) -> Tensor:
    return x.repeat(1, 2, 1, 1)


@pytest.mark.parametrize("move", [twice, partial(torch.repeat_interleave, repeats=2, dim=1)])
def test_copies_of_channels_go_into_the_layer_that_reads_them(move: Move) -> None:
    result = folded(Between(nn.BatchNorm2d(3), move, nn.Conv2d(6, 4, 3)), maps(2))
    [conv] = [layer for layer in result.modules() if isinstance(layer, nn.Conv2d)]
    assert (norms(result), conv.in_channels) == (0, 3)


def test_rows_are_moved_along_their_places() -> None:
    model = live(Between(nn.Linear(3, 4), lambda x: x.roll((1, 2), (1, 2)), nn.Linear(4, 2)))
    x = images(2, 5, 7, 3)
    result = refold.reparameterize(model, x)
    assert sum(isinstance(layer, nn.Linear) for layer in result.modules()) == 1
    assert gap(model, result, x) < EXACT


APART: dict[str, Move] = {
    "along the batch": lambda x: x.flip(0),
    "along channels and places": lambda x: x.flip((1, 2)),
    "along all numbers": lambda x: x.roll(3),
    "the batch repeated": lambda x: x.repeat(2, 1, 1, 1),
    "some channels at some places": lambda x: x[:, [2, 0, 1, 3], 1:4:2],
}


@pytest.mark.parametrize("name", APART)
def test_other_moves_stay_apart(name: str) -> None:
    model = live(Between(nn.Conv2d(3, 4, 3), APART[name], nn.BatchNorm2d(4)))
    [kept] = refold.plan(model, maps(2)).kept
    assert "no neighbour takes it in" in kept.reason
    assert norms(folded(model, maps(2))) == 1


SOME: dict[str, Move] = {
    "from a place to another": lambda x: x[..., 1:5],
    "every second of these": lambda x: x[..., 1:6:2, ::2],
    "the last ones": lambda x: x[:, :, -4:],
    "all but one place of an axis": lambda x: x[..., 2, :],
    "a place, and some of an axis": lambda x: x[:, :, 1:4, 0],
}


@pytest.mark.parametrize("name", SOME)
def test_norms_pass_a_choice_of_places(name: str) -> None:
    x = images(2, 3, 8, 9)
    norm = nn.BatchNorm1d if SOME[name](x).ndim == 3 else nn.BatchNorm2d
    model = Between(nn.Conv2d(3, 3, 3, padding=1), SOME[name], norm(3))
    assert norms(folded(model, x)) == 0
    assert norms(folded(Between(nn.BatchNorm2d(3), SOME[name], nn.Identity()), x)) == 1


@pytest.mark.parametrize(("width", "left"), [(2, 1), (1, 2)])
def test_layers_before_and_behind_a_choice_are_one_where_that_costs_no_more(
    width: int, left: int
) -> None:
    model = Between(nn.Conv2d(4, width, 1), SOME["the last ones"], nn.Conv2d(width, 4, 1))
    layers = folded(model, images(2, 4, 8, 9)).modules()
    assert sum(isinstance(layer, nn.Conv2d) for layer in layers) == left


SCALES = {
    "bchw,c->bchw": (2, 3, 5, 4),
    "c,bchw->bchw": (2, 3, 5, 4),
    "blc,c->blc": (2, 5, 3),
    "...c,c->...c": (2, 4, 5, 3),
}


@pytest.mark.parametrize("equation", SCALES)
def test_an_einsum_that_sums_nothing_is_a_scale(equation: str) -> None:
    x, scale = images(*SCALES[equation]), nn.Parameter(torch.randn(3))
    layer = nn.Conv2d(3, 4, 3, padding=1) if "h" in equation else nn.Linear(3, 4)

    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.scale = layer, scale

        def forward(self, x: Tensor) -> Tensor:
            pair = (self.scale, x) if equation.startswith("c,") else (x, self.scale)
            return self.layer(torch.einsum(equation, *pair))

    model = live(Scaled())
    result = refold.reparameterize(model, x)
    assert [step.where for step in refold.plan(model, x).steps] == ["layer"]
    assert gap(model, result, x) < EXACT


@pytest.mark.parametrize("equation", ["bchw,h->bchw", "bchw,b->bchw"])
def test_an_einsum_that_scales_places_is_none(equation: str) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.layer, self.scale = nn.Conv2d(3, 4, 3), nn.Parameter(torch.randn(3))

        def forward(self, x: Tensor) -> Tensor:
            return self.layer(torch.einsum(equation, x, self.scale))

    assert not refold.plan(live(Scaled()), images(3, 3, 3, 5)).steps

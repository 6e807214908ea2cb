"""Values assigned to the slices of a new map: side by side, or left where they are not.

Oracle: the network itself in float64, at three sizes. Control: a concat of the values in the order
in which they are written is another function where slices are written from the last to the first.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

import refold
from helpers.nightly import some
from helpers.traps import EXACT, WRONG, live
from refold.graph.fold.record import Kept

Assign = Callable[[Tensor, Tensor, Tensor], Tensor]


class Net(nn.Module):
    """Two branches of six and two channels, a function that puts them into one map, a layer."""

    def __init__(self, assign: Assign, narrow: int = 2) -> None:
        super().__init__()
        self.a = nn.Sequential(nn.Conv2d(4, 6, 3, 1, 1, bias=False), nn.BatchNorm2d(6))
        self.b = nn.Sequential(nn.Conv2d(4, narrow, 3, 1, 1, bias=False), nn.BatchNorm2d(narrow))
        self.c, self.assign = nn.Conv2d(8, 4, 1), assign

    def forward(self, x: Tensor) -> Tensor:
        return self.c(self.assign(x, self.a(x), self.b(x)))


def image(*size: int) -> Tensor:
    noise = torch.Generator().manual_seed(sum(size))
    return torch.randn(2, 4, *size, dtype=torch.float64, generator=noise)


def convs(model: nn.Module) -> int:
    return sum(isinstance(part, nn.Conv2d) for part in model.modules())


def error(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / one.abs().max())


def fold(model: nn.Module) -> nn.Module:
    folded = refold.reparameterize(model, image(7, 8))
    with torch.no_grad():
        for size in ((7, 8), (9, 5), (3, 3)):
            assert error(model(image(*size)), folded(image(*size))) <= EXACT
    return folded


def first(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    y = x.new_empty(x.shape[0], 8, *x.shape[2:])
    y[:, :6], y[:, 6:] = a, b
    return y


def last_first(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    y = torch.zeros(x.size(0), 8, x.size(2), x.size(3), dtype=x.dtype, device=x.device)
    y[:, 6:8, ...] = b
    y[:, 0:6] = a
    return y


def copied(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    y = torch.empty((x.shape[0], 8, *x.shape[2:]), dtype=x.dtype, device=a.device)
    y.narrow(1, 0, 6).copy_(a)
    y[:, 6:].copy_(b)
    return y


def asked(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    y = a.new_zeros(a.shape[0], a.shape[1] + b.shape[1], *a.shape[2:])
    y[:, : a.shape[1]] = a
    y[:, a.shape[1] :] = b
    return y


def liked(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    y = torch.empty_like(torch.cat((x, x), 1))
    y[:, :6] = a
    y[:, 6:] = b
    return y


def from_the_end(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    y = x.new_empty(x.shape[0], 8, *x.shape[2:])
    y[:, :-2], y[:, -2:] = a, b
    return y


ASSIGNED = [first, last_first, from_the_end, copied, asked, liked]


@pytest.mark.parametrize("assign", some(ASSIGNED, keep=4))
def test_values_in_all_slices_are_side_by_side(assign: Assign) -> None:
    model = live(Net(assign))
    folded = fold(model)
    assert convs(folded) == 1
    assert "lay assigned slices side by side" in rules(model)


def rules(model: nn.Module) -> list[str]:
    return [step.rule for step in refold.plan(model, image(7, 8)).steps]


def test_the_order_is_that_of_the_slices() -> None:
    model = live(Net(last_first))
    as_written = live(Net(lambda x, a, b: torch.cat((b, a), 1)))
    as_written.load_state_dict(model.state_dict())
    x = image(7, 8)
    with torch.no_grad():
        assert error(model(x), as_written(x)) > WRONG


def gap(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    y = x.new_zeros(x.shape[0], 8, *x.shape[2:])
    y[:, :5], y[:, 6:] = a[:, :5], b
    return y


def overlap(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    y = x.new_zeros(x.shape[0], 8, *x.shape[2:])
    y[:, :6], y[:, 5:7], y[:, 7:] = a, b, b[:, :1]
    return y


def read_between(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    y = x.new_zeros(x.shape[0], 8, *x.shape[2:])
    y[:, :6] = a
    z = y * 2
    y[:, 6:] = b
    return y + z


def changed_between(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    y = x.new_zeros(x.shape[0], 8, *x.shape[2:])
    y[:, :6] = a
    a *= 2
    y[:, 6:] = b
    return y * a.mean()


def spread(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    y = x.new_zeros(x.shape[0], 8, *x.shape[2:])
    y[:, :6], y[:, 6:] = a, b.mean((2, 3), keepdim=True)
    return y


def typed(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
    y = x.new_zeros(x.shape[0], 8, *x.shape[2:], dtype=torch.float64)
    y[:, :6], y[:, 6:] = a, b
    return y


KEPT = {
    gap: "its slices do not follow on each other",
    overlap: "its slices do not follow on each other",
    read_between: "mul comes before the last of them is assigned",
    changed_between: "in place while setitem reads it",
    spread: "mean may be spread over its slice",
    typed: "a.1 may have another precision or device",
}


@pytest.mark.parametrize("assign", some(list(KEPT), keep=4))
def test_what_is_no_concat_stays(assign: Assign) -> None:
    """Gaps, overlaps, reads and changes in between, values spread, a type of its own."""
    model = live(Net(assign))
    assert convs(fold(model)) == 3
    assert "lay assigned slices side by side" not in rules(model)
    [reason] = (kept.reason for kept in kept_at(model, "new_zeros"))
    assert reason.startswith("what is assigned to its slices is not laid side by side: ")
    assert KEPT[assign] in reason


def kept_at(model: nn.Module, where: str) -> list[Kept]:
    return [kept for kept in refold.plan(model, image(7, 8)).kept if kept.where == where]


def test_one_channel_for_several_stays() -> None:
    model = live(Net(first, narrow=1))
    folded = refold.reparameterize(model, image(7, 8))
    assert convs(folded) == 3
    with torch.no_grad():
        assert error(model(image(5, 5)), folded(image(5, 5))) <= EXACT


def test_a_size_in_numbers_is_none_of_a_maps() -> None:
    """Maps of one position are spread over it."""
    model = live(Net(lambda x, a, b: joined(x.new_zeros(x.shape[0], 8, 7, 8), a, b)))
    folded = refold.reparameterize(model, image(7, 8))
    assert convs(folded) == 3
    with torch.no_grad():
        assert error(model(image(1, 1)), folded(image(1, 1))) <= EXACT


def joined(y: Tensor, a: Tensor, b: Tensor) -> Tensor:
    y[:, :6], y[:, 6:] = a, b
    return y


def test_code_of_its_own_that_joins_goes() -> None:
    class Join(nn.Module):
        def forward(self, x: Tensor, a: Tensor, b: Tensor) -> Tensor:
            return first(x, a, b)

    assert convs(fold(live(Net(Join())))) == 1


@pytest.mark.parametrize(
    ("axes", "example"), [((0,), (1, 4, 6, 6)), ((2, 3), (2, 4, 1, 1)), ((2, 3), (1, 4, 1, 1))]
)
def test_a_value_that_fits_the_example_alone_is_spread_elsewhere(
    axes: tuple[int, ...], example: tuple[int, ...]
) -> None:
    def assign(x: Tensor, a: Tensor, b: Tensor) -> Tensor:
        return first(x, a, b.mean(axes, keepdim=True))

    model = live(Net(assign))
    folded = refold.reparameterize(model, torch.randn(example, dtype=torch.float64))
    with torch.no_grad():
        for size in ((5, 7), (1, 1)):
            assert error(model(image(*size)), folded(image(*size))) <= EXACT

"""Sums that begin with zeros, and copies that the code changes in place afterwards.

The oracle is the model itself in float64, folded without a comparison; the control writes into the
value that was copied.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from helpers.traps import EXACT, WRONG, gap, images, live
from refold import reparameterize


class Net(nn.Module):
    """Three branches, and what adds them."""

    def __init__(self, run: Callable[..., Tensor]) -> None:
        super().__init__()
        self.run = run
        layers = (nn.Conv2d(4, 4, k, padding=k // 2, groups=2) for k in (1, 3, 5))
        self.branches = nn.ModuleList(nn.Sequential(c, nn.BatchNorm2d(4)) for c in layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x, *self.branches)


def in_place(x: Tensor, *branches: nn.Module) -> Tensor:
    total = torch.zeros(x.shape, dtype=x.dtype, device=x.device)
    for branch in branches:
        total += branch(x)
    return total.relu()


def new(x: Tensor, *branches: nn.Module) -> Tensor:
    b, c, h, w = x.shape
    total = x.new_zeros(b, c, h, w)
    for branch in branches:
        total = total - branch(x)
    return total.relu()


def read_again(x: Tensor, *branches: nn.Module) -> Tensor:
    first = branches[0](x).relu()
    total = torch.zeros(first.shape, dtype=x.dtype)
    total += first
    total += branches[1](first)
    return total * first


def no_branch(x: Tensor, *branches: nn.Module) -> Tensor:
    """MobileOne of timm: a branch that is absent is the number 0."""
    total = nn.Identity()(branches[0](x)) + 0
    for branch in branches[1:]:
        total += branch(x)
    return total.relu()


def calls(model: nn.Module, x: Tensor) -> list[str]:
    nodes = torch.export.export(model, (x,), strict=False).graph.nodes
    return [str(node.target) for node in nodes if node.op == "call_function"]


@pytest.mark.parametrize(
    ("run", "count"), [(in_place, 2), (new, 2), (no_branch, 2), (read_again, 4)]
)
def test_zeros_at_the_beginning_go(run: Callable[..., Tensor], count: int) -> None:
    net, x = live(Net(run)), images(2, 4, 6, 7)
    folded = reparameterize(net, x, check=False)
    assert len(calls(folded, x)) == count, calls(folded, x)
    for size in ((6, 7), (9, 5), (1, 2)):
        assert gap(net, folded, images(3, 4, *size)) <= EXACT


def wider(x: Tensor, *branches: nn.Module) -> Tensor:
    return (torch.zeros(x.shape) + branches[0](x)).relu()


def test_zeros_of_a_type_of_their_own_stay() -> None:
    """They widen half precision."""
    net, x = live(Net(wider)), images(2, 4, 6, 7)
    folded = reparameterize(net, x)
    assert "aten.zeros.default" in calls(folded, x)
    assert gap(net, folded, x) <= EXACT
    half = x.bfloat16()
    assert folded.bfloat16()(half).dtype == net.bfloat16()(half).dtype == torch.float32


def spread(x: Tensor, *branches: nn.Module) -> Tensor:
    total = x.new_zeros(1)
    for branch in branches:
        total = total + branch(x)
    return total


def of_one_size(x: Tensor, *branches: nn.Module) -> Tensor:
    total = x.new_zeros(2, 4, 8, 8)
    for branch in branches:
        total = total + branch(x)
    return total


def of_one_map(x: Tensor, *branches: nn.Module) -> Tensor:
    total = torch.zeros(x.shape[0], 4, 8, 8, dtype=x.dtype)
    return total + branches[0](x) + branches[1](x)


@pytest.mark.parametrize("run", [spread, of_one_size, of_one_map])
def test_zeros_that_may_spread_other_values_stay(run: Callable[..., Tensor]) -> None:
    """A single zero goes; a map of one position is spread over zeros of a size in numbers."""
    net, x = live(Net(run)), images(2, 4, 8, 8)
    folded = reparameterize(net, x)
    stays = any("zeros" in call for call in calls(folded, x))
    assert stays is (run is not spread)
    for other in (x, x[:1], x[..., :1, :1]):
        assert gap(net, folded, other) <= EXACT


def once_more(x: Tensor, *branches: nn.Module) -> Tensor:
    y = branches[0](x).relu()
    copy = y * 1
    copy.mul_(2)
    return copy * y


def from_zeros(x: Tensor, *branches: nn.Module) -> Tensor:
    y = branches[0](x).relu()
    copy = torch.zeros_like(y) + y
    copy.mul_(2)
    return copy * y


def added_in_place(x: Tensor, *branches: nn.Module) -> Tensor:
    y = branches[0](x).relu()
    copy = torch.zeros(y.shape, dtype=y.dtype)
    copy += y
    copy.mul_(2)
    return copy * y


def a_view_of_it(x: Tensor, *branches: nn.Module) -> Tensor:
    rows = branches[0](x).relu().flatten(1)
    copy = torch.zeros_like(rows.view(x.shape)) + rows.view(x.shape)
    copy.mul_(2)
    return copy + rows.view(x.shape).sigmoid()


def the_input(x: Tensor, *branches: nn.Module) -> Tensor:
    copy = torch.zeros_like(x) + x
    copy.mul_(2)
    return branches[0](copy).relu() * x


COPIES = (once_more, from_zeros, added_in_place, a_view_of_it, the_input)


@pytest.mark.parametrize("run", COPIES)
def test_a_copy_that_is_changed_in_place_stays_one(run: Callable[..., Tensor]) -> None:
    net, x = live(Net(run)), images(2, 4, 6, 7)
    folded = reparameterize(net, x.clone(), check=False)
    before = x.clone()
    assert gap(net, folded, x) <= EXACT
    folded(x)
    assert torch.equal(x, before)


def test_the_copy_left_out_carelessly_is_another_function() -> None:
    def careless(x: Tensor, *branches: nn.Module) -> Tensor:
        y = branches[0](x).relu()
        copy = y
        copy.mul_(2)
        return copy * y

    assert gap(live(Net(once_more)), live(Net(careless)), images(2, 4, 6, 7)) > WRONG


def test_a_norm_keeps_its_place_where_the_forward_is_written_anew() -> None:
    """Whoever asks for `model.norm` finds what does nothing, as where the forward stays."""

    class Begins(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(torch.zeros(*x.shape, dtype=x.dtype) + x))

    net = live(Begins())
    folded = reparameterize(net, images(1, 3, 8, 8))
    assert isinstance(folded.norm, nn.Identity)
    assert gap(net, folded, images(2, 3, 5, 9)) <= EXACT

"""What a caller gets shares memory with an input or another result only where it always did."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import refold
from refold.graph import storage_key

X = torch.randn(2, 4, 5, 6, generator=torch.Generator().manual_seed(0)).double()


class Net(nn.Module):
    def __init__(self, run: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.run, self.drop = run, nn.Dropout()

    def forward(self, x: Tensor) -> Any:
        return self.run(x)


def chunked(x: Tensor) -> Any:
    y = x.exp()
    return y, torch.cat([y, x.cos()], 1).chunk(2, 1)[0]


def viewed(x: Tensor) -> Any:
    y = x.exp()
    return y[:, 1:], torch.cat([y, x.cos()], 1).chunk(2, 1)[0].flatten(2)


def sliced_input(x: Tensor) -> Any:
    return torch.cat([x, x + 1], 1)[:, :4]


def nothing_added(x: Tensor) -> Any:
    y = x.exp()
    return y, y + 0


def times_one(x: Tensor) -> Any:
    y = x.exp()
    return y, (y * 1)[:, :2]


def idle_relu(x: Tensor) -> Any:
    y = x.relu()
    return y, F.relu(y)


def turned_twice(x: Tensor) -> Any:
    y = x.exp()
    return y, y.transpose(1, 2).transpose(1, 2)


def idle_inplace(x: Tensor) -> Any:
    y = x.relu()
    return F.relu(y, inplace=True), 2 * x


def unread(x: Tensor) -> Any:
    y = x.exp()
    return y + 0, F.relu(y.relu())


def shared(results: Any, x: Tensor) -> list[list[bool]]:
    values = [x, *(results if isinstance(results, tuple) else (results,))]
    keys = [storage_key(value) for value in values]
    return [[one == two for two in keys] for one in keys]


CASES = (
    chunked, viewed, sliced_input, nothing_added, times_one, idle_relu, turned_twice, idle_inplace,
    unread,
)  # fmt: skip


@pytest.mark.parametrize("run", CASES)
def test_results_share_what_they_shared(run: Callable[[Tensor], Any]) -> None:
    net = Net(run).eval()
    folded = refold.reparameterize(net, X)
    x, y = X.clone(), X.clone()
    wanted, found = net(x), folded(y)
    assert shared(found, y) == shared(wanted, x)
    torch.testing.assert_close(found, wanted, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("run", [unread, idle_inplace])
def test_what_the_caller_cannot_tell_apart_still_goes(run: Callable[[Tensor], Any]) -> None:
    assert refold.plan(Net(run).eval(), X).steps


class Picked(nn.Module):
    """Picks all channels in their order, twice: a list of indices copies."""

    order: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 2, 1).double()
        self.register_buffer("order", torch.arange(2))

    def forward(self, x: Tensor) -> Any:
        y = self.conv(x)
        return y[:, self.order][:, self.order], y


def test_channels_picked_twice_stay_a_copy() -> None:
    net = Picked().eval()
    assert shared(refold.reparameterize(net, X)(X), X) == shared(net(X), X)


class Halves(nn.Module):
    """Returns one half of a layer's channels, and the other one scaled and shifted."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(4, 4, 1).double()

    def forward(self, x: Tensor) -> Any:
        first, second = self.conv(x).chunk(2, 1)
        return second * 0.5 + 0.1, first


def test_a_scaled_half_stays_a_tensor_of_its_own() -> None:
    net = Halves().eval()
    assert shared(refold.reparameterize(net, X)(X), X) == shared(net(X), X)


def test_the_reason_is_told() -> None:
    [kept] = [kept for kept in refold.plan(Net(chunked).eval(), X).kept if "memory" in kept.reason]
    assert kept.reason == "the result would share its memory with an input or with another result"

"""Pruning down to a share of the time, with clocks that count instead."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import refold
from refold.errors import InputError, RefusedError
from refold.pruning import Pruning, pruning
from refold.workload import workload_of

X = torch.randn(1, 3, 12, 12, generator=torch.Generator().manual_seed(1))


def chain() -> nn.Sequential:
    """Return a chain whose channels all differ in worth."""
    torch.manual_seed(0)
    layers: list[nn.Module] = []
    for before, after in ((3, 32), (32, 64), (64, 64)):
        norm = nn.BatchNorm2d(after)
        nn.init.normal_(norm.weight)
        norm.running_var.uniform_(0.5, 1.5)
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), norm, nn.ReLU()]
    return nn.Sequential(*layers, nn.Conv2d(64, 5, 1)).eval()


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.body = nn.Conv2d(3, 16, 1), chain()[:3]
        self.body[0] = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.body[1] = nn.BatchNorm2d(16)
        self.head = nn.Conv2d(16, 4, 1)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        y = self.stem(x).relu()
        return self.head((y + self.body(y)).relu())


def counted(first: nn.Module, second: nn.Module) -> float:
    """Return the share of the multiply-adds, as a runtime without any overhead would."""
    return (workload_of(second, X).macs or 0) / (workload_of(first, X).macs or 1)


def left(done: Pruning) -> float:
    return (done.cost_after.macs or 0) / (done.cost_before.macs or 1)


@pytest.mark.parametrize("share", [0.7, 0.4])
@pytest.mark.parametrize("step", [1, 8])
def test_so_much_is_dropped_that_the_clock_is_content(share: float, step: int) -> None:
    done = pruning(chain(), X, latency=share, clock=counted, round_to=step)
    assert share - 0.15 < left(done) <= share
    with torch.no_grad():
        wanted, found = done.masked(X), done.model(X)
    assert float((wanted - found).abs().max() / wanted.abs().max()) <= 1e-5


def test_a_clock_of_its_own_decides() -> None:
    """Where time falls with the root of the work, more has to go than by counting."""
    rooted = pruning(chain(), X, latency=0.7, clock=lambda a, b: counted(a, b) ** 0.5, round_to=1)
    plain = pruning(chain(), X, latency=0.7, clock=counted, round_to=1)
    assert left(rooted) <= 0.5 < left(plain)


def test_the_share_is_that_of_the_network_as_it_was_given() -> None:
    """A plain chain is dearer at first than the network with residuals that it stands for."""
    model, seen = Residual().eval(), list[nn.Module]()

    def clock(first: nn.Module, second: nn.Module) -> float:
        seen.append(first)
        return counted(first, second)

    done = pruning(
        model, X, latency=0.9, clock=clock, round_to=1, importance="l1", remove_residuals=True
    )
    assert left(done) <= 0.9
    assert {workload_of(first, X).macs for first in seen} == {done.cost_before.macs}


def test_what_cannot_be_reached_is_refused_with_what_can() -> None:
    with pytest.raises(RefusedError, match=r"to 1\.00 of its time, not to 0\.50: ask"):
        refold.prune(chain(), X, latency=0.5, clock=lambda first, second: 1.0)


@pytest.mark.parametrize("share", [0.0, 1.0, -0.5, float("nan")])
def test_a_share_is_between_0_and_1(share: float) -> None:
    with pytest.raises(InputError, match="latency must be a share below 1"):
        refold.prune(chain(), X, latency=share, clock=counted)


def test_time_needs_a_clock() -> None:
    with pytest.raises(InputError, match=r"pass clock as well, such as refold\.bench\.share_of"):
        refold.prune(chain(), X, latency=0.5)

"""Watchers see every call and assignment of a model, and touch no special method of nn.Module."""

from __future__ import annotations

import queue
from typing import Any

import pytest
import torch
from torch import nn

import refold
from helpers.traps import live
from refold.graph.copies.watching import watched_attributes, watched_calls

CALL, ASSIGN = nn.Module.__call__, nn.Module.__setattr__


class Counting(nn.Module):
    """Counts its calls in its parent's way of setting attributes and in its own."""

    def __init__(self) -> None:
        super().__init__()
        self.calls = 0

    def forward(self, x: Any) -> Any:
        self.calls += 1
        return x


class Shouting(Counting):
    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)


class Doubling(Counting):
    def _call_impl(self, *args: Any, **kwargs: Any) -> Any:
        return super()._call_impl(*args, **kwargs) * 2


@pytest.mark.parametrize("kind", [Counting, Shouting])
def test_every_assignment_is_told(kind: type[Counting]) -> None:
    net, told = nn.Sequential(kind()), list[tuple[str, Any]]()
    modules = [*net.modules()]
    with watched_attributes(modules, lambda module, name, value: bool(told.append((name, value)))):
        net(1)
    assert ("calls", 1) in told
    assert net[0].calls == 1
    assert ("__setattr__" in kind.__dict__) == (kind is Shouting)
    net(1)
    assert len(set(told)) == 1


def test_an_assignment_can_be_kept_from_happening() -> None:
    net = Counting()
    with watched_attributes([*net.modules()], lambda module, name, value: True):
        net(1)
    assert net.calls == 0


@pytest.mark.parametrize("kind", [Counting, Doubling])
@pytest.mark.parametrize("replaced", [False, True])
def test_every_call_is_told_whatever_leads_to_it(kind: type[Counting], replaced: bool) -> None:
    net, told = nn.Sequential(kind(), nn.Identity()), list[nn.Module]()
    if replaced:
        net[0]._call_impl = net[0]._call_impl

    def watch(call: Any, module: nn.Module, args: Any, kwargs: Any) -> Any:
        told.append(module)
        return call(module, *args, **kwargs)

    with watched_calls([*net.modules()], watch):
        assert net(3) == (6 if kind is Doubling else 3)
    assert list(dict.fromkeys(told)) == [net, net[0], net[1]]
    assert kind.__call__ is CALL
    before = len(told)
    net(3)
    assert len(told) == before


def test_what_an_error_leaves_is_torchs_own() -> None:
    net = Shouting()
    modules = [*net.modules()]
    with pytest.raises(ZeroDivisionError), watched_calls(modules, lambda *args: 1 / 0):
        net(1)
    with pytest.raises(ZeroDivisionError), watched_attributes(modules, lambda *args: bool(1 / 0)):
        net(1)
    net(1)
    assert net.calls == 1


SEEN: queue.SimpleQueue[tuple[bool, bool]] = queue.SimpleQueue()  # a fold puts lists back


class Looking(nn.Module):
    """Notes what stands in nn.Module while it runs: to replace that visits every subclass."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        SEEN.put((nn.Module.__call__ is CALL, nn.Module.__setattr__ is ASSIGN))
        return self.norm(self.conv(x))


def test_a_fold_replaces_no_special_method_of_every_module() -> None:
    net = live(Looking())
    folded = refold.reparameterize(net, torch.randn(1, 3, 9, 9, dtype=torch.float64))
    assert isinstance(folded.norm, nn.Identity)
    assert {SEEN.get() for _ in range(SEEN.qsize())} == {(True, True)}

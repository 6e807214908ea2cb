"""Equal views of one value are one value where their readers are joined."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.traps import images, net, sound


def turned(self: Any, x: Tensor) -> Tensor:
    return self.one(x.transpose(1, 2)) + self.two(x.transpose(1, 2))


def turned_rows(self: Any, x: Tensor) -> Tensor:
    return self.one(x.flatten(2).transpose(1, 2)) - self.two(x.flatten(2).transpose(1, 2))


def cut(self: Any, x: Tensor) -> Tensor:
    return self.one(x[:, :5].transpose(2, 1)) + self.two(x[:, :5].transpose(2, 1))


def laid(self: Any, x: Tensor) -> Tensor:
    return torch.cat([self.one(x.permute(0, 2, 1)), self.two(x.permute(0, 2, 1))], -1)


def count(model: nn.Module) -> int:
    return sum(isinstance(module, nn.Linear) for module in model.modules())


@pytest.mark.parametrize("forward", [turned, turned_rows, cut, laid])
def test_equal_views_are_one(forward: Any) -> None:
    model = net(forward, one=nn.Linear(5, 4), two=nn.Linear(5, 4))
    shape = (2, 5, 3, 2) if forward is turned_rows else (2, 5, 6)
    assert count(sound(model, images(*shape)).apply()) == 1


def changed_between(self: Any, x: Tensor) -> Tensor:
    x = x + 1
    first = self.one(x.transpose(1, 2))
    x.mul_(2)
    return first + self.two(x.transpose(1, 2))


def other_axes(self: Any, x: Tensor) -> Tensor:
    return self.one(x.transpose(1, 2)) + self.two(x.transpose(0, 1))


def apart(self: Any, x: Tensor) -> Tensor:
    return self.one(x.transpose(1, 2)).relu() + self.two(x.transpose(1, 2))


@pytest.mark.parametrize("forward", [changed_between, other_axes, apart])
def test_others_are_not(forward: Any) -> None:
    model = net(forward, one=nn.Linear(5, 4), two=nn.Linear(5, 4))
    assert count(sound(model, images(5, 5, 5)).apply()) == 2

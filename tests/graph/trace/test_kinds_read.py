"""Code that reads a dtype, a device or an attribute off a layer that the fold takes away."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.traps import EXACT, conv, images, live
from refold import plan

X = images(2, 3, 6, 5)


class Two(nn.Module):
    """Two branches; `ready` prepares the input by what a layer says."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(3, 4), nn.BatchNorm2d(4)
        self.other, self.other_norm = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4)

    def branches(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) + self.other_norm(self.other(x))


READS: dict[str, Callable[[Any, Tensor], Tensor]] = {
    "dtype": lambda s, x: x.to(s.conv.weight.dtype),
    "dtype of the norm": lambda s, x: x.to(dtype=s.norm.weight.dtype),
    "device and dtype": lambda s, x: x.to(s.norm.running_mean.device, s.conv.weight.dtype),
    "like": lambda s, x: x.to(s.conv.weight),
    "another device": lambda s, x: x if x.device == s.conv.weight.device else x.cpu(),
    "another dtype": lambda s, x: x if x.dtype == s.norm.bias.dtype else x.float(),
}


@pytest.mark.parametrize("read", READS)
def test_the_branches_fold(read: str) -> None:
    class Net(Two):
        def forward(self, x: Tensor) -> Tensor:
            return self.branches(READS[read](self, x))

    model = live(Net())
    made = plan(copy.deepcopy(model), X)
    folded = made.apply()
    assert not made.kept
    assert not any(isinstance(part, nn.BatchNorm2d) for part in folded.modules())
    for x in (X, images(1, 3, 8, 9)):
        assert (model(x) - folded(x)).abs().max() <= EXACT * model(x).abs().max()
    half = folded.bfloat16()(X.bfloat16())  # what was read off a layer still moves with the model
    assert half.dtype == torch.bfloat16


class Switch(Two):
    def __init__(self) -> None:
        super().__init__()
        self.mode = "both"

    def forward(self, x: Tensor) -> Tensor:
        return {"both": self.branches, "one": self.conv}[self.mode](x)


def test_code_that_names_a_layer_without_calling_it() -> None:
    model = live(Switch())
    made = plan(copy.deepcopy(model), X)
    assert not made.kept
    assert (model(X) - made.apply()(X)).abs().max() <= EXACT * model(X).abs().max()


class Result:
    """What a detector gives: an object that no container of torch knows."""

    def __init__(self, boxes: Tensor, size: tuple[int, ...]) -> None:
        self.boxes, self.size = {"boxes": boxes}, size


class Detector(Two):
    def forward(self, x: Tensor) -> Result:
        return Result(self.norm(self.conv(x)), (4, 4))


def test_a_result_that_is_an_object_of_its_own_folds() -> None:
    model = live(Detector())
    made = plan(copy.deepcopy(model), X)
    folded = made.apply()
    assert isinstance(folded.norm, nn.Identity)
    assert not made.kept
    wanted, got = model(X).boxes["boxes"], folded(X).boxes["boxes"]
    assert (wanted - got).abs().max() <= EXACT * wanted.abs().max()

"""What a call has left behind is there when a model is folded: other calls are exact all the same.

The oracle is the model in float64 at other sizes, called in turn; the control is a fold of the same
code that only knows what it held.
"""

from __future__ import annotations

import copy
import functools
import pickle
from collections import defaultdict
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import refold
from helpers.traps import EXACT, WRONG, conv, gap, images, live, norms
from refold.errors import RefusedError

X = images(2, 3, 6, 5)
SIZES = [X, images(1, 3, 6, 5), images(2, 3, 9, 8), images(3, 3, 4, 4), X]


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.head = conv(), nn.BatchNorm2d(4), conv(4)


class InList(Base):
    """As detectors keep their grids."""

    def __init__(self) -> None:
        super().__init__()
        self.grids = [torch.ones(1, 1)]

    def forward(self, x: Tensor) -> Tensor:
        y = self.head(self.norm(self.conv(x)).relu())
        if self.grids[0].shape[0] != y.shape[-1]:
            self.grids[0] = torch.full((y.shape[-1], 1), float(y.shape[-1]), dtype=y.dtype)
        return (y.sigmoid() + self.grids[0][:1]) * 8


class InAttribute(Base):
    def __init__(self) -> None:
        super().__init__()
        self.size, self.by = 0, torch.ones(1)

    def forward(self, x: Tensor) -> Tensor:
        if self.size != x.shape[-1]:
            self.size = x.shape[-1]
            self.by = torch.full((1,), float(x.shape[-1]), dtype=x.dtype)
        return self.norm(self.conv(x) * self.by)


class Helper:
    def __init__(self) -> None:
        self.known: dict[int, Tensor] = {}
        self.calls: defaultdict[str, list[int]] = defaultdict(list)

    def __call__(self, size: int) -> Tensor:
        self.calls["sizes"].append(size)
        if size not in self.known:
            self.known[size] = torch.full((1,), float(size), dtype=torch.float64)
        return self.known[size]


class InObject(Base):
    def __init__(self) -> None:
        super().__init__()
        self.helper = Helper()

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x) * self.helper(x.shape[-1]))


class InTable(Base):
    def __init__(self) -> None:
        super().__init__()
        self.info: dict[str, Any] = {"stats": {"calls": 0}, "norm": True}

    def forward(self, x: Tensor) -> Tensor:
        self.info["stats"]["calls"] += 1
        y = self.conv(x)
        return self.norm(y) if self.info["norm"] else y


KINDS = [InList, InAttribute, InObject, InTable]


@pytest.mark.parametrize("is_warm", [True, False])
@pytest.mark.parametrize("example", [X, None])
@pytest.mark.parametrize("kind", KINDS)
def test_later_calls_are_exact(kind: type[Base], example: Tensor | None, is_warm: bool) -> None:
    model = live(kind())
    if is_warm:
        model(X)
    folded = refold.reparameterize(model, example)
    for one in (folded, copy.deepcopy(folded), pickle.loads(pickle.dumps(folded))):
        for x in SIZES:
            assert gap(model, one, x) <= EXACT


def test_the_control_is_wrong() -> None:
    model = live(InAttribute())
    model(X)
    held = copy.deepcopy(model)
    held.size = SIZES[2].shape[-1]  # it believes to know this size
    assert gap(model, held, SIZES[2]) > WRONG


def test_parts_of_what_keeps_state_are_folded() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.part = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU())
            self.helper = Helper()

        def forward(self, x: Tensor) -> Tensor:
            return self.part(x) * self.helper(x.shape[-1])

    model = live(Net())
    model(X)
    folded = refold.reparameterize(model, X)
    assert norms(folded) == 0
    for x in SIZES:
        assert gap(model, folded, x) <= EXACT


def test_what_a_property_keeps_is_free() -> None:
    class Net(Base):
        def __init__(self) -> None:
            super().__init__()
            self.options = Kept()

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.norm(y) if self.options.slow else y

    model = live(Net())
    folded = refold.reparameterize(model, X)
    assert norms(folded) == 0
    for _ in range(2):
        assert gap(model, folded, X) <= EXACT
    folded.options.norm = False
    with pytest.raises(RefusedError, match=r"^options holds"):
        folded(X)


class Kept:
    def __init__(self) -> None:
        self.norm = True

    @functools.cached_property
    def slow(self) -> bool:
        return self.norm

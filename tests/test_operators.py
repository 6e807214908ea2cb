"""No operator is left that a peer's conversion, or an expert by hand, would not leave.

`benchmarks/operators.py` counts many networks of other people's zoos.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import refold
from helpers.traps import conv, images, live
from zoo.live import enliven
from zoo.nets import find
from zoo.operators import above, count_operators
from zoo.peers import fold_with_peer

pytestmark = pytest.mark.slow


def norm(channels: int = 4) -> nn.Module:
    return nn.BatchNorm2d(channels)


class Branches(nn.Module):
    """Branches of which some are absent, begun with nothing and counted with a factor of one."""

    def __init__(self, *, skip: bool) -> None:
        super().__init__()
        self.main = nn.ModuleList(nn.Sequential(conv(4), norm()) for _ in range(2))
        self.skip = norm() if skip else None
        self.scale, self.drop = 1.0, nn.Dropout(0.1)

    def forward(self, x: Tensor) -> Tensor:
        out = 0 if self.skip is None else self.skip(x)
        for branch in self.main:
            out = out + branch(x) * self.scale
        return F.relu(self.drop(nn.Identity()(out)) - 0)


class RowNorm(nn.Sequential):
    """A linear layer with a norm of its rows, laid flat for it and back, as LeViT has it."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.c, self.bn = nn.Linear(inputs, outputs, bias=False), nn.BatchNorm1d(outputs)

    def forward(self, x: Tensor) -> Tensor:
        x = self.c(x)
        return self.bn(x.flatten(0, 1)).reshape_as(x)


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.qkv, self.out = RowNorm(4, 12), RowNorm(4, 4)
        self.table = nn.Parameter(torch.randn(16, 2))
        self.register_buffer("index", torch.randperm(16).reshape(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        maps = x.flatten(2).transpose(1, 2)
        q, k, v = self.qkv(maps).view(maps.shape[0], -1, 3, 2, 2).permute(2, 0, 3, 1, 4)
        bias = self.table[self.index.view(-1)].view(4, 4, 2).permute(2, 0, 1)
        rows = (q @ k.transpose(-2, -1) + bias).softmax(-1) @ v
        rows = F.dropout(rows, 0.1, self.training)
        return maps + self.out(rows.transpose(1, 2).reshape(maps.shape))


class Gated(nn.Module):
    """A squeeze and excite whose scale is a view, behind a norm, with a layer scale."""

    def __init__(self) -> None:
        super().__init__()
        self.body = nn.Sequential(conv(4, bias=False), norm(), nn.Hardswish())
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(4, 4, 1), nn.Sigmoid())
        self.last, self.gamma = conv(4), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        y = self.body(x)
        return x + self.last(y * self.gate(y)) * self.gamma.view(1, -1, 1, 1)


CASES: dict[str, tuple[Any, tuple[int, ...], dict[str, int]]] = {
    "branches": (lambda: Branches(skip=True), (2, 4, 6, 6), {"conv": 1, "relu": 1}),
    "absent branch": (lambda: Branches(skip=False), (2, 4, 6, 6), {"conv": 1, "relu": 1}),
    "attention": (
        Attention,
        (2, 4, 2, 2),
        {"linear": 4, "reshape": 4, "transpose": 5, "slice": 3, "index": 1, "add": 2, "softmax": 1},
    ),
    "gate": (
        Gated,
        (2, 4, 6, 6),
        {"conv": 3, "hardswish": 1, "pool": 1, "sigmoid": 1, "mul": 1, "add": 1},
    ),
}


@pytest.mark.parametrize("case", CASES)
def test_an_expert_would_leave_as_many(case: str) -> None:
    make, shape, least = CASES[case]
    model, x = live(make()), images(*shape)
    found = count_operators(refold.reparameterize(model, x), (x,))
    assert not above(found, Counter(least)), found
    assert sum(found.values()) <= sum(least.values())


@pytest.mark.parametrize("label", ["timm:lcnet_050"])
def test_a_peer_leaves_as_many(label: str) -> None:
    [net] = find(label)
    example = tuple(value.float() for value in net.example())
    model = enliven(net.build(), example)
    peer, _ = fold_with_peer(model, net.source)
    ours = count_operators(refold.reparameterize(model, example), example)
    assert not above(ours, count_operators(peer, example))

"""What a fold costs, counted and not timed: calls of Python, operations on tensors, bytes.

Counts are the same in every run of one version of Python and torch. The bounds are what a block
costs today and up to a seventh more: to exceed one is to make every fold slower.
"""

from __future__ import annotations

from collections.abc import Callable
from cProfile import Profile
from functools import cache
from typing import Any, NamedTuple

import pytest
import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

import refold
from helpers.traps import live
from refold.algebra.geometry import Axis
from refold.algebra.operator import Conv, points, sequence
from refold.blocks import MobileOneBlock, RepVGGBlock
from refold.engine import decisions
from refold.engine.simplify import simplify
from refold.graph.fold import lower
from refold.graph.fold.fold_pass import FoldPass
from refold.graph.fold.region import Region

pytestmark = pytest.mark.slow

CHANNELS = 8


class Cost(NamedTuple):
    """What one fold took: Python functions called, operators of torch run, bytes they made."""

    calls: int
    operators: int
    bytes: int


class Counted(TorchDispatchMode):
    """Counts operators, and the bytes of results whose memory is new."""

    def __init__(self) -> None:
        super().__init__()
        self.operators = self.bytes = 0

    def __torch_dispatch__(
        self, func: Any, types: Any, args: tuple[Any, ...] = (), kwargs: Any = None
    ) -> Any:
        result = func(*args, **(kwargs or {}))
        self.operators += 1
        returns_new = all(returned.alias_info is None for returned in func._schema.returns)
        if returns_new and isinstance(result, Tensor) and not result.is_meta:
            self.bytes += result.numel() * result.element_size()
        return result


def repvgg() -> nn.Module:
    return nn.Sequential(RepVGGBlock(CHANNELS, CHANNELS, 3, padding=1), nn.ReLU())


def mobileone() -> nn.Module:
    block = MobileOneBlock(CHANNELS, CHANNELS, 3, padding=1, groups=CHANNELS)
    return nn.Sequential(block, nn.ReLU())


def conv_norm() -> nn.Module:
    conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(CHANNELS), nn.ReLU())


class Choosy(nn.Module):
    """A block whose code has its norm in two places and runs one of them."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(CHANNELS)
        self.late = False

    def forward(self, x: Tensor) -> Tensor:
        if self.late:
            return self.norm(self.conv(x).relu())
        return self.norm(self.conv(x)).relu()


BLOCKS: dict[str, Callable[[], nn.Module]] = {
    "repvgg": repvgg,
    "mobileone": mobileone,
    "conv and norm": conv_norm,
    "choosy": Choosy,
}


@cache
def cost(name: str, blocks: int) -> Cost:
    """Count one fold of a chain of equal blocks."""
    torch.manual_seed(0)
    model = live(nn.Sequential(*(BLOCKS[name]() for _ in range(blocks))))
    x = torch.randn(1, CHANNELS, 6, 6)
    profile, counted = Profile(builtins=False), Counted()
    profile.enable()
    try:
        folded = refold.reparameterize(model, x)
    finally:
        profile.disable()
    with counted:
        refold.reparameterize(model, x)
    assert sum(isinstance(layer, nn.Conv2d) for layer in folded.modules()) == blocks
    calls = sum(entry.callcount for entry in profile.getstats())
    return Cost(calls, counted.operators, counted.bytes)


@pytest.fixture(autouse=True)
def warm() -> None:
    """Fold once before anything is counted: caches of classes and sources fill only then."""
    for name in BLOCKS:
        cost(name, 2)


def added(name: str, field: str, few: int, many: int) -> float:
    """Return what a block adds to the cost of a fold."""
    return (getattr(cost(name, many), field) - getattr(cost(name, few), field)) / (many - few)


MOST = {
    "repvgg": Cost(calls=15_900, operators=92, bytes=13_200),
    "mobileone": Cost(calls=16_700, operators=87, bytes=3_300),
    "conv and norm": Cost(calls=4_500, operators=25, bytes=5_700),
    "choosy": Cost(calls=4_300, operators=25, bytes=5_700),
}


@pytest.mark.parametrize("name", BLOCKS)
def test_a_block_costs_no_more_than_it_did(name: str) -> None:
    found = Cost(*(added(name, field, 4, 8) for field in Cost._fields))
    assert all(now <= most for now, most in zip(found, MOST[name], strict=True)), found


@pytest.mark.parametrize("name", ["repvgg", "choosy"])
@pytest.mark.parametrize("field", Cost._fields)
def test_cost_is_linear_in_depth(field: str, name: str) -> None:
    """A block deep in a network costs what one of a shallow network does."""
    few, many = added(name, field, 4, 8), added(name, field, 32, 64)
    # The tables that a process has filled before differ a little. One walk over the whole graph for
    # each block, as cheap as it is, would add a twentieth here and the whole again at 2,000 blocks.
    assert many <= 1.02 * few


def test_memory_is_that_of_the_new_weights_and_the_work_on_one_block() -> None:
    """In bytes made in all, float64 included: what is alive at once is far less."""
    weights = 4 * (CHANNELS * CHANNELS * 9 + CHANNELS)
    assert added("repvgg", "bytes", 4, 8) <= 6 * weights


def test_the_bounds_find_a_fold_that_costs_more(monkeypatch: pytest.MonkeyPatch) -> None:
    """The control: equal blocks decided anew, regions searched twice, each new weight copied."""
    look = FoldPass.look

    def look_again(self: FoldPass) -> list[Region]:
        self.edited()
        return look(self)

    monkeypatch.setattr(FoldPass, "look", look_again)
    monkeypatch.setattr(decisions, "structure", lambda op, sources: object())
    monkeypatch.setattr(lower, "outside", torch.clone)
    few, many = (cost.__wrapped__("repvgg", blocks) for blocks in (4, 8))
    found = ((more - less) / 4 for less, more in zip(few, many, strict=True))
    assert all(now > most for now, most in zip(found, MOST["repvgg"], strict=True))


@pytest.mark.parametrize("groups", [1, 4])
def test_to_decide_on_a_large_kernel_costs_what_a_small_one_does(groups: int) -> None:
    """Only shapes are decided on: no tap of a kernel without storage is computed."""

    def operators(kernel: int) -> int:
        first = Conv(torch.empty(4, 4 // groups, 1, 1, device="meta"), None, points(2), groups)
        second = Conv(torch.empty(4, 4, kernel, kernel, device="meta"), None, (Axis(kernel),) * 2)
        with Counted() as counted:
            merged = simplify(sequence(first, second), allow_growth=True).op
        assert isinstance(merged, Conv)
        assert merged.weight.shape == (4, 4, kernel, kernel)
        return counted.operators

    assert operators(11) == operators(3) < 20

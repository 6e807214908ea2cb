"""Norms of slices of one layer: in the layer where no other slice has their channels.

The oracle is the model itself in float64, at three sizes; the control gives the norm to a layer
whose slices overlap, and must come out wrong.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from helpers.traps import EXACT, WRONG, gap, images, live
from refold import plan, reparameterize
from refold.graph.fold.norms import slices

CONVS = {1: nn.Conv1d, 2: nn.Conv2d, 3: nn.Conv3d}
NORMS = {1: nn.BatchNorm1d, 2: nn.BatchNorm2d, 3: nn.BatchNorm3d}
CUTS: dict[str, Callable[[Tensor], tuple[Tensor, ...]]] = {
    "split": lambda y: torch.split(y, [4, 2, 6], dim=1),
    "slices": lambda y: (y[:, :4], y[:, 4:6], y[:, 6:]),
    "narrow": lambda y: (y.narrow(1, 0, 4), y.narrow(1, 4, 2), y.narrow(1, 6, 6)),
    "copies": lambda y: tuple(z.contiguous() for z in y.clone().split([4, 2, 6], dim=1)),
    "steps": lambda y: (y[:, 0:8:2], y[:, 1:4:2], y[:, [5, 7, 8, 9, 10, 11]]),
}


class Attend(nn.Module):
    """A projection whose q and v have norms; its k has none."""

    def __init__(self, cut: str, rank: int = 2, groups: int = 1) -> None:
        super().__init__()
        self.cut, self.qkv = cut, CONVS[rank](4, 12, 3, padding=1, groups=groups, bias=False)
        self.norm_q, self.norm_v = NORMS[rank](4), NORMS[rank](6)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        q, k, v = CUTS[self.cut](self.qkv(x))
        return self.norm_q(q), k.flatten(2).softmax(-1), self.norm_v(v).relu()


def norms(model: nn.Module) -> int:
    return sum(isinstance(part, tuple(NORMS.values())) for part in model.modules())


@pytest.mark.parametrize(
    ("cut", "rank", "groups"), [*((cut, 2, 1) for cut in CUTS), ("split", 1, 2), ("split", 3, 4)]
)
def test_the_projection_takes_them(cut: str, rank: int, groups: int) -> None:
    model = live(Attend(cut, rank, groups))
    x = images(2, 4, *range(5, 5 + rank))
    made = plan(copy.deepcopy(model), x)
    folded = made.apply()
    assert norms(folded) == 0
    assert "qkv + norm_q + norm_v" in str(made)
    for other in (x, 30 * x, images(1, 4, *range(7, 7 + rank))):
        assert gap(model, folded, other) <= EXACT


class Apart(nn.Module):
    """Slices that no layer can take the norms of."""

    def __init__(self, run: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.run, self.conv, self.norm = run, nn.Conv2d(4, 8, 1), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


STAYS: dict[str, Callable[[Any, Tensor], Any]] = {
    "overlapping": lambda s, x: (s.norm((y := s.conv(x))[:, :4]), y[:, 2:]),
    "read twice": lambda s, x: (s.norm(y := s.conv(x)[:, :4]), y),
    "the whole is read": lambda s, x: (s.norm((y := s.conv(x))[:, :4]), y.relu()),
    "its copy is read twice": lambda s, x: (s.norm(y := s.conv(x)[:, :4].contiguous()), y),
    "a channel twice": lambda s, x: s.norm(s.conv(x)[:, [0, 0, 1, 2]]),
}


@pytest.mark.parametrize("case", STAYS)
def test_what_must_stay(case: str) -> None:
    model = live(Apart(STAYS[case]))
    folded = reparameterize(copy.deepcopy(model), images(2, 4, 5, 6))
    assert gap(model, folded, images(1, 4, 7, 4)) <= EXACT


def test_the_control_is_wrong(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(slices, "_is_alone", lambda part, parts: True)
    monkeypatch.setattr(slices, "_with_memory_of_their_own", lambda fold, parts: parts)
    model = live(Apart(STAYS["overlapping"]))
    folded = reparameterize(copy.deepcopy(model), images(2, 4, 5, 6), check=False)
    assert gap(model, folded, images(1, 4, 7, 4)) > WRONG


class Linears(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.both, self.gain = nn.Linear(6, 8), nn.Parameter(torch.rand(4))

    def forward(self, x: Tensor) -> Tensor:
        gate, value = self.both(x).chunk(2, -1)
        return gate.sigmoid() * (value * self.gain)


def test_a_scale_of_half_a_linear_layer() -> None:
    model = live(Linears())
    folded = reparameterize(copy.deepcopy(model), images(2, 5, 6))
    assert "gain" not in dict(folded.named_parameters())
    assert gap(model, folded, images(3, 2, 6)) <= EXACT


class Results(nn.Module):
    """Two slices with norms, both handed to the caller."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.one, self.two = nn.Conv2d(4, 6, 1), nn.BatchNorm2d(2), nn.BatchNorm2d(4)

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        a, b = self.conv(x).split([2, 4], 1)
        return self.one(a), self.two(b)


def test_results_do_not_come_to_lie_in_one_tensor() -> None:
    """A caller may change one of them: the oracle is where their memory begins."""
    model, x = live(Results()), images(2, 4, 5, 6)
    folded = reparameterize(model, x)
    assert gap(model, folded, x) <= EXACT
    assert norms(folded) == 1
    assert len({result.untyped_storage().data_ptr() for result in folded(x)}) == 2

"""Choices along an axis that has another size for other inputs: they are none of channels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import refold
from helpers.traps import gap, images, live
from refold.graph.lift import indexing

EXACT = 1e-9
CHOICES: dict[str, Callable[[Tensor], Tensor]] = {
    "chunk": lambda y: y.chunk(2, -1)[0],
    "tensor_split": lambda y: torch.tensor_split(y, 2, -1)[1],
    "split": lambda y: y.split(3, -1)[-1],
    "last ones": lambda y: (y * 2)[..., -4:],
    "turned round": lambda y: (y.flip(-1) * 3)[..., :-1].flip(-1),
    "every second": lambda y: (y * 2)[..., ::2] * 0.3,
}


class Choice(nn.Module):
    def __init__(self, name: str) -> None:
        super().__init__()
        self.choose, self.by = CHOICES[name], nn.Parameter(torch.tensor(0.7))

    def forward(self, x: Tensor) -> Tensor:
        return self.choose(self.by * torch.div(x, 2)) / 3


def largest_gap(model: nn.Module, folded: nn.Module) -> float:
    return max(gap(model, folded, images(*shape)) for shape in ((2, 2, 8), (1, 2, 9), (3, 2, 13)))


@pytest.mark.parametrize("name", CHOICES)
@pytest.mark.parametrize("given", [True, False])
def test_other_lengths_are_exact(name: str, given: bool) -> None:
    model = live(Choice(name))
    folded = refold.plan(model, images(2, 2, 8) if given else None).apply()
    assert largest_gap(model, folded) <= EXACT


@pytest.mark.parametrize("name", ["chunk", "tensor_split"])
def test_the_control_chooses_the_same_positions_always(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(indexing, "varies", lambda *args: False)
    model = live(Choice(name))
    folded: Any = refold.reparameterize(model, images(2, 2, 8))
    with torch.no_grad():
        ours, theirs = folded(images(1, 2, 9)), model(images(1, 2, 9))
    assert ours.shape != theirs.shape or not torch.allclose(ours, theirs)


def test_choices_of_channels_still_fold() -> None:
    class Halves(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = nn.Conv2d(3, 8, 3), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x).chunk(2, 1)[1])

    model = live(Halves())
    folded = refold.reparameterize(model, images(2, 3, 9, 9))
    assert sum(p.numel() for p in folded.parameters()) <= 4 * 28
    assert gap(model, folded, images(1, 3, 7, 11)) <= EXACT

"""Code that cannot be written anew runs as it is, whatever changes around it."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import refold
from helpers.traps import live


class Box:
    """What a detector hands from part to part: an object around a tensor."""

    def __init__(self, values: Tensor) -> None:
        self.values = values


class Asking(nn.Module):
    """A part that takes such an object, and asks for numbers."""

    def forward(self, box: Box) -> Tensor:
        return box.values * (2.0 if float(box.values.mean()) > 0.1 else 1.0)


class Handing(nn.Module):
    """Makes the object and hands it on: its code cannot be written anew, nor moved elsewhere."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.ask = nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), Asking()

    def forward(self, x: Tensor) -> Tensor:
        return self.ask(Box(self.norm(self.conv(x))))


class Around(nn.Module):
    """Branches around it, which fold into a generated forward."""

    def __init__(self) -> None:
        super().__init__()
        self.part = Handing()
        self.a, self.na, self.b = nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.part(x)
        return self.na(self.a(y)) + self.b(y)


def test_code_that_hands_on_an_object_runs_where_the_code_around_it_is_written_anew() -> None:
    model = live(Around())
    folded = refold.reparameterize(model, torch.randn(1, 3, 7, 7, dtype=torch.float64))
    assert not [m for m in folded.modules() if isinstance(m, nn.BatchNorm2d)]
    assert not hasattr(folded, "b")
    for seed in range(4):
        generator = torch.Generator().manual_seed(seed)
        x = torch.randn(2, 3, 6 + seed, 9, generator=generator, dtype=torch.float64)
        with torch.no_grad():
            for y in (x, -x):
                torch.testing.assert_close(folded(y), model(y), rtol=1e-9, atol=1e-12)

"""What a part gives, cropped or handed on outside it, folds as if all stood in one forward.

The oracle is the model itself in float64.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.traps import EXACT, gap, images, live
from refold import plan, reparameterize


class Scale(nn.Module):
    """A norm that somebody wrote anew."""

    def __init__(self) -> None:
        super().__init__()
        self.factor, self.offset = nn.Parameter(torch.rand(4)), nn.Parameter(torch.randn(4))

    def forward(self, x: Tensor) -> Tensor:
        return x * self.factor[:, None, None] + self.offset[:, None, None]


class Stem(nn.Module):
    """Pads between two convolutions: the first one's bias must not reach the border."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Conv2d(3, 6, 1), nn.Conv2d(6, 4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.two(F.pad(self.one(x), (1, 1, 1, 1)))


class Cropped(nn.Module):
    """Crops outside the stem what the padded border has reached."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = Stem()

    def forward(self, x: Tensor) -> Tensor:
        return F.pad(self.stem(x), (-1, -1, -1, -1)).relu()


class Readers(nn.Module):
    """Two convolutions read a norm of the model's own, through what does nothing, or a view."""

    def __init__(self, between: nn.Module) -> None:
        super().__init__()
        self.norm = nn.Sequential(Scale(), between)
        self.one, self.two = nn.Conv2d(4, 3, 1), nn.Conv2d(4, 3, 1)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x.sigmoid())
        return self.one(y).relu() + self.two(y).tanh()


def convolutions(model: nn.Module) -> int:
    return sum(isinstance(part, nn.Conv2d) for part in model.modules())


def test_a_crop_outside_a_part_goes_into_its_convolution() -> None:
    model = live(Cropped())
    folded = reparameterize(model, images(1, 3, 9, 9))
    assert convolutions(folded) == 1
    assert all(gap(model, folded, images(2, 3, side, side + 1)) <= EXACT for side in (5, 9, 12))


@pytest.mark.parametrize("between", [nn.Identity(), nn.Dropout(), nn.Upsample(scale_factor=1)])
def test_a_norm_goes_into_all_readers_through_what_does_nothing(between: nn.Module) -> None:
    model = live(Readers(between))
    made = plan(model, images(1, 4, 8, 8))
    assert {"one", "two"} <= {step.where for step in made.steps}
    folded = made.apply()
    assert not any("norm" in name for name, _ in folded.named_parameters())
    assert all(gap(model, folded, images(2, 4, side, 7)) <= EXACT for side in (5, 8))

"""Our own layers: whatever a fold writes, torch.jit.script takes it, and computes the same."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from refold.graph import layers

FOUR = torch.tensor([0.5, -1.0, 2.0, 0.0])
RING = ((1, -1), (0, 2))
MADE: tuple[nn.Module, ...] = (
    layers.ScaleShift(FOUR, FOUR, 2),
    layers.ScaleShift(None, torch.tensor(2.0), 0),
    layers.Crop(RING, value=3.0),
    layers.Crop(((1, 1), (1, 2)), "reflect"),
    layers.Cropped(layers.Crop(RING), nn.AvgPool2d(2, 1)),
    layers.DepthToSpace(2),
    layers.SelectChannels((3, 0), 2),
    layers.ChannelSlope(FOUR),
    layers.ChannelClamp(FOUR, FOUR + 1, 2),
    layers.HardGate(0.2, 0.5),
    layers.WholeWindows((2, 3)),
)


@pytest.mark.filterwarnings("ignore:`torch.jit.script`:FutureWarning")
@pytest.mark.parametrize("made", MADE, ids=lambda made: type(made).__name__)
def test_it_can_be_scripted(made: nn.Module) -> None:
    x = torch.randn(2, 4, 6, 6)
    assert torch.equal(torch.jit.script(made)(x), made(x))


def test_none_is_left_out() -> None:
    every = {one for one in vars(layers).values() if isinstance(one, type)}
    own = {one for one in every if one.__module__ == layers.__name__}
    assert own == {type(made) for made in MADE}

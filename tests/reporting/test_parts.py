"""Stages, ranges and windows, each by itself."""

from __future__ import annotations

import torch
from torch import fx, nn

from refold.reporting.flow import Box
from refold.reporting.kernels import Window
from refold.reporting.ranges import range_of
from refold.reporting.stages import stage_of, stages


def boxes(*places: str) -> list[Box]:
    node = fx.Graph().placeholder("x")
    return [Box(place, "conv", "", "", (), 1, None, False, node, None) for place in places]


def test_a_heavy_part_is_told_as_its_parts() -> None:
    found = boxes("stem", "stages.0.a", "stages.0.b", "stages.1.a", "stages.2.a", "head")
    assert stages(found, [1, 5, 5, 9, 9, 1]) == ["stem", "stages.0", "stages.1", "stages.2", "head"]


def test_a_wrapper_is_looked_through() -> None:
    found = boxes("model.net.one.conv", "model.net.two.conv", "model.net.two.norm")
    assert stages(found, [1, 1, 1])[:1] == ["model.net.one"]


def test_many_equal_parts_stay_one_stage() -> None:
    found = boxes("stem", *(f"features.{i}" for i in range(40)))
    assert stages(found, [1.0] * 41) == ["stem", "features"]


def test_a_network_of_one_layer_is_one_stage() -> None:
    assert stages(boxes("conv"), [0.0]) == ["conv"]
    assert stages([], []) == [""]


def test_every_layer_has_its_stage() -> None:
    names = ["stem", "stages.1", "stages.10"]
    assert [stage_of(p, names) for p in ("stages.10.a", "stages.1.a", "stem", "stages.2")] == [
        2,
        1,
        0,
        None,
    ]


def test_a_range_tells_outliers_and_channels_apart() -> None:
    weight = torch.randn(8, 4, 3, 3, generator=torch.Generator().manual_seed(0))
    calm = range_of(weight)
    weight[3] *= 50
    wild = range_of(weight)
    assert calm is not None
    assert wild is not None
    assert calm.outliers == 0
    assert calm.spread < 2 < 20 < wild.spread
    assert sum(wild.histogram) >= 100
    assert max(wild.histogram) == 100


def test_the_channels_of_a_transposed_layer_are_on_its_second_axis() -> None:
    weight = torch.ones(2, 3, 1, 1)
    weight[:, 0] = 9
    found, other = range_of(weight, channel_axis=1), range_of(weight)
    assert found is not None
    assert other is not None
    assert (found.spread, other.spread) == (9.0, 1.0)


def test_weights_without_numbers_have_no_range() -> None:
    assert range_of(torch.zeros(0, 3)) is None
    assert range_of(torch.tensor([[float("nan")]])) is None
    zero = range_of(nn.Conv2d(1, 1, 1).weight.detach() * 0)
    assert zero is not None
    assert (zero.stretch, zero.spread) == (1.0, 1.0)


def test_a_window_shows_what_fits() -> None:
    assert Window.of(torch.zeros(64, 64, 3, 3), 400) == Window(6, 6, (3, 3))
    assert Window.of(torch.zeros(64, 1, 7, 7), 400).rows == 4
    assert Window.of(torch.zeros(5, 9), 400) == Window(5, 9, (1, 1))
    assert Window.of(torch.zeros(5, 9, 3), 400).taps == (1, 3)
    assert Window.of(torch.zeros(5, 9, 2, 3, 4), 400).taps == (6, 4)
    weight = torch.arange(2 * 2 * 2 * 2 * 2.0).reshape(2, 2, 2, 2, 2)
    assert Window.of(weight, 400).cut(weight).shape == (2, 2, 4, 2)

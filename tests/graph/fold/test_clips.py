"""Layers over the frames of a clip or the steps of a spiking net, and the norm behind: one layer.

The oracle is the model itself in float64, at other lengths and sizes too; the control mixes frames
into the channels, where the norm must stay.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.traps import EXACT, WRONG, gap, images, live
from refold import reparameterize

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


class Net(nn.Module):
    """A layer over frames, and a norm that sees them otherwise."""

    def __init__(self, layer: nn.Module, norm: nn.Module, run: Callable[..., Any]) -> None:
        super().__init__()
        self.layer, self.norm, self.run = layer, norm, run

    def forward(self, x: Tensor) -> Any:
        return self.run(self, x)


def clip(net: Net, x: Tensor) -> Tensor:
    b, t = x.shape[:2]
    y = net.layer(x.flatten(0, 1))
    return net.norm(y.view(b, t, *y.shape[1:]).transpose(1, 2)).relu()


def named(net: Net, x: Tensor) -> Tensor:
    b, t, c, h, w = x.shape
    y = net.layer(x.reshape(b * t, c, h, w))
    return net.norm(y.reshape(b, t, 6, *y.shape[-2:]).permute(0, 2, 1, 3, 4))


def steps(net: Net, x: Tensor) -> Tensor:
    t, b, _, n = x.shape
    y = net.layer(x.flatten(0, 1)).reshape(t, b, 6, n)
    return net.norm(y.flatten(0, 1)).reshape(t, b, 6, n)


def unflattened(net: Net, x: Tensor) -> Tensor:
    y = net.layer(x.flatten(0, 1)).unflatten(0, x.shape[:2])
    return F.relu(net.norm(y.transpose(1, 2)))


CASES = {
    "clip": (clip, nn.Conv2d(4, 6, 3, padding=1, groups=2), nn.BatchNorm3d(6), (2, 3, 4, 7, 5)),
    "named": (named, nn.Conv2d(4, 6, 3, stride=2), nn.BatchNorm3d(6), (2, 3, 4, 7, 5)),
    "unflattened": (unflattened, nn.Conv2d(4, 6, 1), nn.BatchNorm3d(6), (2, 3, 4, 7, 5)),
    "steps": (steps, nn.Conv1d(4, 6, 1, bias=False), nn.BatchNorm1d(6), (2, 3, 4, 7)),
    "words": (clip, nn.Conv1d(4, 6, 3), nn.BatchNorm2d(6), (2, 3, 4, 7)),
}


def norms(model: nn.Module) -> int:
    return sum(isinstance(part, NORMS) for part in model.modules())


@pytest.mark.parametrize("name", CASES)
def test_the_layer_over_frames_takes_the_norm(name: str) -> None:
    run, layer, norm, shape = CASES[name]
    model, x = live(Net(layer, norm, run)), images(*shape)
    folded = reparameterize(model, x)
    assert norms(folded) == 0
    for other in (
        x,
        30 * x,
        images(shape[0] + 1, shape[1] + 2, shape[2], *(9, 8)[: len(shape) - 3]),
    ):
        assert gap(model, folded, other) <= EXACT


def test_changes_of_layout_in_the_same_words_go() -> None:
    run, layer, norm, shape = CASES["steps"]
    x = images(*shape)
    folded = reparameterize(live(Net(layer, norm, run)), x)
    nodes = torch.export.export(folded, (x,), strict=False).graph.nodes
    assert [n.name for n in nodes if n.op == "call_function"] == [*("flatten", "conv1d", "reshape")]


def test_a_norm_of_frames_stays() -> None:
    """The reshape lays frames into channels: channel i of the norm is none of the layer's."""

    def mixed(net: Net, x: Tensor) -> Tensor:
        b, t = x.shape[:2]
        y = net.layer(x.flatten(0, 1))
        return net.norm(y.view(b, t * 6, *y.shape[2:])).relu()

    model, x = live(Net(nn.Conv2d(4, 6, 1), nn.BatchNorm2d(18), mixed)), images(2, 3, 4, 7, 5)
    folded = reparameterize(model, x)
    assert norms(folded) == 1
    assert gap(model, folded, x) <= EXACT
    careless = reparameterize(live(Net(nn.Conv2d(4, 6, 1), nn.BatchNorm3d(6), clip)), x)
    with torch.no_grad():
        given = careless(x).transpose(1, 2).flatten(1, 2)
        assert float((model(x) - given).abs().max()) > WRONG

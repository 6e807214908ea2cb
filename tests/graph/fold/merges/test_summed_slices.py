"""Slices of a layer that a sum takes in again: a smaller layer.

The oracle is the model itself in float64; the control adds the halves of the weight, whatever the
slices are and their signs.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn

from helpers.traps import EXACT, WRONG, gap, images, live
from refold import plan, reparameterize


class Net(nn.Module):
    """Layers, and what becomes of their values."""

    def __init__(self, run: Callable[..., Tensor], *layers: nn.Module) -> None:
        super().__init__()
        self.run, self.layers = run, nn.ModuleList(layers)

    def forward(self, x: Tensor) -> Tensor:
        return self.run(x, *self.layers)


def halves(x: Tensor, layer: nn.Module) -> Tensor:
    a, b = layer(x).chunk(2, 1)
    return a + b


def weighed(x: Tensor, layer: nn.Module) -> Tensor:
    a, b, c = layer(x).split([3, 3, 3], 1)
    return 0.5 * a - b + c / 3


def steps(x: Tensor, layer: nn.Module, norm: nn.Module) -> Tensor:
    y = norm(layer(x))
    return (y[:, ::2] - y[:, 1::2]).relu()


def beside(x: Tensor, layer: nn.Module, other: nn.Module) -> Tensor:
    a, b = layer(x).chunk(2, 1)
    return b + other(x) - a


def features(x: Tensor, layer: nn.Module) -> Tensor:
    a, b = layer(x).chunk(2, -1)
    return a + b


def doubled(x: Tensor, layer: nn.Module) -> Tensor:
    y = layer(x)
    return y + y


CASES = {
    "halves": (Net(halves, nn.Conv2d(4, 6, 3, padding=1)), (2, 4, 7, 5)),
    "strided": (Net(halves, nn.Conv1d(4, 8, 3, stride=2, groups=2)), (2, 4, 9)),
    "weighed": (Net(weighed, nn.Conv3d(3, 9, (1, 3, 2))), (2, 3, 4, 5, 6)),
    "norm": (Net(steps, nn.Conv2d(4, 6, 3), nn.BatchNorm2d(6)), (2, 4, 7, 5)),
    "beside": (Net(beside, nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(4, 3, 1)), (2, 4, 7, 5)),
    "scatter": (Net(halves, nn.ConvTranspose2d(4, 6, 3, stride=2)), (2, 4, 3, 5)),
    "linear": (Net(features, nn.Linear(9, 6)), (2, 9)),
    "rows": (Net(features, nn.Linear(9, 6, bias=False)), (2, 5, 9)),
    "doubled": (Net(doubled, nn.Conv2d(4, 6, 3)), (2, 4, 7, 5)),
}


def calls(model: nn.Module, x: Tensor) -> list[str]:
    nodes = torch.export.export(model, (x,), strict=False).graph.nodes
    return [node.name for node in nodes if node.op == "call_function"]


@pytest.mark.parametrize("name", CASES)
def test_one_layer_is_left(name: str) -> None:
    net, shape = CASES[name]
    model, x = live(net), images(*shape)
    folded = reparameterize(model, x)
    assert len(calls(folded, x)) == (2 if name == "norm" else 1), calls(folded, x)
    for other in (x, 30 * x, images(3, *shape[1:])):
        assert gap(model, folded, other) <= EXACT


def own(x: Tensor, layer: nn.Module, other: nn.Module) -> Tensor:
    a, b = layer(x).chunk(2, 1)
    return a + other(b)


def read(x: Tensor, layer: nn.Module) -> Tensor:
    y = layer(x)
    return (y[:, :3] + y[:, 3:]) * y.sigmoid().mean(1, keepdim=True)


def gate(x: Tensor, layer: nn.Module) -> Tensor:
    a, b = layer(x).chunk(2, 1)
    return a * b


def third(x: Tensor, layer: nn.Module) -> Tensor:
    """A deformable convolution's offsets and mask; one layer of each is slower than of both."""
    a, b, mask = layer(x).chunk(3, 1)
    return torch.cat((a, b), 1).tanh().sum(1, keepdim=True) * mask.sigmoid()


def sum_of_two(x: Tensor, layer: nn.Module) -> Tensor:
    a, b, c = layer(x).split(2, 1)
    return (a + b).relu() * c.sigmoid()


APART = {
    "a part elsewhere": Net(third, nn.Conv2d(4, 6, 3, padding=1)),
    "a sum and a part": Net(sum_of_two, nn.Conv2d(4, 6, 3, padding=1)),
    "larger": Net(own, nn.Conv2d(4, 6, 3, padding=1), nn.Conv2d(3, 3, 3, padding=1, groups=3)),
    "read": Net(read, nn.Conv2d(4, 6, 3)),
    "gate": Net(gate, nn.Conv2d(4, 6, 1)),
}


@pytest.mark.parametrize("name", APART)
def test_what_would_cost_more_or_is_read_stays(name: str) -> None:
    model, x = live(APART[name]), images(2, 4, 7, 5)
    assert not plan(model, x).steps
    assert gap(model, reparameterize(model, x), x) == 0


def test_halves_of_the_weight_added_carelessly_are_another_layer() -> None:
    net, shape = CASES["norm"]
    model, x = live(net), images(*shape)
    folded = reparameterize(model, x)
    conv = next(part for part in folded.modules() if isinstance(part, nn.Conv2d))
    layer = next(part for part in model.modules() if isinstance(part, nn.Conv2d))
    with torch.no_grad():
        conv.weight.copy_(torch.stack(layer.weight.chunk(2)).sum(0))
    assert gap(model, folded, x) > WRONG

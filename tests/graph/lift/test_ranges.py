"""Value ranges are sound: no value of a random network lies outside its interval.

The oracle is the network itself, run on random inputs; a table pins what must be proven, so that
"unknown" everywhere would fail too.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from random import Random
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from refold.graph.lift.interval import UNKNOWN, Interval
from refold.graph.lift.lifter import Lifter
from refold.graph.lift.ranges import Ranges
from refold.graph.trace.capture import Capture, capture

SLACK = 1e-9  # limits hold in exact arithmetic


def ranges_of(model: nn.Module, x: Tensor) -> tuple[Capture, Ranges]:
    [found] = capture(model, (x,))
    return found, Ranges(Lifter.of(found))


def result(function: Callable[[Tensor], Tensor], channels: int = 4) -> Interval:
    """Return what is proven of the result of a function of a map."""

    class Net(nn.Module):
        def forward(self, x: Tensor) -> Tensor:
            return function(x)

    found, ranges = ranges_of(Net().eval(), torch.zeros(1, channels, 8, 8))
    output = next(node for node in found.graph.nodes if node.op == "output")
    return ranges.of(output.args[0])


TABLE: list[tuple[Callable[[Tensor], Any], Interval]] = [
    (lambda x: x.relu(), Interval(0, inf)),
    (F.relu6, Interval(0, 6)),
    (lambda x: F.relu6(x) + 1, Interval(1, 7)),
    (lambda x: F.relu6(x) + x.relu(), Interval(0, inf)),
    (lambda x: 2 - F.relu6(x), Interval(-4, 2)),
    (lambda x: -F.relu6(x) / 2, Interval(-3, 0)),
    (torch.sigmoid, Interval(0, 1)),
    (lambda x: x.relu() * torch.sigmoid(x), Interval(0, inf)),
    (F.hardswish, Interval(-0.3751, inf)),
    (lambda x: F.silu(x.relu()), Interval(0, inf)),
    (torch.tanh, Interval(-1, 1)),
    (lambda x: F.leaky_relu(x.clamp(-2, 3), 0.5), Interval(-1, 3)),
    (lambda x: F.max_pool2d(F.relu6(x), 2), Interval(0, 6)),
    (lambda x: F.avg_pool2d(x.clamp(1, 2), 3, 1, 1), Interval(0, 2)),
    (lambda x: x.clamp(1, 2).mean((2, 3), keepdim=True), Interval(1, 2)),
    (lambda x: F.adaptive_avg_pool2d(x.relu(), 1).flatten(1), Interval(0, inf)),
    (lambda x: torch.cat([F.relu6(x), torch.tanh(x)], 1), Interval(-1, 6)),
    (lambda x: F.relu6(x).chunk(2, 1)[0], Interval(0, 6)),
    (lambda x: F.pad(x.clamp(1, 2), (1, 1)), Interval(0, 2)),
    (lambda x: F.dropout(x.relu(), training=False), Interval(0, inf)),
    (lambda x: F.interpolate(x.relu(), scale_factor=2, mode="bilinear"), Interval(0, inf)),
    (lambda x: F.interpolate(x.relu(), scale_factor=2, mode="bicubic"), UNKNOWN),
    (lambda x: F.dropout(x.relu(), training=True), UNKNOWN),
    (lambda x: torch.sin(x.relu()), UNKNOWN),
    (lambda x: F.max_pool2d(x.relu(), 2, return_indices=True)[1] - 5.0, UNKNOWN),
    (lambda x: x.relu() - x.relu(), UNKNOWN),
    (lambda x: x.relu().add_(-1), Interval(-1, inf)),
    (lambda x: _changed_behind(x), Interval(-9, inf)),
]  # fmt: skip


def _changed_behind(x: Tensor) -> Tensor:
    y = x.relu()
    y.sub_(9)
    return y


@pytest.mark.parametrize(("function", "expected"), TABLE, ids=[str(i) for i in range(len(TABLE))])
def test_what_is_proven(function: Callable[[Tensor], Tensor], expected: Interval) -> None:
    assert result(function) == expected


def test_a_convolution_of_a_bounded_value_is_bounded_tightly() -> None:
    conv = nn.Conv2d(1, 1, 2, bias=True)
    with torch.no_grad():
        conv.weight.copy_(torch.tensor([[[[1.0, -2.0], [3.0, 0.0]]]]))
        conv.bias.fill_(0.5)
    found, ranges = ranges_of(nn.Sequential(nn.ReLU6(), conv).eval(), torch.zeros(1, 1, 4, 4))
    node = list(found.graph.nodes)[2]
    assert ranges.of(node) == Interval(-2 * 6 + 0.5, 4 * 6 + 0.5)


def test_a_hook_may_change_a_value() -> None:
    relu = nn.ReLU()
    relu.register_forward_hook(lambda module, args, output: output - 1)
    found, ranges = ranges_of(nn.Sequential(relu).eval(), torch.zeros(1, 1, 4, 4))
    assert ranges.of(list(found.graph.nodes)[1]) == UNKNOWN


# random networks


def _layer(rng: Random, c: int) -> nn.Module:
    choices: list[Callable[[], nn.Module]] = [
        nn.ReLU, nn.ReLU6, nn.Sigmoid, nn.Hardsigmoid, nn.Hardswish, nn.SiLU, nn.GELU, nn.Mish,
        nn.Tanh, nn.ELU, nn.CELU, nn.SELU, nn.Softplus, lambda: nn.LeakyReLU(0.3),
        lambda: nn.PReLU(c), lambda: nn.Hardtanh(-0.5, 2.0), lambda: nn.Dropout(0.5),
        lambda: nn.MaxPool2d(3, 1, 1), lambda: nn.AvgPool2d(3, 1, 1),
        lambda: nn.AvgPool2d(3, 1, 1, count_include_pad=False),
        lambda: nn.AvgPool2d(2, 1, divisor_override=3), lambda: nn.BatchNorm2d(c),
        lambda: nn.Conv2d(c, c, 3, padding=1, groups=rng.choice([1, c])),
        lambda: nn.Conv2d(c, c, 3, padding=1, padding_mode="reflect"),
        lambda: nn.ConvTranspose2d(c, c, 3, padding=1, groups=rng.choice([1, c])),
        lambda: nn.ZeroPad2d(1), lambda: nn.ConstantPad2d(1, -3.0), lambda: nn.ReflectionPad2d(1),
    ]  # fmt: skip
    return rng.choice(choices)()


class RandomNet(nn.Module):
    """Layers in a row, with sums, products and concats of what came before."""

    def __init__(self, seed: int) -> None:
        super().__init__()
        rng = Random(seed)
        self.layers = nn.ModuleList(_layer(rng, 4) for _ in range(8))
        joins = ["", "", "add", "mul", "sub", "cat", "gate"]
        kept = [bool(layer(torch.zeros(1, 4, 7, 7)).shape[2] == 7) for layer in self.layers]
        self.joins = [rng.choice(joins if keeps else ["", "cat"]) for keeps in kept]
        self.factor = rng.uniform(-2, 2)

    def forward(self, x: Tensor) -> Tensor:
        for layer, join in zip(self.layers, self.joins, strict=True):
            y = layer(x)
            if join in ("add", "mul", "sub"):
                y = {"add": y + x, "mul": y * x, "sub": self.factor * y - x}[join]
            elif join == "cat":
                y = torch.cat([y[:, :2], y.chunk(2, 1)[1]], 1)
            elif join == "gate":
                y = y * torch.sigmoid(y.mean((2, 3), keepdim=True))
            x = y
        return x


def enlivened(model: nn.Module, generator: torch.Generator) -> nn.Module:
    for name, tensor in [*model.named_parameters(), *model.named_buffers()]:
        if tensor.is_floating_point():
            values = torch.randn(tensor.shape, generator=generator, dtype=tensor.dtype)
            tensor.data.copy_(values.abs() + 0.1 if name.endswith("running_var") else values)
    return model


class Watch(fx.Interpreter):
    """Runs a graph and notes every tensor under the node of the original graph."""

    def __init__(self, found: Capture) -> None:
        super().__init__(found.graph_module(), garbage_collect_values=False)
        self.originals = dict(zip(self.module.graph.nodes, found.graph.nodes, strict=True))
        self.seen: list[tuple[fx.Node, Tensor]] = []

    def run_node(self, n: fx.Node) -> Any:
        value = super().run_node(n)
        if isinstance(value, Tensor) and value.is_floating_point() and value.numel():
            self.seen.append((self.originals[n], value.clone()))
        return value


@pytest.mark.parametrize("seed", range(60))
def test_every_value_lies_in_its_interval(seed: int) -> None:
    generator = torch.Generator().manual_seed(seed)
    model = enlivened(RandomNet(seed).double().eval(), generator)
    example = torch.randn(2, 4, 7, 7, generator=generator, dtype=torch.float64)
    found, ranges = ranges_of(model, example)
    for size in (0.1, 1.0, 30.0):
        watch = Watch(found)
        with torch.no_grad():
            watch.run(example * size)
        for node, value in watch.seen:
            interval = ranges.of(node)
            slack = SLACK * max(1.0, float(value.abs().max()))
            assert interval.low - slack <= float(value.min()), node
            assert float(value.max()) <= interval.high + slack, node


def test_random_networks_have_something_to_prove() -> None:
    known = 0
    for seed in range(10):
        found, ranges = ranges_of(RandomNet(seed).double().eval(), torch.zeros(1, 4, 7, 7).double())
        known += sum(ranges.of(node).is_known for node in found.graph.nodes)
    assert known > 50

"""In-place operations: what must not be folded, what may, what a naive folder gets wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import fx, nn
from torch.nn.utils.fusion import fuse_conv_bn_eval

from refold.graph.trace.aliases import effects, tainted
from refold.graph.trace.capture import Capture, capture


class Net(nn.Module):
    """A conv and a norm with lively statistics, and the forward under test."""

    def __init__(self, forward: Callable[..., Any], **children: nn.Module) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(0)
        self.run = forward
        self.conv, self.other = nn.Conv2d(3, 3, 1), nn.Conv2d(3, 3, 1)
        self.bn = nn.BatchNorm2d(3)
        self.gamma = nn.Parameter(torch.randn(3, 1, 1, generator=generator))
        self.bn.running_mean = torch.randn(3, generator=generator)
        self.bn.running_var = torch.rand(3, generator=generator) + 0.5
        for name, child in children.items():
            self.add_module(name, child)
        self.eval()

    def forward(self, x: torch.Tensor) -> Any:
        return self.run(self, x)


X = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(1))


def found(forward: Callable[..., Any], **children: nn.Module) -> Capture:
    [root] = (one for one in capture(Net(forward, **children), (X,)) if one.path == "")
    return root


def names(one: Capture) -> set[str]:
    return {node.name for node in tainted(one.graph)}


def traced(forward: Callable[..., Any], **children: nn.Module) -> set[str]:
    """Return what is tainted in a graph of torch.fx, which keeps the old names of what changes."""
    return {n.name for n in tainted(fx.symbolic_trace(Net(forward, **children)).graph)}


def hidden_write(self: Any, x: Any) -> Any:
    out = self.conv(x)
    shown = torch.relu_(out)
    return self.bn(out) + shown


def test_a_naive_folder_gets_a_hidden_write_wrong() -> None:
    model = Net(hidden_write)
    naive = Net(lambda self, x: self.conv(x) + torch.relu(self.other(x)))
    naive.conv, naive.other = fuse_conv_bn_eval(model.conv, model.bn), model.conv
    assert not torch.allclose(naive(X), model(X), atol=1e-3)  # bn reads what relu_ has changed
    assert {"conv", "relu_"} <= traced(hidden_write)


TAINTED: dict[str, tuple[Callable[..., Any], str]] = {
    "old name read later": (lambda s, x: _two(y := s.conv(x), y.add_(1)), "conv"),
    "functional inplace": (lambda s, x: _two(y := s.conv(x), F.relu(y, inplace=True)), "conv"),
    "inplace by position": (lambda s, x: _two(y := s.conv(x), F.relu(y, True)), "conv"),
    "layer inplace": (lambda s, x: _two(y := s.conv(x), s.act(y)), "conv"),
    "write into a view": (lambda s, x: _two(y := s.conv(x), y.view(-1).mul_(2)), "conv"),
    "write into a part": (lambda s, x: _two(y := s.conv(x), y[:, 0].zero_()), "conv"),
    "write through chunk": (lambda s, x: _two(y := s.conv(x), y.chunk(3, 1)[0].zero_()), "conv"),
    "read of a view": (lambda s, x: _two((y := s.conv(x)).flatten(1), y.relu_()), "conv"),
    "through identity": (lambda s, x: _two(y := s.conv(x), s.same(y).add_(1)), "conv"),
    "through eval dropout": (lambda s, x: _two(y := s.conv(x), s.drop(y).add_(1)), "conv"),
    "out": (lambda s, x: _two(y := s.conv(x), torch.add(x, 1, out=y)), "conv"),
    "aten": (lambda s, x: _two(y := s.conv(x), torch.ops.aten.relu_.default(y)), "conv"),
    "two writes to the old name": (
        lambda s, x: _last(y := s.conv(x), y.add_(1), y.mul_(2)),
        "conv",
    ),
    "the input": (lambda s, x: s.bn(s.conv(x.mul_(2))), "x"),
    "a view of the input": (lambda s, x: s.conv(x.view(2, 3, 4, 4).mul_(2)), "x"),
    "a parameter": (lambda s, x: s.conv(x) * s.gamma.mul_(2), "gamma"),
}


def _two(first: Any, second: Any) -> Any:
    return (first, second)


def _last(*values: Any) -> Any:
    return values[-1]


def _set(value: Any) -> Any:
    value[:, 0] = 0
    return 0


LAYERS: dict[str, Callable[[], nn.Module]] = {
    "act": lambda: nn.Hardswish(inplace=True),
    "same": nn.Identity,
    "drop": lambda: nn.Dropout(inplace=True),
}


@pytest.mark.parametrize("case", TAINTED)
def test_tainted(case: str) -> None:
    forward, expected = TAINTED[case]
    assert expected in traced(forward, **{name: make() for name, make in LAYERS.items()})


def test_a_recording_follows_a_value_that_changes_and_not_its_views() -> None:
    def change(self: Any, x: Any) -> Any:
        old = value = self.conv(x)
        value += x
        return old, value

    one = found(change)
    assert names(one) == set()
    first, second = one.root.output
    assert first is second
    assert "conv" in names(found(lambda s, x: _two((y := s.conv(x)).flatten(1), _set(y))))


def resnet_tail(self: Any, x: Any) -> Any:
    out = self.bn(self.conv(x))
    out += x
    return self.act(out)


FREE: dict[str, Callable[..., Any]] = {
    "only reader": lambda s, x: s.act(s.bn(s.conv(x))),
    "add_ to a fresh value": lambda s, x: s.conv(x).add_(s.other(x)),
    "residual tail": resnet_tail,
    "chain of writes": lambda s, x: s.conv(x).relu_().add_(1).mul_(2) + x,
    "pure functions": lambda s, x: F.relu(y := s.conv(x), inplace=False) + y,
    "eval dropout writes nothing": lambda s, x: s.drop(y := s.conv(x)) + y,
    "functional eval dropout": lambda s, x: F.dropout(y := s.conv(x), 0.5, False, True) + y,
    "shape reads": lambda s, x: (y := s.conv(x)).relu_().reshape(y.shape[0], -1),
    "view then write, one reader": lambda s, x: s.conv(x).flatten(1).relu_(),
    "requires_grad_": lambda s, x: s.conv(x).requires_grad_(False) + 1,
}


@pytest.mark.parametrize("case", FREE)
def test_not_tainted(case: str) -> None:
    one = found(FREE[case], **{name: make() for name, make in LAYERS.items()})
    assert names(one) == set()


class Secret(nn.Module):
    """Cannot be traced, so nobody knows that it changes its input."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.relu_() if x.sum() > -1e9 else x


def test_unseen_code_taints_a_value_with_another_reader() -> None:
    one = found(lambda s, x: s.bn(y := s.conv(x)) + s.secret(y), secret=Secret())
    assert "secret may change conv in place while bn reads it" in tainted(one.graph).values()
    alone = found(lambda s, x: s.secret(s.bn(s.conv(x))), secret=Secret())
    assert names(alone) == set()


class Pure(nn.Module):
    """Holds a tensor, so that two calls of it are none of its caller's."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("one", torch.ones(1))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return x.exp()


def test_a_leaf_with_its_own_capture_is_known() -> None:
    def twice(self: Any, x: Any) -> Any:
        y = self.conv(x)
        return self.leaf(self.leaf(y)) + y

    inner, root = capture(Net(twice, leaf=Pure()))
    assert effects(inner.graph) == (False, False)
    assert names(root) == set()

    class Changes(Pure):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.mul_(2)

    inner, root = capture(Net(twice, leaf=Changes()))
    assert effects(inner.graph) == (True, True)
    assert "conv" in names(root)


def test_a_graph_without_frames_is_analysed_too() -> None:
    module = fx.symbolic_trace(nn.Sequential(nn.Conv2d(1, 1, 1), nn.ReLU(inplace=True)))
    assert tainted(module.graph) == {}

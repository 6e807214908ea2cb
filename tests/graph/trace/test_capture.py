"""What is captured, what is not and why: every trap of a real model's forward."""

from __future__ import annotations

import operator
from collections import OrderedDict
from typing import Any

import pytest
import torch
from torch import fx, nn
from torch.nn.utils import parametrizations

from refold.errors import InputError
from refold.graph.trace.capture import Capture, capture, capture_all


def conv_norm(channels: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(channels, channels, 1), nn.BatchNorm2d(channels), nn.ReLU())


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.a, self.b = conv_norm(), conv_norm()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.a(x) + self.b(x)


class Net(nn.Module):
    """A root whose forward is given."""

    def __init__(self, forward: Any, **children: nn.Module) -> None:
        super().__init__()
        self.run = forward
        for name, child in children.items():
            self.add_module(name, child)

    def forward(self, x: Any) -> Any:
        return self.run(self, x)


def paths(model: nn.Module) -> list[str]:
    return [found.path for found in capture(model)]


def targets(found: Capture) -> list[Any]:
    return [n.target for n in found.graph.nodes if n.op.startswith("call")]


X = torch.randn(2, 4, 5, 5)


def test_the_graph_module_computes_the_model() -> None:
    model = Block().eval()
    [found] = capture(model)
    assert torch.equal(found.graph_module()(X), model(X))
    frames = [(frame.path, [n.name for n in frame.nodes]) for frame in found.root.children]
    assert frames == [("a", ["a_0", "a_1", "a_2"]), ("b", ["b_0", "b_1", "b_2"])]
    assert found.full("a.0") == "a.0"


def test_the_callers_model_is_not_touched() -> None:
    def forward(self: Any, x: Any) -> Any:
        self.seen = x
        self.log.append(x)
        return self.block(x)

    model = Net(forward, block=Block())
    model.log = []
    assert paths(model) == ["block"]  # a forward that stores something stays as it is
    assert model.log == []
    assert "seen" not in vars(model)


def test_control_flow_on_data_falls_back_to_the_parts() -> None:
    def forward(self: Any, x: Any) -> Any:
        x = self.first(x)
        return self.second(x) if x.sum() > 0 else x

    found = capture_all(Net(forward, first=Block(), second=Block()))
    assert [c.path for c in found.captures] == ["first", "second"]
    assert "asks for numbers that depend on the input" in found.failures[""]


def test_list_inputs_fall_back_to_the_parts() -> None:
    model = Net(lambda self, xs: [self.block(x) for x in xs], block=Block())
    assert paths(model) == ["block"]


def test_an_untraceable_submodule_is_one_opaque_node() -> None:
    inner = Net(lambda self, x: self.block(x) if x.mean() > 0 else x, block=Block())
    model = nn.Sequential(conv_norm(), inner, conv_norm())
    found = capture_all(model)
    assert [c.path for c in found.captures] == ["1.block", ""]
    assert list(found.captures[1].opaque) == ["1"]
    assert "asks for numbers" in found.captures[1].opaque["1"]
    assert targets(found.captures[1])[3:5] == ["1", "2.0"]  # nothing of the failed trace is left
    assert found.captures[0].full("a.0") == "1.block.a.0"


class Lister(nn.Module):
    """Untraceable; runs `whole` as a module and `parts` child by child."""

    def __init__(self) -> None:
        super().__init__()
        self.whole, self.parts = conv_norm(), conv_norm()

    def forward(self, xs: list[torch.Tensor]) -> list[torch.Tensor]:
        xs = [self.whole(x) for x in xs]
        return [layer(x) for x in xs for layer in self.parts]


def test_a_sequential_that_is_run_child_by_child_is_not_captured_as_a_chain() -> None:
    found = capture_all(Lister())
    assert [c.path for c in found.captures] == ["whole"]
    assert "one by one" in found.failures["parts"]


def test_a_module_called_twice_is_a_leaf_with_a_capture_of_its_own() -> None:
    model = Net(lambda self, x: self.block(self.block(x)), block=Block())
    inner, root = capture(model)
    assert targets(root) == ["block", "block"]
    assert root.calls == {"block": 2}
    assert inner.path == "block"


def test_a_layer_called_in_two_captures_counts_both_calls() -> None:
    shared = nn.Conv2d(4, 4, 1)
    a, b = nn.Sequential(shared, nn.ReLU()), nn.Sequential(shared, nn.Tanh())
    model = Net(lambda self, x: [m(x) for m in self.m if x.sum() < 1e9], m=nn.ModuleList([a, b]))
    first, second = capture(model)
    assert (first.calls["0"], second.calls["0"]) == (2, 2)


def test_an_aliased_module_is_captured_once() -> None:
    block = Block()
    model = Net(lambda self, x: self.again[0](x), block=block, again=nn.ModuleList([block]))
    [found] = capture(model)
    assert set(found.calls) == {f"block.{side}.{i}" for side in "ab" for i in range(3)}


def test_hooks_make_a_leaf() -> None:
    model = nn.Sequential(Block(), Block())
    model[0].register_forward_hook(lambda *_: None)
    model[1].a[0].register_forward_pre_hook(lambda *_: None)
    inner, root = capture(model)
    assert "hooks" in root.opaque["0"]
    assert "hooks" in root.pinned["1.a.0"]
    assert inner.path == "0"


def test_parametrized_and_recurrent_layers_are_pinned() -> None:
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(4, 4)), nn.LSTM(4, 4))
    [found] = capture(model)
    assert "parametrized" in found.pinned["0"]
    assert "recurrent" in found.pinned["1"]


def test_compiled_and_parallel_parts_are_looked_into() -> None:
    model = nn.Sequential(torch.compile(Block()), nn.DataParallel(Block()))
    assert paths(model) == ["0._orig_mod", "1.module", ""]
    assert paths(nn.DataParallel(Block())) == ["module"]


def test_modules_that_forward_never_runs_are_captured_alone() -> None:
    model = Net(lambda self, x: self.used(x), used=Block(), extra=nn.ModuleDict({"k": Block()}))
    assert paths(model) == ["extra.k", ""]


def test_an_exported_graph_is_captured_in_aten_calls() -> None:
    exported = torch.export.export(Block().eval(), (X,)).module()
    [found] = capture(exported)
    assert torch.ops.aten.batch_norm.default in targets(found)
    assert torch.equal(found.graph_module()(X), exported(X))


def test_a_script_module_and_no_forward_give_a_reason() -> None:
    assert "TorchScript" in capture_all(torch.jit.script(nn.Sequential(nn.ReLU()))).failures[""]
    empty = capture_all(nn.Module())
    assert (empty.captures, empty.failures) == ([], {"": "it has no forward"})


def test_what_is_no_module_is_an_input_error() -> None:
    with pytest.raises(InputError, match=r"expected an nn\.Module, got int"):
        capture_all(3)  # type: ignore[arg-type]


def add_in_place(self: Any, x: Any) -> Any:
    y = self.first(x)
    old = y
    y += x
    return old * y


def test_in_place_operators_stay_in_place() -> None:
    model = Net(add_in_place, first=nn.Conv2d(4, 4, 1))
    naive = fx.symbolic_trace(model)
    assert not torch.allclose(naive(X), model(X))  # the control: plain fx rebinds the name
    [found] = capture(model)
    assert operator.iadd in targets(found)
    assert torch.equal(found.graph_module()(X), model(X))


# Compiled from text: pytest rewrites the assert statements of this file into something else.
ASSERTIONS: dict[str, Any] = {}
exec("def check(x, gamma):\n    assert x.ndim == 4, f'{x.ndim}'\n    assert gamma.ndim", ASSERTIONS)


class Awkward(nn.Module):
    """Assertions, buffers in arithmetic and control flow, defaults, keyword-only, isinstance."""

    def __init__(self) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.rand(4))
        self.register_buffer("var", torch.rand(4))
        self.register_buffer("flag", torch.tensor(1))

    def forward(self, x: torch.Tensor, mask: Any = None, *, scale: bool = True) -> Any:
        ASSERTIONS["check"](x, self.gamma)
        torch._assert(x.shape[1] == 4, "channels")
        if self.flag and scale:
            x = x * (self.gamma * (self.var + 1e-3).rsqrt()).reshape(1, -1, 1, 1)
        if mask is not None:
            x = x * mask
        if not isinstance(x, torch.Tensor):
            x = x[0]
        first, *rest = x.chunk(2, 1)
        return OrderedDict(out=first, rest=tuple(rest), size=4)


def test_awkward_but_common_code_is_followed() -> None:
    model = Awkward()
    [found] = capture(model, (X,))
    result = found.graph_module()(X)
    expected = model(X)
    assert type(result) is OrderedDict
    assert torch.equal(result["out"], expected["out"])
    assert torch.equal(result["rest"][0], expected["rest"][0])
    stored = {n.target for n in found.graph.nodes if n.op == "get_attr"}
    assert stored == {"gamma", "var"}  # no constants of the trace
    readers = {n.target for n in found.graph.nodes if n.op == "call_function"}
    assert torch._assert not in readers
    assert operator.eq not in readers


def test_helper_methods_are_frames() -> None:
    class Classifier(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.block, self.head = Block(), nn.Linear(4, 2)

        def forward_features(self, x: torch.Tensor) -> torch.Tensor:
            return self.block(x).mean((2, 3))

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.head(self.forward_features(x))

    [found] = capture(Classifier())
    [features] = found.root.children
    assert (features.path, features.method) == ("", "forward_features")
    assert [child.path for child in features.children] == ["block"]
    assert [n.name for n in found.root.nodes] == ["x", "head", "output"]

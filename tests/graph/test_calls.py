"""One table of call facts: what is known about a call does not depend on how it is spelled."""

from __future__ import annotations

import operator
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F

from refold import plan
from refold.graph import calls
from refold.graph.calls import Kind, canonical, is_question, kind_of, place_of

# What a tracer cannot record as a call: Python wants a whole number of it at once.
NOT_RECORDED = {"len", "__len__"}
QUESTIONS = sorted(calls._QUESTIONS - NOT_RECORDED)
ASKING = [function for function in calls._ASKING if function is not len]


class Net(nn.Module):
    """A norm that folds, beside something that asks about the value in between."""

    def __init__(self, ask: Callable[[Any], Any]) -> None:
        super().__init__()
        self.conv, self.norm, self.ask = nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), ask
        nn.init.normal_(self.norm.running_mean)
        nn.init.normal_(self.norm.weight)

    def forward(self, x: Tensor) -> tuple[Tensor, Any]:
        y = self.conv(x)
        return self.norm(y), self.ask(y)


def method_or_attribute(name: str) -> Callable[[Any], Any]:
    if callable(getattr(torch.zeros(1), name)):
        return lambda y: getattr(y, name)()
    return lambda y: getattr(y, name) * 1 if name == "nbytes" else getattr(y, name)


def check(ask: Callable[[Any], Any]) -> None:
    """Fold a norm beside a question, and compare both answers of the result."""
    net, x = Net(ask).eval().double(), torch.randn(2, 3, 4, 5, dtype=torch.float64)
    done = plan(net, x)
    assert not done.refusals
    folded, wanted = done.apply(), net(x)
    assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())
    for value in (x, torch.cat([x, x])):
        wanted, got = net(value), folded(value)
        assert (wanted[0] - got[0]).abs().max() <= 1e-9 * wanted[0].abs().max()
        same = torch.equal if isinstance(wanted[1], Tensor) else operator.eq
        assert same(wanted[1], got[1])


@pytest.mark.parametrize("name", QUESTIONS)
def test_a_question_blocks_no_fold_however_it_is_spelled(name: str) -> None:
    check(method_or_attribute(name))


@pytest.mark.parametrize("function", ASKING, ids=lambda function: function.__name__)
def test_a_function_that_asks_blocks_no_fold(function: Callable[[Any], Any]) -> None:
    check(function)


MADE_LIKE = {
    "ones_like": torch.ones_like,
    "full_like": lambda y: torch.full_like(y, 2.0),
    "new_ones": lambda y: y.new_ones(()),
    "new_zeros": lambda y: y.new_zeros(3),
    "new_full": lambda y: y.new_full(y.shape, 0.5),
}


@pytest.mark.parametrize("name", MADE_LIKE)
def test_a_constant_of_its_type_and_size_blocks_no_fold(name: str) -> None:
    check(MADE_LIKE[name])


def test_a_constant_of_its_numbers_does() -> None:
    net = Net(lambda y: y.new_full((2,), 2.0) * y.amax()).eval()
    folded = plan(net, torch.randn(1, 3, 2, 2)).apply()
    assert any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())


def test_a_constant_of_a_size_that_the_fold_would_change_stops_it() -> None:
    net = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 4, 3, stride=2)).eval()

    class Sized(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.net = net

        def forward(self, x: Tensor) -> Tensor:
            y = self.net[0](x)
            return self.net[2](self.net[1](y)).mean() * torch.ones_like(y)

    x = torch.randn(1, 3, 8, 8)
    sized = Sized().eval()
    torch.testing.assert_close(plan(sized, x).apply()(x), sized(x))


def test_whoever_reads_the_numbers_does() -> None:
    net = Net(lambda y: y.sum()).eval()
    folded = plan(net, torch.randn(1, 3, 4, 4)).apply()
    assert any(isinstance(module, nn.BatchNorm2d) for module in folded.modules())


def node(function: Callable[..., Any], *args: Any, **kwargs: Any) -> fx.Node:
    """Return a node that calls a function of a value, or a method where it is a name."""
    graph = fx.Graph()
    x = graph.placeholder("x")
    if isinstance(function, str):
        return graph.call_method(function, (x, *args), kwargs)
    return graph.call_function(function, (x, *args), kwargs)


@pytest.mark.parametrize("call", ["add", torch.add, operator.add, operator.iadd, "add_", "__add__"])
def test_every_spelling_has_one_name_and_one_order(call: Any) -> None:
    found = canonical(node(call, 2.0))
    assert found is not None
    assert (found.name, found["other"], found["alpha"]) == ("add", 2.0, 1)


def test_functions_of_one_name_and_two_orders_stay_apart() -> None:
    one = canonical(node(F.batch_norm, "mean", "var", "weight", "bias", False, 0.1, 1e-5))
    two = canonical(node(torch.batch_norm, "weight", "bias", "mean", "var", False, 0.1, 1e-5, True))
    assert one is not None
    assert two is not None
    assert all(found[key] == key for found in (one, two) for key in ("mean", "var", "weight"))
    assert canonical(node(torch.instance_norm, 1, 2, 3, 4, True, 0.1, 1e-5, True)) is None


@pytest.mark.parametrize("kwargs", [{"out": 1}, {"input": 1}, {"alpha": 1, "other": 2, "more": 3}])
def test_an_argument_that_nobody_knows_is_no_call_of_ours(kwargs: dict[str, Any]) -> None:
    assert canonical(node("add", 1.0, **kwargs)) is None


def test_a_stranger_by_the_same_name_is_no_call_of_ours() -> None:
    def relu(x: Tensor) -> Tensor:
        return x.mean(1)

    assert kind_of(node(relu)) is Kind.NONE
    assert kind_of(node(F.relu)) is kind_of(node("relu_")) is Kind.ELEMENTWISE


def test_a_question_asks_for_no_number() -> None:
    assert is_question(node("nelement"))
    assert is_question(node(getattr, "shape"))
    assert not is_question(node("item"))
    assert not is_question(node("exp"))


def test_a_call_is_told_by_what_it_does() -> None:
    assert place_of(node(getattr, "shape")) == "shape"
    assert place_of(node(torch.ops.aten.relu.default)) == "relu"

"""Values of parameters alone, where they come from, and who else uses them."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from refold.graph.lift.constants import Constants
from refold.graph.trace.capture import capture


class Net(nn.Module):
    def __init__(self, forward: Any) -> None:
        super().__init__()
        self.run = forward
        self.gamma = nn.Parameter(torch.randn(4))
        self.w, self.v = nn.Parameter(torch.randn(4, 4)), nn.Parameter(torch.randn(4, 4))
        self.register_buffer("eye", torch.eye(4))
        self.plain = torch.ones(4)
        self.conv = nn.Conv2d(4, 4, 1)
        self.norm = nn.BatchNorm2d(4)

    def forward(self, x: torch.Tensor) -> Any:
        return self.run(self, x)


def constants(forward: Any) -> tuple[Net, Constants, dict[str, Any]]:
    model = Net(forward)
    [found] = capture(model, (torch.zeros(4, 4, 4, 4),))
    return model, Constants(found), {node.name: node for node in found.graph.nodes}


def last_operand(nodes: dict[str, Any]) -> Any:
    """Return the second argument of the product that the model ends with."""
    return nodes["output"].args[0].args[1]


CASES: dict[str, tuple[Any, Any, tuple[str, ...]]] = {
    "reshape": (
        lambda s, x: x * s.gamma.reshape(1, -1, 1, 1),
        lambda m: m.gamma.reshape(1, -1, 1, 1),
        ("gamma",),
    ),
    "sum": (lambda s, x: x * (s.eye + s.w), lambda m: m.eye + m.w, ("eye", "w")),
    "einsum": (
        lambda s, x: x * torch.einsum("ij,jk->ik", s.w, s.v),
        lambda m: torch.einsum("ij,jk->ik", m.w, m.v),
        ("w", "v"),
    ),
    "abs": (lambda s, x: x * torch.abs(s.w).T, lambda m: m.w.abs().T, ("w",)),
    "softmax": (lambda s, x: x * F.softmax(s.w, 0), lambda m: m.w.softmax(0), ("w",)),
    "layer": (
        lambda s, x: x * s.conv(s.w.reshape(1, 4, 4, 1)),
        lambda m: m.conv(m.w.reshape(1, 4, 4, 1)),
        ("conv.weight", "conv.bias", "w"),
    ),
    "indexed": (lambda s, x: x * s.w[0, :2].sum(), lambda m: m.w[0, :2].sum(), ("w",)),
}


@pytest.mark.parametrize("case", CASES)
def test_parameter_arithmetic_is_evaluated(case: str) -> None:
    """By the operations that the model names: the bits are theirs, on any processor."""
    forward, expected, sources = CASES[case]
    model, values, nodes = constants(forward)
    node = last_operand(nodes)
    value = values.value(node)
    assert isinstance(value, torch.Tensor)
    assert torch.equal(value, expected(model))
    assert not value.requires_grad
    assert values.sources(node) == sources
    assert values.value(node) is value  # computed once


UNKNOWN: dict[str, Any] = {
    "the input": lambda s, x: x * (x * s.w),
    "randomness": lambda s, x: x * torch.rand_like(s.w),
    "random method": lambda s, x: x * s.w.bernoulli(),
    "dropout": lambda s, x: x * F.dropout(s.w),
    "in place": lambda s, x: x * s.w.mul_(2),
    "in place elsewhere": lambda s, x: (s.w.view(-1).zero_(), x * s.w)[1],
    "a norm": lambda s, x: x * s.norm(s.w.reshape(1, 4, 4, 1)),
}


@pytest.mark.parametrize("case", UNKNOWN)
def test_what_is_not_constant_has_no_value(case: str) -> None:
    _, values, nodes = constants(UNKNOWN[case])
    assert values.value(last_operand(nodes)) is None


def test_a_plain_tensor_attribute_is_a_constant() -> None:
    model, values, nodes = constants(lambda s, x: x * s.plain)
    assert torch.equal(values.value(last_operand(nodes)), model.plain)


def test_one_call_that_reads_a_tensor_twice_is_one_reader() -> None:
    _, values, nodes = constants(lambda s, x: x * (s.w - s.w.mean()).std(0).view(1, -1, 1, 1))
    assert values.shared("w") is None
    assert values.consumers()["w"] == {nodes["mul"]}


def test_a_cast_to_the_type_of_a_value_is_a_constant() -> None:
    model, values, nodes = constants(lambda s, x: x * s.w.to(x.dtype))
    assert torch.equal(values.value(last_operand(nodes)), model.w)
    _, values, nodes = constants(lambda s, x: x * s.w.to(torch.int64).to(x.dtype))
    assert values.value(last_operand(nodes)) is None


def test_one_reader_is_not_shared() -> None:
    _, values, _ = constants(lambda s, x: s.conv(x) * s.gamma)
    assert [values.shared(path) for path in ("gamma", "conv.weight", "w")] == [None, None, None]


def test_two_readers_are_shared() -> None:
    _, values, _ = constants(lambda s, x: x * s.w + s.w.sum())
    assert "read more than once" in values.shared("w")


def test_asking_for_a_size_is_no_second_reader() -> None:
    _, values, _ = constants(lambda s, x: x * s.w.flatten().view_as(s.w) + s.w.shape[0])
    assert values.shared("w") is None
    _, values, _ = constants(lambda s, x: x * s.gamma.expand_as(s.w) + s.w.reshape_as(s.v))
    assert [values.shared(path) for path in ("gamma", "w", "v")] == [None, None, None]
    _, values, _ = constants(lambda s, x: x * s.w.flatten().view_as(s.w) + s.w)
    assert "read more than once" in values.shared("w")


def test_a_parameter_of_a_layer_that_is_read_directly_is_shared() -> None:
    _, values, _ = constants(lambda s, x: s.conv(x) + s.conv.weight.sum())
    assert "read more than once (add, conv)" in values.shared("conv.weight")


def test_tied_weights_name_each_other_even_outside_the_capture() -> None:
    class Untraceable(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one = nn.Sequential(nn.Sequential(nn.Linear(4, 4, bias=False)))
            self.two = nn.Linear(4, 4, bias=False)
            self.two.weight = self.one[0][0].weight

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return self.one(x) if x.sum() > 0 else self.two(x)

    [found] = capture(Untraceable())
    assert found.path == "one"
    assert (
        Constants(found).shared("0.0.weight") == "one.0.0.weight shares its values with two.weight"
    )


def test_views_of_one_storage_are_tied_and_neighbours_are_not() -> None:
    flat = torch.randn(12)
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2), nn.Linear(2, 2))
    for layer, start in zip(model, (0, 2, 8), strict=True):
        layer.weight = nn.Parameter(flat[start : start + 4].view(2, 2))
    [found] = capture(model)
    values = Constants(found)
    assert "shares its values with 1.weight" in values.shared("0.weight")
    assert values.shared("2.weight") is None


def test_an_aliased_module_is_no_tied_weight() -> None:
    inner = nn.Sequential(nn.Linear(2, 2))
    [found] = capture(nn.ModuleDict({"a": inner, "b": inner}))
    assert Constants(found).shared("0.weight") is None

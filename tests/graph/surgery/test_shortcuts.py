"""Modules that only run their children in turn cost one call of Python, and no listener notices."""

from __future__ import annotations

import copy
import pickle
import sys
from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any, cast

import pytest
import torch
from torch import fx, nn

import refold

X = torch.randn(1, 3, 6, 6, generator=torch.Generator().manual_seed(0), dtype=torch.float64)


def norm() -> nn.BatchNorm2d:
    made = nn.BatchNorm2d(3)
    for tensor in (made.running_mean, made.running_var, made.weight, made.bias):
        torch.nn.init.uniform_(tensor, 0.5, 2)  # type: ignore[arg-type]
    return made


class Own(nn.Module):
    """A linear layer and its norm, with code of its own, as LeViT has them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.bn = nn.Linear(3, 3), nn.BatchNorm1d(3)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = self.linear(x)
        return self.bn(x.flatten(0, 1)).reshape_as(x)


class Net(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.pair = nn.Sequential(nn.Conv2d(3, 3, 1), norm())
        self.trio = nn.Sequential(nn.Conv2d(3, 3, 1), norm(), nn.ReLU())
        self.own = Own()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.own(self.trio(self.pair(x).relu()).flatten(2).mT)


@pytest.fixture(scope="module")
def made() -> nn.Module:
    torch.manual_seed(0)
    return refold.reparameterize(Net().double().eval(), X)


@pytest.fixture
def folded(made: nn.Module) -> nn.Module:
    return copy.deepcopy(made)


def calls(net: Callable[[torch.Tensor], Any], x: torch.Tensor = X) -> int:
    """Return how many calls of Python one forward takes."""
    found = list[str]()
    sys.setprofile(lambda frame, event, _: found.append(event) if event == "call" else None)
    try:
        net(x)
    finally:
        sys.setprofile(None)
    return len(found)


def test_a_layer_in_a_container_costs_one_call_more_than_alone(folded: Any) -> None:
    for held, layers in (
        (folded.pair, [folded.pair[0]]),
        (folded.trio, [folded.trio[0], folded.trio[2]]),
        (folded.own, [folded.own.linear]),
    ):
        x = X.flatten(2).mT if held is folded.own else X
        assert calls(held, x) == 1 + sum(calls(layer, x) for layer in layers)
    assert calls(nn.Sequential(folded.pair[0], nn.Identity())) > calls(folded.pair) + 4


def test_names_indices_and_classes_stay(folded: Any) -> None:
    names = {"pair.0", "trio.0", "own.linear"}
    assert {name.rpartition(".")[0] for name in folded.state_dict()} == names
    assert isinstance(folded.pair, nn.Sequential)
    assert len(folded.trio) == 3
    assert isinstance(folded.pair[1], nn.Identity)
    fresh = refold.reparameterize(Net().double().eval(), X)
    fresh.load_state_dict(folded.state_dict())
    assert torch.equal(fresh(X), folded(X))


def test_a_file_holds_the_plain_container_and_a_copy_the_shortcut(folded: Any) -> None:
    data = pickle.dumps(folded.pair)
    assert b"refold" not in data
    assert type(pickle.loads(data)) is nn.Sequential
    for made in (folded, pickle.loads(pickle.dumps(folded)), copy.deepcopy(folded)):
        assert torch.equal(made(X), folded(X))
    assert calls(copy.deepcopy(folded)) == calls(folded)


@contextmanager
def hooked(part: nn.Module | None) -> Generator[None]:
    def add(_: Any, __: Any, value: torch.Tensor) -> Any:
        return value + 1

    if part is None:
        handle = nn.modules.module.register_module_forward_hook(cast(Any, add))
    else:
        handle = part.register_forward_hook(add)
    try:
        yield
    finally:
        handle.remove()


def test_hooks_are_heard_wherever_they_stand(folded: Any) -> None:
    wanted = folded.pair(X)
    for part in (folded.pair, folded.pair[0], folded.pair[1]):
        with hooked(part):
            assert torch.equal(folded.pair(X), wanted + 1)
    with hooked(None):  # the container, the convolution and the identity
        assert torch.allclose(folded.pair(X), wanted + 3)
    assert torch.equal(folded.pair(X), wanted)


def test_gradients_pass_through_backward_hooks(folded: Any) -> None:
    heard = list[nn.Module]()

    def hear(module: nn.Module, *_: Any) -> None:
        heard.append(module)

    for part in (folded.pair, folded.pair[1]):
        part.register_full_backward_hook(hear)
    folded(X.clone().requires_grad_()).sum().backward()
    assert set(heard) == {folded.pair, folded.pair[1]}


def _wrong(graph: fx.GraphModule, example: list[Any]) -> Callable[..., Any]:
    return lambda *_: [X]


NORM = norm().double().eval()
CHANGES: dict[str, Callable[[Any], Any]] = {
    "a norm put back": lambda pair: pair.__setitem__(1, NORM),
    "another layer": lambda pair: pair.append(nn.Tanh()),
    "one less": lambda pair: pair.__delitem__(0),
    "another forward": lambda pair: setattr(pair, "forward", torch.neg),
    "a forward in the identity's place": lambda pair: setattr(pair[1], "forward", torch.neg),
    "a compiled call": lambda pair: pair.compile(backend=_wrong),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_container_that_was_changed_runs_as_it_stands(
    folded: Any, change: Callable[[Any], Any]
) -> None:
    expected = nn.Sequential(*folded.pair)
    before = expected(X)
    for pair in (folded.pair, expected):
        change(pair)
    assert torch.equal(folded.pair(X), expected(X))
    assert not torch.equal(folded.pair(X), before)
    assert torch.equal(expected(X), folded.pair(input=X)) or "forward" in vars(expected)


def test_a_child_that_nobody_runs_stays_out(folded: Any) -> None:
    rows = X.flatten(2).mT
    wanted = folded.own(rows)
    folded.own.extra = nn.Tanh()
    assert torch.equal(folded.own(rows), wanted)


@pytest.mark.filterwarnings("ignore")
def test_tracers_see_what_they_saw(folded: Any) -> None:
    wanted = folded(X)
    assert torch.equal(torch.jit.script(folded)(X), wanted)
    traced: Any = torch.jit.trace(folded, X)
    assert torch.equal(traced(X), wanted)
    assert "CallMethod" in str(traced.graph)
    assert isinstance(traced.pair, torch.jit.ScriptModule)
    seen = [node.target for node in fx.symbolic_trace(folded).graph.nodes]
    assert {"pair.0", "pair.1", "trio.1"} <= set(map(str, seen))
    assert torch.equal(torch.export.export(folded, (X,)).module()(X), wanted)


@pytest.mark.slow
def test_a_compiled_network_is_one_graph(folded: Any) -> None:
    compiled = torch.compile(folded, backend="eager", fullgraph=True)
    assert torch.equal(compiled(X), folded(X))


def test_a_second_fold_finds_nothing_and_keeps_it(folded: Any) -> None:
    again = refold.reparameterize(folded, X)
    assert not refold.plan(folded, X).steps
    assert calls(again) == calls(folded)
    folded.trio[1] = norm().double().eval()
    assert calls(refold.reparameterize(folded, X)) == calls(again)


class Asks(Net):
    """A network whose code tells a Sequential from what derives from it."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return super().forward(x) if type(self.pair) is nn.Sequential else x


def test_a_container_stays_of_its_class_where_code_asks_for_that() -> None:
    net = Asks().double().eval()
    made: Any = refold.reparameterize(net, X)
    assert isinstance(made.pair[1], nn.Identity)
    assert type(made.pair) is nn.Sequential
    assert torch.allclose(made(X), net(X), rtol=0, atol=1e-9)

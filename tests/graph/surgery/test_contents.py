"""What lists, tables and objects hold is changed after a fold: a call is exact, or refused.

The oracle is the model with the same change, in float64; the control is the fold without its check.
"""

from __future__ import annotations

import argparse
import collections
import copy
import dataclasses
import enum
import fractions
import functools
import logging
import pickle
import types
from collections.abc import Callable
from typing import Any

import numpy
import pytest
import torch
from torch import Tensor, nn

import refold
from helpers.traps import EXACT, WRONG, conv, gap, images, live, norms
from refold.errors import RefusedError
from refold.graph.surgery.contents import HELD

X = images(2, 3, 6, 5)


class Mode(enum.Enum):
    NORM = 1
    RAW = 2


@dataclasses.dataclass
class Options:
    norm: bool = True
    other: int = 0


class Slots:
    __slots__ = ("norm",)

    def __init__(self) -> None:
        self.norm = True


class Behind:
    """An option that a property reads."""

    def __init__(self) -> None:
        self._norm = True

    @property
    def norm(self) -> bool:
        return self._norm

    @norm.setter
    def norm(self, value: bool) -> None:
        self._norm = value


class Table(dict[str, Any]):
    """A table whose entries are attributes, as configuration libraries have them."""

    def __getattr__(self, name: str) -> Any:
        if name in self:
            return self[name]
        raise AttributeError(name)

    def __setattr__(self, name: str, value: Any) -> None:
        self[name] = value


class Base(nn.Module):
    make: Callable[[], Any]

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.other = conv(), nn.BatchNorm2d(4), conv(kernel=1)
        self.options = type(self).make()

    def asks(self) -> bool:
        raise NotImplementedError


class Skips(Base):
    """Its forward stays."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.conv(x)
        if self.asks():
            y = self.norm(y)
        return y.relu()


class Written(Base):
    """Its forward is written anew."""

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(self.conv(x) + self.other(x))
        return y.relu() if self.asks() else -y


def switched_off(options: Any) -> None:
    options.norm = False


def no_item(options: Any) -> None:
    options["norm"] = False


def deepest(options: Any) -> int:
    return options["a"][0]["b"][0]["c"][0]["d"]


def no_deepest(options: Any) -> None:
    options["a"][0]["b"][0]["c"][0]["d"] = 2


Case = tuple[Callable[[], Any], Callable[[Any], bool], Callable[[Any], None]]
CASES: dict[str, Case] = {
    "table": (lambda: {"norm": True}, lambda o: o["norm"], no_item),
    "get": (lambda: {"norm": True}, lambda o: o.get("norm", False), lambda o: o.clear()),
    "absent": (dict, lambda o: "raw" not in o, lambda o: o.update(raw=1)),
    "nested": (lambda: {"a": {"b": 1}}, lambda o: o["a"]["b"] == 1, lambda o: o["a"].update(b=2)),
    "ordered": (lambda: collections.OrderedDict(norm=True), lambda o: o["norm"], no_item),
    "list": (lambda: [True], lambda o: o[0], lambda o: o.insert(0, False)),
    "length": (lambda: [1], lambda o: len(o) == 1, lambda o: o.append(1)),
    "deque": (lambda: collections.deque([True]), lambda o: o[0], lambda o: o.appendleft(False)),
    "set": (lambda: {"norm"}, lambda o: "norm" in o, lambda o: o.discard("norm")),
    "namespace": (lambda: types.SimpleNamespace(norm=True), lambda o: o.norm, switched_off),
    "dataclass": (Options, lambda o: o.norm, switched_off),
    "slots": (Slots, lambda o: o.norm, switched_off),
    "property": (Behind, lambda o: o.norm, switched_off),
    "attributes": (lambda: Table(norm=True), lambda o: o.norm, switched_off),
    "inside": (lambda: [Options()], lambda o: o[0].norm, lambda o: switched_off(o[0])),
    "arguments": (lambda: argparse.Namespace(norm=True), lambda o: o.norm, switched_off),
    "user's table": (lambda: collections.UserDict(norm=True), lambda o: o["norm"], no_item),
    "user's list": (lambda: collections.UserList([1]), lambda o: o[0], lambda o: o.insert(0, 0)),
    "layers of tables": (
        lambda: collections.ChainMap({}, {"norm": True}),
        lambda o: o["norm"],
        no_item,
    ),
    "bytes": (lambda: bytearray(b"a"), lambda o: len(o) == 1, lambda o: o.append(1)),
    "deep": (lambda: {"a": [{"b": [{"c": [{"d": 1}]}]}]}, lambda o: deepest(o) == 1, no_deepest),
    "array": (lambda: numpy.arange(40), lambda o: o[30] == 30, lambda o: o.fill(1)),
    "array inside": (lambda: [numpy.arange(40)], lambda o: o[0][30] == 30, lambda o: o[0].fill(1)),
    "in a tuple": (lambda: ({"norm": True},), lambda o: o[0]["norm"], lambda o: no_item(o[0])),
    "member": (lambda: [Mode.NORM], lambda o: o[0] is Mode.NORM, lambda o: o.insert(0, Mode.RAW)),
}


def network(base: type[Base], name: str, **more: Any) -> nn.Module:
    make, ask, _ = CASES[name]
    own = {"make": staticmethod(make), "asks": lambda self: bool(ask(self.options)), **more}
    return live(type("Net", (base,), own)())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("base", [Skips, Written])
def test_another_content_is_refused(base: type[Base], name: str) -> None:
    model = network(base, name)
    folded = refold.reparameterize(model, X)
    assert norms(folded) == 0
    assert gap(model, folded, X) <= EXACT
    change = CASES[name][2]
    before = copy.deepcopy(folded.options)
    change(folded.options)
    with pytest.raises(RefusedError, match=r"^options holds something else than when this model"):
        folded(X)
    folded.options = before
    assert gap(model, folded, X) <= EXACT
    change(model.options)
    again = refold.reparameterize(model, X)
    assert gap(model, again, X) <= EXACT
    assert gap(model, folded, X) > WRONG  # what silence would have been


def test_a_factor_in_a_list_that_went_into_a_weight() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.factors = conv(), nn.BatchNorm2d(4), [torch.tensor(2.0)]

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x) * self.factors[0])

    model = live(Net())
    folded = refold.reparameterize(model, X)
    assert norms(folded) == 0
    assert gap(model, folded, X) <= EXACT
    folded.factors[0] = torch.tensor(3.0)
    with pytest.raises(RefusedError, match=r"^factors holds"):
        folded(X)


FACTORS = torch.linspace(0.5, 2, 40, dtype=torch.float64).reshape(1, 40, 1, 1)
KEPT: dict[str, tuple[Any, Callable[[Any], Tensor]]] = {
    "tensor": (FACTORS, lambda o: o),
    "tensor in a table": ({"by": FACTORS}, lambda o: o["by"]),
    "array": (FACTORS.numpy(), torch.from_numpy),
    "number of NumPy": (numpy.float64(2), lambda o: torch.full((1, 4, 1, 1), o)),
    "fraction": (fractions.Fraction(5, 2), lambda o: torch.full((1, 4, 1, 1), float(o))),
}


class Scaled(Base):
    def __init__(self, given: Any, take: Callable[[Any], Tensor]) -> None:
        super().__init__()
        self.take, self.options = take, copy.deepcopy(given)

    make = staticmethod(lambda: None)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)) * self.take(self.options)[:, :4]


@pytest.mark.parametrize("name", KEPT)
def test_numbers_that_went_into_a_weight(name: str) -> None:
    given, take = KEPT[name]
    model = live(Scaled(given, take))
    folded = refold.reparameterize(model, X)
    assert norms(folded) == 0
    copies = [folded, copy.deepcopy(folded), folded.to(torch.float64)]
    for one in copies:
        assert gap(model, one, X) <= EXACT
        one.options = copy.deepcopy(given)
        assert gap(model, one, X) <= EXACT
    other = {"by": FACTORS * 3} if isinstance(given, dict) else given * 3
    model.options = folded.options = other
    with pytest.raises(RefusedError, match=r"^options holds"):
        folded(X)
    assert gap(refold.reparameterize(model, X), folded_silently(folded), X) > WRONG


def folded_silently(folded: nn.Module) -> nn.Module:
    folded.__dict__.pop(HELD)
    return folded


def test_numbers_changed_in_place() -> None:
    model = live(Scaled({"by": FACTORS}, lambda o: o["by"]))
    folded = refold.reparameterize(model, X)
    assert gap(model, folded, X) <= EXACT
    folded.options["by"].mul_(2)
    with pytest.raises(RefusedError, match=r"^options holds"):
        folded(X)


def test_a_tensor_that_is_still_read_is_free() -> None:
    class Net(Base):
        make = staticmethod(lambda: FACTORS[:, :4].clone())

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x)).exp() * self.options

    model = live(Net())
    folded = refold.reparameterize(model, X)
    assert norms(folded) == 0
    for one in (model, folded):
        one.options = FACTORS[:, 4:8].clone()
    assert gap(model, folded, X) <= EXACT


def test_parameters_in_a_list_are_trained_on() -> None:
    class Net(Base):
        make = staticmethod(lambda: [])

        def __init__(self) -> None:
            super().__init__()
            self.gain = nn.Parameter(torch.ones(1))
            self.options = [self.gain]

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.conv(x)).exp().pow(self.options[0])

    model = live(Net())
    folded = refold.reparameterize(model, X)
    assert norms(folded) == 0
    with torch.no_grad():
        model.gain.fill_(3)
        folded.gain.fill_(3)
    assert gap(model, folded, X) <= EXACT


WAYS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "copied": copy.deepcopy,
    "pickled": lambda model: pickle.loads(pickle.dumps(model)),
    "in halves": lambda model: copy.deepcopy(model).half().double(),
    "folded again": lambda model: refold.reparameterize(model, X),
}


class Odd:
    """An option that is equal to nothing, and holds itself."""

    def __init__(self) -> None:
        self.norm, self.me = True, self

    def __eq__(self, other: object) -> bool:
        return False

    __hash__ = None  # pyright: ignore[reportAssignmentType]


class Holds(Skips):
    def __init__(self) -> None:
        super().__init__()
        self.options = [float("nan"), Odd(), numpy.array([1.0, float("nan")]), torch.ones(3)]
        self.options += [{Mode.NORM}, functools.partial(max, float("nan")), logging.getLogger("x")]

    make = staticmethod(lambda: None)

    def asks(self) -> bool:
        return self.options[1].norm and self.options[0] != self.options[0]


@pytest.mark.parametrize("way", WAYS)
def test_copies_hold_the_same(way: str) -> None:
    model = live(Holds())
    folded = WAYS[way](refold.reparameterize(model, X))
    assert norms(folded) == 0
    assert gap(WAYS[way](model), folded, X) <= EXACT_ENOUGH[way]


EXACT_ENOUGH = {"copied": EXACT, "pickled": EXACT, "folded again": EXACT, "in halves": 1e-2}


@pytest.mark.parametrize("example", [X, None])
def test_what_no_code_asks_for_is_free(example: Tensor | None) -> None:
    class Net(Base):
        make = Options

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            if self.options.norm:
                y = self.norm(y)
            return y.relu()

    model = live(Net())
    folded = refold.reparameterize(model, example)
    folded.options.other = 5
    assert gap(model, folded, X) <= EXACT
    folded.options.norm = False
    with pytest.raises(RefusedError, match=r"^options holds"):
        folded(X)


def test_options_behind_a_fold_are_free() -> None:
    class Net(Base):
        make = Options

        def forward(self, x: Tensor) -> Tensor:
            y = self.norm(self.conv(x))
            return y.relu() if self.options.norm else y

    model = live(Net())
    folded = refold.reparameterize(model, X)
    for one in (model, folded):
        one.options.norm = False
    assert gap(model, folded, X) <= EXACT


class Inside(nn.Module):
    """The part shares its options with the whole."""

    def __init__(self) -> None:
        super().__init__()
        self.part = Shares()
        self.options = self.part.options

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x) * 2


class Shares(Skips):
    make = Options

    def asks(self) -> bool:
        return self.options.norm


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "itself": lambda model: model,
    "copied": copy.deepcopy,
    "pickled": lambda model: pickle.loads(pickle.dumps(model)),
    "folded again": lambda model: refold.reparameterize(model, X),
}


@pytest.mark.parametrize("way", COPIES)
def test_copies_and_shared_options(way: str) -> None:
    model = live(Inside())
    folded = COPIES[way](refold.reparameterize(model, X))
    assert gap(model, folded, X) <= EXACT
    folded.options.norm = False
    with pytest.raises(RefusedError, match=r"^part\.options holds"):
        folded(X)
    assert model.options.norm


def test_attributes_are_not_deleted_either() -> None:
    class Net(Base):
        make = Options

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            return self.norm(y) if hasattr(self, "options") else y

    folded = refold.reparameterize(live(Net()), X)
    del folded.options
    with pytest.raises(RefusedError, match="holds something else"):
        folded(X)


def test_a_script_of_it_is_the_model() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm, self.flags = conv(), nn.BatchNorm2d(4), [True]

        def forward(self, x: Tensor) -> Tensor:
            y = self.conv(x)
            if self.flags[0]:
                y = self.norm(y)
            return y.relu()

    model = live(Net())
    folded = refold.reparameterize(model, X)
    assert norms(folded) == 0
    for other in (torch.jit.script(folded), torch.jit.trace(folded, X)):
        assert (other(X) - model(X)).abs().max() <= EXACT

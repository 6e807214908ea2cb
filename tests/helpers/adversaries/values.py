"""Networks that take, hand on and return all kinds of values."""

from __future__ import annotations

import collections
import dataclasses
import types
from typing import Any, NamedTuple

import torch
from torch import Tensor

from helpers.adversaries.base import Block, Norm, Table, conv, give

VALUES = Table()
each, whole = VALUES.forward, VALUES.whole


# -- what comes out


class Pair(NamedTuple):
    first: Any
    second: Any


@dataclasses.dataclass
class Result:
    logits: Any
    loss: Any = None
    parts: tuple[Any, ...] = ()


class Output(collections.OrderedDict[str, Any]):
    def __getattr__(self, name: str) -> Any:
        return self[name]


class Holder:
    def __init__(self, value: Any) -> None:
        self.value = value


OUTPUTS: dict[str, Any] = {
    "tuple": lambda y: (y, y + 1),
    "list": lambda y: [y, [y.mean()]],
    "dict": lambda y: {"out": y, "aux": {"mean": y.mean()}},
    "named_tuple": lambda y: Pair(y, Pair(y.mean(), None)),
    "dataclass": lambda y: Result(y, parts=(y.mean(), 3)),
    "ordered": lambda y: collections.OrderedDict(b=y, a=y.mean()),
    "own_mapping": lambda y: Output(b=y, a=y.mean()),
    "default_dict": lambda y: collections.defaultdict(list, a=[y]),
    "object": lambda y: Holder(y),
    "namespace": lambda y: types.SimpleNamespace(y=y),
    "generator": lambda y: (part for part in (y, y + 1)),
    "iterator": lambda y: iter([y, y + 1]),
    "zip": lambda y: zip([y], [y + 1], strict=True),
    "with_text": lambda y: (y, "name", None, 3, 2.5, True),
    "with_shape": lambda y: (y, y.shape, y.shape[-1], y.dtype),
    "with_size_maths": lambda y: (y, y.shape[-1] * 2, y.shape[-1] / 2),
    "struct": lambda y: y.flatten(1).topk(3),
    "struct_in_tuple": lambda y: (y.max(1), y.flatten(1).sort(1)),
    "item": lambda y: float(y.mean()),
    "numpy": lambda y: y.detach().numpy().sum() > 0,
    "set_of_keys": lambda y: {"a": y, ("b", 1): y.mean()},
    "same_twice": lambda y: (y, y),
    "view": lambda y: (y, y[:, 0]),
    "nothing": lambda y: (None, y),
    "complex": lambda y: torch.fft.rfft2(y).real,
    "bool": lambda y: y > 0,
    "class": lambda y: y.argmax(1),
    "empty": lambda y: y[:0],
    "slice": lambda y: (slice(0, y.shape[0]), y),
}


def _output(name: str, pack: Any) -> None:
    def run(s: Any, x: Any) -> Any:
        return pack(s.branches(x))

    run.__name__ = f"returns_{name}"
    each()(run)


for _name, _pack in OUTPUTS.items():
    _output(_name, _pack)


class Rows(list[Any]):
    """A list of one's own."""


class Checked(collections.namedtuple("Checked", "first second")):
    """A named tuple that looks at what it is made of."""

    def __new__(cls, first: Any, second: Any) -> Any:
        assert isinstance(first, Tensor)
        return super().__new__(cls, first, second)


MERGED: dict[str, Any] = {
    "own_list": lambda y: Rows([y]),
    "shape_alone": lambda y: y.shape,
    "default_dict": lambda y: collections.defaultdict(list, a=y),
    "checked_tuple": lambda y: Checked(y, y.shape[0]),
    "user_dict": lambda y: collections.UserDict(a=y).data,
}


def _merged(name: str, pack: Any) -> None:
    def run(s: Any, x: Any) -> Any:
        return pack(s.b1(s.c1(x)) + s.b2(s.c2(x)))

    run.__name__ = f"merges_and_returns_{name}"
    each()(run)


for _name, _pack in MERGED.items():
    _merged(_name, _pack)


@each()
def returns_its_input(s: Any, x: Any) -> Any:
    return s.branches(x), x


@each()
def returns_a_weight(s: Any, x: Any) -> Any:
    return s.branches(x), s.b1.weight, s.c1.bias.sum()


@each()
def yields(s: Any, x: Any) -> Any:
    y = s.one(x)
    yield y
    yield y + s.two(x)


# -- what goes in


def calls(call: Any) -> Any:
    """Enter a network that is called so."""
    return each(call=call)


@calls(lambda net, x: net(Pair(x, x * 2)))
def takes_named_tuple(s: Any, pair: Any) -> Any:
    return s.one(pair.first) + s.two(pair.second)


@calls(lambda net, x: net(Result(x)))
def takes_dataclass(s: Any, given: Any) -> Any:
    return s.branches(given.logits)


@calls(lambda net, x: net([[x], {"b": x * 2}]))
def takes_nest(s: Any, nest: Any) -> Any:
    return s.one(nest[0][0]) + s.two(nest[1]["b"])


@calls(lambda net, x: net(x.float()))
def takes_single(s: Any, x: Any) -> Any:
    return s.branches(x.double())


@calls(lambda net, x: net((x * 100).to(torch.uint8)))
def takes_bytes(s: Any, x: Any) -> Any:
    return s.branches(x.double() / 255)


@calls(lambda net, x: net(x.to(memory_format=torch.channels_last)))
def takes_channels_last(s: Any, x: Any) -> Any:
    return s.branches(x)


@calls(lambda net, x: net(x.transpose(2, 3)))
def takes_transposed(s: Any, x: Any) -> Any:
    return s.branches(x.contiguous())


@calls(lambda net, x: net(x.permute(0, 2, 3, 1)))
def takes_channels_at_the_end(s: Any, x: Any) -> Any:
    return s.branches(x.permute(0, 3, 1, 2)).permute(0, 2, 3, 1)


@calls(lambda net, x: net(x.clone().requires_grad_()))
def takes_gradients(s: Any, x: Any) -> Any:
    return s.branches(x)


@calls(lambda net, x: net(torch.nn.Parameter(x)))
def takes_parameter(s: Any, x: Any) -> Any:
    return s.branches(x)


class Tagged(Tensor):
    """A tensor that counts the functions it goes through."""

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return super().__torch_function__(func, types, args, kwargs or {})


@calls(lambda net, x: net(x.as_subclass(Tagged)).as_subclass(Tensor))
def takes_subclass(s: Any, x: Any) -> Any:
    return s.branches(x)


@calls(lambda net, x: net(x[:1].expand(2, -1, -1, -1)))
def takes_expanded(s: Any, x: Any) -> Any:
    return s.branches(x)


@calls(lambda net, x: net(x))
def changes_its_input(s: Any, x: Any) -> Any:
    x.mul_(2)
    return s.branches(x)


@calls(lambda net, x: net(x))
def changes_a_view_of_its_input(s: Any, x: Any) -> Any:
    x[:, 0].zero_()
    return s.branches(x)


@calls(lambda net, x: net(x))
def changes_its_output(s: Any, x: Any) -> Any:
    y = s.branches(x)
    y[:, 0] = 0
    y[..., 0] += 1
    return y


@calls(lambda net, x: (net(x), net(x[:0])))
def takes_no_image(s: Any, x: Any) -> Any:
    return s.branches(x)


@calls(lambda net, x: (net(x), net(x[0])))
def takes_one_image_unbatched(s: Any, x: Any) -> Any:
    single = x.ndim == 3
    y = s.branches(x[None] if single else x)
    return y[0] if single else y


# -- what parts hand each other


class Takes(Block):
    """Reads its image off whatever carries it."""

    def __init__(self, read: Any) -> None:
        super().__init__(4, 4)
        self.read = read
        self.other, self.last = conv(4, kernel=1), Norm(4)

    def forward(self, carrier: Any) -> Any:
        x = self.read(carrier)
        return self.norm(self.conv(x)) + self.last(self.other(x))


HANDED: dict[str, tuple[Any, Any]] = {
    "dataclass": (Result, lambda c: c.logits),
    "named_tuple": (lambda y: Pair(y, 2), lambda c: c.first * c.second),
    "own_mapping": (lambda y: Output(y=y), lambda c: c.y),
    "struct": (lambda y: y.sort(1), lambda c: c.values),
    "struct_in_dict": (lambda y: {"s": y.sort(1)}, lambda c: c["s"].values),
    "object": (Holder, lambda c: c.value),
    "namespace": (lambda y: types.SimpleNamespace(y=y), lambda c: c.y),
    "function": (lambda y: lambda: y, lambda c: c()),
    "generator": (lambda y: (part for part in (y,)), next),
    "defaultdict": (lambda y: collections.defaultdict(int, y=y), lambda c: c["y"] + c["no"]),
    "deque": (lambda y: collections.deque([y]), lambda c: c[0]),
    "frozen": (lambda y: types.MappingProxyType({"y": y}), lambda c: c["y"]),
}


def _handed(name: str, pack: Any, read: Any) -> None:
    def run(s: Any, x: Any) -> Any:
        return s.inner(pack(s.branches(x)))

    run.__name__ = f"hands_on_{name}"
    each(give(inner=lambda s: Takes(read)))(run)


for _name, _pair in HANDED.items():
    _handed(_name, *_pair)

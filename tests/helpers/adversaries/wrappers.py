"""Networks whose parts are held, called or built in unusual ways."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import functools
import operator
import threading
import types
import weakref
from collections.abc import Iterator
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from helpers.adversaries.base import Block, Norm, Table, Two, conv

WRAPPERS = Table()
each, whole = WRAPPERS.forward, WRAPPERS.whole


def give(**parts: Any) -> Any:
    """Return a setup that sets attributes to what functions of the network return."""

    def setup(s: Any) -> None:
        for name, make in parts.items():
            setattr(s, name, make(s))

    return setup


# -- held elsewhere than among the children


@each(give(parts=lambda s: [s.c1, s.b1]))
def plain_list(s: Any, x: Any) -> Any:
    return s.parts[1](s.parts[0](x))


@each(give(parts=lambda s: {"conv": s.c1, 7: s.b1}))
def plain_dict(s: Any, x: Any) -> Any:
    return s.parts[7](s.parts["conv"](x))


@each(give(parts=lambda s: ((s.c1, (s.b1,)),)))
def nested_tuple(s: Any, x: Any) -> Any:
    return s.parts[0][1][0](s.parts[0][0](x))


@each(give(parts=lambda s: collections.deque([s.c1, s.b1])))
def deque(s: Any, x: Any) -> Any:
    for part in s.parts:
        x = part(x)
    return x


@each(give(parts=lambda s: types.SimpleNamespace(conv=s.c1, norm=s.b1)))
def namespace(s: Any, x: Any) -> Any:
    return s.parts.norm(s.parts.conv(x))


@each(give(parts=lambda s: [Block().double().eval()]))
def list_of_the_unregistered(s: Any, x: Any) -> Any:
    return s.parts[0](x) + s.two(x)


@each(give(parts=lambda s: functools.partial(s.b1)))
def partial(s: Any, x: Any) -> Any:
    return s.parts(s.c1(x))


@each(give(parts=lambda s: lambda x: s.b1(s.c1(x))))
def lambda_over_children(s: Any, x: Any) -> Any:
    return s.parts(x) + s.two(x)


@each(give(parts=lambda s: s.one))
def bound_method(s: Any, x: Any) -> Any:
    return s.parts(x) + s.two(x)


@each(give(parts=lambda s: s.c1.forward))
def bound_forward(s: Any, x: Any) -> Any:
    return s.b1(s.parts(x))


@each(give(parts=lambda s: s.b1.__call__))
def bound_call(s: Any, x: Any) -> Any:
    return s.parts(s.c1(x))


@each(lambda s: object.__setattr__(s, "hidden", s.b1))
def hidden_from_registration(s: Any, x: Any) -> Any:
    return s.hidden(s.c1(x)) + s.two(x)


@each(lambda s: vars(s).update(hidden=Block().double().eval()))
def hidden_for_good(s: Any, x: Any) -> Any:
    return s.hidden(x) + s.two(x)


class Child(nn.Module):
    def __init__(self, parent: Any) -> None:
        super().__init__()
        self.above = [parent]

    def forward(self, x: Any) -> Any:
        return self.above[0].c1(x)


@each(give(child=lambda s: Child(s)))
def child_calls_its_parent(s: Any, x: Any) -> Any:
    return s.b1(s.child(x)) + s.two(x)


class Decoder(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.weight = layer.weight

    def forward(self, y: Tensor) -> Tensor:
        return F.conv_transpose2d(y, self.weight, padding=1)


@each(give(up=lambda s: Decoder(s.c1)))
def tied_to_a_decoder(s: Any, x: Any) -> Any:
    return s.up(s.branches(x))


@each(lambda s: setattr(s.c2, "bias", s.c1.bias))
def tied_biases(s: Any, x: Any) -> Any:
    return s.branches(x)


@each(lambda s: setattr(s.b2, "weight", s.b1.weight))
def tied_scales(s: Any, x: Any) -> Any:
    return s.branches(x)


@each(lambda s: setattr(s.b2, "running_mean", s.b1.running_mean))
def tied_statistics(s: Any, x: Any) -> Any:
    return s.branches(x)


@each(give(again=lambda s: s.b1))
def one_norm_of_two_names(s: Any, x: Any) -> Any:
    return s.again(s.c1(x)) + s.two(x)


@each(give(again=lambda s: nn.ModuleList([s.c1, nn.ModuleList([s.b1])])))
def nested_lists(s: Any, x: Any) -> Any:
    return s.again[1][0](s.again[0](x)) + s.two(x)


@each(give(table=lambda s: nn.ModuleDict({"one": nn.ModuleDict({"c": conv(), "n": Norm(4)})})))
def nested_dicts(s: Any, x: Any) -> Any:
    for layer in s.table["one"].values():
        x = layer(x)
    return x


@each(give(seq=lambda s: nn.Sequential(collections.OrderedDict(a=conv(), b=Norm(4), c=nn.ReLU()))))
def slice_of_a_sequential(s: Any, x: Any) -> Any:
    return s.seq[:2](x) + s.seq[-1](s.seq.a(x))


@each(give(seq=lambda s: nn.Sequential(conv(4, 4), Norm(4))))
def reversed_sequential(s: Any, x: Any) -> Any:
    y = s.one(x)
    for layer in reversed(s.seq):
        y = layer(y)
    return y


@each()
def sequential_of_the_moment(s: Any, x: Any) -> Any:
    return nn.Sequential(s.c1, s.b1)(x) + s.two(x)


@each()
def list_of_the_moment(s: Any, x: Any) -> Any:
    return sum(n(c(x)) for c, n in zip([s.c1, s.c2], [s.b1, s.b2], strict=True))


@each()
def by_name(s: Any, x: Any) -> Any:
    for name in ("c1", "b1"):
        x = getattr(s, name)(x)
    return x


@each()
def by_path(s: Any, x: Any) -> Any:
    return s.get_submodule("b1")(s.get_submodule("c1")(x)) + s.two(x)


@each()
def by_table(s: Any, x: Any) -> Any:
    return s._modules["b1"](s._modules["c1"](x)) + s.two(x)


@each()
def by_children(s: Any, x: Any) -> Any:
    c1, b1, *_ = s.children()
    return b1(c1(x))


@each()
def by_reduce(s: Any, x: Any) -> Any:
    return functools.reduce(lambda y, layer: layer(y), [s.c1, s.b1], x)


@each()
def by_map(s: Any, x: Any) -> Any:
    return sum(map(operator.methodcaller("__call__", x), [s.one, s.two]))


@each()
def by_forward(s: Any, x: Any) -> Any:
    return s.b1.forward(s.c1.forward(x)) + s.two(x)


@each()
def by_class(s: Any, x: Any) -> Any:
    return nn.BatchNorm2d.forward(s.b1, nn.Conv2d.forward(s.c1, x)) + Two.two(s, x)


@each()
def by_dunder(s: Any, x: Any) -> Any:
    return s.b1.__call__(s.c1.__call__(x)) + s.two(x)


@each()
def by_inner_conv(s: Any, x: Any) -> Any:
    return s.b1(s.c1._conv_forward(x, s.c1.weight * 2, s.c1.bias)) + s.two(x)


@each()
def by_functions(s: Any, x: Any) -> Any:
    y = F.conv2d(x, s.c1.weight, s.c1.bias, padding=1)
    b = s.b1
    return F.batch_norm(y, b.running_mean, b.running_var, b.weight, b.bias, False, 0.1, b.eps)


@each()
def by_operators(s: Any, x: Any) -> Any:
    y = torch.ops.aten.convolution(
        x, s.c1.weight, s.c1.bias, [1, 1], [1, 1], [1, 1], False, [0, 0], 1
    )
    b = s.b1
    args = (b.weight, b.bias, b.running_mean, b.running_var, False, 0.1, b.eps)
    return torch.ops.aten.native_batch_norm(y, *args)[0]


@each()
def weights_out_of_dict(s: Any, x: Any) -> Any:
    p = dict(s.named_parameters())
    return s.b1(F.conv2d(x, p["c1.weight"], p["c1.bias"], padding=1)) + s.two(x)


@each()
def functional_call(s: Any, x: Any) -> Any:
    weights = {"weight": s.c1.weight * 2, "bias": s.c1.bias}
    return s.b1(torch.func.functional_call(s.c1, weights, (x,))) + s.two(x)


@each()
def mapped_over_images(s: Any, x: Any) -> Any:
    return torch.vmap(lambda one: s.c1(one))(x) + s.two(x)


@each()
def mapped_with_norm(s: Any, x: Any) -> Any:
    return torch.vmap(lambda one: s.branches(one[None])[0])(x)


@each()
def jacobian_vector(s: Any, x: Any) -> Any:
    return torch.func.jvp(s.branches, (x,), (torch.ones_like(x),))[1]


@each()
def gradient_of_input(s: Any, x: Any) -> Any:
    with torch.enable_grad():
        x = x.detach().requires_grad_()
        y = s.branches(x)
        return torch.autograd.grad(y.sum(), x)[0] + x.detach()


@each()
def gradient_by_function(s: Any, x: Any) -> Any:
    return torch.func.grad(lambda v: s.branches(v).square().sum())(x)


class Square(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x * x

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Tensor:
        return grad


@each()
def autograd_function(s: Any, x: Any) -> Any:
    return s.b1(Square.apply(s.c1(x))) + s.two(x)


class Rounded(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, bits: int) -> Tensor:
        return torch.round(x * bits) / bits

    @staticmethod
    def backward(ctx: Any, grad: Tensor) -> Any:
        return grad, None


@each()
def quantized_weight(s: Any, x: Any) -> Any:
    return s.b1(F.conv2d(x, Rounded.apply(s.c1.weight, 16), s.c1.bias, padding=1)) + s.two(x)


@each()
def checkpointed(s: Any, x: Any) -> Any:
    return checkpoint(s.one, x, use_reentrant=False) + checkpoint(s.two, x, use_reentrant=False)


@each()
def without_gradients(s: Any, x: Any) -> Any:
    with torch.no_grad():
        y = s.one(x)
    return y + s.two(x)


@each()
def in_inference_mode(s: Any, x: Any) -> Any:
    with torch.inference_mode():
        y = s.one(x)
    return y.clone() + s.two(x)


@each(run_one=torch.no_grad()(lambda s, x: s.b1(s.c1(x))))
def decorated_method(s: Any, x: Any) -> Any:
    return s.run_one(x) + s.two(x)


@each()
def under_autocast(s: Any, x: Any) -> Any:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        y = s.c1(x.float()).float() if x.dtype == torch.float32 else s.c1(x)
    return s.b1(y) + s.two(x)


@each()
def without_autocast(s: Any, x: Any) -> Any:
    with torch.autocast("cpu", enabled=False):
        return s.branches(x)


@each()
def under_default_dtype(s: Any, x: Any) -> Any:
    old = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        return s.branches(x) + torch.ones(1)
    finally:
        torch.set_default_dtype(old)


@each()
def exit_stack(s: Any, x: Any) -> Any:
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.no_grad())
        stack.enter_context(torch.profiler.record_function("net"))
        return s.branches(x)


@each(give(stream=lambda s: None))
def in_a_thread(s: Any, x: Any) -> Any:
    found: list[Any] = []
    worker = threading.Thread(target=lambda: found.append(s.one(x).detach()))
    worker.start()
    worker.join()
    return found[0] + s.two(x)


@each()
def in_a_fork(s: Any, x: Any) -> Any:
    return torch.jit.wait(torch.jit.fork(s.one, x)) + s.two(x)


# -- parts that are not plain modules


@each(give(inner=lambda s: torch.jit.script(nn.Sequential(conv(), Norm(4)).eval())))
def scripted_child(s: Any, x: Any) -> Any:
    return s.inner(x) + s.branches(x)


@each(give(inner=lambda s: torch.jit.trace(Block().eval(), torch.zeros(1, 3, 5, 5))))
def traced_child(s: Any, x: Any) -> Any:
    return s.inner(x) + s.branches(x)


@each(give(inner=lambda s: torch.fx.symbolic_trace(Block())))
def graph_child(s: Any, x: Any) -> Any:
    return s.inner(x) + s.two(x)


@each(give(inner=lambda s: nn.DataParallel(Block())))
def parallel_child(s: Any, x: Any) -> Any:
    return s.inner(x) + s.two(x)


@each(give(inner=lambda s: torch.optim.swa_utils.AveragedModel(Block())))
def averaged_child(s: Any, x: Any) -> Any:
    return s.inner(x) + s.two(x)


@each(give(inner=lambda s: torch.ao.quantization.QuantWrapper(Block())))
def quantizable_child(s: Any, x: Any) -> Any:
    return s.inner(x) + s.two(x)


class Delegates(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name: str) -> Any:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, x: Any) -> Any:
        return self.norm(self.conv(x)) * 2


@each(give(inner=lambda s: Delegates(Block())))
def delegating_child(s: Any, x: Any) -> Any:
    return s.inner(x) + s.two(x)


@whole()
def delegating_root() -> nn.Module:
    return Delegates(Block())


class Falsy(Block):
    def __len__(self) -> int:
        return 0


@each(give(inner=lambda s: Falsy()))
def falsy_child(s: Any, x: Any) -> Any:
    return s.inner(x) if s.inner is not None else x


class Called(Block):
    def __call__(self, x: Any) -> Any:
        return super().__call__(x * 2) + 1


@each(give(inner=lambda s: Called()))
def call_overridden(s: Any, x: Any) -> Any:
    return s.inner(x) + s.two(x)


class Slow(Block):
    def __setattr__(self, name: str, value: Any) -> None:
        super().__setattr__(name, value)

    def __deepcopy__(self, memo: Any) -> Any:
        made = type(self)()
        memo[id(self)] = made
        made.load_state_dict(self.state_dict())
        return made.to(next(self.parameters()).dtype).train(self.training)


@each(give(inner=lambda s: Slow()))
def deepcopy_of_its_own(s: Any, x: Any) -> Any:
    return s.inner(x) + s.two(x)


class Packed(Block):
    def __getstate__(self) -> Any:
        return {**self.__dict__, "packed": True}

    def __setstate__(self, state: Any) -> None:
        state.pop("packed", None)
        super().__setstate__(state)


@each(give(inner=lambda s: Packed()))
def state_of_its_own(s: Any, x: Any) -> Any:
    return s.inner(x) + s.two(x)


@each(give(lock=lambda s: threading.Lock()))
def lock(s: Any, x: Any) -> Any:
    with s.lock:
        return s.branches(x)


@each(give(values=lambda s: (i for i in range(3))))
def generator_attribute(s: Any, x: Any) -> Any:
    return s.branches(x)


@each(give(owner=lambda s: weakref.ref(s), np=lambda s: torch))
def weak_reference_and_library(s: Any, x: Any) -> Any:
    return s.branches(s.np.abs(x))


class Meta(type):
    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        made = super().__call__(*args, **kwargs)
        made.gain = 2.0
        return made


class Made(Block, metaclass=Meta):
    pass


@each(give(inner=lambda s: Made()))
def metaclass(s: Any, x: Any) -> Any:
    return s.inner(x) * s.inner.gain + s.two(x)


class Generic(Block):
    forward: Any = property(lambda self: functools.partial(Block.forward, self))


@each(give(inner=lambda s: Generic()))
def forward_is_a_property(s: Any, x: Any) -> Any:
    return s.inner(x) + s.two(x)


class Static(nn.Module):
    @staticmethod
    def forward(x: Any) -> Any:
        return x.abs()


@each(give(inner=lambda s: Static()))
def forward_is_static(s: Any, x: Any) -> Any:
    return s.b1(s.inner(s.c1(x))) + s.two(x)


def doubled(run: Any) -> Any:
    @functools.wraps(run)
    def inner(self: Any, x: Any) -> Any:
        return run(self, x * 2)

    return inner


class Decorated(Block):
    forward = doubled(Block.forward)


@each(give(inner=lambda s: Decorated()))
def forward_is_decorated(s: Any, x: Any) -> Any:
    return s.inner(x) + s.two(x)


class Above(Block):
    def forward(self, x: Any) -> Any:
        return super().forward(x).relu() + self.conv.bias.sum()


@each(give(inner=lambda s: Above()))
def forward_of_the_base(s: Any, x: Any) -> Any:
    return s.inner(x) + s.two(x)


@each(lambda s: setattr(s, "forward", types.MethodType(lambda s, x: s.two(x) - 1, s)))
def forward_on_instance(s: Any, x: Any) -> Any:
    return s.one(x)


@each(lambda s: setattr(s.b1, "forward", lambda x: x * 2))
def forward_on_norm(s: Any, x: Any) -> Any:
    return s.branches(x)


@each(
    lambda s: setattr(
        s.c1,
        "forward",
        functools.partial(lambda m, x: F.conv2d(x, m.weight * 2, m.bias, padding=1), s.c1),
    )
)
def forward_on_layer(s: Any, x: Any) -> Any:
    return s.branches(x)


class List(nn.ModuleList):
    def forward(self, x: Any) -> Any:
        return sum(layer(x) for layer in self)


@each(give(many=lambda s: List([Block(), Block()])))
def list_with_forward(s: Any, x: Any) -> Any:
    return s.many(x)


class Chain(nn.Sequential):
    def forward(self, x: Any, scale: float = 2.0) -> Any:
        for layer in self:
            x = layer(x) * scale
        return x


@each(give(many=lambda s: Chain(conv(), Norm(4))))
def sequential_with_forward(s: Any, x: Any) -> Any:
    return s.many(x) + s.two(x)


class Many(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.items = [conv(), Norm(4)]
        for number, item in enumerate(self.items):
            self.add_module(f"item_{number}", item)

    def __iter__(self) -> Iterator[Any]:
        return iter(self.items)

    def __getitem__(self, key: int) -> Any:
        return self.items[key]

    def forward(self, x: Any) -> Any:
        return self[1](self[0](x))


@each(give(many=lambda s: Many()))
def container_of_its_own(s: Any, x: Any) -> Any:
    y = x
    for layer in s.many:
        y = layer(y)
    return y + s.many(x)


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


# -- weights that are not plain


@each(lambda s: setattr(s.c1, "weight", nn.Parameter(s.c1.weight.detach().transpose(2, 3))))
def strided_weight(s: Any, x: Any) -> Any:
    return s.branches(x)


@each(lambda s: setattr(s.c1, "weight", nn.Parameter(torch.randn(4, 3, 1, 1).expand(4, 3, 3, 3))))
def expanded_weight(s: Any, x: Any) -> Any:
    return s.branches(x)


@each(lambda s: [p.requires_grad_(False) for p in s.parameters()])
def frozen(s: Any, x: Any) -> Any:
    return s.branches(x)


@each(lambda s: s.to(memory_format=torch.channels_last))
def channels_last(s: Any, x: Any) -> Any:
    return s.branches(x)


@each(give(shared=lambda s: torch.randn(8, 3, 3, 3)), base=Two)
def halves_of_one_tensor(s: Any, x: Any) -> Any:
    w = s.shared.to(x.dtype)
    return s.b1(F.conv2d(x, w[:4], padding=1)) + s.b2(F.conv2d(x, w[4:], padding=1))


class Quantity(nn.Parameter):
    """A parameter of a class of its own."""


@each(lambda s: setattr(s.c1, "weight", Quantity(s.c1.weight.detach())))
def parameter_of_a_class(s: Any, x: Any) -> Any:
    return s.branches(x)


@each(lambda s: s.b1.train())
def norm_in_training_mode(s: Any, x: Any) -> Any:
    return s.branches(x)


class Thawed(Two):
    """Its norm always uses the batch."""

    def train(self, mode: bool = True) -> Any:
        super().train(mode)
        self.b1.train()
        return self


@each(base=Thawed)
def norm_that_trains_in_eval(s: Any, x: Any) -> Any:
    return s.branches(x)


@each(lambda s: setattr(s.b1, "track_running_stats", False))
def norm_told_not_to_track(s: Any, x: Any) -> Any:
    return s.branches(x)


@each(
    lambda s: (
        s.b1.register_buffer("running_mean", None) or s.b1.register_buffer("running_var", None)
    )
)
def norm_without_statistics(s: Any, x: Any) -> Any:
    return s.branches(x)


@each(lambda s: setattr(s.b1, "momentum", None))
def norm_with_cumulative_average(s: Any, x: Any) -> Any:
    return s.branches(x)


@each(lambda s: s.c1.register_parameter("bias", None))
def bias_removed(s: Any, x: Any) -> Any:
    return s.branches(x)


@each(give(free=lambda s: Norm(4, affine=False)))
def norm_without_scale(s: Any, x: Any) -> Any:
    return s.free(s.c1(x)) + s.two(x)


@each(lambda s: s.b1.register_parameter("bias", None))
def norm_without_shift(s: Any, x: Any) -> Any:
    return s.branches(x)


@each(lambda s: setattr(s.c1, "padding_mode", "reflect"))
def padding_mode_set_later(s: Any, x: Any) -> Any:
    return s.branches(x)


@each(lambda s: setattr(s.c1, "padding", (0, 0)))
def padding_set_later(s: Any, x: Any) -> Any:
    return s.one(x)


@each(lambda s: setattr(s.b1, "num_features", 99))
def features_misstated(s: Any, x: Any) -> Any:
    return s.branches(x)


@each(lambda s: setattr(s.c1, "out_channels", 99))
def channels_misstated(s: Any, x: Any) -> Any:
    return s.branches(x)


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

"""Networks whose parts are held or called in unusual ways."""

from __future__ import annotations

import collections
import contextlib
import functools
import operator
import threading
import types
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

from helpers.adversaries.base import Block, Norm, Table, Two, conv, give

WRAPPERS = Table()
each, whole = WRAPPERS.forward, WRAPPERS.whole


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

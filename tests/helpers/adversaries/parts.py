"""Networks of parts and weights that are not plain."""

from __future__ import annotations

import functools
import threading
import types
import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from helpers.adversaries.base import Block, Norm, Table, Two, conv, give

PARTS = Table()
each, whole = PARTS.forward, PARTS.whole


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

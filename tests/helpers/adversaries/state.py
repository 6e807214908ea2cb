"""Networks that keep something from one call to the next."""

from __future__ import annotations

import collections
import functools
import itertools
import types
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from helpers.adversaries.base import Block, Norm, Table, Two, conv

STATE = Table()
each = STATE.forward


def attr(**values: Any) -> Any:
    """Return a setup that sets attributes; functions are called for a new value."""

    def setup(s: Any) -> None:
        for name, value in values.items():
            setattr(s, name, value() if callable(value) else value)

    return setup


def buffer(s: Any) -> None:
    s.register_buffer("n", torch.zeros(()))


@each(attr(n=0))
def counter(s: Any, x: Any) -> Any:
    s.n += 1
    return s.branches(x) + float(s.n)


@each(attr(n=0))
def counter_by_setattr(s: Any, x: Any) -> Any:
    setattr(s, "n", s.n + 1)  # noqa: B010
    return s.branches(x) * s.n


@each(attr(n=0))
def counter_by_object(s: Any, x: Any) -> Any:
    object.__setattr__(s, "n", s.n + 1)
    return s.branches(x) * s.n


@each(attr(n=0))
def counter_by_vars(s: Any, x: Any) -> Any:
    vars(s)["n"] += 1
    return s.branches(x) * s.n


@each(attr(n=dict))
def counter_in_dict(s: Any, x: Any) -> Any:
    s.n["calls"] = s.n.get("calls", 0) + 1
    return s.branches(x) * s.n["calls"]


@each(attr(n=collections.Counter))
def counter_in_counter(s: Any, x: Any) -> Any:
    s.n["calls"] += 1
    return s.branches(x) * s.n["calls"]


@each(attr(n=lambda: types.SimpleNamespace(calls=0)))
def counter_in_namespace(s: Any, x: Any) -> Any:
    s.n.calls += 1
    return s.branches(x) * s.n.calls


@each(attr(n=lambda: [[0]]))
def counter_in_nested_list(s: Any, x: Any) -> Any:
    s.n[0][0] += 1
    return s.branches(x) * s.n[0][0]


@each(attr(n=lambda: {"a": {"b": 0}}))
def counter_in_nested_dict(s: Any, x: Any) -> Any:
    s.n["a"]["b"] += 1
    return s.branches(x) * s.n["a"]["b"]


@each(attr(n=lambda: itertools.count(1)))
def counter_of_itertools(s: Any, x: Any) -> Any:
    return s.branches(x) * next(s.n)


@each(attr(n=lambda: itertools.cycle([1.0, 2.0])))
def cycle_of_itertools(s: Any, x: Any) -> Any:
    return s.branches(x) * next(s.n)


@each(attr(n=lambda: np.zeros(1)))
def counter_in_numpy(s: Any, x: Any) -> Any:
    s.n += 1
    return s.branches(x) * float(s.n[0])


@each(attr(n=lambda: bytearray(1)))
def counter_in_bytes(s: Any, x: Any) -> Any:
    s.n[0] += 1
    return s.branches(x) * s.n[0]


@each(attr(n=set))
def counter_by_set(s: Any, x: Any) -> Any:
    s.n.add(len(s.n))
    return s.branches(x) * len(s.n)


class Slots:
    __slots__ = ("calls",)

    def __init__(self) -> None:
        self.calls = 0

    def step(self) -> int:
        self.calls += 1
        return self.calls


@each(attr(n=lambda: Slots()))
def counter_in_slots(s: Any, x: Any) -> Any:
    return s.branches(x) * s.n.step()


@each(attr(n=0), bump=lambda s: setattr(s, "n", s.n + 1))
def counter_in_method(s: Any, x: Any) -> Any:
    s.bump()
    return s.branches(x) * s.n


@each(attr(_n=0), n=property(lambda s: s._n, lambda s, v: object.__setattr__(s, "_n", v)))
def counter_behind_property(s: Any, x: Any) -> Any:
    s.n += 1
    return s.branches(x) * s.n


@each(attr(_n=0), n=property(lambda s: vars(s).update(_n=s._n + 1) or s._n))
def property_that_counts(s: Any, x: Any) -> Any:
    return s.branches(x) * s.n


GLOBAL = [0]


@each(reset=lambda: GLOBAL.__setitem__(0, 0))
def counter_of_the_file(s: Any, x: Any) -> Any:
    GLOBAL[0] += 1
    return s.branches(x) * GLOBAL[0]


@each(reset=lambda: setattr(Slots, "total", 0))
def counter_of_a_class(s: Any, x: Any) -> Any:
    Slots.total += 1
    return s.branches(x) * Slots.total


@each(lambda s: setattr(s, "step", _closure()))
def counter_in_closure(s: Any, x: Any) -> Any:
    return s.branches(x) * s.step()


def _closure() -> Any:
    box = itertools.cycle([1.0])
    return lambda: next(box)


@each(buffer)
def counter_in_buffer(s: Any, x: Any) -> Any:
    s.n += 1
    return s.branches(x) * s.n


@each(buffer)
def counter_in_buffer_by_name(s: Any, x: Any) -> Any:
    s.get_buffer("n").add_(1)
    return s.branches(x) * s.n


@each(buffer)
def counter_in_buffer_by_data(s: Any, x: Any) -> Any:
    s.n.data += 1
    return s.branches(x) * s.n


@each(buffer)
def buffer_registered_again(s: Any, x: Any) -> Any:
    s.register_buffer("n", s.n + 1)
    return s.branches(x) * s.n


@each(buffer)
def buffer_in_table(s: Any, x: Any) -> Any:
    s._buffers["n"] = s.n + 1
    return s.branches(x) * s.n


@each(lambda s: s.register_buffer("n", None))
def buffer_that_was_none(s: Any, x: Any) -> Any:
    y = s.branches(x)
    s.n = y.mean() if s.n is None else s.n * 0.5
    return y * s.n


@each(buffer)
def buffer_that_becomes_none(s: Any, x: Any) -> Any:
    y = s.branches(x)
    if s.n is not None:
        s.n = None
        return y
    return y * 2


@each(lambda s: s.register_parameter("g", None))
def parameter_that_was_none(s: Any, x: Any) -> Any:
    if s.g is None:
        s.g = nn.Parameter(x.new_full((), 2.0))
        return s.branches(x)
    return s.branches(x) * s.g


@each(attr(last=None))
def last_output(s: Any, x: Any) -> Any:
    y = s.branches(x)
    m = y.mean((2, 3), keepdim=True).mean(0, keepdim=True)
    if s.last is not None:
        y = y + s.last
    s.last = m
    return y


@each(attr(log=lambda: collections.deque(maxlen=2)))
def history_in_deque(s: Any, x: Any) -> Any:
    y = s.branches(x)
    s.log.append(y.mean())
    return y + sum(s.log)


@each(attr(log=list))
def history_in_list(s: Any, x: Any) -> Any:
    y = s.branches(x)
    s.log.append(y.mean())
    return y + torch.stack(s.log).sum()


@each(attr(log=lambda: {"seen": collections.deque(maxlen=1)}))
def history_in_nested_deque(s: Any, x: Any) -> Any:
    y = s.one(x)
    if s.log["seen"]:
        y = y + s.log["seen"][0]
    s.log["seen"].append(y.mean())
    return y


@each(attr(cache=dict))
def cache_by_shape(s: Any, x: Any) -> Any:
    if x.shape not in s.cache:
        s.cache[x.shape] = torch.ones(x.shape[-2:], dtype=x.dtype) * len(s.cache)
    return s.branches(x) + s.cache[x.shape]


@functools.lru_cache(None)
def _grid(height: int, width: int) -> torch.Tensor:
    return torch.arange(height * width, dtype=torch.float64).reshape(height, width)


@each()
def cached_function(s: Any, x: Any) -> Any:
    return s.branches(x) + _grid(*x.shape[-2:])


@each(grid=functools.lru_cache(None)(lambda s, h, w: torch.ones(h, w, dtype=torch.float64) * h))
def cached_method(s: Any, x: Any) -> Any:
    return s.branches(x) + s.grid(x.shape[2], x.shape[3])


class CachedProperty(Two):
    @functools.cached_property
    def gain(self) -> torch.Tensor:
        return self.b1.weight.detach().abs().sum()


@each(base=CachedProperty)
def cached_property(s: Any, x: Any) -> Any:
    return s.branches(x) * s.gain


@each(attr(fused=None))
def lazily_fused_kernel(s: Any, x: Any) -> Any:
    if s.fused is None:
        s.fused = s.c1.weight + F.pad(s.c2.weight, (1, 1, 1, 1))
    return F.conv2d(x, s.fused, s.c1.bias + s.c2.bias, padding=1) + s.branches(x)


@each()
def lazily_built_child(s: Any, x: Any) -> Any:
    if not hasattr(s, "extra"):
        s.extra = nn.PReLU(dtype=x.dtype)
    return s.extra(s.branches(x))


@each()
def attribute_from_first_call(s: Any, x: Any) -> Any:
    if "width" not in vars(s):
        s.width = int(x.shape[-1])
    return s.branches(x) * s.width


@each(attr(ready=False))
def first_call_differs(s: Any, x: Any) -> Any:
    if not s.ready:
        s.ready = True
        return s.one(x)
    return s.two(x)


@each(attr(flip=True))
def toggle(s: Any, x: Any) -> Any:
    s.flip = not s.flip
    return s.one(x) if s.flip else s.two(x)


@each(attr(act=lambda: torch.relu))
def activation_alternates(s: Any, x: Any) -> Any:
    s.act = torch.tanh if s.act is torch.relu else torch.relu
    return s.act(s.branches(x))


@each()
def children_swap(s: Any, x: Any) -> Any:
    s.b1, s.b2 = s.b2, s.b1
    return s.branches(x)


@each()
def children_swap_in_table(s: Any, x: Any) -> Any:
    s._modules["b1"], s._modules["b2"] = s._modules["b2"], s._modules["b1"]
    return s.branches(x)


@each(attr(layers=lambda: nn.ModuleList([Block(), Block()])))
def list_of_layers_turns(s: Any, x: Any) -> Any:
    s.layers = nn.ModuleList(reversed(list(s.layers)))
    return s.layers[0](x) + 2 * s.layers[1](x)


@each(attr(layers=lambda: [1.0, 2.0]))
def list_turns_in_place(s: Any, x: Any) -> Any:
    s.layers.reverse()
    return s.branches(x) * s.layers[0]


@each()
def forward_replaces_itself(s: Any, x: Any) -> Any:
    s.forward = lambda x: s.two(x) * 2
    return s.one(x)


@each(attr(first=1.0))
def attribute_is_deleted(s: Any, x: Any) -> Any:
    y = s.branches(x)
    if hasattr(s, "first"):
        del s.first
        return y
    return y * 2


@each()
def child_is_deleted(s: Any, x: Any) -> Any:
    y = s.one(x)
    if hasattr(s, "head"):
        y = s.head(y)
        del s.head
    return y


@each()
def statistics_follow_the_input(s: Any, x: Any) -> Any:
    y = s.c1(x)
    s.b1.running_mean.lerp_(y.mean((0, 2, 3)), 0.1)
    return s.b1(y) + s.two(x)


@each()
def statistics_are_assigned(s: Any, x: Any) -> Any:
    y = s.c1(x)
    s.b1.running_var = y.var((0, 2, 3)) + 1
    return s.b1(y) + s.two(x)


@each()
def statistics_count_batches(s: Any, x: Any) -> Any:
    s.b1.num_batches_tracked += 1
    return s.branches(x) * s.b1.num_batches_tracked


@each()
def norm_updates_itself(s: Any, x: Any) -> Any:
    s.b1.train()
    y = s.one(x)
    s.b1.eval()
    return s.one(x) + y * 0


@each()
def weight_is_replaced(s: Any, x: Any) -> Any:
    s.c1.weight = nn.Parameter(s.c1.weight * 1.5)
    return s.branches(x)


@each()
def weight_decays(s: Any, x: Any) -> Any:
    y = s.branches(x)
    with torch.no_grad():
        s.c1.weight *= 0.5
    return y


@each()
def weight_is_cast_and_back(s: Any, x: Any) -> Any:
    s.c1.weight.data = s.c1.weight.data.float().double()
    return s.branches(x)


@each()
def stride_is_set(s: Any, x: Any) -> Any:
    s.c1.stride = (2, 2) if x.shape[0] > 1 else (1, 1)
    return s.one(x)


@each()
def padding_is_set_by_size(s: Any, x: Any) -> Any:
    s.c1.padding = (1 + x.shape[-1] % 2,) * 2
    return s.one(x)


@each()
def eps_is_set(s: Any, x: Any) -> Any:
    s.b1.eps = 0.5
    return s.branches(x)


@each(lambda s: setattr(s, "inner", Block()))
def parent_sets_part_of_a_child(s: Any, x: Any) -> Any:
    s.inner.norm.eps = float(x.shape[0])
    return s.inner(x)


@each(lambda s: setattr(s, "inner", Block()))
def parent_replaces_part_of_a_child(s: Any, x: Any) -> Any:
    y = s.inner(x)
    s.inner.norm = nn.Identity()
    return y


@each(lambda s: setattr(s, "table", nn.ParameterDict({"g": torch.ones(())})))
def parameter_dict_changes(s: Any, x: Any) -> Any:
    with torch.no_grad():
        s.table["g"].add_(1)
    return s.branches(x) * s.table["g"]


@each(lambda s: setattr(s, "table", nn.ParameterList([torch.ones(())])))
def parameter_list_grows(s: Any, x: Any) -> Any:
    s.table.append(s.table[-1] + 1)
    return s.branches(x) * s.table[-1]


@each(lambda s: s.register_buffer("memory", torch.zeros(4, 4)))
def ring_of_features(s: Any, x: Any) -> Any:
    y = s.branches(x)
    s.memory = torch.roll(s.memory, 1, 0)
    s.memory[0] = y.mean((0, 2, 3))
    return y + s.memory.mean(0).view(1, -1, 1, 1)


@each(lambda s: setattr(s, "ema", nn.Sequential(conv(), Norm(4))))
def teacher_follows_student(s: Any, x: Any) -> Any:
    with torch.no_grad():
        for slow, fast in zip(s.ema[0].parameters(), s.c1.parameters(), strict=True):
            slow.lerp_(fast, 0.1)
    return s.one(x) - s.ema(x)


@each(attr(plan=lambda: iter([1.0, 2.0, 3.0])))
def plan_is_consumed(s: Any, x: Any) -> Any:
    return s.branches(x) * next(s.plan, 5.0)

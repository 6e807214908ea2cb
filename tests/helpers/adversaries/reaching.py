"""Code that at one size runs, once more, a part of what it has called, or of what it holds.

Its question tells nothing at other sizes, and the source of its class need not name the part.
"""

from __future__ import annotations

import functools
import operator
import types
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from helpers.adversaries.base import Block, Norm, Table, Two, conv, give

REACHING = Table()


class Held(nn.Module):
    """Blocks of a layer and its norm, in containers of every kind."""

    def __init__(self) -> None:
        super().__init__()
        self.chain, self.one = nn.Sequential(conv(), Norm(4)), Block()
        self.list = nn.ModuleList([nn.Sequential(conv(), Norm(4)), Block(4, 4)])
        self.table = nn.ModuleDict({"first": nn.Sequential(conv(), Norm(4))})
        self.deep = nn.Sequential(nn.Sequential(Block(), nn.ReLU()))


def is_rare(x: Any) -> bool:
    return x.shape[-1] == 8


def chain_again(s: Any, x: Any) -> Any:
    y = s.chain(x)
    return s.chain[1](y) if is_rare(x) else y


def one_again(s: Any, x: Any) -> Any:
    y = s.one(x)
    return s.one.norm(y) if is_rare(x) else y


def norm_again(block: Any, x: Any) -> Any:
    y = block(x)
    return block.norm(y) if is_rare(x) else y


def only_at_that_size(s: Any, x: Any) -> Any:
    y = s.one(x)
    return s.one.norm(y.reshape(-1, 4, 7, 8)) if is_rare(x) else y


class Runner:
    """Holds the network that it runs."""

    def __init__(self, net: Any) -> None:
        self.net = net

    def __call__(self, x: Any) -> Any:
        return one_again(self.net, x)


def _holds(name: str, make: Any, run: Any) -> None:
    def forward(s: Any, x: Any) -> Any:
        return run(s, x)

    forward.__name__ = name
    REACHING.forward(lambda s: s.__dict__.update(held=make(s)), Held)(forward)


_holds("held_function", lambda s: chain_again, lambda s, x: s.held(s, x))
_holds("held_partial", lambda s: functools.partial(one_again), lambda s, x: s.held(s, x))
_holds("held_partial_of_self", lambda s: functools.partial(one_again, s), lambda s, x: s.held(x))
_holds("held_method", lambda s: types.MethodType(chain_again, s), lambda s, x: s.held(x))
_holds("held_object", Runner, lambda s, x: s.held(x))
_holds("only_that_size_runs", lambda s: only_at_that_size, lambda s, x: s.held(s, x))


@REACHING.forward(base=Held)
def alias_of_self(s: Any, x: Any) -> Any:
    me = s
    y = me.one(x)
    return me.one.norm(y) if is_rare(x) else y


@REACHING.forward(base=Held)
def alias_of_child(s: Any, x: Any) -> Any:
    block = s.one
    y = block(x)
    return block.norm(y) if is_rare(x) else y


@REACHING.forward(base=Held)
def child_by_name(s: Any, x: Any) -> Any:
    block = getattr(s, "one")  # noqa: B009
    y = block(x)
    return block.norm(y) if is_rare(x) else y


@REACHING.forward(base=Held)
def child_handed_on(s: Any, x: Any) -> Any:
    return norm_again(block=s.one, x=x)


@REACHING.forward(base=Held)
def self_in_a_tuple(s: Any, x: Any) -> Any:
    given = (s, x)
    return one_again(*given)


@REACHING.forward(base=Held)
def part_in_a_list(s: Any, x: Any) -> Any:
    y = s.list[0](x)
    return s.list[0][1](y) if is_rare(x) else y


@REACHING.forward(base=Held)
def part_in_a_table(s: Any, x: Any) -> Any:
    y = s.table["first"](x)
    return s.table["first"][1](y) if is_rare(x) else y


@REACHING.forward(base=Held)
def part_below_parts(s: Any, x: Any) -> Any:
    y = s.deep(x)
    return s.deep[0][0].norm(y) if is_rare(x) else y


@REACHING.forward(base=Held)
def part_of_all_children(s: Any, x: Any) -> Any:
    block = [*s.children()][1]
    y = block(x)
    return block.norm(y) if is_rare(x) else y


@REACHING.forward(base=Held)
def part_by_path(s: Any, x: Any) -> Any:
    y = s.one(x)
    return s.get_submodule("one.norm")(y) if is_rare(x) else y


@REACHING.forward(lambda s: s.__dict__.update(plain=[s.one]), Held)
def part_in_a_plain_list(s: Any, x: Any) -> Any:
    y = s.plain[0](x)
    return s.plain[0].norm(y) if is_rare(x) else y


@REACHING.forward(base=Held, last=property(lambda s: s.one.norm))
def part_by_a_property(s: Any, x: Any) -> Any:
    y = s.one(x)
    return s.last(y) if is_rare(x) else y


@REACHING.forward(base=Held)
def part_by_attrgetter(s: Any, x: Any) -> Any:
    y = s.one(x)
    return operator.attrgetter("one.norm")(s)(y) if is_rare(x) else y


@REACHING.forward(base=Held)
def part_in_a_lambda(s: Any, x: Any) -> Any:
    y = s.one(x)
    return (lambda net: net.one.norm(y))(s) if is_rare(x) else y


class Plain(Held):
    def forward(self, x: Any) -> Any:
        return self.one(x)


@REACHING.forward(base=Plain)
def part_after_super(s: Any, x: Any) -> Any:
    y = super(type(s), s).forward(x)
    return s.one.norm(y) if is_rare(x) else y


@REACHING.forward(give(inner=lambda s: Plain()), Two)
def part_of_a_grandchild(s: Any, x: Any) -> Any:
    inner = s.inner
    y = inner(x)
    return inner.one.norm(y) if is_rare(x) else y


@REACHING.forward(base=Held)
def matched(s: Any, x: Any) -> Any:
    y = s.one(x)
    match x.shape:
        case (_, _, _, 8):
            return s.one.norm(y)
        case _:
            return y


def _with_more(run: Any) -> Any:
    @functools.wraps(run)
    def inner(*args: Any) -> Any:
        y = run(*args)
        return args[0].one.norm(y) if is_rare(args[1]) else y

    return inner


@REACHING.forward(base=Held)
@_with_more
def decorated(s: Any, x: Any) -> Any:
    return s.one(x)


@REACHING.forward(base=Held)
def weights_of_a_part(s: Any, x: Any) -> Any:
    y, norm = s.one(x), s.one.norm
    given = norm.running_mean, norm.running_var, norm.weight, norm.bias
    return F.batch_norm(y, *given) if is_rare(x) else y


@REACHING.forward(base=Held)
def weights_of_all_parts(s: Any, x: Any) -> Any:
    y = s.one(x)
    return y * sum(p.sum() for p in s.one.parameters()) if is_rare(x) else y


@REACHING.forward(base=Held)
def weights_by_state(s: Any, x: Any) -> Any:
    y = s.one(x)
    return y * s.one.state_dict()["norm.weight"].sum() if is_rare(x) else y


@REACHING.forward(base=Held)
def called_as_a_function(s: Any, x: Any) -> Any:
    given = dict(s.one.named_parameters())
    y = s.one(x)
    return (
        y + torch.func.functional_call(s.one.norm, {}, (y * given["norm.bias"].sum(),))
        if (is_rare(x))
        else y
    )

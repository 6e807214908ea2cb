"""Judge a fold: three sizes, three calls each, the caller's model bit by bit."""

from __future__ import annotations

import copy
import dataclasses
import random
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

import refold
from helpers.adversaries.base import SIZES, Call, Table, image
from helpers.traps import bits, live, same_bits

EXACT = 1e-9


def judged(table: Table, name: str, *, given: bool) -> str | None:
    """Return what is wrong with the fold of an adversary, None where nothing is.

    The reference is a second network of the same make, so that state outside the modules, put back
    before every run, is all that the two share.
    """
    call = table.calls.get(name, lambda net, x: net(x))
    reset = table.resets.get(name, lambda: None)
    net, reference = (_made(table, name) for _ in range(2))
    before = bits(net)
    example = image(SIZES[0])
    reset()
    folded = _folded(net, call, example) if given else refold.reparameterize(net)
    if not same_bits(before, bits(net)):
        return "the caller's model has changed"
    for world in (torch.no_grad, *table.worlds.get(name, ())):
        for number, size in enumerate(SIZES):
            x = image(size, 10 + number)
            with world():
                wanted, got = (_runs(one, call, x, reset) for one in (reference, folded))
            for turn, pair in enumerate(zip(wanted, got, strict=True)):
                if (wrong := _difference(*pair)) is not None:
                    return f"{wrong} at {size}, call {turn}"
    return None


def _made(table: Table, name: str) -> nn.Module:
    torch.manual_seed(0)
    return live(table[name]())


def _folded(net: nn.Module, call: Call, example: Tensor) -> nn.Module:
    """Return the fold on what `call` gives the network."""
    args, kwargs = _given(call, example)
    return refold.plan(net, kwargs if kwargs and not args else args).apply()


class _CalledError(Exception):
    """Carries what a network is first called with."""


def _given(call: Call, example: Tensor) -> tuple[Any, Any]:
    def spy(*args: Any, **kwargs: Any) -> Any:
        raise _CalledError(args, kwargs)

    try:
        call(spy, example)  # type: ignore[arg-type]
    except _CalledError as called:
        return called.args
    raise AssertionError("the network is not called")


def _runs(net: nn.Module, call: Call, x: Tensor, reset: Any) -> list[list[Any] | str]:
    reset()
    return [_run(net, call, x.clone(), turn) for turn in range(3)]


def _run(net: nn.Module, call: Call, x: Tensor, turn: int) -> list[Any] | str:
    torch.manual_seed(turn)
    random.seed(turn)
    np.random.seed(turn)
    try:
        return [*leaves(call(net, x)), x.detach()]
    except Exception as error:
        return type(error).__name__


def leaves(value: Any) -> list[Any]:
    """Return what a result holds, tensors copied."""
    if isinstance(value, Tensor):
        return [value.detach().clone()]
    if isinstance(value, dict):
        return [item for key in value for item in (key, *leaves(value[key]))]
    if isinstance(value, (list, tuple)) or hasattr(value, "__next__"):
        return [type(value).__name__, *(leaf for item in value for leaf in leaves(item))]
    if dataclasses.is_dataclass(value):
        return [
            leaf
            for field in dataclasses.fields(value)
            for leaf in leaves(getattr(value, field.name))
        ]
    if hasattr(value, "__dict__") and not callable(value):
        return leaves(vars(value))
    return [copy.copy(value)]


def _difference(wanted: list[Any] | str, got: list[Any] | str) -> str | None:
    if isinstance(wanted, str) or isinstance(got, str):
        return None if wanted == got else f"{_short(wanted)} became {_short(got)}"
    if len(wanted) != len(got):
        return f"{len(wanted)} results became {len(got)}"
    for one, two in zip(wanted, got, strict=True):
        if not isinstance(one, Tensor) or not isinstance(two, Tensor):
            if type(one) is not type(two) or one != two:
                return f"{one!r} became {two!r}"
        elif (one.shape, one.dtype) != (two.shape, two.dtype):
            return f"{tuple(one.shape)} {one.dtype} became {tuple(two.shape)} {two.dtype}"
        elif not one.is_floating_point():
            if not torch.equal(one, two):
                return "other numbers"
        elif one.numel() and not (off := _error(one, two)) <= EXACT:
            return f"relative error {off:.2g}"
    return None


def _short(result: list[Any] | str) -> str:
    return result if isinstance(result, str) else "a result"


def _error(one: Tensor, two: Tensor) -> float:
    if not torch.equal(torch.isnan(one), torch.isnan(two)):
        return float("inf")
    one, two = torch.nan_to_num(one), torch.nan_to_num(two)
    return float((one - two).abs().max() / one.abs().max().clamp(min=1e-30))

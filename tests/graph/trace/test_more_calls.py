"""Layers that another run of the code calls, or reads, once more than the recorded one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import refold
from helpers.traps import conv, images, live

SIZES = ((2, 4, 12, 12), (3, 4, 7, 9), (1, 4, 4, 4))


class Net(nn.Module):
    """A layer and its norm, and a block of the same; `run` is the forward under test."""

    def __init__(self, run: Callable[..., Tensor]) -> None:
        super().__init__()
        self.conv, self.norm, self.act = conv(4, 4), nn.BatchNorm2d(4), nn.ReLU()
        self.block = nn.Sequential(conv(4, 4), nn.BatchNorm2d(4))
        self.run = run

    def forward(self, x: Tensor, more: bool = False) -> Tensor:
        return self.run(self, x, more)


def norm_again(net: Any, x: Tensor, more: bool) -> Tensor:
    y = net.norm(net.conv(x))
    return y if x.shape[-1] > 9 else net.norm(y)


def norm_first(net: Any, x: Tensor, more: bool) -> Tensor:
    if x.shape[-1] <= 9:
        x = net.norm(x)
    return net.norm(net.conv(x))


def weight_again(net: Any, x: Tensor, more: bool) -> Tensor:
    y = net.norm(net.conv(x))
    return y if x.shape[-1] > 9 else y + F.conv2d(x, net.conv.weight, padding=1)


def by_argument(net: Any, x: Tensor, more: bool) -> Tensor:
    y = net.norm(net.conv(x))
    return net.norm(y) if more else y


def block_again(net: Any, x: Tensor, more: bool) -> Tensor:
    y = net.block(x)
    return y if x.shape[-1] > 9 else net.block(y)


def across_a_block(net: Any, x: Tensor, more: bool) -> Tensor:
    y = net.block(net.norm(net.conv(x)[:, :, 1:-1, 1:-1]))
    return y if x.shape[-1] > 9 else net.block(y)


def act_again(net: Any, x: Tensor, more: bool) -> Tensor:
    y = net.act(net.norm(net.conv(x)))
    return y if x.shape[-1] > 9 else net.act(y - 1)


RUNS = [norm_again, norm_first, weight_again, by_argument, block_again, across_a_block, act_again]


def check_sizes(model: nn.Module, *others: tuple[Any, ...]) -> None:
    """Fold with an example and without; hold both beside the model at each size.

    Args:
        model: what is folded.
        others: what else it is given, call by call.
    """
    for example in (images(*SIZES[0]).double(), None):
        folded = refold.plan(model, example).apply()
        with torch.no_grad():
            for size in SIZES:
                x = images(*size).double()
                for more in others:
                    wanted, got = model(x, *more), folded(x, *more)
                    assert (wanted - got).abs().max() <= 1e-9 * wanted.abs().max()


@pytest.mark.parametrize("run", RUNS)
def test_the_fold_is_the_model_at_every_size(run: Callable[..., Tensor]) -> None:
    torch.manual_seed(0)
    calls = [(False,), (True,)] if run is by_argument else [(False,)]
    check_sizes(live(Net(run).double()), *calls)


@pytest.mark.parametrize(("run", "left"), [(block_again, 0), (act_again, 0), (norm_again, 1)])
def test_only_what_a_call_takes_apart_is_refused(run: Callable[..., Tensor], left: int) -> None:
    model = live(Net(run).double())
    folded = refold.reparameterize(model, images(*SIZES[0]).double(), drop_unused=True)
    assert sum(isinstance(module, nn.BatchNorm2d) for module in folded.modules()) == left


class Runs(Net):
    """Hands itself to a function that it holds, and nothing else."""

    def forward(self, x: Tensor) -> Tensor:  # type: ignore[override]
        return self.run(self, x)


def last_again(net: Any, x: Tensor) -> Tensor:
    y = net.block(x)
    return y if x.shape[-1] > 9 else net.block[1](y)


def last_again_of_that_size(net: Any, x: Tensor) -> Tensor:
    y = net.block(x)
    return net.block[1](y.reshape(-1, 4, 7, 9)) if x.shape[-1] == 9 else y


@pytest.mark.parametrize("run", [last_again, last_again_of_that_size])
def test_a_function_that_the_model_hands_itself_to(run: Callable[..., Tensor]) -> None:
    torch.manual_seed(0)
    check_sizes(live(Runs(run).double()), ())


class Hands(nn.Module):
    """Hands what it is given besides on to a method of its own, or to a function."""

    def __init__(self, step: Callable[..., Tensor] | None = None) -> None:
        super().__init__()
        self.conv, self.norm, self.own = conv(4, 4), nn.BatchNorm2d(4), step

    def forward(self, x: Tensor, *args: Any, **options: Any) -> Tensor:
        if self.own is not None:
            return self.own(self, x, **options)
        return self.step(x, *args, **options)

    def step(self, x: Tensor, mask: Tensor | None = None) -> Tensor:
        y = self.norm(self.conv(x))
        return y if mask is None else self.norm(y * mask)


class Keywords(Hands):
    """Hands only keywords on."""

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        return self.step(x, **options)


class More(Hands):
    """Takes any number of further values."""

    def forward(self, x: Tensor, *more: Tensor) -> Tensor:
        y = self.norm(self.conv(x))
        for one in more:
            y = y + self.norm(one)
        return y


def reads(net: Any, x: Tensor, **options: Any) -> Tensor:
    y = net.norm(net.conv(x))
    return net.norm(y) if options.get("again") else y


X2 = images(*SIZES[0]).double()
CALLS = [
    (Hands, None, (X2,), {}),
    (Hands, None, (), {"mask": X2}),
    (Keywords, None, (), {"mask": X2}),
    (More, None, (X2, X2), {}),
    (Hands, reads, (), {"again": True}),
]


@pytest.mark.parametrize(("kind", "step", "args", "options"), CALLS)
def test_arguments_that_forward_only_hands_on(
    kind: type[Hands], step: Any, args: tuple[Any, ...], options: dict[str, Any]
) -> None:
    torch.manual_seed(0)
    model = live(kind(step).double())
    for example in (X2, None):
        folded = refold.plan(model, example).apply()
        with torch.no_grad():
            for pair in (((X2,), {}), ((X2, *args), options)):
                wanted, got = (one(*pair[0], **pair[1]) for one in (model, folded))
                assert (wanted - got).abs().max() <= 1e-9 * wanted.abs().max()


class Several(Hands):
    """Takes a list of values, or a table."""

    def forward(self, x: Any) -> Tensor:  # type: ignore[override]
        if isinstance(x, dict):
            y = self.norm(self.conv(x["x"]))
            return self.norm(y) if "again" in x else y
        y = self.norm(self.conv(x[0]))
        return y if len(x) < 2 else self.norm(y + x[1])


@pytest.mark.parametrize(
    ("one", "more"), [([X2], [X2, X2]), ((X2,), (X2, X2)), ({"x": X2}, {"x": X2, "again": X2})]
)
def test_containers_that_hold_more(one: Any, more: Any) -> None:
    model = live(Several().double())
    folded = refold.plan(model, (one,)).apply()
    with torch.no_grad():
        for given in (one, more):
            assert (model(given) - folded(given)).abs().max() <= 1e-9


def by_bfloat16(net: Any, x: Tensor, more: bool) -> Tensor:
    y = net.norm(net.conv(x))
    return net.norm(y) if x.dtype == torch.bfloat16 else y


def by_float32(net: Any, x: Tensor, more: bool) -> Tensor:
    y = net.norm(net.conv(x))
    return net.norm(y) if x.dtype == torch.float32 else y


def by_own_type(net: Any, x: Tensor, more: bool) -> Tensor:
    y = net.norm(net.conv(x))
    return net.norm(y) if x.dtype == net.kind else y


@pytest.mark.parametrize("run", [by_bfloat16, by_float32, by_own_type])
def test_types_that_the_code_names(run: Callable[..., Tensor]) -> None:
    model = Net(run)
    model.kind = torch.bfloat16  # type: ignore[assignment]
    folded = refold.reparameterize(live(model.double()), X2)
    assert any(isinstance(module, nn.BatchNorm2d) for module in [folded.conv, folded.norm])


class Recurs(Hands):
    """Hands its keywords on to a method that hands them on to itself."""

    def forward(self, x: Tensor, **options: Any) -> Tensor:
        return self.descend(x, 2, **options)

    def descend(self, x: Tensor, depth: int, **options: Any) -> Tensor:
        if depth:
            return self.descend(x, depth - 1, **options)
        y = self.norm(self.conv(x))
        return self.norm(y) if options.get("again") else y


def test_keywords_that_code_hands_on_to_itself() -> None:
    model = live(Recurs().double())
    folded = refold.plan(model, X2).apply()
    with torch.no_grad():
        for options in ({}, {"again": True}):
            assert (model(X2, **options) - folded(X2, **options)).abs().max() <= 1e-9

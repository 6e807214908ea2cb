"""Methods that forward does not use: none computes with layers that were folded for forward alone.

The oracle is the model's own method in float64; the control calls the layer as it is now.
"""

from __future__ import annotations

import asyncio
import copy
import inspect
import pickle
from collections.abc import Callable, Iterator
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.utils.checkpoint import checkpoint

import refold
from helpers.traps import EXACT, WRONG, conv, gap, images, live, norms, tensors
from refold.errors import RefusedError
from refold.graph.layers import ScaleShift

X = images(2, 3, 6, 5)


class Base(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm, self.other = conv(), nn.BatchNorm2d(4), nn.BatchNorm2d(4)

    def before(self, x: Tensor) -> Tensor:
        return self.conv(x)

    def differently(self, x: Tensor) -> Tensor:
        return self.other(self.conv(x))

    def encode(self, x: Tensor) -> Tensor:
        return self.norm(self.conv(x)).relu()

    def stages(self, x: Tensor) -> list[Tensor]:
        y = self.conv(x)
        y = self.norm(y)
        return [y, y.relu()]

    def start_anew(self) -> None:
        nn.init.zeros_(self.conv.weight)


class Net(Base):
    def forward(self, x: Tensor) -> Tensor:
        return self.encode(x) * 2


@pytest.mark.parametrize("example", [X, None])
def test_other_methods_refuse_and_those_of_forward_stay(example: Tensor | None) -> None:
    model = live(Net())
    folded = refold.reparameterize(model, example)
    assert norms(folded) == 1
    assert gap(model, folded, X) <= EXACT
    assert (folded.encode(X) - model.encode(X)).abs().max() <= EXACT
    for method in ("before", "differently"):
        with pytest.raises(RefusedError, match="call the method of the original model"):
            getattr(folded, method)(X)
    assert isinstance(folded, Net)
    for one, other in zip(folded.stages(X), model.stages(X), strict=True):
        assert (one - other).abs().max() <= EXACT
    again = pickle.loads(pickle.dumps(folded))
    assert gap(model, again, X) <= EXACT
    folded.start_anew()
    assert folded.conv.weight.abs().max() == 0


def test_the_control_is_wrong() -> None:
    model = live(Net())
    folded = refold.reparameterize(model, X)
    assert (Base.before(folded, X) - model.before(X)).abs().max() > WRONG


class Encoder(Base):
    """Forward goes through a method that returns the value in front of the norm."""

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.before(x))


class Staged(Base):
    def forward(self, x: Tensor) -> Tensor:
        y, _ = self.stages(x)
        return y


@pytest.mark.parametrize("example", [X, None])
def test_a_method_of_the_model_returns_what_it_returned(example: Tensor | None) -> None:
    model = live(Encoder())
    folded = refold.reparameterize(model, example)
    assert gap(model, folded, X) <= EXACT
    assert (model.before(X) - folded.before(X)).abs().max() <= EXACT
    assert norms(folded) == 2  # the one behind the value, and the one that never runs


@pytest.mark.parametrize("example", [X, None])
def test_a_method_of_a_part_stands_in_no_ones_way(example: Tensor | None) -> None:
    model = live(nn.Sequential(Encoder(), nn.ReLU()))
    folded = refold.reparameterize(model, example)
    assert gap(model, folded, X) <= EXACT
    assert norms(folded) == 1  # the one that never runs
    with pytest.raises(RefusedError, match=r"^0\.before runs conv"):
        cast(Encoder, folded[0]).before(X)


@pytest.mark.parametrize("example", [X, None])
def test_a_method_of_a_part_around_a_fold_returns_what_it_returned(example: Tensor | None) -> None:
    model = live(nn.Sequential(Staged(), nn.ReLU()))
    folded = refold.reparameterize(model, example)
    assert gap(model, folded, X) <= EXACT
    own, now = cast(Staged, model[0]).stages(X), cast(Staged, folded[0]).stages(X)
    for one, other in zip(own, now, strict=True):
        assert (one - other).abs().max() <= EXACT


def test_a_layer_in_a_method_with_its_norm_still_folds() -> None:
    model = live(nn.Sequential(Net(), nn.ReLU()))
    assert norms(refold.reparameterize(model, X)) == 1  # the one that only another method calls


class Two(nn.Module):
    """A layer, its norm, and a branch beside them: none of the methods below is run by forward."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.norm = conv(), nn.BatchNorm2d(4)
        self.body = nn.Sequential(conv(4), nn.BatchNorm2d(4), nn.ReLU(), conv(4), nn.BatchNorm2d(4))
        self.run = self.before

    def encode(self, x: Tensor, norm: bool = True) -> Tensor:
        y = self.conv(x)
        return self.norm(y) if norm else y

    def forward(self, x: Tensor) -> Tensor:
        return self.body(self.encode(x))

    def before(self, x: Tensor) -> Tensor:
        return self.conv(x)

    def by_a_name(self, x: Tensor) -> Tensor:
        return getattr(self, "conv")(x)  # noqa: B009

    def by_a_variable(self, x: Tensor) -> Tensor:
        layer = self.conv
        return layer(x)

    def by_a_table(self, x: Tensor) -> Tensor:
        return self._modules["conv"](x)

    def by_another_method(self, x: Tensor) -> Tensor:
        return self.before(x) * 2

    @property
    def stem(self) -> nn.Module:
        return self.conv

    def by_a_property(self, x: Tensor) -> Tensor:
        return self.stem(x)

    def by_function(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.conv.weight, self.conv.bias, padding=1)

    def by_item(self, x: Tensor) -> Tensor:
        return self.body[0](self.encode(x))

    def by_slice(self, x: Tensor) -> Tensor:
        return self.body[:4](self.encode(x))

    def one_by_one(self, x: Tensor) -> list[Tensor]:
        values = [self.encode(x)]
        for layer in self.body:
            values.append(layer(values[-1]))
        return values

    def yields(self, x: Tensor) -> Iterator[Tensor]:
        y = self.conv(x)
        yield self.norm(y)
        yield y

    def by_forward(self, x: Tensor) -> Tensor:
        return self.conv.forward(x)

    def by_class(self, x: Tensor) -> Tensor:
        return nn.Conv2d.forward(self.conv, x)

    def by_map(self, x: Tensor) -> list[Tensor]:
        return list(map(self.conv, [x]))

    async def later(self, x: Tensor) -> Tensor:
        return self.conv(x)

    def catches(self, x: Tensor) -> Tensor:
        try:
            return self.conv(x) * 2
        except Exception:
            return x

    def scales(self) -> Tensor:
        return self.norm.weight * 2

    def raw(self, x: Tensor) -> Tensor:
        return self.encode(x, norm=False)

    # what follows is as exact as forward

    def whole(self, x: Tensor) -> Tensor:
        return self.body(self.norm(self.conv(x)))

    def stages(self, x: Tensor) -> list[Tensor]:
        y = self.encode(x)
        return [y, self.body[:3](y), self.body(y)]

    def twice(self, x: Tensor) -> Tensor:
        return self(x) + self.forward(x)

    def in_turn(self, x: Tensor) -> Iterator[Tensor]:
        y = self.encode(x)
        for layers in (self.body[:2], self.body[2:]):
            y = layers(y)
            yield y

    def of_a_copy(self, x: Tensor) -> Tensor:
        return copy.deepcopy(self)(x) + pickle.loads(pickle.dumps(self.body))(self.encode(x))

    def form(self, x: Tensor) -> Any:
        y = self.conv(x)
        return y.shape, y.dtype, self.norm(y)


class Holder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.part = Two()
        self.others = nn.ModuleDict({"same": self.part.conv})

    def forward(self, x: Tensor) -> Tensor:
        return self.part(x).relu()

    def reaches_in(self, x: Tensor) -> Tensor:
        return self.part.conv(x)

    def asks(self, x: Tensor) -> Tensor:
        return self.part.encode(x, norm=False)

    def by_another_name(self, x: Tensor) -> Tensor:
        return self.others["same"](x)


REFUSED = ["before", "run", "by_a_name", "by_a_variable", "by_a_table", "by_another_method", "raw"]
REFUSED += ["by_a_property", "by_function", "by_item", "by_slice", "one_by_one", "yields", "scales"]
REFUSED += ["by_forward", "by_class", "by_map", "catches", "later"]
KEPT = ["encode", "whole", "stages", "twice", "in_turn", "of_a_copy", "form"]


def given(method: Any, *args: Any) -> Any:
    value = method(*args)
    value = asyncio.run(value) if inspect.iscoroutine(value) else value
    return list(value) if isinstance(value, Iterator) else value


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("example", [X, None])
def test_a_method_that_takes_a_fold_apart_refuses(name: str, example: Tensor | None) -> None:
    folded = refold.reparameterize(live(Two()), example)
    assert norms(folded) == 0
    with pytest.raises(RefusedError, match=r"runs .* otherwise than .* method of the original"):
        given(getattr(folded, name), *(() if name == "scales" else (X,)))
    assert not torch.nn.modules.module._has_any_global_hook()


@pytest.mark.parametrize("name", KEPT)
def test_a_method_that_runs_a_fold_as_forward_does_is_exact(name: str) -> None:
    model = live(Two())
    folded = refold.reparameterize(model, X)
    pairs = [tensors(given(getattr(one, name), X)) for one in (model, folded)]
    for one, other in zip(*pairs, strict=True):
        assert type(other) is Tensor
        assert (one - other).abs().max() <= EXACT


COPIES: dict[str, Callable[[nn.Module], nn.Module]] = {
    "copied": copy.deepcopy,
    "pickled": lambda model: pickle.loads(pickle.dumps(model)),
    "folded again": lambda model: refold.reparameterize(model, X),
    "in a larger one": lambda model: refold.reparameterize(nn.Sequential(model).eval(), X)[0],
}


@pytest.mark.parametrize("way", COPIES)
def test_an_argument_of_a_method_decides_about_a_fold(way: str) -> None:
    model = live(Two())
    folded = COPIES[way](refold.reparameterize(model, X))
    assert (folded.encode(X) - model.encode(X)).abs().max() <= EXACT
    assert (folded.encode(X, norm=True) - model.encode(X)).abs().max() <= EXACT
    assert (folded(X) - model(X)).abs().max() <= EXACT
    for call in (lambda: folded.encode(X, norm=False), lambda: folded.encode(X, False)):
        with pytest.raises(RefusedError, match=r"^(0\.)?encode runs conv"):
            call()


def test_a_larger_model_is_no_forward_that_was_folded() -> None:
    class Larger(nn.Module):
        def __init__(self, part: nn.Module) -> None:
            super().__init__()
            self.part = part

        def forward(self, x: Tensor, norm: bool = False) -> Tensor:
            return cast(Two, self.part).encode(x, norm=norm)

    model = live(Two())
    larger = Larger(refold.reparameterize(model, X)).eval()
    assert (larger(X, norm=True) - cast(Two, model).encode(X)).abs().max() <= EXACT
    with pytest.raises(RefusedError, match=r"^encode runs conv"):
        larger(X)


def test_the_control_of_arguments_is_wrong() -> None:
    model = live(Two())
    folded = refold.reparameterize(model, X)
    assert (Two.encode(folded, X, norm=False) - model.encode(X, norm=False)).abs().max() > WRONG


@pytest.mark.parametrize("name", ["reaches_in", "asks", "by_another_name"])
def test_methods_of_what_holds_a_part(name: str) -> None:
    folded = refold.reparameterize(live(Holder()), X)
    assert norms(folded) == 0
    with pytest.raises(RefusedError, match=rf"^{name} runs|^part.encode runs"):
        getattr(folded, name)(X)


def test_a_value_from_inside_a_fold_is_refused_wherever_it_went() -> None:
    class Keeps(Two):
        def store(self, x: Tensor) -> None:
            self.seen = self.conv(x)

    folded = refold.reparameterize(live(Keeps()), X)
    folded.store(X)
    with pytest.raises(RefusedError, match=r"^store runs conv"):
        folded.seen.mean()


def test_norms_that_a_model_freezes_in_train_may_be_gone() -> None:
    class Frozen(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.one, self.other, self.norm = conv(), conv(kernel=1), nn.BatchNorm2d(4)

        def forward(self, x: Tensor) -> Tensor:
            return self.norm(self.one(x) + self.other(x))

        def train(self, mode: bool = True) -> nn.Module:
            super().train(mode)
            self.norm.eval()
            return self

    model = live(Frozen())
    folded = refold.reparameterize(model, X)
    assert norms(folded) == 0
    assert gap(model, folded.train().eval(), X) <= EXACT


def test_scripts_traces_and_recomputed_values_are_exact() -> None:
    class Plain(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv, self.norm = conv(), nn.BatchNorm2d(4)

        def encode(self, x: Tensor, norm: bool = True) -> Tensor:
            y = self.conv(x)
            return self.norm(y) if norm else y

        def forward(self, x: Tensor) -> Tensor:
            return self.encode(x).relu()

    class Recomputed(Plain):
        def forward(self, x: Tensor) -> Tensor:
            return checkpoint(self.encode, x, use_reentrant=False).relu()

    model = live(Plain())
    folded = refold.reparameterize(model, X)
    for other in (torch.jit.script(folded), torch.jit.trace(folded, X)):
        assert (other(X) - model(X)).abs().max() <= EXACT
    model = live(Recomputed())
    inputs = [X.clone().requires_grad_() for _ in range(2)]
    for one, x in zip((model, refold.reparameterize(model, X)), inputs, strict=True):
        one(x).square().sum().backward()  # runs `encode` outside forward
    wanted, got = (x.grad for x in inputs)
    assert (got - wanted).abs().max() <= EXACT * wanted.abs().max()


class Unfollowed(nn.Module):
    """Its forward keeps state that it reads, so that its parts are folded on their own."""

    def __init__(self) -> None:
        super().__init__()
        self.part = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.ReLU())
        self.calls = [0]

    def forward(self, x: Tensor) -> Tensor:
        self.calls.append(self.calls[-1] + 1)
        return self.part(x) * 2

    def before(self, x: Tensor) -> Tensor:
        return self.part[0](x)

    def whole(self, x: Tensor) -> Tensor:
        return self.part(x)

    def in_turn(self, x: Tensor) -> Tensor:
        return self.part[1](self.part[0](x))


@pytest.mark.parametrize("inner", [False, True])
def test_methods_of_what_holds_a_folded_part(*, inner: bool) -> None:
    model = live(nn.Sequential(Unfollowed()) if inner else Unfollowed())
    folded = refold.reparameterize(model, X)
    assert norms(folded) == 0
    assert gap(model, folded, X) <= EXACT
    own, now = (cast(Unfollowed, net[0] if inner else net) for net in (model, folded))
    for method in ("whole", "in_turn"):
        assert (getattr(now, method)(X) - getattr(own, method)(X)).abs().max() <= EXACT
    for one in (now, copy.deepcopy(now), pickle.loads(pickle.dumps(now))):
        with pytest.raises(RefusedError, match=r"before runs part\.0"):
            one.before(X)
    assert (Unfollowed.before(now, X) - own.before(X)).abs().max() > WRONG
    assert gap(model, folded, X) <= EXACT


def test_what_multiplies_every_channel_can_be_scripted() -> None:
    layer = ScaleShift(torch.rand(4), torch.rand(4), 2)
    x = torch.rand(1, 4, 2, 2)
    assert torch.equal(torch.jit.script(layer)(x), layer(x))


class Head(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.norm, self.fc = norm, nn.Linear(4, 5)

    def forward(self, x: Tensor, pre_logits: bool = False, rows: int = 2) -> Tensor:
        x = self.norm(x.mean((rows, 3)))
        if pre_logits:
            return x
        return self.fc(x)


class Headed(nn.Module):
    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        self.conv, self.head = conv(), Head(norm)

    def features(self, x: Tensor) -> Tensor:
        return self.conv(x).relu()

    def classify(self, x: Tensor, pre_logits: bool = False) -> Tensor:
        return self.head(x, pre_logits=pre_logits)

    def forward(self, x: Tensor) -> Tensor:
        return self.classify(self.features(x))


OPTIONS: list[Callable[[Any, Tensor], Tensor]] = [
    lambda net, y: net.classify(y, pre_logits=True),
    lambda net, y: net.head(y, pre_logits=True),
    lambda net, y: net.head(y, True),
    lambda net, y: net.head.forward(y, True),
]
AS_FOLDED: list[Callable[[Any, Tensor], Tensor]] = [
    lambda net, y: net.classify(y),
    lambda net, y: net.head(y),
    lambda net, y: net.head(y, False),
    lambda net, y: net.head(y, rows=2),
    lambda net, y: net.head.forward(y, pre_logits=False),
]


class RowNorm(nn.LayerNorm):
    """A norm that code of its own computes: its gain is no layer's."""

    def forward(self, x: Tensor) -> Tensor:
        return nn.functional.layer_norm(x, (4,), self.weight, self.bias, self.eps)


@pytest.mark.parametrize("norm", [nn.BatchNorm1d, nn.LayerNorm, RowNorm])
def test_a_part_that_is_given_another_option_refuses(norm: Callable[[int], nn.Module]) -> None:
    model = live(Headed(norm(4)))
    with torch.no_grad():
        model.head.norm.weight.mul_(3)
    folded = refold.reparameterize(model, X)
    y = model.features(X)
    assert gap(model, folded, X) <= EXACT
    for call in AS_FOLDED:
        torch.testing.assert_close(call(folded, y), call(model, y))
    for call in OPTIONS:
        with pytest.raises(RefusedError, match=r"head\.forward runs norm otherwise"):
            call(folded, y)
    unguarded = folded.head.norm(y.mean((2, 3)))  # the control: what would have come out
    assert (unguarded - model.head(y, True)).abs().max() > 0.01


def test_a_part_with_an_option_can_be_handed_on() -> None:
    model = live(Headed(nn.BatchNorm1d(4)))
    folded = refold.reparameterize(model, X)
    ways: list[Any] = [
        copy.deepcopy(folded),
        refold.reparameterize(folded, X),
        torch.jit.script(folded),
        torch.jit.trace(folded, X),
        torch.export.export(folded, (X,)).module(),
        torch.fx.symbolic_trace(folded),
    ]
    for way in ways:
        torch.testing.assert_close(way(X), model(X))


@pytest.mark.parametrize("last", [nn.Dropout(0.5), nn.Identity(), nn.Sequential(nn.Dropout())])
def test_a_layer_that_does_nothing_may_be_called_in_any_way(last: nn.Module) -> None:
    """What an idle dropout leaves is as idle: nothing is taken apart with another option."""
    model = Headed(last)
    model.conv = nn.Sequential(conv(), nn.BatchNorm2d(4))
    folded = refold.reparameterize(live(model), X)
    y = model.features(X)
    assert not any(isinstance(layer, nn.Dropout) for layer in folded.head.modules())
    for call in (*OPTIONS, *AS_FOLDED):
        torch.testing.assert_close(call(folded, y), call(model, y))

"""A layer that does not compute what its class says is followed, or left alone with the reason."""

from __future__ import annotations

import functools
from collections.abc import Callable
from types import MethodType
from typing import Any, cast

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import refold
from refold.branches import expand
from refold.graph.copies.owned import duplicate
from refold.graph.trace.leaves import pinned_reason
from refold.graph.trace.overridden import call_disguise, disguise, layer_class

pytestmark = pytest.mark.slow

SIZES = [(2, 3, 9, 9), (1, 3, 12, 7), (3, 3, 6, 6)]


class Chain(nn.Module):
    """Convolution, norm, function, and a second convolution with its norm."""

    def __init__(self, **parts: nn.Module) -> None:
        super().__init__()
        self.conv = parts.get("conv", nn.Conv2d(3, 4, 3, padding=1))
        self.norm = parts.get("norm", nn.BatchNorm2d(4))
        self.act = parts.get("act", nn.ReLU())
        self.pool = parts.get("pool", nn.Identity())
        self.last = parts.get("last", nn.Sequential(nn.Conv2d(4, 2, 1), nn.BatchNorm2d(2)))

    def forward(self, x: Tensor) -> Tensor:
        return self.last(self.pool(self.act(self.norm(self.conv(x)))))


def method_of_the_instance() -> nn.Module:
    net = Chain()
    twice = lambda self, x: F.conv2d(x, self.weight * 2, self.bias, padding=1)  # noqa: E731
    net.conv.forward = MethodType(twice, net.conv)
    return net


def inner_method_of_the_instance() -> nn.Module:
    net = Chain()
    conv: Any = net.conv
    conv._conv_forward = lambda x, w, b: F.conv2d(x, w * 2, b, padding=1)
    return net


def closure_over_the_old_forward() -> nn.Module:
    net = Chain()
    for layer in (net.conv, net.norm, net.act):
        old = layer.forward

        def wrapped(*args: Any, old: Any = old) -> Any:
            return old(*args) * 2

        layer.forward = wrapped
    return net


def device_placement() -> nn.Module:
    """As Accelerate does it: `_old_forward`, a partial, and the marks of `functools`."""
    net = Chain()

    def placed(module: Any, x: Tensor) -> Tensor:
        return module._old_forward(x + 0.5) * 2

    for layer in (net.conv, net.last):
        old = layer.forward
        layer._old_forward = old  # type: ignore[assignment]
        layer.forward = functools.update_wrapper(functools.partial(placed, layer), old)
    return net


def function_of_the_instance() -> nn.Module:
    net = Chain()
    net.norm.forward = lambda x: x * 2
    return net


def identity_that_negates() -> nn.Module:
    net = Chain()
    net.pool.forward = torch.neg
    return net


def call_of_the_layer_class() -> nn.Module:
    class Doubled(nn.Conv2d):
        def __call__(self, x: Tensor) -> Tensor:
            return super().__call__(x * 2)

    return Chain(conv=Doubled(3, 4, 3, padding=1))


def call_of_the_block_class() -> nn.Module:
    class Block(Chain):
        def __call__(self, x: Tensor) -> Tensor:
            return super().__call__(x * 2)

    return nn.Sequential(Block(), nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))


def call_impl_of_the_class() -> nn.Module:
    class Block(Chain):
        def _call_impl(self, *args: Any, **kwargs: Any) -> Any:
            return super()._call_impl(*args, **kwargs) * 2

    return nn.Sequential(Block(), nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))


def sequential_with_its_own_forward() -> nn.Module:
    class Skips(nn.Sequential):
        def forward(self, x: Tensor) -> Tensor:
            return self[0](x) + self[1](self[0](x))

    return Chain(last=Skips(nn.Conv2d(4, 4, 1), nn.BatchNorm2d(4)))


def sequential_with_a_forward_on_the_instance() -> nn.Module:
    net = Chain()
    last: Any = net.last
    last.forward = lambda x: last[0](x) * 2 + 1
    return net


def weight_as_a_property() -> nn.Module:
    class Scaled(nn.Conv2d):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            self.raw = self._parameters.pop("weight")

        @property
        def weight(self) -> Tensor:  # type: ignore[override]
            return cast(Tensor, self.raw) / 3

        def reset_parameters(self) -> None:
            for parameter in self.parameters():
                nn.init.normal_(parameter)

    return Chain(conv=Scaled(3, 4, 3, padding=1))


def attribute_access() -> nn.Module:
    class Redirects(nn.Conv2d):
        def __getattr__(self, name: str) -> Any:
            found = super().__getattr__(name)
            return found * 2 if name == "weight" else found

        def reset_parameters(self) -> None:
            for parameter in self.parameters():
                nn.init.normal_(parameter)

    return Chain(conv=Redirects(3, 4, 3, padding=1))


def dropout_that_acts() -> nn.Module:
    class Halves(nn.Dropout):
        def forward(self, x: Tensor) -> Tensor:
            return x * 0.5

    return Chain(pool=Halves())


def identity_subclass() -> nn.Module:
    class Negates(nn.Identity):
        def forward(self, x: Tensor) -> Tensor:
            return -x

    return Chain(pool=Negates())


def norm_subclass() -> nn.Module:
    class Doubled(nn.BatchNorm2d):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    return Chain(norm=Doubled(4))


def activation_subclass() -> nn.Module:
    class Shifted(nn.ReLU):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) - 1

    return Chain(act=Shifted())


def class_replaced_later() -> nn.Module:
    class Mine(nn.Conv2d):
        pass

    assert layer_class(Mine(1, 1, 1)) is nn.Conv2d
    Mine.forward = lambda self, x: F.conv2d(x, self.weight * 2, self.bias, padding=1)
    return Chain(conv=Mine(3, 4, 3, padding=1))


def model_with_a_forward_on_the_instance() -> nn.Module:
    net = Chain()
    old = net.forward
    net.forward = lambda x: old(x * 2) + 1
    return net


MAKERS = [
    method_of_the_instance,
    inner_method_of_the_instance,
    closure_over_the_old_forward,
    device_placement,
    function_of_the_instance,
    identity_that_negates,
    call_of_the_layer_class,
    call_of_the_block_class,
    call_impl_of_the_class,
    sequential_with_its_own_forward,
    sequential_with_a_forward_on_the_instance,
    weight_as_a_property,
    attribute_access,
    dropout_that_acts,
    identity_subclass,
    norm_subclass,
    activation_subclass,
    class_replaced_later,
    model_with_a_forward_on_the_instance,
]
each_maker = pytest.mark.parametrize("make", MAKERS, ids=lambda f: f.__name__)
Maker = Callable[[], nn.Module]


def live(net: nn.Module) -> nn.Module:
    for module in net.modules():
        if isinstance(module, nn.BatchNorm2d):
            assert module.running_mean is not None
            assert module.running_var is not None
            nn.init.normal_(module.running_mean)
            nn.init.uniform_(module.running_var, 0.5, 2.0)
            nn.init.normal_(module.weight)
            nn.init.normal_(module.bias)
    return net.double().eval()


def agree(reference: nn.Module, candidate: nn.Module) -> None:
    for size in SIZES:
        for _ in range(3):
            x = torch.randn(size, dtype=torch.float64)
            with torch.no_grad():
                wanted, got = reference(x), candidate(x)
            assert (wanted - got).abs().max() <= 1e-9 * wanted.abs().max()


@each_maker
@pytest.mark.parametrize("with_example", [True, False])
def test_the_fold_computes_what_the_model_computes(make: Maker, with_example: bool) -> None:
    net = live(make())
    before = {key: value.clone() for key, value in net.state_dict().items()}
    example = torch.randn(SIZES[0]).double() if with_example else None
    agree(net, refold.reparameterize(net, example))
    agree(net, refold.plan(net, example).apply())
    assert all(torch.equal(value, before[key]) for key, value in net.state_dict().items())


@each_maker
def test_other_verbs_believe_no_class_either(make: Maker) -> None:
    net, x = live(make()), torch.randn(SIZES[0]).double()
    agree(net, refold.remove_residuals(net, x, strict=False))
    assert refold.verify(net, refold.reparameterize(net, x), x)
    assert not refold.verify(net, refold.reparameterize(live(Chain()), x), x)


@each_maker
def test_a_copy_runs_on_its_own_tensors(make: Maker) -> None:
    net, x = live(make()), torch.randn(SIZES[0]).double()
    copied = duplicate(net)
    with torch.no_grad():
        wanted = net(x)
        for parameter in net.parameters():
            parameter.fill_(0.1)
        assert torch.equal(copied(x), wanted)
        for parameter in copied.parameters():
            parameter.fill_(0.1)
        assert torch.equal(copied(x), net(x))


def test_what_can_be_followed_folds() -> None:
    for make in (method_of_the_instance, closure_over_the_old_forward, weight_as_a_property):
        folded = refold.reparameterize(live(make()), torch.randn(SIZES[0]).double())
        assert not any(isinstance(module, nn.BatchNorm2d) for module in folded.modules()), make


def test_the_reason_names_what_was_replaced() -> None:
    reason = pinned_reason(call_of_the_block_class()[0])
    assert reason == "its class Block replaces __call__, which may do more than run forward"


def test_expand_leaves_a_replaced_layer() -> None:
    net = live(method_of_the_instance())
    expanded = expand(net, "acb").eval()
    assert type(expanded.conv) is nn.Conv2d
    agree(net, expanded)


def test_the_class_tells_only_while_nothing_is_replaced() -> None:
    class Same(nn.ReLU):
        def extra_repr(self) -> str:
            return "same"

    assert layer_class(Same()) is nn.ReLU
    assert disguise(Same()) is None
    assert call_disguise(Same()) is None
    for make in MAKERS[:6]:
        net: Any = make()
        told = [disguise(net.conv), disguise(net.norm), disguise(net.pool)]
        assert any(told)


def test_a_replaced_method_of_torch_itself_is_seen(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(nn.ReLU, "forward", lambda self, x: x * 3)
    net = live(Chain())
    assert layer_class(net.act) is object  # type: ignore[arg-type]
    agree(net, refold.reparameterize(net))

"""What changes nothing goes, and nothing else does."""

from __future__ import annotations

from collections.abc import Callable
from math import inf
from typing import Any

import pytest
import torch
from torch import Tensor, fx, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from helpers.traps import conv, images, live, net, norms, sound
from refold import plan, reparameterize


class _Calls(TorchFunctionMode):
    def __init__(self) -> None:
        self.names: list[str] = []

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = getattr(func, "__name__", "")
        if name not in ("__get__", "__set__", "size", "dim", "add_"):
            self.names.append(name)
        return func(*args, **(kwargs or {}))


def calls(model: nn.Module, *inputs: Any) -> list[str]:
    """Return the functions of torch that a call runs."""
    given = inputs or (images(),)
    with torch.no_grad(), _Calls() as seen:
        model(*given)
    return seen.names


def ones(layer: nn.PReLU) -> nn.PReLU:
    nn.init.ones_(layer.weight)
    return layer


LAYERS: list[nn.Module] = [
    nn.LeakyReLU(1.0),
    ones(nn.PReLU()),
    ones(nn.PReLU(3)),
    nn.Hardtanh(-inf, inf),
    nn.RReLU(1.0, 1.0),
    nn.Threshold(-inf, 3.0),
    nn.Softshrink(0.0),
    nn.Hardshrink(0.0),
    nn.Dropout(0.5),
    nn.Dropout2d(0.5),
]


@pytest.mark.parametrize("layer", LAYERS, ids=str)
def test_a_layer_that_changes_nothing_joins_its_neighbours(layer: nn.Module) -> None:
    done = sound(nn.Sequential(conv(3, 3), layer, nn.BatchNorm2d(3)))
    assert calls(done.apply()) == ["conv2d"]


FUNCTIONS: list[Callable[[Tensor], Tensor]] = [
    lambda y: F.leaky_relu(y, 1),
    lambda y: F.leaky_relu(y, 1, inplace=True),
    lambda y: y.clamp(-inf, inf),
    lambda y: torch.clamp(y, max=inf),
    lambda y: y * 1,
    lambda y: 1.0 * y,
    lambda y: y / 1.0,
    lambda y: y + 0,
    lambda y: 0 + y,
    lambda y: y - 0.0,
    lambda y: torch.add(y, 0, alpha=3),
    lambda y: F.threshold(y, -inf, 1.0),
    lambda y: F.dropout(y, 0.5, training=False),
]


@pytest.mark.parametrize("at", range(len(FUNCTIONS)))
def test_a_call_that_changes_nothing_goes(at: int) -> None:
    model = net(lambda self, x: FUNCTIONS[at](self.b(self.a(x))), a=conv(), b=nn.BatchNorm2d(4))
    assert calls(sound(model).apply()) == ["conv2d"]


def test_constants_of_ones_and_zeros_go() -> None:
    model = net(
        lambda self, x: (self.a(x) * self.one + self.zero).tanh(),
        a=conv(), one=nn.Parameter(torch.ones(4, 1, 1)), zero=nn.Parameter(torch.zeros(1)),
    )  # fmt: skip
    assert calls(sound(model).apply()) == ["conv2d", "tanh"]


def test_what_is_kept_is_no_copy_of_an_input() -> None:
    model = net(lambda self, x: (x * 1, self.b(self.a(x))), a=conv(), b=nn.BatchNorm2d(4))
    folded = sound(model).apply()
    x = images()
    assert folded(x)[0].data_ptr() != x.data_ptr()


def test_a_product_that_changes_the_precision_stays() -> None:
    model = net(lambda self, x: self.b(self.a(x * 1.0)), a=conv(), b=nn.BatchNorm2d(4))
    pixels = torch.randint(0, 255, (2, 3, 11, 9), dtype=torch.uint8)
    model = live(model).float()
    folded = reparameterize(model, pixels)
    torch.testing.assert_close(folded(pixels), model(pixels), rtol=1e-4, atol=1e-4)


PROVEN: list[Callable[[Tensor], Tensor]] = [
    lambda x: F.relu(F.relu(x) + F.relu(-x)),
    lambda x: F.relu(F.max_pool2d(F.relu(x), 2)),
    lambda x: F.relu(torch.sigmoid(x) * F.relu6(x)),
    lambda x: F.relu(torch.cat([F.relu(x), torch.sigmoid(x)], 1)),
    lambda x: F.relu6(torch.sigmoid(x)),
    lambda x: F.hardtanh(torch.tanh(x)),
    lambda x: F.leaky_relu(F.avg_pool2d(F.relu(x), 2), 0.2),
]
NEEDED: list[Callable[[Tensor], Tensor]] = [
    lambda x: F.relu(F.relu(x) - F.relu(-x)),
    lambda x: F.relu(F.silu(x)),
    lambda x: F.relu6(F.relu(x)),
    lambda x: F.relu(torch.cat([F.relu(x), x], 1)),
    lambda x: F.leaky_relu(torch.tanh(x), 0.2),
    lambda x: F.threshold(F.relu(x), 0.3, 0.0),
]


def rectified(function: Callable[[Tensor], Tensor]) -> tuple[int, int]:
    """Return how many calls there are before and after a fold."""
    model = net(lambda self, x: function(self.b(self.a(x))), a=conv(), b=nn.BatchNorm2d(4))
    done = sound(model)
    return len(calls(model)), len(calls(done.apply()))


@pytest.mark.parametrize("at", range(len(PROVEN)))
def test_a_function_that_ranges_prove_to_be_idle_goes(at: int) -> None:
    before, after = rectified(PROVEN[at])
    assert after == before - 2


@pytest.mark.parametrize("at", range(len(NEEDED)))
def test_a_function_that_may_change_a_number_stays(at: int) -> None:
    before, after = rectified(NEEDED[at])
    assert after == before - 1


def test_another_path_to_an_idle_function_keeps_it() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a, self.b = conv(3, 3), nn.BatchNorm2d(3)
            self.pool, self.act = nn.MaxPool2d(1), nn.ReLU()

        def forward(self, x: Tensor, y: Tensor | None = None) -> Tensor:
            x = torch.relu(self.b(self.a(x)))
            if y is not None:
                x = x + y
            return self.act(self.pool(x))

    model, x = live(Net()), images()
    folded, y = reparameterize(model, x), -10 * images(seed=4)
    torch.testing.assert_close(folded(x, y), model(x, y))


LAYOUTS: list[Callable[[nn.Module, Tensor], Tensor]] = [
    lambda self, x: self.b(x.flatten(0, 1)).reshape_as(x),
    lambda self, x: self.b(x.flatten(0, 1)).view_as(x),
    lambda self, x: self.b(x.reshape(-1, x.shape[-1])).reshape(x.shape),
    lambda self, x: self.b(x.flatten(0, 1)).view(x.size(0), x.size(1), x.size(2)),
    lambda self, x: self.b(x.flatten(0, 1)).view(x.shape[0], -1, x.shape[2]),
    lambda self, x: self.b(x.transpose(1, 2)).transpose(1, 2),
    lambda self, x: self.b(x.permute(0, 2, 1)).transpose(-1, 1),
]


@pytest.mark.parametrize("at", range(len(LAYOUTS)))
def test_layouts_around_a_norm_go_with_it(at: int) -> None:
    model = net(
        lambda self, x: LAYOUTS[at](self, self.a(x)), a=nn.Linear(6, 5), b=nn.BatchNorm1d(5)
    )
    folded = sound(model, images(2, 7, 6)).apply()
    assert calls(folded, images(2, 7, 6)) == ["linear"]
    assert norms(folded) == 0
    for shape in ((3, 4, 6), (1, 9, 6)):
        torch.testing.assert_close(folded(images(*shape)), model(images(*shape)))


BRANCHES: list[Callable[[nn.Module, Tensor], Tensor]] = [
    lambda self, x: self.b(x.flatten(2)).view_as(x),
    lambda self, x: self.b(x.flatten(2)).view(x.shape),
    lambda self, x: (x.permute(0, 2, 3, 1) * self.b.weight).permute(0, 3, 1, 2),
]


@pytest.mark.parametrize("at", range(len(BRANCHES)))
def test_branches_that_layouts_kept_apart_are_one(at: int) -> None:
    model = net(
        lambda self, x: torch.tanh(BRANCHES[at](self, self.a(x)) + self.c(x)),
        a=conv(3, 5),
        b=nn.BatchNorm1d(5),
        c=conv(3, 5, 1),
    )
    folded = sound(model, images(2, 3, 7, 6)).apply()
    assert calls(folded, images(2, 3, 7, 6)) == ["conv2d", "tanh"]
    for shape in ((3, 3, 4, 9), (1, 3, 6, 6)):
        torch.testing.assert_close(folded(images(*shape)), model(images(*shape)))


def test_a_layout_that_only_looks_undone_stays() -> None:
    def forward(self: nn.Module, x: Tensor) -> Tensor:
        y = self.b(self.a(x))
        return y.flatten(1).view(y.shape[0], y.shape[3], y.shape[2], y.shape[1]).tanh()

    model = net(forward, a=conv(3, 5, 1), b=nn.BatchNorm2d(5))
    folded = sound(model, images(2, 3, 5, 5)).apply()
    other = images(2, 3, 4, 7)
    torch.testing.assert_close(folded(other), model(other))


def test_a_chain_of_dropouts_leaves_no_call() -> None:
    model = nn.Sequential(conv(), nn.BatchNorm2d(4), nn.Dropout(), nn.Identity(), nn.Dropout2d())
    folded = sound(model).apply()
    assert calls(folded) == ["conv2d"]
    assert len(folded) == 5
    assert isinstance(fx.symbolic_trace(folded), fx.GraphModule)


class Written(nn.Module):
    """A frozen norm that is written out, whose scale comes to one, before some readers."""

    def __init__(self, readers: int) -> None:
        super().__init__()
        self.register_buffer("scale", torch.ones(1, 4, 1, 1))
        self.register_buffer("shift", torch.randn(1, 4, 1, 1))
        self.convs = nn.ModuleList(nn.Conv2d(4, 4, 1) for _ in range(readers))

    def forward(self, x: Tensor) -> Tensor:
        y = torch.cat((x, x.relu()), 1) * self.scale + self.shift
        return sum(conv(y).sigmoid() for conv in self.convs)


@pytest.mark.parametrize("readers", [1, 3])
def test_a_product_with_ones_goes_with_the_sum_that_folds(readers: int) -> None:
    torch.manual_seed(0)
    model = Written(readers).double().eval()
    x = torch.randn(2, 2, 5, 6, dtype=torch.double)
    folded = reparameterize(model, x)
    assert torch.allclose(folded(x), model(x), rtol=0, atol=1e-12)
    assert "mul" not in calls(folded, x)
    assert "add" not in calls(folded, x) or readers > 1  # which are added to each other


def test_a_product_with_ones_that_may_widen_the_precision_stays_by_itself() -> None:
    class Widened(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("scale", torch.ones(1, 4, 1, 1, dtype=torch.double))

        def forward(self, x: Tensor) -> Tensor:
            return (torch.cat((x, x.relu()), 1) * self.scale).sigmoid()

    model, x = Widened().eval(), torch.randn(2, 2, 5, 6)
    assert reparameterize(model, x)(x).dtype == torch.double


def test_what_changes_nothing_and_stays_says_why() -> None:
    class Idle(nn.Module):
        def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
            return F.leaky_relu(x, 1.0), x * 1.0

    kept = plan(Idle().eval(), torch.randn(2, 3, 4, 5)).kept
    assert {item.where: item.reason for item in kept} == {
        "leaky_relu": "the result would share its memory with an input or with another result",
        "mul": "it changes no number, but perhaps the precision of an input",
    }

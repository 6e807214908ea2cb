"""Who answers for the size of a value that a fold removes."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from helpers.traps import conv, gap, images, live, net, norms, sound
from refold import plan
from refold.algebra.geometry import Axis
from refold.algebra.operator import Affine, AvgPool, Concat, Conv, Input, Pad, Select, Sum, sequence
from refold.graph.fold.asked_sizes import Size, size_of

Norm = nn.BatchNorm2d


def window(kernel: int, stride: int = 1, pad: int = 0, channels: int = 4) -> Conv:
    axis = Axis(kernel, stride, lo=pad, hi=pad)
    return Conv(torch.zeros(channels, 3, kernel, kernel), None, (axis, axis))


X = Input("x")


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (sequence(X, Affine()), X),
        (sequence(X, Pad(((1, 1), (1, 1))), window(3)), sequence(X, window(3, pad=1))),
        (sequence(X, window(3, 2, 1), window(3, 2, 1)), sequence(X, window(7, 4, 3))),
        (sequence(X, window(3, 2, 1), window(3)), sequence(X, window(7, 2, 1))),
        (Sum((sequence(Input("y"), window(1)), sequence(X, window(1)))), sequence(X, window(1))),
        (Concat((sequence(X, window(1)), sequence(X, window(1)))),
         sequence(X, window(1, channels=8))),
        (sequence(X, window(1), Select((0, 0), 4)), sequence(X, window(1, channels=2))),
    ],
)  # fmt: skip
def test_sizes_that_are_equal(one: Any, other: Any) -> None:
    assert not size_of(one, {}).isdisjoint(size_of(other, {}))


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (sequence(X, Select((0, 0), 3)), X),
        (sequence(X, window(3)), sequence(X, window(1))),
        (sequence(X, window(3, 2, 1)), sequence(X, window(2, 2))),
        (sequence(X, AvgPool((Axis(2, 2), Axis(2, 2)))), X),
        (Concat((X, X)), X),
        (X, Input("y")),
    ],
)
def test_sizes_that_may_differ(one: Any, other: Any) -> None:
    assert size_of(one, {}).isdisjoint(size_of(other, {}))


def test_nested_divisions_are_one() -> None:
    [size] = size_of(sequence(X, window(3, 2, 1), window(5, 3, 1)), {})
    assert isinstance(size, Size)
    for n in range(7, 60):
        inner = Axis(3, 2, lo=1, hi=1).out_size(n)
        slack, stride = size.spatial[0]
        assert (n + slack) // stride == Axis(5, 3, lo=1, hi=1).out_size(inner)


def check(model: nn.Module, *others: tuple[int, ...]) -> Any:
    done = sound(model)
    for shape in ((1, 3, 8, 12), *others):
        assert gap(model, done.apply(), images(*shape)) <= 1e-9
    return done


def test_a_value_is_resized_to_its_own_size() -> None:
    def forward(self: Any, x: Any) -> Any:
        y = (x + x)[:, self.order] * 0.5 + 0.1
        return F.interpolate(F.avg_pool2d(y, 3, 2, 1), size=y.shape[-2:])

    model = net(forward)
    model.register_buffer("order", torch.tensor([2, 1, 1]))
    assert check(model).steps


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16])
def test_a_number_takes_on_the_precision_of_what_it_meets(dtype: torch.dtype) -> None:
    def forward(self: Any, x: Any) -> Any:
        return F.avg_pool2d(x[:, self.order] * 0.5 + 0.1, 3)

    model = net(forward).eval()
    model.register_buffer("order", torch.tensor([2, 1, 1]))
    x = images().to(dtype)
    done = plan(model, x)
    assert done.steps
    assert done.apply()(x).dtype == dtype
    torch.testing.assert_close(done.apply()(x), model(x))


def test_the_channels_of_a_scale_after_chosen_channels() -> None:
    """Norm and choice both go; what is left before them has other channels."""

    def forward(self: Any, x: Any) -> Any:
        y = self.b(x[:, [1, 0]])
        return self.c(y) * y.shape[1]

    done = check(net(forward, b=Norm(2), c=conv(2, 4, 1)))
    assert norms(done.apply()) == 0 or done.refusals


def test_the_positions_of_a_scale_after_chosen_channels() -> None:
    def forward(self: Any, x: Any) -> Any:
        y = self.b(x[:, [1, 0]])
        return self.c(y) * y.shape[2] + y.size(-1)

    done = check(net(forward, b=Norm(2), c=conv(2, 4, 1)))
    assert norms(done.apply()) == 0


def test_the_size_of_a_convolution_that_becomes_another() -> None:
    def forward(self: Any, x: Any) -> Any:
        y = self.a(x)
        return self.b(y) / y.numel()

    done = check(net(forward, a=conv(3, 6, 1), b=conv(6, 4)))
    assert not [step for step in done.steps if "a" in step.detail and "b" in step.detail]


def test_the_size_is_read_between_the_branches() -> None:
    def forward(self: Any, x: Any) -> Any:
        y = self.a(x)
        scale = x.new_ones(()) * y.shape[-1]
        return (self.n(y) + self.b(x)) * scale, scale

    model = live(net(forward, a=conv(), n=Norm(4), b=conv(kernel=1)))
    assert check(model).steps


def test_a_branch_that_reads_the_size_of_another_through_its_own_layer() -> None:
    def forward(self: Any, x: Any) -> Any:
        y = self.n(x)
        return F.interpolate(F.avg_pool2d(y, 2), size=y.shape[-2:]) + y

    check(net(forward, n=Norm(3)))

"""Traps at the border of the map, and in shapes that mean two things. A naive folder is wrong."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from helpers.traps import conv, gap, images, live, net, norms, sound, trap
from refold.graph.layers import ScaleShift

Norm = nn.BatchNorm2d


def added(self, x):
    return self.a(x) + self.b(x)


def layers(model: nn.Module) -> int:
    """Return how many convolutions, linear layers, norms, scales and pools are left."""
    kinds = (nn.modules.conv._ConvNd, nn.Linear, nn.modules.batchnorm._NormBase, ScaleShift)
    return sum(isinstance(m, (*kinds, nn.AvgPool1d, nn.AvgPool2d)) for m in model.modules())


# -- zero padding


def test_norm_before_a_padded_convolution() -> None:
    trap(nn.Sequential(Norm(3), conv()), reason="a shift meets the convolution's zero padding")


def test_norm_before_an_unpadded_convolution_folds() -> None:
    assert layers(sound(nn.Sequential(Norm(3), conv(padding=0))).apply()) == 1


def test_bias_before_zero_padding() -> None:
    model = nn.Sequential(conv(3, 5, 1), conv(5, 4))
    trap(model, reason="a bias meets the second convolution's zero padding")


def test_norm_between_pointwise_and_padded_convolution() -> None:
    model = nn.Sequential(conv(3, 5, 1, bias=False), Norm(5), conv(5, 4))
    done = trap(model)
    assert layers(done.apply()) == 2


def test_pointwise_without_bias_before_padding_folds() -> None:
    done = sound(nn.Sequential(conv(3, 5, 1, bias=False), conv(5, 4)))
    assert layers(done.apply()) == 1


def test_kernel_before_a_padded_kernel() -> None:
    model = nn.Sequential(conv(3, 5, bias=False), conv(5, 4))
    trap(model, reason="would have read beyond the border")


class Ringed(nn.Module):
    """DBB's BNAndPad: the ring is what the norm makes of zero."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.bn = Norm(channels)
        self.pad = nn.ZeroPad2d(1)

    def forward(self, x):
        return self.bn(self.pad(x))


def test_ring_of_the_norms_own_bias_folds() -> None:
    model = nn.Sequential(conv(3, 5, 1, bias=False), Ringed(5), conv(5, 4, padding=0), Norm(4))
    assert layers(sound(model, allow_growth=True).apply()) == 1


# -- other padding


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_branches_that_pad_differently(mode: str) -> None:
    model = net(added, a=conv(padding_mode=mode), b=conv())
    trap(model, reason="branches pad differently")


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_pool_beside_a_branch_that_pads_differently(mode: str) -> None:
    model = net(added, a=conv(3, 3, padding_mode=mode), b=nn.AvgPool2d(3, 1, 1))
    trap(model, reason="branches pad differently")


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_branch_that_does_not_pad_joins_any_mode(mode: str) -> None:
    done = sound(net(added, a=conv(padding_mode=mode), b=conv(3, 4, 1)))
    assert layers(done.apply()) == 1


@pytest.mark.parametrize("mode", ["reflect", "replicate", "circular"])
def test_norm_before_padding_that_repeats_folds(mode: str) -> None:
    done = sound(nn.Sequential(Norm(3), conv(padding_mode=mode)))
    assert layers(done.apply()) == 1


# -- pools


def test_pool_that_does_not_count_its_padding() -> None:
    model = net(added, a=conv(3, 3), b=nn.AvgPool2d(3, 1, 1, count_include_pad=False))
    assert layers(trap(model).apply()) == 2


def test_norm_passes_a_pool_that_does_not_count_its_padding() -> None:
    pool = nn.AvgPool2d(3, 1, 1, count_include_pad=False)
    done = sound(nn.Sequential(conv(), pool, Norm(4)))
    assert norms(done.apply()) == 0


def test_pool_with_ceil_mode() -> None:
    pool = nn.AvgPool2d(3, 2, 1, ceil_mode=True)
    model = net(added, a=conv(3, 3, stride=2), b=pool)
    sound(model, images(2, 3, 11, 9), reason="ceil_mode")
    sound(nn.Sequential(conv(), pool, Norm(4)), images(2, 3, 12, 10))


def test_norm_does_not_pass_counted_padding() -> None:
    model = nn.Sequential(Norm(3), nn.AvgPool2d(3, 1, 1), conv(padding=0))
    assert norms(sound(model).apply()) == 1


# -- kernels off centre


@pytest.mark.parametrize(
    ("one", "two", "inputs"),
    [
        ({"kernel": 4, "padding": 1}, {"kernel": 2, "padding": 0}, (9, 8)),
        ({"kernel": 4, "padding": "same"}, {"kernel": 2, "padding": "same"}, (9, 8)),
        ({"kernel": 3, "stride": 2}, {"kernel": 1, "stride": 2}, (9, 8)),
        ({"kernel": 3, "dilation": 2, "padding": 2}, {"kernel": 3}, (9, 8)),
        ({"kernel": 3, "groups": 3}, {"kernel": 1}, (9, 8)),
        ({"kernel": (3, 1), "padding": (1, 0)}, {"kernel": (1, 3), "padding": (0, 1)}, (9, 8)),
        ({"kernel": 5, "padding": (2, 3)}, {"kernel": 3, "padding": (1, 2)}, (9, 8)),
    ],
)
def test_kernels_of_any_kind_add_up(one: dict, two: dict, inputs: tuple) -> None:
    def made(options: dict) -> nn.Conv2d:
        kernel = options["kernel"]
        return nn.Conv2d(3, 3, **{"padding": 1 if kernel == 3 else 0, **rest(options)})

    model = net(added, a=made(one), b=made(two))
    done = sound(model, images(2, 3, *inputs), allow_growth=True)
    assert layers(done.apply()) == 1


def rest(options: dict) -> dict:
    return {"kernel_size" if key == "kernel" else key: value for key, value in options.items()}


def test_dilated_and_dense_kernels_are_not_laid_over_each_other() -> None:
    trap(net(added, a=conv(kernel=3, dilation=2, padding=2), b=conv()))


def test_equal_sizes_on_this_input_only() -> None:
    # (n - 3) // 2 + 1 and (n - 1) // 2 agree for odd n alone
    model = net(
        lambda self, x: self.a(x) + self.b(x)[..., 1:, 1:],
        a=conv(3, 3, stride=2, padding=0), b=conv(3, 3, 1, stride=2),
    )  # fmt: skip
    folded = sound(model, images(2, 3, 11, 9)).apply()
    assert gap(live(model), folded, images(2, 3, 13, 7)) <= 1e-9


# -- transposed


def test_output_padding_keeps_the_bias_of_the_norm() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(3, 4, 3, 2, 1, output_padding=1), Norm(4))
    assert layers(sound(model).apply()) == 1


def test_grouped_transposed_convolution() -> None:
    model = nn.Sequential(nn.ConvTranspose2d(4, 6, 3, 2, 1, groups=2), Norm(6))
    assert layers(trap(model, images(2, 4, 7, 7)).apply()) == 1


def test_norm_before_a_transposed_convolution() -> None:
    model = nn.Sequential(Norm(3), nn.ConvTranspose2d(3, 4, 3, 2, 1))
    sound(model, reason="does not reach every output alike")


# -- shapes that mean two things


@pytest.mark.parametrize("length", [5, 6])
def test_norm_of_tokens_is_over_the_second_axis(length: int) -> None:
    model = nn.Sequential(nn.Linear(4, 6), nn.BatchNorm1d(length))
    assert norms(trap(model, images(2, length, 4)).apply()) == 1


def test_norm_of_tokens_before_a_linear_layer() -> None:
    trap(nn.Sequential(nn.BatchNorm1d(6), nn.Linear(6, 4)), images(2, 6, 6))


def test_norm_of_vectors_folds() -> None:
    done = sound(nn.Sequential(nn.Flatten(), nn.Linear(4, 6), nn.BatchNorm1d(6)), images(7, 4))
    assert layers(done.apply()) == 1


def parameter(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


@pytest.mark.parametrize(
    ("outputs", "shape"),
    [(4, (9,)), (9, (9,)), (4, (11, 1)), (4, (2, 4, 1, 1)), (4, (2, 1, 1, 1)), (4, (4, 11, 9))],
)
def test_factors_that_are_not_per_channel(outputs: int, shape: tuple) -> None:
    model = net(
        lambda self, x: self.b(self.c(x) * self.gamma),
        c=conv(3, outputs), gamma=parameter(*shape), b=Norm(outputs),
    )  # fmt: skip
    sound(model)


@pytest.mark.parametrize("shape", [(4, 1, 1), (1, 4, 1, 1), (1,), (1, 1, 1, 1)])
def test_factors_that_are(shape: tuple) -> None:
    model = net(
        lambda self, x: self.b(self.c(x) * self.gamma), c=conv(), gamma=parameter(*shape), b=Norm(4)
    )
    assert layers(sound(model).apply()) == 1


@pytest.mark.parametrize("outputs", [4, 1])
def test_addition_that_spreads(outputs: int) -> None:
    def forward(self, x):
        return self.b(self.c(x) + self.d(x.mean((2, 3), keepdim=True)))

    sound(net(forward, c=conv(), d=conv(3, outputs, 1), b=Norm(4)))
    sound(net(added, a=conv(), b=conv(3, outputs)))


def test_factor_that_spreads_one_channel_over_many() -> None:
    def forward(self, x):
        return self.b(self.c(x) * self.gamma)

    sound(net(forward, c=conv(3, 1), gamma=parameter(4, 1, 1), b=Norm(4)))

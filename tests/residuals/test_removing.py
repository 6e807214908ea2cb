"""Residuals are gone and nothing else changed: the original network in float64 is the oracle."""

from __future__ import annotations

import copy
from random import Random
from typing import Any

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional as F

import refold
from helpers.nightly import some
from helpers.random_residuals import Block, Net, additions, build, conv, drawn, norm, pair, rng
from refold.errors import InputError
from refold.graph.layers import ChannelClamp, ChannelSlope
from refold.graph.lift.interval import Interval
from refold.residuals import plan as unbranch_plan
from refold.residuals import removal

pytestmark = pytest.mark.slow

TOLERANCE = 1e-9


def difference(model: nn.Module, plain: nn.Module, x: Tensor) -> float:
    with torch.no_grad():
        expected, found = model(x), plain(x)
    return float((expected - found).abs().max() / expected.abs().max())


def inputs(seed: int = 0) -> list[Tensor]:
    """Return ordinary, large, constant and impulse maps, of more than one even size."""
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(2, 3, 16, 16, generator=generator, dtype=torch.float64)
    impulse = torch.zeros(1, 3, 16, 16, dtype=torch.float64)
    impulse[0, :, 0, -1] = 9.0
    tall = torch.randn(1, 3, 24, 32, generator=generator, dtype=torch.float64)
    return [noise, noise * 20, torch.ones_like(noise), impulse, tall]


def plain_of(model: nn.Module, channels: int = 4, size: int = 8) -> nn.Module:
    return refold.remove_residuals(model, torch.randn(1, channels, size, size).double())


def _positive(net: Any, x: Tensor) -> Tensor:
    x = x.relu()
    return net.f(x) + net.s(x)


# random networks


@pytest.mark.parametrize("seed", some(range(24), keep=6))
def test_random_networks_lose_every_addition_and_stay_equal(seed: int) -> None:
    model = build(seed)
    example = inputs(seed)[0]
    plain = refold.remove_residuals(model, example)
    assert additions(model, example) == 3
    assert additions(plain, example) == 0
    for x in inputs(seed):
        assert difference(model, plain, x) < TOLERANCE


@settings(
    max_examples=15, deadline=None, derandomize=True, suppress_health_check=[HealthCheck.too_slow]
)
@given(st.randoms(use_true_random=False))
def test_any_residual_has_a_plain_form(rng: Random) -> None:
    """Kind, stride, width, function, shortcut and sign are hypothesis's choices, one by one."""
    model, x = drawn(rng, blocks=1), inputs()[0]
    plain = refold.remove_residuals(model, x)
    assert additions(model, x) == 1
    assert additions(plain, x) == 0
    for value in (x, x * 20, inputs()[4]):
        assert difference(model, plain, value) < TOLERANCE


def test_the_random_networks_catch_an_activation_left_as_it_was(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The control: a ReLU left over carried channels that may be negative changes the answer."""
    monkeypatch.setattr(unbranch_plan, "wider_function", lambda *args: None)
    wrong = 0
    for seed in range(8):
        model = build(seed)
        try:
            plain = refold.remove_residuals(model, inputs(seed)[0])
            wrong += difference(model, plain, inputs(seed)[0]) > 1e-3
        except InputError:  # a PReLU of too few channels
            wrong += 1
    assert wrong >= 4


# what published code gets wrong (the specification's list)


def bottleneck(act: nn.Module) -> Net:
    """Return an inverted residual: its input may be negative, and its values pass 6."""
    r = rng(1)
    middle = [*conv(12, 12, 3, r, groups=12), act]
    body = nn.Sequential(*conv(4, 12, 1, r), act, *middle, *conv(12, 4, 1, r))
    return Net(lambda net, x: x + net.f(x), f=body).double().eval()


def test_relu6_still_caps_the_branch_and_never_what_rides_along() -> None:
    model = bottleneck(nn.ReLU6())
    plain = plain_of(model)
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64) * 20
    with torch.no_grad():
        assert float(model.f[:2](x).max()) > 6  # driven above the cap
    assert difference(model, plain, x) < TOLERANCE
    for module in plain.modules():  # the published replacement, a PReLU without a cap
        if isinstance(module, ChannelClamp):
            module.high.fill_(torch.inf)
    assert difference(model, plain, x) > 1e-2


def test_a_projection_of_the_same_width_is_seen_at_stride_2() -> None:
    r = rng(2)
    body = nn.Sequential(*conv(4, 4, 3, r, 2), nn.ReLU(), *conv(4, 4, 3, r))
    side = nn.Sequential(*conv(4, 4, 1, r, 2))
    model = Net(_positive, f=body, s=side).double().eval()
    plain = plain_of(model)
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64)
    assert difference(model, plain, x) < TOLERANCE
    assert not any(isinstance(m, ChannelSlope | ChannelClamp) for m in plain.modules())


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.float16, torch.bfloat16])
def test_a_gate_is_exactly_one_for_what_rides_along(dtype: torch.dtype) -> None:
    hundred = torch.tensor(100.0, dtype=dtype)
    assert torch.sigmoid(hundred) == 1
    assert F.hardsigmoid(hundred) == 1


def test_consecutive_convolutions_without_a_function_between_are_no_pointwise_pair() -> None:
    r = rng(3)
    body = nn.Sequential(*conv(4, 6, 3, r), *conv(6, 6, 3, r), nn.ReLU(), *conv(6, 4, 3, r))
    model = Net(lambda net, x: x + net.f(x), f=body).double().eval()
    assert difference(model, plain_of(model), torch.randn(2, 4, 8, 8).double()) < TOLERANCE


def test_the_callers_network_is_not_touched_and_a_second_call_gives_the_same() -> None:
    model = build(5)
    before = copy.deepcopy(model.state_dict())
    example = inputs()[0]
    first, second = (refold.remove_residuals(model, example) for _ in range(2))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert additions(model, example) == 3
    assert all(
        torch.equal(a, b)
        for a, b in zip(first.state_dict().values(), second.state_dict().values(), strict=True)
    )
    shared = {t.data_ptr() for t in model.state_dict().values()}
    assert not shared & {t.data_ptr() for t in first.state_dict().values() if t.numel() > 1}


def test_the_sign_of_a_norms_mean_and_weight() -> None:
    """A norm between function and sum, with a negative weight: neither may be lost."""
    r = rng(4)
    body = nn.Sequential(*conv(4, 6, 3, r), nn.ReLU(), norm(6, r), nn.Conv2d(6, 4, 3, padding=1))
    body.append(norm(4, r))
    model = Net(lambda net, x: x + net.f(x), f=body).double().eval()
    assert difference(model, plain_of(model), torch.randn(2, 4, 8, 8).double()) < TOLERANCE


# what stays, and what it costs


def test_a_relu_stays_where_the_shortcut_is_proven_positive() -> None:
    model = Net(_positive, f=pair(nn.ReLU()), s=nn.Identity()).eval()
    plain = plain_of(model)
    assert type(plain.f[2]) is nn.ReLU
    model = Net(lambda net, x: x + net.f(x), f=pair(nn.ReLU())).eval()
    plain = plain_of(model)
    assert isinstance(plain.f[2], ChannelSlope)
    assert plain.f[2].slope.tolist() == [0.0] * 6 + [1.0] * 4
    assert "f.2.slope" in dict(plain.named_buffers())


def test_groups_keep_the_cost_small() -> None:
    r = rng(6)
    h = 16
    body = [*conv(4, h, 1, r), nn.ReLU(), *conv(h, h, 3, r, groups=4), nn.ReLU()]
    model = Net(lambda net, x: x + net.f(x), f=nn.Sequential(*body, *conv(h, 4, 1, r)))
    plain = plain_of(model.double().eval())
    middle = plain.f[3]
    assert (middle.groups, middle.in_channels) == (5, 20)  # one more group, not a dense layer


def test_a_gate_at_the_end_costs_two_multiply_adds_per_channel() -> None:
    r = rng(7)
    block = Block(4, 4, 1, "se last", r).double().eval()
    plain = plain_of(block)
    merges = [m for name, m in plain.named_modules() if name.endswith("merge")]
    assert [m.groups for m in merges] == [4]


def test_the_result_is_an_ordinary_module() -> None:
    model = nn.Sequential(Net(lambda net, x: x + net.f(x), f=pair(nn.ReLU6()))).double().eval()
    plain = plain_of(model)
    assert isinstance(plain[0], Net)
    assert "0.f.0.weight" in plain.state_dict()
    again = copy.deepcopy(plain)
    again.load_state_dict(plain.state_dict(), strict=True)
    x = torch.randn(2, 4, 8, 8, dtype=torch.float64, requires_grad=True)
    again(x).sum().backward()
    assert again[0].f[0].weight.grad is not None


def test_precision_and_memory_format_are_kept() -> None:
    model = Net(lambda net, x: x + net.f(x), f=pair(nn.ReLU6())).float().eval()
    model = model.to(memory_format=torch.channels_last)
    plain = refold.remove_residuals(model, torch.randn(1, 4, 8, 8))
    assert {t.dtype for t in plain.state_dict().values()} == {torch.float32}
    assert plain.f[0].weight.is_contiguous(memory_format=torch.channels_last)
    assert refold.verify(model, plain, torch.randn(1, 4, 8, 8))


def test_an_odd_map_is_refused_where_a_folded_pool_would_shrink_its_windows() -> None:
    r = rng(8)
    side = [nn.AvgPool2d(2, 2, ceil_mode=True, count_include_pad=False), *conv(4, 6, 1, r)]
    body = nn.Sequential(*conv(4, 5, 3, r, 2), nn.ReLU(), *conv(5, 6, 3, r))
    model = Net(lambda net, x: net.f(x) + net.s(x), f=body, s=nn.Sequential(*side))
    model = model.double().eval()
    plain = plain_of(model)
    assert difference(model, plain, torch.randn(2, 4, 12, 6).double()) < TOLERANCE
    with pytest.raises(AssertionError, match="divide by"):
        plain(torch.randn(1, 4, 7, 8).double())


def test_elu_carries_what_is_proven_positive() -> None:
    model = Net(_positive, f=pair(nn.ELU()), s=nn.Identity()).eval()
    assert difference(model, plain_of(model), torch.randn(2, 4, 8, 8).double()) < TOLERANCE


def test_the_account_names_places_and_cost() -> None:
    done = removal(nn.Sequential(bottleneck(nn.ReLU6())).eval(), torch.zeros(1, 4, 8, 8).double())
    assert [fold.where for fold in done.steps] == ["0"]
    assert done.kept == ()
    [fold] = done.steps
    assert fold.parameters_before == done.cost_before.parameters
    assert fold.parameters_after == done.cost_after.parameters
    assert "1 removed; parameters" in done.summary()


def test_an_interval_with_its_ends_the_wrong_way_says_nothing() -> None:
    assert Interval(3, 2) == Interval()

"""A masked network and its pruned form are equal in float64; the masked network is the oracle."""

from __future__ import annotations

from random import Random

import pytest
import torch
from torch import nn

import refold
from helpers.nightly import some
from helpers.pruning_nets import chain, difference, image, masked
from helpers.random_residuals import Net, build, conv, norm
from refold.pruning import drop_dead_channels, dropping

pytestmark = pytest.mark.slow

ACTS = [nn.ReLU(), nn.ReLU6(), nn.SiLU(), nn.GELU(), nn.Sigmoid(), nn.LeakyReLU(0.1)]


@pytest.mark.parametrize("act", ACTS, ids=lambda act: type(act).__name__)
@pytest.mark.parametrize("padded", [True, False])
@pytest.mark.parametrize("bias", some([True, False], keep=[True]))
def test_masked_and_pruned_are_equal(act: nn.Module, padded: bool, bias: bool) -> None:
    rng = Random(3)
    torch.manual_seed(3)
    model = masked(chain(rng, act, padded=padded), rng, bias=bias)
    done = dropping(model, image(), round_to=1)
    assert difference(model, done.model, image() * 4) < 1e-9
    assert done.steps
    assert done.cost_after.parameters < done.cost_before.parameters
    assert done.cost_after.macs < done.cost_before.macs


def test_a_constant_that_meets_a_padded_border_stays_and_is_named() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, 2, 3, padding=1))
    model = model.double().eval()
    model[0].weight.data[1] = 0
    model[0].bias.data[1] = 0.7
    done = dropping(model, image(), round_to=1)
    assert not done.steps
    assert [kept.where for kept in done.kept] == ["0"]
    assert "pads with 0" in done.kept[0].reason
    careless = nn.Sequential(nn.Conv2d(3, 3, 1), nn.ReLU(), nn.Conv2d(3, 2, 3, padding=1)).double()
    keep = [0, 2, 3]  # what a pruner that ignores borders would do
    careless[0].weight.data, careless[0].bias.data = (
        model[0].weight.data[keep],
        model[0].bias.data[keep],
    )
    careless[2].weight.data = model[2].weight.data[:, keep]
    share = model[2].weight.data[:, 1].sum((1, 2)) * 0.7
    careless[2].bias.data = model[2].bias.data + share
    assert difference(model, careless, image()) > 1e-3


def test_a_layer_is_never_emptied() -> None:
    model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 2, 3)).double().eval()
    model[0].weight.data.zero_()
    pruned = drop_dead_channels(model, image(), round_to=1)
    assert pruned[0].out_channels == 1
    assert difference(model, pruned, image()) < 1e-9


def test_channels_that_nobody_reads_go_and_take_others_with_them() -> None:
    layers = [nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Conv2d(4, 5, 3), nn.ReLU(), nn.Conv2d(5, 2, 3)]
    model = nn.Sequential(*layers).double().eval()
    model[4].weight.data[:, 1:] = 0  # four of five are unread
    model[2].weight.data[0, 2:] = 0  # and what is read reads two of four
    pruned = drop_dead_channels(model, image(), round_to=1)
    assert [pruned[i].out_channels for i in (0, 2, 4)] == [2, 1, 2]
    assert difference(model, pruned, image()) < 1e-9


def test_what_others_read_too_stays() -> None:
    r = Random(0)
    body = nn.Sequential(*conv(4, 6, 3, r), nn.ReLU(), *conv(6, 4, 3, r))
    model = Net(lambda net, x: net.a(x) + net.f(net.a(x)), f=body, a=nn.Sequential(norm(4, r)))
    masked(model.double().eval(), r)
    pruned = drop_dead_channels(model, image(4), round_to=1)
    assert difference(model, pruned, image(4)) < 1e-9


@pytest.mark.parametrize("seed", some(range(8), keep=3))
def test_without_residuals_masked_networks_lose_channels_everywhere(seed: int) -> None:
    """The point of removing residuals: channels that a sum tied together prune freely."""
    x = image(size=16)
    model = masked(build(seed), Random(seed))
    plain = refold.remove_residuals(model, x)
    tied, free = dropping(model, x, round_to=1), dropping(plain, x, round_to=1)
    assert difference(model, tied.model, x) < 1e-9
    assert difference(model, free.model, x) < 1e-9
    assert len(free.steps) >= len(tied.steps)

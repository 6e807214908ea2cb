"""Adapters are branches: low-rank ones, with a magnitude or without, go into what they adapt."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.traps import gap, images, net, sound
from refold import plan, reparameterize

SIZES = ((3, 6), (2, 5, 6), (2, 3, 4, 6))


def drawn(*shape: int) -> nn.Parameter:
    return nn.Parameter(torch.randn(shape))


def layers(model: nn.Module) -> int:
    kinds = (nn.Linear, nn.modules.conv._ConvNd)
    return sum(isinstance(module, kinds) for module in model.modules())


class Lora(nn.Module):
    """Several low-rank branches beside a linear layer, as modules."""

    def __init__(self, count: int = 1) -> None:
        super().__init__()
        self.base = nn.Linear(6, 7)
        self.down = nn.ModuleDict({str(i): nn.Linear(6, 2, bias=False) for i in range(count)})
        self.up = nn.ModuleDict({str(i): nn.Linear(2, 7, bias=bool(i)) for i in range(count)})
        self.drop = nn.Dropout(0.3)
        self.on = [str(i) for i in range(count)]

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        kind = y.dtype
        for name in self.on:
            x = x if x.dtype == self.down[name].weight.dtype else x.to(self.down[name].weight.dtype)
            y = y + self.up[name](self.down[name](self.drop(x))) * 0.7
        return y.to(kind)


@pytest.mark.parametrize("count", [1, 3])
@pytest.mark.parametrize("size", SIZES)
def test_low_rank_branches_go_into_the_layer(count: int, size: tuple[int, ...]) -> None:
    model = nn.Sequential(Lora(count), nn.ReLU())
    done = sound(model, images(*size))
    assert layers(done.apply()) == 1
    assert done.cost_after.parameters == 6 * 7 + 7
    assert not done.kept
    assert gap(model, done.apply(), images(5, *size[1:], seed=2)) <= 1e-9


def test_a_branch_that_is_off_is_no_branch() -> None:
    model = nn.Sequential(Lora(2), nn.ReLU())
    model[0].on = ["1"]
    x = images(3, 6)
    merged = reparameterize(model.double().eval(), x)
    assert gap(model, merged, x) <= 1e-9
    assert not [name for name, _ in merged.named_parameters() if name.startswith("0.down.1")]


def raw(self: Any, x: Tensor) -> Tensor:
    return x @ self.w + self.s * (x @ self.a) @ self.b


def transposed(self: Any, x: Tensor) -> Tensor:
    return F.linear(x, self.w.T) + F.dropout(x, 0.2, self.training) @ self.a @ self.b * self.s


def assembled(self: Any, x: Tensor) -> Tensor:
    return F.linear(x, (self.w + self.s * self.a @ self.b).T)


@pytest.mark.parametrize("forward", [raw, transposed, assembled])
@pytest.mark.parametrize("size", SIZES)
def test_branches_written_with_matrices(forward: Any, size: tuple[int, ...]) -> None:
    model = net(forward, w=drawn(6, 7), a=drawn(6, 2), b=drawn(2, 7), s=0.3)
    done = sound(model, images(*size))
    assert done.cost_after.parameters == 6 * 7
    assert layers(done.apply()) == 1


@pytest.mark.parametrize("rank", [1, 2, 3])
@pytest.mark.parametrize("stride", [1, 2])
def test_convolutions_have_them_too(rank: int, stride: int) -> None:
    conv: Any = getattr(nn, f"Conv{rank}d")
    model = net(
        lambda self, x: self.base(x) + 0.4 * self.up(self.down(x)),
        base=conv(6, 8, 3, stride, 1), up=conv(2, 8, 1, bias=False),
        down=conv(6, 2, 3, stride, 1, bias=False),
    )  # fmt: skip
    done = sound(model, images(2, 6, *(7,) * rank))
    assert layers(done.apply()) == 1
    assert not done.kept


# a magnitude


class Magnitude(nn.Module):
    """A layer whose rows have lengths of their own, computed from its weight at every call."""

    def __init__(self, layer: nn.Module, down: nn.Module, up: nn.Module) -> None:
        super().__init__()
        self.base, self.down, self.up = layer, down, up
        self.m = drawn(layer.weight.shape[0])  # type: ignore[arg-type]

    def scale(self, weight: Tensor, shape: tuple[int, ...]) -> Tensor:
        return (self.m / weight.flatten(1).norm(dim=1)).view(shape)

    def forward(self, x: Tensor) -> Tensor:
        base, down, up = self.base.weight, self.down.weight, self.up.weight
        product = (up.flatten(1) @ down.flatten(1)).reshape(base.shape)
        y = self.base(x)
        shape = (1, -1, *(1,) * (base.ndim - 2))
        scale = self.scale(base + 0.5 * product, shape)
        plain = y - self.base.bias.view(shape)
        return y + ((scale - 1) * plain + scale * self.up(self.down(x)) * 0.5)


def magnitude(rank: int) -> nn.Module:
    if not rank:
        return Magnitude(nn.Linear(6, 8), nn.Linear(6, 2, False), nn.Linear(2, 8, False))
    conv: Any = getattr(nn, f"Conv{rank}d")
    down, up = conv(6, 2, 3, padding=1, bias=False), conv(2, 8, 1, bias=False)
    return Magnitude(conv(6, 8, 3, padding=1), down, up)


@pytest.mark.parametrize("rank", [0, 1, 2])
def test_a_magnitude_from_the_weights_is_no_obstacle(rank: int) -> None:
    model = nn.Sequential(magnitude(rank), nn.ReLU())
    x = images(2, 6, *(7,) * rank)
    done = sound(model, x)
    merged = done.apply()
    assert layers(merged) == 1
    assert not done.kept
    assert len(list(merged.parameters())) == 2
    assert gap(model, merged, images(3, 6, *(9,) * rank)) <= 1e-9
    assert "Linear" in str(merged) or "Conv" in str(merged)


def test_a_weight_that_others_read_as_well_stays() -> None:
    def forward(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        return self.inner(x), (x * self.inner.base.weight[0]).tanh()

    done = sound(net(forward, inner=magnitude(0)), images(2, 6), reason="is read more than once")
    assert layers(done.apply()) == 3


def test_a_value_that_others_read_as_well_stays() -> None:
    def forward(self: Any, x: Tensor) -> tuple[Tensor, Tensor]:
        y = self.base(x)
        return y + (self.base.weight.norm() - 1) * y, y.tanh()

    done = sound(net(forward, base=nn.Linear(6, 8)), images(2, 6), reason="is read more than once")
    assert done.cost_after == done.cost_before


def test_layers_called_on_constants_are_computed_once() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        weight = self.up(self.down(torch.eye(6, dtype=self.down.weight.dtype))).T
        scale = (1 / (self.base.weight + weight.to(x.dtype)).norm(dim=1)).view(1, -1)
        return scale * (self.base(x) + self.up(self.down(x)))

    up, down = nn.Linear(2, 8, False), nn.Linear(6, 2, False)
    done = sound(net(forward, base=nn.Linear(6, 8), up=up, down=down), images(3, 6))
    assert layers(done.apply()) == 1
    assert not done.kept


# what cannot


def gated(self: Any, x: Tensor) -> Tensor:
    return self.base(x) + self.up(self.down(x)) * torch.sigmoid(x.mean(-1, keepdim=True))


def measured(self: Any, x: Tensor) -> Tensor:
    return self.base(x) + self.up(self.down(x)) / x.norm(dim=-1, keepdim=True)


@pytest.mark.parametrize("forward", [gated, measured])
def test_a_factor_from_the_input_stays(forward: Any) -> None:
    up, down = nn.Linear(2, 7, False), nn.Linear(6, 2, False)
    model = net(forward, base=nn.Linear(6, 7), down=down, up=up)
    done = sound(model, images(3, 6), reason="multiplied by a factor that is computed from the in")
    assert layers(done.apply()) == 3


def test_training_mode_of_a_branch_is_seen() -> None:
    model = nn.Sequential(Lora()).double().eval()
    model[0].drop.train()
    done = plan(model, images(3, 6))
    assert layers(done.apply()) == 3
    assert any("dropout is in training mode" in kept.reason for kept in done.kept)

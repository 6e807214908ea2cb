"""The gain of a layer norm goes into every linear layer that reads it, or into none."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from helpers.traps import images, net, sound
from refold import plan, reparameterize

NORMS: list[Any] = [nn.LayerNorm, nn.RMSNorm, lambda n: nn.LayerNorm(n, bias=False)]


def drawn(norm: nn.Module) -> nn.Module:
    """Return a norm with a gain and a bias as training leaves them, of both signs."""
    for parameter in norm.parameters():
        nn.init.normal_(parameter)
    return norm


def gains(model: nn.Module) -> int:
    kinds = (nn.LayerNorm, nn.RMSNorm)
    return sum(m.weight is not None for m in model.modules() if isinstance(m, kinds))


@pytest.mark.parametrize("kind", NORMS)
@pytest.mark.parametrize("bias", [True, False])
def test_the_gain_goes_into_all_readers(kind: Any, bias: bool) -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.n(x)
        return x + self.d(F.silu(self.g(y)) * self.u(y))

    model = net(
        forward, n=drawn(kind(8)), g=nn.Linear(8, 12, bias), u=nn.Linear(8, 12), d=nn.Linear(12, 8)
    )
    done = sound(model, images(2, 5, 8))
    assert gains(done.apply()) == 0
    assert [step.detail for step in done.steps] == ["g + u"]
    x = images(1, 3, 8)
    torch.testing.assert_close(done.apply()(x), model(x))
    torch.testing.assert_close(done.apply()(0 * x), model(0 * x))


def test_a_reader_that_takes_in_no_gain_keeps_it_for_all() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        y = self.n(x)
        return self.g(y) + y.tanh()

    model = net(forward, n=drawn(nn.LayerNorm(8)), g=nn.Linear(8, 8))
    done = sound(model, images(2, 5, 8), reason="tanh reads it as well")
    assert gains(done.apply()) == 1


def test_a_tied_reader_keeps_it() -> None:
    def forward(self: Any, x: Tensor) -> Tensor:
        return self.head(self.n(self.table(x)))

    model = net(
        forward, table=nn.Embedding(9, 8), n=drawn(nn.LayerNorm(8)), head=nn.Linear(8, 9, False)
    )
    model.head.weight = model.table.weight  # type: ignore[union-attr]
    x = torch.arange(6).reshape(2, 3)
    folded = reparameterize(model.double().eval(), x)
    torch.testing.assert_close(folded(x), model(x))
    assert gains(folded) == 1


def test_a_norm_called_twice_keeps_it() -> None:
    model = net(
        lambda self, x: self.g(self.n(self.g(self.n(x)).tanh())),
        n=drawn(nn.LayerNorm(8)), g=nn.Linear(8, 8),
    )  # fmt: skip
    assert gains(sound(model, images(2, 5, 8)).apply()) == 1
    model = net(
        lambda self, x: self.h(self.n(self.g(self.n(x)).tanh())),
        n=drawn(nn.LayerNorm(8)), g=nn.Linear(8, 8), h=nn.Linear(8, 8),
    )  # fmt: skip
    done = sound(model, images(2, 5, 8), reason="its gain stays: the module is called 2 times")
    assert gains(done.apply()) == 1


def test_a_value_that_another_call_returns_keeps_it() -> None:
    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.n, self.g = drawn(nn.LayerNorm(8)), nn.Linear(8, 8)

        def forward(self, x: Tensor, features: bool = False) -> Any:
            y = self.n(x)
            return (self.g(y), y) if features else self.g(y)

    model, x = Net().double().eval(), images(2, 5, 8)
    folded = reparameterize(model, x)
    for one, two in zip(folded(x, True), model(x, True), strict=True):
        torch.testing.assert_close(one, two)


def test_the_precision_stays() -> None:
    model = nn.Sequential(drawn(nn.LayerNorm(8)), nn.Linear(8, 4)).eval().requires_grad_(False)
    folded = plan(model, torch.randn(2, 8)).apply()
    assert {(p.dtype, p.requires_grad) for p in folded.parameters()} == {(torch.float32, False)}
    assert gains(folded) == 0


def test_a_norm_called_as_a_function_is_one() -> None:
    class Own(nn.LayerNorm):
        def forward(self, input: Tensor) -> Tensor:
            return F.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)

    model = net(
        lambda self, x: self.g(self.n(x)) * self.u(F.rms_norm(x, (8,), self.scale)),
        n=drawn(Own(8)), g=nn.Linear(8, 6), u=nn.Linear(8, 6), scale=nn.Parameter(torch.randn(8)),
    )  # fmt: skip
    done = sound(model, images(2, 5, 8))
    assert [step.detail for step in done.steps] == ["g", "u"]
    assert set(done.apply().state_dict()) == {"g.weight", "g.bias", "u.weight", "u.bias"}


CHANNELS = {
    "group": lambda: nn.GroupNorm(2, 4),
    "instance": lambda: nn.InstanceNorm2d(4, affine=True),
}


@pytest.mark.parametrize("groups", [1, 2])
@pytest.mark.parametrize("kind", CHANNELS)
def test_norms_of_maps_give_theirs_to_convolutions(kind: str, groups: int) -> None:
    model = nn.Sequential(CHANNELS[kind](), nn.Conv2d(4, 6, 3, stride=2, groups=groups)).double()
    with torch.no_grad():
        for p in model[0].parameters():
            p.normal_()
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    folded = reparameterize(model.eval(), x)
    assert not list(folded[0].parameters())
    for size in (x, 9 * x[:1, :, 2:]):
        torch.testing.assert_close(folded(size), model(size), rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("has_bias", [True, False])
def test_a_border_of_zeros_takes_in_a_gain_and_no_bias(has_bias: bool) -> None:
    model = nn.Sequential(nn.GroupNorm(2, 4), nn.Conv2d(4, 6, 3, padding=1)).double().eval()
    with torch.no_grad():
        model[0].weight.normal_()
        model[0].bias.fill_(1.0 if has_bias else 0.0)
    x = torch.randn(2, 4, 9, 8, dtype=torch.float64)
    folded = reparameterize(model, x)
    torch.testing.assert_close(folded(x), model(x), rtol=1e-10, atol=1e-10)
    if has_bias:
        assert "zero padding" in str(plan(model, x))


def test_gains_that_stay_cost_the_others_nothing() -> None:
    """Each refusal is told before anything is edited, so that no fold starts over for it."""
    pairs = [
        part for _ in range(30) for part in (nn.GroupNorm(2, 4), nn.Conv2d(4, 4, 3, padding=1))
    ]
    model = nn.Sequential(*pairs, nn.BatchNorm2d(4)).double().eval()
    with torch.no_grad():
        for p in model.parameters():
            p.normal_()
    done = plan(model, torch.randn(1, 4, 5, 5, dtype=torch.float64))
    assert [step.detail for step in done.steps] == ["59 + 60"]
    assert len([item for item in done.kept if "its gain stays" in item.reason]) == 30
